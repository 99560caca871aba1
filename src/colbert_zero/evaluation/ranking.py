"""Exact ranking in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.runs import Run
from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import Task, encode
from colbert_zero.processes import gather_objects, process_rank, world_size
from colbert_zero.watch import stop_if_asked

# A block of documents ends at either: token embeddings stay near 150 MB at 128 dimensions.
BLOCK_DOCUMENTS = 4096

BLOCK_CHARACTERS = 1_000_000

Id = TypeVar("Id", bound=Any)


def rank(
    model: Encoder,
    collection: Collection,
    depth: int = 100,
    progress: Callable[[int, int], None] | None = None,
    block_documents: int = BLOCK_DOCUMENTS,
) -> Run:
    """The best documents of each query by exact MaxSim over the whole corpus.

    Memory holds the queries, one block of documents and each query's best; it does not grow with the
    corpus, save for what the collection itself keeps. Several processes share out the blocks; each returns
    the whole run.

    Args:
        model: A multi-vector model, or a dense one (cosine or dot product, whichever the model names).
        collection: Its documents are read once.
        depth: Documents a query keeps, > 0.
        progress: Called after each block of this process's with the documents done by all, about, and in all.
        block_documents: Documents embedded and scored together; changes nothing beyond float rounding.

    Returns:
        Every query of the collection; equal scores by document id, ascending.

    Raises:
        ColbertZeroError: A score is not finite, or the model's similarity is neither of the above.
    """
    queries, depth = embed(model, list(collection.queries.values()), "query"), depth + bool(collection.own)
    process = process_rank()
    best: list[list[tuple[float, str]]] = [[] for _ in collection.queries]
    done = 0
    for number, block in enumerate(_blocks(collection.documents(), block_documents)):
        stop_if_asked()
        if number % world_size() != process:
            done += len(block)
            continue
        documents = embed(model, [text for _, text in block], "document")
        with torch.no_grad():
            scores = packed_scores(queries, documents).cpu().numpy()
        if not np.isfinite(scores).all():
            raise ColbertZeroError(
                f"{collection.name}: the model gives scores that are not finite (documents {done + 1} to "
                f"{done + len(block)}); its training has diverged, lower the learning rate"
            )
        keep_best(best, scores, [document_id for document_id, _ in block].__getitem__, depth)
        done += len(block)
        if progress:
            progress(done, collection.documents_count)
    # A query's best of all processes: the same, whatever their number.
    found = zip(*gather_objects(best), strict=True)
    run = {
        query_id: [(document_id, -negative) for negative, document_id in sorted(chain.from_iterable(parts))[:depth]]
        for query_id, parts in zip(collection.queries, found, strict=True)
    }
    return _without_own(run, collection, depth)


def _without_own(run: Run, collection: Collection, depth: int) -> Run:
    """The run without the documents that are queries' own; it was made one deeper where there are such."""
    if not collection.own:
        return run
    return {
        query_id: [(d, score) for d, score in found if query_id not in collection.own or d != query_id][: depth - 1]
        for query_id, found in run.items()
    }


def rank_bm25(collection: Collection, depth: int = 100) -> Run:
    """The best documents of each query by BM25, equal scores by document id.

    A document that shares no term with the query is not retrieved, so a query may stay unanswered.
    """
    ids: list[str] = []

    def texts() -> Iterator[str]:
        for document_id, text in collection.documents():
            if len(ids) % BLOCK_DOCUMENTS == 0:
                stop_if_asked()
            ids.append(document_id)
            yield text

    bm25, depth = Bm25(texts()), depth + bool(collection.own)
    tie_order = np.empty(len(ids), dtype=np.int64)
    tie_order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    indices, scores = bm25.top(list(collection.queries.values()), depth, tie_order)
    run = {
        query_id: [(ids[i], float(score)) for i, score in zip(*rows, strict=True) if score > 0]
        for query_id, *rows in zip(collection.queries, indices, scores, strict=True)
    }
    return _without_own(run, collection, depth)


def embed(model: Encoder, texts: list[str], task: Task) -> Packed:
    """Embeddings whose MaxSim is the model's own similarity, on its device; a dense text has one token.

    Raises:
        ColbertZeroError: The similarity is neither cosine nor dot product.
    """
    embedded = encode(model, texts, task)
    if not isinstance(model, SentenceTransformer):
        return embedded
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ColbertZeroError(
            f"the model's similarity is {model.similarity_fn_name!r}; set similarity_fn_name to cosine or dot"
        )
    if model.similarity_fn_name == "dot":
        return embedded
    return Packed(torch.nn.functional.normalize(embedded.values, dim=-1), embedded.lengths)


def _blocks(documents: Iterable[tuple[str, str]], block_documents: int) -> Iterator[list[tuple[str, str]]]:
    block: list[tuple[str, str]] = []
    characters = 0
    for document in documents:
        block.append(document)
        characters += len(document[1])
        if len(block) == block_documents or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def keep_best(best: list[list[tuple[float, Id]]], scores: np.ndarray, id_of: Callable[[int], Id], depth: int) -> None:
    """Merge a block's scores, (queries, documents), into each query's best: (-score, document id), sorted.

    Args:
        best: Of each query; changed.
        scores: Of the block.
        id_of: The id of a column's document; asked only for those that may stay.
        depth: Documents a query keeps.
    """
    floor = np.array([-kept[-1][0] if len(kept) == depth else -np.inf for kept in best], dtype=scores.dtype)
    if scores.shape[1] > depth:
        # Nothing below the block's own depth-th score can stay; whatever equals it may, by its id.
        cut = scores.shape[1] - depth
        floor = np.maximum(floor, np.partition(scores, cut, axis=1)[:, cut])
    rows, columns = np.nonzero(scores >= floor[:, None])
    for row, pairs in groupby(zip(rows.tolist(), columns.tolist(), strict=True), key=itemgetter(0)):
        best[row] = sorted(best[row] + [(-float(scores[row, c]), id_of(c)) for _, c in pairs])[:depth]
