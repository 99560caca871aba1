"""What is mined, on disk: each query and each document once, the corpus's documents before the other positives."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from colbert_zero.data.corpus import corpus_texts
from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.prepared import DOCUMENTS, Part, Source, arrow_file
from colbert_zero.data.streams import StreamedPart
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import BLOCK_CHARACTERS, BLOCK_DOCUMENTS
from colbert_zero.files import atomic_folder, read_json, write_json
from colbert_zero.teaching.derived import share_out

GROUP_QUERIES = 32_768
"""Queries whose embeddings are in memory at once: half a gigabyte at 32 tokens of 128 dimensions."""

_ROWS_AT_ONCE = 1024
"""Divides a stream's block, of which all rows that are read at once must be."""


@dataclass(frozen=True)
class Inputs:
    """Queries, documents, and who answers what; texts are memory-mapped.

    Attributes:
        queries: Distinct queries: `text`.
        documents: Distinct documents: `text`; the first `corpus_size` are those to mine in.
        corpus_size: How many these are.
        blocks: First documents of the blocks, and the number of documents, (blocks + 1,).
        rows: Of each pair that is used its query, its document and its part, (rows, 3), int64, in the source's order.
        answers: Every known pair of the source, used or not, once: (pairs, 2), int64, sorted.
        parts: Names of the source's parts.
        told: What was left out: `empty` and `duplicates` of the corpus, rows whose `own_negatives` are replaced.
        dropped: Rows of a streamed source that were left out, by reason; of another its record has them.
    """

    queries: Dataset
    documents: Dataset
    corpus_size: int
    blocks: np.ndarray
    rows: np.ndarray
    answers: np.ndarray
    parts: list[str]
    told: dict[str, int]
    dropped: dict[str, int]

    def query_texts(self, first: int, end: int) -> list[str]:
        """Texts of these queries."""
        return list(self.queries[first:end]["text"])

    def document_texts(self, numbers: np.ndarray) -> list[str]:
        """Texts of these documents."""
        return list(self.documents[np.asarray(numbers, np.int64)]["text"]) if len(numbers) else []

    def document_text(self, number: int) -> str:
        """Text of one document, in a microsecond or two."""
        return str(self.documents.data.column("text")[number].as_py())

    def corpus(self) -> Iterator[str]:
        """Texts of the documents to mine in."""
        for first in range(0, self.corpus_size, _ROWS_AT_ONCE):
            yield from self.documents[first : min(first + _ROWS_AT_ONCE, self.corpus_size)]["text"]

    def every(self) -> Iterator[str]:
        """Texts of all documents."""
        for first in range(0, len(self.documents), _ROWS_AT_ONCE):
            yield from self.documents[first : first + _ROWS_AT_ONCE]["text"]

    def groups(self) -> list[tuple[int, int]]:
        """(first, end) of each group of queries."""
        count = len(self.queries)
        return [(first, min(first + GROUP_QUERIES, count)) for first in range(0, count, GROUP_QUERIES)]

    def answers_of(self, query: int) -> np.ndarray:
        """Documents that are known to answer a query."""
        first, end = np.searchsorted(self.answers[:, 0], [query, query + 1])
        answers: np.ndarray = self.answers[first:end, 1]
        return answers


def write_inputs(folder: Path, source: Source, corpus: list[Path] | None, used: int | None, whose: str) -> Path:
    """Write down what is mined, once; returns the folder.

    Args:
        folder: Where.
        source: Of pairs; a streamed one is read through once, and what is mined of it is kept.
        corpus: Files of documents; None: the source's own documents are the corpus.
        used: How many of its rows get negatives, spread over its parts in proportion; None: all.
        whose: What names the source, for messages.

    Raises:
        ColbertZeroError: A document cannot be used, there is none, or the source has no pairs.
    """
    if folder.is_dir():
        return folder
    source_parts = list(source.parts.values())
    for part in source_parts:
        if part.scored:
            raise ColbertZeroError(f"{whose}: {source.name} has scored candidates, not pairs to mine")
    told = {"empty": 0, "duplicates": 0, "own_negatives": 0}
    with atomic_folder(folder) as temporary:
        with arrow_file(temporary / "documents.arrow", DOCUMENTS) as write:
            numbered = _Numbered(write)
            for text in corpus_texts(corpus) if corpus else ():
                if text is None:
                    told["empty"] += 1
                elif not numbered.add(text)[1]:
                    told["duplicates"] += 1
            if corpus and not len(numbered):
                raise ColbertZeroError(f"{corpus[0]}: has no document with a text; name another corpus")
            corpus_size = len(numbered)
            with arrow_file(temporary / "queries.arrow", DOCUMENTS) as write_query:
                pairs = _pairs(source_parts, numbered, _Numbered(write_query), told)
        sizes = {part.name: len(part) for part in source_parts}
        rows, before = [], 0
        for place, (name, count) in enumerate(share_out(sizes, used).items()):
            found = pairs[before + evenly_spaced(sizes[name], count)]
            rows.append(np.concatenate([found, np.full((count, 1), place)], axis=1))
            before += sizes[name]
        for name, array in {
            "rows": np.concatenate(rows),
            "answers": np.unique(pairs, axis=0),
            "blocks": np.array(numbered.blocks),
        }.items():
            np.save(temporary / f"{name}.npy", array.astype(np.int64))
        dropped = sum(
            (Counter(part.dropped) for part in source_parts if isinstance(part, StreamedPart)), Counter[str]()
        )
        known = {
            "corpus_size": corpus_size if corpus else len(numbered),
            "parts": [part.name.split("/", 1)[1] for part in source_parts],
            "told": told,
            "dropped": dict(dropped),
        }
        write_json(temporary / "inputs.json", known)
    return folder


def open_inputs(folder: Path) -> Inputs:
    """What `write_inputs` wrote."""
    queries, documents = (Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("queries", "documents"))
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("blocks", "rows", "answers")}
    return Inputs(queries, documents, **arrays, **read_json(folder / "inputs.json"))


class _Numbered:
    """Distinct texts, numbered as they come and written; known by 16 bytes each. Notes where blocks begin."""

    def __init__(self, write: Any) -> None:
        self._write, self._numbers = write, dict[bytes, int]()
        self._characters, self._starts = 0, [0]

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def blocks(self) -> list[int]:
        """First texts of the blocks, and the number of texts."""
        return [*self._starts, len(self)] if len(self) > self._starts[-1] else self._starts

    def add(self, text: str) -> tuple[int, bool]:
        """A text's number, and whether it is new."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if (number := self._numbers.get(digest)) is not None:
            return number, False
        self._numbers[digest] = number = len(self)
        self._write({"text": text})
        self._characters += len(text)
        if number + 1 - self._starts[-1] == BLOCK_DOCUMENTS or self._characters >= BLOCK_CHARACTERS:
            self._starts.append(number + 1)
            self._characters = 0
        return number, True


def _pairs(parts: list[Part], documents: _Numbered, queries: _Numbered, told: dict[str, int]) -> np.ndarray:
    """Query and document of every row of the source, (rows, 2)."""
    pairs = np.empty((sum(map(len, parts)), 2), np.int64)
    row = 0
    for part in parts:
        for first in range(0, len(part), _ROWS_AT_ONCE):
            block = part.read(range(first, min(first + _ROWS_AT_ONCE, len(part))))
            told["own_negatives"] += sum(map(bool, block["negatives"]))
            for query, document in zip(block["query"], block["document"], strict=True):
                pairs[row] = queries.add(query)[0], documents.add(document)[0]
                row += 1
    return pairs
