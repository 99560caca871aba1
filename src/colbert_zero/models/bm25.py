"""BM25, the lexical baseline, and a teacher that costs nothing."""

from collections.abc import Iterable

import bm25s
import numpy as np
import Stemmer
from scipy import sparse

K1, B = 1.2, 0.75
"""Lucene's own: saturation of the term frequency, and length normalisation."""


def terms_of(texts: Iterable[str]) -> list[list[str]]:
    """The terms of each text: English stems without stop words, in order.

    Example:
        >>> terms_of(["The lifts of a wing, lifted."])
        [['lift', 'wing', 'lift']]
    """
    tokenized = Bm25._tokenize(texts)
    stems = Stemmer.Stemmer("english").stemWords(list(tokenized.vocab))
    return [[stems[number] for number in ids] for ids in tokenized.ids]


class Bm25:
    """BM25 over English stems without stop words, Lucene's variant, indexed by bm25s.

    Every score is non-negative and deterministic. A query without a known term scores 0 everywhere.

    Args:
        texts: The documents; read once, not kept. The n-th has index n.
        k1: Saturation of the term frequency, > 0.
        b: Length normalisation, 0 to 1.

    Raises:
        ValueError: There is no document.

    Source: Lucene's variant in Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020;
    k1 and b are Lucene's own.
    """

    def __init__(self, texts: Iterable[str], k1: float = K1, b: float = B) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        tokenized = self._tokenize(texts)
        if not tokenized.ids:
            raise ValueError("BM25 needs at least one document")
        stems = self._stemmer.stemWords(list(tokenized.vocab))
        # Numbered by first sight, not by a set's order, so that sums run in the same order in every process.
        self._vocabulary = {stem: number for number, stem in enumerate(dict.fromkeys(stems))}
        numbers = [self._vocabulary[stem] for stem in stems]
        documents = [[numbers[token] for token in ids] for ids in tokenized.ids]
        self.documents_count = len(documents)
        shape = (self.documents_count, len(self._vocabulary))
        if self._vocabulary:
            index = bm25s.BM25(k1=k1, b=b, method="lucene")
            weights = index.build_index_from_ids(list(range(shape[1])), documents, show_progress=False)
            columns = (weights["data"], weights["indices"], weights["indptr"])
            self._by_term = sparse.csc_array(columns, shape=shape)
        else:
            self._by_term = sparse.csc_array(shape, dtype=np.float32)
        self._by_document = self._by_term.tocsr()

    def top(self, queries: list[str], k: int, tie_order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of each query, best first.

        Args:
            queries: Texts.
            k: How many; at most the whole corpus is returned.
            tie_order: Each document's place among equal scores, a permutation, (documents,); its index
                without it.

        Returns:
            Indices (queries, min(k, documents)) int64 and scores, same shape, float32.
        """
        k = min(k, self.documents_count)
        indices = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        every = np.arange(self.documents_count, dtype=np.int64)
        places = every if tie_order is None else tie_order.astype(np.int64)
        # A block's dense scores stay near 64 MB whatever the corpus.
        block = max(1, (1 << 24) // self.documents_count)
        for start in range(0, len(queries), block):
            terms = self._query_terms(queries[start : start + block])
            dense = (terms @ self._by_term.T).toarray()
            for row, row_scores in enumerate(dense, start):
                # The bits of non-negative floats sort like the floats: one unique integer key per document.
                keys = (row_scores.view(np.int32).astype(np.int64) << 32) - places
                best = np.argpartition(-keys, k - 1)[:k] if k < len(keys) else every
                best = best[np.argsort(-keys[best])]
                indices[row], scores[row] = best, row_scores[best]
        return indices, scores

    def score_pairs(self, queries: list[str], candidates: np.ndarray) -> np.ndarray:
        """Scores of each query's own candidates.

        Args:
            queries: Texts.
            candidates: Indices of documents, (queries, n_ways), int.

        Returns:
            (queries, n_ways), float32.

        Raises:
            ValueError: `candidates` has not one row a query.
        """
        candidates = np.asarray(candidates)
        if candidates.ndim != 2 or len(candidates) != len(queries):
            raise ValueError(f"candidates of shape {candidates.shape} for {len(queries)} queries")
        n_ways = candidates.shape[1]
        scores = np.empty(candidates.shape, dtype=np.float32)
        block = max(1, 16_384 // max(n_ways, 1))
        for start in range(0, len(queries), block):
            rows = slice(start, start + block)
            terms = self._query_terms(queries[rows])
            documents = self._by_document[candidates[rows].ravel()]
            owners = np.repeat(np.arange(terms.shape[0]), n_ways)
            scores[rows] = documents.multiply(terms[owners]).sum(axis=1).reshape(-1, n_ways)
        return scores

    def _query_terms(self, queries: list[str]) -> sparse.csr_array:
        """How often each known term is in each query, (queries, terms)."""
        tokenized = self._tokenize(queries)
        stems = self._stemmer.stemWords(list(tokenized.vocab))
        numbers = [self._vocabulary.get(stem, -1) for stem in stems]
        pairs = [(row, numbers[t]) for row, ids in enumerate(tokenized.ids) for t in ids if numbers[t] >= 0]
        rows, columns = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
        shape = (len(queries), len(self._vocabulary))
        return sparse.coo_array((np.ones(len(pairs), dtype=np.float32), (rows, columns)), shape=shape).tocsr()

    @staticmethod
    def _tokenize(texts: Iterable[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)
