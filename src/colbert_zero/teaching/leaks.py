"""Leaks: which queries and documents of collections stand, in the same words, in training sources."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.data.collection import Collection
from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.overlap import SLICE, Index, Pairs, Seen, blocks, compare, compare_inside, indexes
from colbert_zero.data.prepared import ArrowPart, Part, Source
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.files import Progress, atomic_file, atomic_folder, to_json
from colbert_zero.teaching.derived import share_out

CLEAN, DOCUMENTS_SEEN, QUERIES_SEEN = "clean", "documents seen", "queries seen"

ROLES = ("queries", "documents")

DROP = ("any", "queries")
"""Which rows `write_clean` leaves out: with a text of a collection's query or document, or of a query alone."""

_BATCH, _EXAMPLES, _MOST_SOURCES = 1000, 3, 64
# A source is a bit of a number of 64.


@dataclass(frozen=True)
class Leaks:
    """What was found.

    Attributes:
        record: Of `sources`, `between` them, and `collections`: counts, verdicts and examples, as docs/supervision.md
            lists them.
        rows: Of each source by name, which rows have a text that overlaps with a collection's query ("queries"), or
            with any of its texts ("any"), (rows,), bool; nothing where not all rows were looked at.
    """

    record: dict[str, Any]
    rows: dict[str, dict[str, np.ndarray]]


class _Texts:
    """All texts of sources, row by row, as often as asked for, and where each stands.

    A query comes before its documents. A table of documents that rows refer to is read once, after the rows' queries.
    """

    def __init__(self, sources: Sequence[Source], most: int | None, progress: Progress | None):
        self.sources, self.progress, self.done, self.passes = sources, progress, 0, 0
        self.parts = [(number, part) for number, source in enumerate(sources) for part in source.parts.values()]
        sizes = {part.name: len(part) for _, part in self.parts}
        self.counts = share_out(sizes, most)
        self.whole = self.counts == sizes
        self.places: list[tuple[int, int, int]] = []
        """(part, first row, rows) of each batch; the rows of a table of documents have part −1 − source."""
        self.lengths: list[np.ndarray] = []
        """Texts of each row of a batch."""

    @property
    def rows(self) -> int:
        """Rows that are looked at."""
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[str]:
        first = not self.places
        for number, (_, part) in enumerate(self.parts):
            apart = self._table(part)
            for start, batch in _batches(part, self.counts[part.name], apart):
                documents = [] if apart else _documents(batch)
                if first:
                    self.places.append((number, start, len(batch["query"])))
                    self.lengths.append(
                        np.array([1 + len(row) for row in documents] if documents else [1] * len(batch["query"]))
                    )
                for row, query in enumerate(batch["query"]):
                    yield query
                    if documents:
                        yield from documents[row]
                self.done += len(batch["query"])
                if self.progress:
                    self.progress(self.done, self.passes * self.rows)
        for number, source in enumerate(self.sources):
            if (table := source.documents) is not None and self.whole:
                for start in range(0, len(table), _BATCH):
                    texts = table[start : start + _BATCH]["text"]
                    if first:
                        self.places.append((-1 - number, start, len(texts)))
                        self.lengths.append(np.ones(len(texts), np.int64))
                    yield from texts

    def _table(self, part: Part) -> bool:
        """Whether a part's documents are read from the table, all at once."""
        return self.whole and isinstance(part, ArrowPart) and part.documents is not None

    @cached_property
    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """The first text of each batch, and of each of the rows of all."""
        sizes = np.array([int(lengths.sum()) for lengths in self.lengths])
        rows = np.cumsum(np.concatenate([np.zeros(1, np.int64), *self.lengths]))[:-1]
        return np.cumsum(sizes) - sizes, rows

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """The place of each batch's first row among the rows of all."""
        counts = np.array([count for _, _, count in self.places])
        starts: np.ndarray = np.cumsum(counts) - counts
        return starts

    def batch_and_row(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batch of each text, and its row among the rows of all."""
        starts, rows = self._starts
        return np.searchsorted(starts, texts, "right") - 1, np.searchsorted(rows, texts, "right") - 1

    def about(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each text its source, and whether it is a query."""
        batches, rows = self.batch_and_row(texts)
        part = np.array([place[0] for place in self.places], np.int64)
        of_part = np.array([source for source, _ in self.parts])
        source = np.where(part < 0, -1 - part, of_part[np.maximum(part, 0)])
        return source[batches], (part[batches] >= 0) & (self._starts[1][rows] == texts)

    def where(self, text: int) -> tuple[str, int, str]:
        """The part of a text, its row, from 0, and the text itself, if its rows can be read again at once."""
        (batch,), (row,) = self.batch_and_row(np.array([text]))
        number, start, _ = self.places[batch]
        offset = int(row - self._first_rows[batch])
        if number < 0:
            source = self.sources[-1 - number]
            assert source.documents is not None
            return f"{source.name}, documents", start + offset, source.documents[start + offset]["text"]
        _, part = self.parts[number]
        within = text - int(self._starts[1][row])
        at = int(_numbers(part, self.counts[part.name])[start + offset])
        name = part.name if len(self.sources[self.parts[number][0]].parts) > 1 else part.name.split("/")[0]
        if not isinstance(part, ArrowPart):
            return name, at, ""
        columns = part.read([at])
        return name, at, columns["query"][0] if within == 0 else _documents(columns)[0][within - 1]

    def overlapping_rows(self, texts: np.ndarray) -> dict[str, np.ndarray]:
        """Of each source by name, which rows have one of these texts; of whole sources only."""
        flags = {part.name: np.zeros(len(part), bool) for _, part in self.parts}
        tables = {s.name: np.zeros(len(s.documents), bool) for s in self.sources if s.documents is not None}
        batches, rows = self.batch_and_row(texts)
        for batch, row in zip(batches.tolist(), (rows - self._first_rows[batches]).tolist(), strict=True):
            number, start, _ = self.places[batch]
            if number < 0:
                tables[self.sources[-1 - number].name][start + row] = True
            else:
                flags[self.parts[number][1].name][start + row] = True
        for number, part in self.parts:
            if (table := tables.get(self.sources[number].name)) is not None and isinstance(part, ArrowPart):
                for start in range(0, len(part), _BATCH):
                    for row, documents in enumerate(_documents(part.rows[start : start + _BATCH]), start):
                        flags[part.name][row] |= table[documents].any()
        return {source.name: np.concatenate([flags[name] for name in source.parts]) for source in self.sources}


def _numbers(part: Part, count: int) -> np.ndarray:
    """The rows of a part that are looked at: evenly spaced; of a streamed one the first."""
    return evenly_spaced(len(part) if isinstance(part, ArrowPart) else count, count)


def _batches(part: Part, count: int, queries: bool = False) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """The number of a batch's first row among those looked at, and its columns; or its queries alone."""
    if not isinstance(part, ArrowPart):
        done = 0
        for columns in part.sample(count):
            yield done, columns
            done += len(columns["query"])
        return
    numbers = _numbers(part, count)
    for start in range(0, count, _BATCH):
        chosen = numbers[start : start + _BATCH]
        yield start, ({"query": part.rows[chosen]["query"]} if queries else part.read(chosen))


def _documents(columns: dict[str, list[Any]]) -> list[list[Any]]:
    """Each row's documents: its candidates, or its document and its negatives."""
    if "documents" in columns:
        candidates: list[list[Any]] = columns["documents"]
        return candidates
    return [[document, *more] for document, more in zip(columns["document"], columns["negatives"], strict=True)]


class _Entries:
    """All texts of collections: of each the queries, then the documents or evenly spaced ones."""

    def __init__(self, collections: Sequence[Collection], most: int | None):
        self.collections = collections
        counts = share_out({str(n): c.documents_count for n, c in enumerate(collections)}, most)
        self.documents = [evenly_spaced(c.documents_count, counts[str(n)]) for n, c in enumerate(collections)]
        sizes = [[len(c.queries), len(chosen)] for c, chosen in zip(collections, self.documents, strict=True)]
        self.starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64).ravel())])

    def __iter__(self) -> Iterator[str]:
        for number, collection in enumerate(self.collections):
            yield from collection.queries.values()
            yield from (text for _, text in self._chosen(number))

    def _chosen(self, number: int) -> Iterator[tuple[str, str]]:
        wanted = self.documents[number].tolist()
        whole = len(wanted) == self.collections[number].documents_count
        places = iter(wanted)
        place = next(places, None)
        for at, document in enumerate(self.collections[number].documents()):
            if whole or at == place:
                yield document
                place = next(places, None)

    def about(self, entry: int) -> tuple[int, int]:
        """The collection, and 0 of a query, 1 of a document."""
        return divmod(int(np.searchsorted(self.starts, entry, "right")) - 1, 2)

    def texts(self, entries: set[int]) -> dict[int, tuple[str, str]]:
        """Id and text of these entries."""
        found: dict[int, tuple[str, str]] = {}
        for number, collection in enumerate(self.collections):
            queries, documents, end = self.starts[2 * number : 2 * number + 3].tolist()
            if any(queries <= entry < documents for entry in entries):
                found |= {e: item for e, item in enumerate(collection.queries.items(), queries) if e in entries}
            if any(documents <= entry < end for entry in entries):
                found |= {e: item for e, item in enumerate(self._chosen(number), documents) if e in entries}
        return found


def find_leaks(
    sources: Sequence[Source],
    collections: Sequence[Collection],
    inside: bool = True,
    most_rows: int | None = None,
    most_documents: int | None = None,
    progress: Progress | None = None,
) -> Leaks:
    """Exact and near-duplicate texts between sources and collections, and inside and between sources.

    Memory holds at most `SLICE` grams at once, with what sorts them 1.5 GB, 20 bytes a training text and 40 a row;
    larger collections are compared in slices, for each of which the sources are read again. Inside and between sources
    more than `SLICE` grams are sampled, alike in all texts, so that some near-duplicates of short texts are missed;
    `record` tells the share.

    Args:
        sources: At most 64.
        collections: Queries and documents, titles with them.
        inside: Also look for duplicates inside and between the sources.
        most_rows: Look at so many rows of all sources, spread in proportion to size; of a streamed one at its first.
        most_documents: Look at so many documents of all collections, likewise.
        progress: Called with the rows read and those to be read, as far as that is known, time and again.

    Raises:
        ColbertZeroError: There are more than 64 sources.
    """
    if len(sources) > _MOST_SOURCES:
        raise ColbertZeroError(f"{len(sources)} sources: at most {_MOST_SOURCES} are compared at once; leave some out")
    texts, entries = _Texts(sources, most_rows, progress), _Entries(collections, most_documents)
    found = _Found(texts, entries)
    for index in indexes(entries):
        texts.passes += 1
        found.add(index, *compare(index, texts))
    texts.passes += inside
    record: dict[str, Any] = {"sources": {source.name: {"rows": source.record["rows"]} for source in sources}}
    if inside:
        record["sources"], record["between"], record["sampled"] = _inside(texts)
    record |= {"collections": found.records(), "rows": texts.rows, "whole": texts.whole}
    rows = {of: texts.overlapping_rows(found.texts(of)) for of in DROP if texts.whole and collections}
    for of, flagged in rows.items():
        for name, flags in flagged.items():
            record["sources"][name][f"overlapping_{of}"] = int(flags.sum())
    return Leaks(record, rows)


class _Found:
    """Which entries of collections are seen in which sources; the nearest text of each."""

    def __init__(self, texts: _Texts, entries: _Entries):
        self._texts, self._entries = texts, entries
        self._offset = 0
        self._nearest: dict[int, tuple[float, int]] = {}
        self._sources: dict[int, int] = {}
        self._flagged: dict[str, list[np.ndarray]] = {of: [np.empty(0, np.int64)] for of in DROP}

    def add(self, index: Index, pairs: Pairs, seen: Seen) -> None:
        """Take note of what overlaps with an index of the next entries."""
        groups = _Groups(seen.hashes)
        group = groups.of[pairs.texts]
        different = np.unique(group)
        masks = dict(zip(different.tolist(), groups.masks(different, self._texts), strict=True))
        self._flagged["any"].append(groups.members(different))
        order = np.argsort(index.same, kind="stable")
        starts = np.searchsorted(index.same[order], np.arange(len(index.hashes) + 1))
        lists = (part.tolist() for part in (pairs.texts, pairs.found, pairs.shares, group))
        for text, other, share, of in zip(*lists, strict=True):
            entries = (order[starts[other] : starts[other + 1]] + self._offset).tolist()
            if any(self._entries.about(entry)[1] == 0 for entry in entries):
                self._flagged["queries"].append(groups.members(np.array([of])))
            for entry in entries:
                self._sources[entry] = self._sources.get(entry, 0) | masks[of]
                if share > self._nearest.get(entry, (0.0, 0))[0]:
                    self._nearest[entry] = share, text
        self._offset += len(index.same)

    def texts(self, of: str) -> np.ndarray:
        """All training texts that overlap with queries, or with anything, ascending."""
        return np.unique(np.concatenate(self._flagged[of]))

    def records(self) -> dict[str, Any]:
        """Of each collection by name."""
        names = [source.name for source in self._texts.sources]
        records: dict[str, Any] = {}
        shown: dict[int, list[int]] = {}
        for number, collection in enumerate(self._entries.collections):
            records[collection.name] = {
                "verdict": CLEAN,
                "queries": len(collection.queries),
                "documents": collection.documents_count,
                "documents_compared": len(self._entries.documents[number]),
                **{f"{role}_{kind}": 0 for role in ROLES for kind in ("seen", "equal")},
                "by_source": {},
                "examples": [],
            }
        for entry in sorted(self._nearest):
            number, role = self._entries.about(entry)
            record = records[self._entries.collections[number].name]
            record[f"{ROLES[role]}_seen"] += 1
            record[f"{ROLES[role]}_equal"] += self._nearest[entry][0] == 1
            for bit, name in enumerate(names):
                if self._sources[entry] >> bit & 1:
                    record["by_source"].setdefault(name, dict.fromkeys(ROLES, 0))[ROLES[role]] += 1
            # Copies with changes say more than equal ones: those come first.
            shown.setdefault(2 * number + role, []).append(entry)
        chosen = [e for seen in shown.values() for e in sorted(seen, key=lambda e: self._nearest[e])[:_EXAMPLES]]
        texts = self._entries.texts(set(chosen))
        for entry in chosen:
            number, role = self._entries.about(entry)
            share, text = self._nearest[entry]
            part, row, theirs = self._texts.where(text)
            record = records[self._entries.collections[number].name]
            about: dict[str, Any] = {"of": ROLES[role], "id": texts[entry][0], "text": short(texts[entry][1])}
            about |= {"part": part, "row": row, "training_text": short(theirs), "share": round(share, 3)}
            record["examples"].append(about)
        for record in records.values():
            seen_roles = [role for role in ROLES if record[f"{role}_seen"]]
            record["verdict"] = f"{seen_roles[0]} seen" if seen_roles else CLEAN
        return records


class _Groups:
    """Equal texts as groups: `of` has the group of each text."""

    def __init__(self, hashes: np.ndarray):
        self.hashes, self.of = np.unique(hashes, return_inverse=True)
        self._order = np.argsort(self.of, kind="stable")
        self._ends = np.cumsum(np.bincount(self.of, minlength=len(self.hashes)))

    def members(self, groups: np.ndarray) -> np.ndarray:
        """The texts of these groups, one group after the other."""
        parts = (self._order[(self._ends[g - 1] if g else 0) : self._ends[g]] for g in groups.tolist())
        return np.concatenate([np.empty(0, np.int64), *parts])

    def masks(self, groups: np.ndarray, texts: _Texts) -> list[int]:
        """The sources of each group's texts, a bit each."""
        members = self.members(groups)
        source, _ = texts.about(members)
        masks = np.zeros(len(self.hashes), np.uint64)
        np.bitwise_or.at(masks, self.of[members], np.uint64(1) << source.astype(np.uint64))
        found: list[int] = masks[groups].tolist()
        return found


def _inside(texts: _Texts) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Duplicates inside and between sources, and the share of grams that was looked at."""
    index = Index(blocks(texts), SLICE)
    pairs = compare_inside(index)
    source, queries = texts.about(np.arange(len(index.same)))
    masks = np.zeros(len(index.hashes), np.uint64)
    np.bitwise_or.at(masks, index.same, np.uint64(1) << source.astype(np.uint64))
    near = np.zeros(len(index.hashes), np.uint64)
    np.bitwise_or.at(near, pairs.texts, masks[pairs.found])
    np.bitwise_or.at(near, pairs.found, masks[pairs.texts])

    def has(of: np.ndarray, number: int) -> np.ndarray:
        return np.asarray((of >> np.uint64(number)) & np.uint64(1) == 1)

    sources: dict[str, Any] = {}
    between: dict[str, Any] = {}
    for number, one in enumerate(texts.sources):
        mine = source == number
        repeated = {
            f"{role}_repeated": int(mine[queries == is_query].sum())
            - len(np.unique(index.same[mine & (queries == is_query)]))
            for role, is_query in zip(ROLES, (True, False), strict=True)
        }
        sources[one.name] = {"rows": one.record["rows"], "texts": int(mine.sum()), **repeated}
        sources[one.name]["near"] = int((has(masks, number) & has(near, number)).sum())
        for other in range(number):
            equal = int((has(masks, number) & has(masks, other)).sum())
            alike = int((has(masks, number) & has(near, other) & ~has(masks, other)).sum())
            if equal or alike:
                between[f"{one.name} and {texts.sources[other].name}"] = {"equal": equal, "near": alike}
    return sources, between, 1 / index.keep


# ---- Writing what is left


def write_rows(source: Source, keep: Mapping[str, np.ndarray], path: Path) -> int:
    """Write the chosen rows as JSON lines that a `jsonl` source reads: one file, or one a part in a folder.

    Args:
        source: Its rows are read in order.
        keep: Which rows of each part, (rows,), bool.
        path: Without a suffix: `path.jsonl` of a source of one part, else `path/PART.jsonl`.

    Returns:
        Rows written.
    """
    written = 0
    for part in source.parts.values():
        name = part.name.split("/", 1)[1].strip("/").replace("/", "-")
        file_path = path.with_name(f"{path.name}.jsonl") if len(source.parts) == 1 else path / f"{name}.jsonl"
        chosen = keep[part.name]
        with atomic_file(file_path) as file:
            for start, batch in _batches(part, len(part)):
                for row in range(len(batch["query"])):
                    if chosen[start + row]:
                        line = {key: column[row] for key, column in batch.items()}
                        if "negatives" in line and not line["negatives"]:
                            del line["negatives"]
                        file.write(to_json(line) + "\n")
                        written += 1
    return written


def write_clean(sources: Sequence[Source], leaks: Leaks, folder: Path, drop: str = "any") -> dict[str, int]:
    """Write the sources without the rows that overlap with a collection; returns the rows written, by source."""
    written = {}
    with atomic_folder(folder) as temporary:
        for source in sources:
            starts = np.cumsum([0, *map(len, source.parts.values())]).tolist()
            rows = leaks.rows[drop][source.name]
            kept = {
                n: ~rows[start : start + len(p)] for start, (n, p) in zip(starts, source.parts.items(), strict=False)
            }
            written[source.name] = write_rows(source, kept, temporary / source.name)
    return written
