"""What phases will read: sources that are prepared, samples of those that are not, and what is published of the rest.

| a source that is not prepared | how many rows | which of them are looked at |
|---|---|---|
| files of at most 256 MB together, unpacked; docstrings | all | all: they are prepared as a run would, and kept |
| JSON lines, tab-separated | its lines, by the usable share of those looked at | the first 2,048 usable of each file |
| Parquet, Hub (streamed, also over the network) | what its files say | the first 2,048 usable of each part |
| three tables | all | all, prepared in a folder that is deleted again |
| Hub, which cannot be reached | published.yaml | none: each text counts as the longest allowed |
| mined, scored | as of what they are made of | mined from the sample by BM25; a teacher's candidates are its `of`'s |

Held-out pairs are taken off the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.prepared import ArrowPart, Part
from colbert_zero.data.readers import input_files
from colbert_zero.data.streams import StreamedPart, is_streamed
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import place_of, read_lines
from colbert_zero.planning.published import published, rows_of
from colbert_zero.recipe.data import Docstrings, Folder, HeldOut, Hub, Jsonl, Mined, Parquet, Scored, SourceSpec, Tsv
from colbert_zero.recipe.miners import BM25
from colbert_zero.recipe.schema import Phase, Recipe
from colbert_zero.study.disk import source_bytes
from colbert_zero.study.graph import chains_behind, graph, root_of
from colbert_zero.study.study import Study
from colbert_zero.teaching.derived import share_out

SAMPLED_ROWS = 2048
"""Of each part."""

SMALL = 256 * 2**20
"""Bytes of a source's texts."""

MINED_ROWS = 512
"""Queries of a sample for which hard negatives are mined."""


@dataclass(frozen=True)
class PlannedPart:
    """A part of a source, as a plan knows it.

    Attributes:
        name: SOURCE/PART.
        rows: That it has or will have.
        scored: Whether they are candidates with scores.
        texts: The different numbers of candidates, or of hard negatives, that rows have.
        seen: Some of its rows; None where none can be read.
        whole: Whether these are all.
    """

    name: str
    rows: int
    scored: bool
    texts: tuple[int, ...]
    seen: Part | None
    whole: bool

    def __len__(self) -> int:
        return self.rows

    def lengths(self) -> list[int]:
        """As of a `Part`."""
        return list(self.texts)


@dataclass(frozen=True)
class Unscored:
    """Rows of a mined source as the candidates that a teacher has not scored yet: their scores are 0."""

    name: str
    mined: ArrowPart
    numbers: np.ndarray
    scored: bool = True
    block: None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def lengths(self) -> list[int]:
        """Of a row's document and its negatives."""
        return [1 + count for count in self.mined.lengths()]

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """As of a scored part."""
        rows = self.mined.read(self.numbers[np.asarray(indices, np.int64)])
        candidates = [[own, *others] for own, others in zip(rows["document"], rows["negatives"], strict=True)]
        return {"query": rows["query"], "documents": candidates, "scores": [[0.0] * len(row) for row in candidates]}

    def sample(self, most: int) -> Iterator[dict[str, list[Any]]]:
        """The first rows."""
        yield self.read(range(min(most, len(self))))

    def for_phase(self, spec: Phase) -> "Unscored":
        """Itself."""
        return self


class Prepared:
    """What phases of a study read whose sources are prepared. What they are mined from is mined now."""

    def __init__(self, study: Study):
        self.recipe, self.study = study.recipe, study
        self.told: list[str] = []

    def parts(self, root: str) -> Mapping[str, PlannedPart]:
        """Parts of a source that is made of no other."""
        return {name: _planned(part) for name, part in self.study.source(root).parts.items()}

    def look(self, source: str) -> Mapping[str, PlannedPart]:
        """Parts of a source as a phase reads them; candidates that are not scored yet are those of its `of`."""
        entry = self.recipe.sources[source]
        if not isinstance(entry, Scored) or (has_id(self.recipe, source) and self.study.is_made(source)):
            return self.parts(source)
        mined = self.study.source(entry.of).tables
        counts = share_out({name: len(part) for name, part in mined.items()}, entry.queries)
        renamed = {f"{source}/{name.split('/', 1)[1]}": (part, counts[name]) for name, part in mined.items()}
        return {
            name: _planned(Unscored(name, part, evenly_spaced(len(part), count)))
            for name, (part, count) in renamed.items()
        }


class Sampled:
    """What phases of a study read whose sources are not prepared, from a sample of these.

    Args:
        study: Nothing of its folder is written.
        folder: Where samples go; whoever asks deletes it.
    """

    def __init__(self, study: Study, folder: Path):
        self.recipe, self.told = study.recipe, list[str]()
        sources = {name: _sample_of(spec) for name, spec in study.recipe.sources.items()}
        # Held-out pairs are no part of a sample's size.
        small = study.recipe.model_copy(update={"sources": sources, "collections": {}})
        self.study = Study(small, folder, study.show, study.cache, commits=dict(study.commits))
        self._whole, self._small = study, Prepared(self.study)
        self._parts: dict[str, Mapping[str, PlannedPart]] = {}

    def parts(self, root: str) -> Mapping[str, PlannedPart]:
        """Parts of a source that is made of no other, with the rows that they will have."""
        if root not in self._parts:
            self._parts[root] = self._held_out(root, self._found(root))
        return self._parts[root]

    def look(self, source: str) -> Mapping[str, PlannedPart]:
        """Parts of a source as a phase reads them, each with some rows to look at."""
        root = root_of(self.recipe, source)
        if any(part.seen is None for part in self.parts(root).values()):
            own = {name.split("/", 1)[1]: part for name, part in self.parts(root).items()}
            return {f"{source}/{name}": part for name, part in own.items()}
        if root == source:
            return self.parts(source)
        return {name: replace(part, whole=False) for name, part in self._small.look(source).items()}

    def _found(self, root: str) -> dict[str, PlannedPart]:
        spec = self.recipe.sources[root]
        try:
            self.study.prepare_sources({root})
        except ColbertZeroError:
            if not isinstance(spec, Hub) or Path(place_of(spec.path)).is_dir():
                raise
            rows = rows_of(root, spec)  # an error of its own where nothing is published
            self.told.append(
                f"source {root}: {spec.path} cannot be read here, so its published size counts, and every text as the "
                "longest allowed"
            )
            return published_parts(root, spec, rows)
        source, limit = self.study.sources[root], getattr(spec, "limit", None)
        found = {name: _planned(part) for name, part in source.parts.items()}
        if isinstance(spec, Docstrings | Folder) or getattr(spec, "train", None):
            return found
        self.told.append(f"source {root}: the first {SAMPLED_ROWS:,} usable rows of each part are looked at")
        counts = [len(part) for part in found.values()]
        if isinstance(spec, Jsonl | Tsv):
            record = source.record
            usable = record["rows"] / (record["rows"] + sum(record["dropped"].values()))
            lines = [sum(1 for _ in read_lines(file)) for file in input_files(root, "path", list(spec.path or ()))]
            # A file of fewer rows than are looked at was read whole.
            counts = [
                n if n < SAMPLED_ROWS else max(n, round(all_ * usable)) for n, all_ in zip(counts, lines, strict=True)
            ]
        return {
            name: replace(part, rows=min(count, limit or count), whole=False)
            for (name, part), count in zip(found.items(), counts, strict=True)
        }

    def _held_out(self, root: str, parts: dict[str, PlannedPart]) -> dict[str, PlannedPart]:
        for spec in self.recipe.collections.values():
            if isinstance(spec, HeldOut) and spec.source == root:
                taken = share_out({name: len(part) for name, part in parts.items()}, spec.documents)
                parts = {name: replace(part, rows=len(part) - taken[name], whole=False) for name, part in parts.items()}
        return parts


class Published:
    """What phases read of which only published sizes are looked up, and nothing else."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.told: list[str] = []

    def parts(self, root: str) -> Mapping[str, PlannedPart]:
        """Parts of a Hub data set that published.yaml knows.

        Raises:
            ColbertZeroError: It is none of these.
        """
        spec = self.recipe.sources[root]
        if not isinstance(spec, Hub):
            raise ColbertZeroError(f"sources.{root}: nothing is published of a source of kind {spec.kind}")
        return published_parts(root, spec, rows_of(root, spec))

    def look(self, source: str) -> Mapping[str, PlannedPart]:
        """The same, under the name of a source made of it."""
        parts = self.parts(root_of(self.recipe, source))
        return {f"{source}/{name.split('/', 1)[1]}": part for name, part in parts.items()}


Data = Prepared | Sampled | Published


def published_parts(name: str, spec: Hub, rows: Mapping[str, int]) -> dict[str, PlannedPart]:
    """Parts of which only their rows, and how many documents a row has, are known."""
    known, scored = published()["data"][spec.path], spec.train is not None
    texts = (spec.candidates or known.get("candidates", 2)) if scored else known.get("negatives", 0)
    full = {f"{name}/{part}": count for part, count in rows.items()}
    return {part: PlannedPart(part, count, scored, (texts,), None, False) for part, count in full.items()}


def has_id(recipe: Recipe, source: str) -> bool:
    """Whether a source's id is known before collections are loaded, which `select: best` makes part of phases' ids."""
    behind = graph(recipe, {str(number): chain for number, chain in enumerate(chains_behind(recipe, source))})
    return all(recipe.phases[chain[-1]].select == "last" for chain in behind)


def is_small(recipe: Recipe, name: str) -> bool:
    """Whether a source is prepared in no time: of docstrings, or of files here that are small."""
    spec = recipe.sources[name]
    if isinstance(spec, Docstrings):
        return True
    here = not isinstance(spec, Hub) or Path(place_of(spec.path)).is_dir()
    return here and not is_streamed(spec) and source_bytes(recipe, name) <= SMALL and not getattr(spec, "limit", None)


def held_rows(part: Part, most: int) -> ArrowPart:
    """The first rows of a part that cannot be read anywhere, held in memory."""
    columns: dict[str, list[Any]] = {}
    for rows in part.sample(most):
        for key, values in rows.items():
            columns.setdefault(key, []).extend(values)
    return ArrowPart(part.name, Dataset.from_dict(columns), None)


def _planned(part: Part) -> PlannedPart:
    """A part that can be read."""
    whole = not isinstance(part, StreamedPart)
    return PlannedPart(part.name, len(part), part.scored, tuple(part.lengths()), part, whole)


def _sample_of(spec: SourceSpec) -> SourceSpec:
    if isinstance(spec, Mined | Scored):
        # Of a sample BM25's negatives stand for a model's or a phase's.
        own = {"miners": BM25, "corpus": None, "max_relative": None, "judge": None}
        by_bm25 = own if isinstance(spec, Mined) else {}
        return spec.model_copy(update={"queries": min(spec.queries or MINED_ROWS, MINED_ROWS), **by_bm25})
    if isinstance(spec, Docstrings | Folder) or getattr(spec, "train", None):
        return spec
    if isinstance(spec, Parquet | Hub):
        return spec.model_copy(update={"streaming": True, "limit": None})
    return spec.model_copy(update={"limit": min(spec.limit or SAMPLED_ROWS, SAMPLED_ROWS)})
