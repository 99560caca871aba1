"""Look at every byte of an index: what it holds, and which segments are not what was written."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from colbert_zero.errors import short
from colbert_zero.serving.manifest import Manifest, read_manifest
from colbert_zero.serving.segments import DamagedError, Segment
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
        ColbertZeroError: It is no index.
    """
    manifest = read_manifest(index)
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
    state.bytes = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    return state
