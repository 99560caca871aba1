"""Which rows batch k of a phase sees: a pure function of (seed, mixture, k).

Every batch comes from one source. Sources are drawn in proportion to rows ** alpha. Nothing is stored per row: a keyed
permutation is computed where it is needed, so the memory is O(sources) and reaching any step costs the same.

A source that can only be streamed is cut into blocks of consecutive rows. Its batches come block by block, and rows are
permuted within their block alone; to know which of its batches is next, 8 bytes a batch are kept of the current epoch.
"""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

_ROUNDS = 6

_SLOTS = 1 << 20


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """splitmix64's finaliser, keyed (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(key)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _keys(*parts: int) -> list[int]:
    """One 64-bit key a Feistel round, derived from the parts."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix(state, (part * 0x9E3779B97F4A7C15 + 0x7F4A7C15) % 2**64)
    return [int(_mix(state, round_ + 1)[0]) for round_ in range(_ROUNDS)]


def permute(positions: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Where a keyed pseudo-random permutation of range(size) sends these positions.

    A balanced Feistel network over the next even number of bits, walked along its cycle until the value is below
    `size` (Black and Rogaway 2002): a bijection without a table.

    Args:
        positions: Integers in [0, size), any shape.
        size: Number of rows, >= 1.
        key: Integers that name the permutation (seed, epoch, source).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    keys = _keys(*key)

    def network(values: np.ndarray) -> np.ndarray:
        left, right = values >> shift, values & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right, round_key) & mask)
        return (left << shift) | right

    result = network(np.asarray(positions, np.uint64))
    while (outside := result >= np.uint64(size)).any():
        result[outside] = network(result[outside])
    return result.astype(np.int64)


class Order:
    """The order of a phase's data.

    Args:
        rows: Rows of each source.
        global_batch_size: Queries per optimiser step.
        seed: Names the order; the same seed, sources and batch size give the same batches.
        alpha: Sources are drawn in proportion to rows ** alpha (1 in the paper, 0.5 in LateOn).
        blocks: Rows of a block of each streamed source; whole batches.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        global_batch_size: int,
        seed: int,
        alpha: float = 1.0,
        blocks: Mapping[str, int] | None = None,
    ):
        self.rows, self.blocks = dict(rows), dict(blocks or {})
        if any(size % global_batch_size for size in self.blocks.values()):
            raise ValueError(f"blocks must hold whole batches of {global_batch_size}: {self.blocks}")
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.names = [name for name, count in rows.items() if count >= global_batch_size]
        self._whole = np.array([rows[name] // global_batch_size for name in self.names], np.int64)
        if alpha == 1:  # exactly every whole batch of every source, once an epoch
            self._drawn = self._whole
        else:
            weights = np.array([float(rows[name]) ** alpha for name in self.names])
            shares = weights / weights.sum() * self._whole.sum()
            self._drawn = np.maximum(1, np.rint(shares)).astype(np.int64)
        self._ends = np.cumsum(self._drawn)
        self._streamed: dict[int, dict[str, np.ndarray]] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the mixture; short last batches are left out."""
        return int(self._drawn.sum())

    @property
    def dropped(self) -> dict[str, int]:
        """Rows an epoch leaves out of each source: its short last batch, or all of a source smaller than a batch."""
        size = self.global_batch_size
        return {name: count % size if count >= size else count for name, count in self.rows.items()}

    def source(self, step: int) -> tuple[str, int]:
        """Source of batch `step` (from 0), and which batch of that source it is, counted from the very first."""
        epoch, slot = divmod(step, self.batches_per_epoch)
        slot = int(permute(np.array([slot]), self.batches_per_epoch, self.seed, epoch)[0])
        index = int(np.searchsorted(self._ends, slot, side="right"))
        name, drawn = self.names[index], int(self._drawn[index])
        if name in self.blocks:
            return name, self._batches_before(name, step)
        return name, epoch * drawn + slot - int(self._ends[index]) + drawn

    def drawn(self, steps: int) -> dict[str, int]:
        """How many of the first `steps` batches come from each source."""
        epochs, rest = divmod(steps, self.batches_per_epoch)
        counts = epochs * self._drawn
        for _, sources in self._sources(epochs, rest):
            counts = counts + np.bincount(sources, minlength=len(self.names))
        return dict.fromkeys(self.rows, 0) | dict(zip(self.names, counts.tolist(), strict=True))

    def _sources(self, epoch: int, batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of an epoch's first batches, some at a time, and the numbers of their sources."""
        for start in range(0, batches, _SLOTS):
            slots = np.arange(start, min(start + _SLOTS, batches))
            drawn = permute(slots, self.batches_per_epoch, self.seed, epoch)
            yield slots, np.searchsorted(self._ends, drawn, side="right")

    def block(self, name: str, step: int) -> int:
        """Block of a streamed source that its first batch from `step` on lies in."""
        size = self.global_batch_size
        return self._batches_before(name, step) % (self.rows[name] // size) * size // self.blocks[name]

    def _batches_before(self, name: str, step: int) -> int:
        """How many batches of a streamed source come before a step: a stream is read in order."""
        epoch, slot = divmod(step, self.batches_per_epoch)
        # Batches are read ahead while a step trains: around an epoch's end both epochs are asked for.
        if epoch not in (known := self._streamed):
            near = {e: slots for e, slots in known.items() if abs(e - epoch) == 1}
            known = self._streamed = near | {epoch: self._streamed_slots(epoch)}
        drawn = int(self._drawn[self.names.index(name)])
        return epoch * drawn + int(np.searchsorted(known[epoch][name], slot))

    def _streamed_slots(self, epoch: int) -> dict[str, np.ndarray]:
        """Slots of an epoch, counted from its start, that each streamed source has."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.names if name in self.blocks}
        for slots, sources in self._sources(epoch, self.batches_per_epoch):
            for name, parts in found.items():
                parts.append(slots[sources == self.names.index(name)])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def batch(self, step: int) -> tuple[str, np.ndarray]:
        """Source and row numbers of batch `step` (from 0): (global_batch_size,) int64."""
        name, count = self.source(step)
        epoch, within = divmod(count, self.rows[name] // self.global_batch_size)
        positions = np.arange(within * self.global_batch_size, (within + 1) * self.global_batch_size)
        # The name, not the index, keys the rows: adding a source leaves the others' permutations as they were.
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        if name not in self.blocks:
            return name, permute(positions, self.rows[name], self.seed, epoch, key)
        block = int(positions[0]) // self.blocks[name]
        first = block * self.blocks[name]
        size = min(self.blocks[name], self.rows[name] - first)
        return name, first + permute(positions - first, size, self.seed, epoch, key, block)


def evenly_spaced(size: int, count: int) -> np.ndarray:
    """Numbers of `count` of `size` rows, evenly spaced."""
    return np.arange(count, dtype=np.int64) * size // max(1, count)
