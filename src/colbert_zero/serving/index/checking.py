"""Look at every byte of an index: what it holds, and which segments are not what was written; and at a first stage."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from colbert_zero.errors import short
from colbert_zero.serving.index.manifest import Manifest, read_manifest
from colbert_zero.serving.index.opened import ATTEMPTS, Index
from colbert_zero.serving.index.segments import DamagedError, Segment
from colbert_zero.watch import stop_if_asked


@dataclass
class State:
    """What an index holds.

    Attributes:
        manifest: What it consists of.
        damaged: Segments that are not what was written, and why.
        twice: Ids that more than one document has, which no writer of this program makes.
        bytes: Of all files.
    """

    manifest: Manifest
    damaged: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    bytes: int = 0


def check(index: Path) -> State:
    """Read all of an index, and compare it with its checksums.

    Raises:
        ColbertZeroError: It is no index, or a file cannot be opened.
    """
    manifest = read_manifest(index)
    for _ in range(ATTEMPTS):
        state = _looked_at(index, manifest)
        # What was compacted away between the manifest and its segments is not damaged.
        if not state.damaged or (newer := read_manifest(index)).generation == manifest.generation:
            break
        manifest = newer
    return state


def _looked_at(index: Path, manifest: Manifest) -> State:
    state, ids = State(manifest), Counter[str]()
    for entry in manifest.segments:
        stop_if_asked()
        try:
            with Segment(index.absolute(), entry, manifest) as segment:
                if wrong := segment.damage(index.absolute()):
                    raise DamagedError(entry.name, "; ".join(wrong))
                passages = segment.passages
                rows = [row for row in segment.ids() if segment.live[row[0]]]
                if len(passages.documents) and len(rows) != entry.live:
                    raise DamagedError(entry.name, f"{len(rows):,} documents in place of {entry.live:,}")
                ids.update(identifier for _, identifier in rows)
        except DamagedError as error:
            state.damaged[entry.name] = str(error)
    state.twice = [short(identifier) for identifier, count in ids.items() if count > 1]
    for file in index.rglob("*"):
        # A writer beside may have removed it.
        with suppress(FileNotFoundError):
            state.bytes += file.stat().st_size if file.is_file() else 0
    return state


# ---- What a first stage misses

SAMPLED = 100
"""Documents whose first sentences stand for queries where there are none."""

_SENTENCE = re.compile(r".{20,200}?[.!?](?=\s)|.{1,200}", re.DOTALL)


@dataclass(frozen=True)
class Recall:
    """What a first stage leaves of exact search.

    Attributes:
        first: The first stage.
        mean: Share of a query's best documents that it keeps, mean over queries.
        whole: Share of queries of which it keeps all.
        seconds: Of a query with it, median.
        exact_seconds: Of a query without.
    """

    first: str
    mean: float
    whole: float
    seconds: float
    exact_seconds: float


def first_sentences(index: Index) -> list[str]:
    """Of documents that are spread evenly over an index."""
    places = [(segment, number) for segment in index.segments for number in np.flatnonzero(segment.live)]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(SAMPLED, len(places))).astype(int))
    texts = [places[place][0].document(int(places[place][1]))[0].text.strip() for place in chosen]
    return [found[0] for text in texts if (found := _SENTENCE.match(text))]


def recalls(index: Index, queries: list[str], firsts: list[str], k: int) -> Iterator[Recall]:
    """Compare first stages with exact search, query by query."""
    exact = [_timed(index, query, k, None) for query in queries]
    for first in firsts:
        kept, times = [], []
        for query, (wanted, _) in zip(queries, exact, strict=True):
            found, seconds = _timed(index, query, k, first)
            kept.append(len(wanted & found) / max(1, len(wanted)))
            times.append(seconds)
        yield Recall(
            first, statistics.mean(kept), statistics.mean(share == 1 for share in kept), statistics.median(times),
            statistics.median(seconds for _, seconds in exact),
        )  # fmt: skip


def _timed(index: Index, query: str, k: int, first: str | None) -> tuple[set[str], float]:
    stop_if_asked()
    start = time.perf_counter()
    [ranking] = index.run({"": query}, k, first=first).values()
    return {identifier for identifier, _ in ranking}, time.perf_counter() - start
