"""Texts that say the same word by word: exact and near-duplicates among many texts, in bounded memory.

Texts are compared as lower-case words with single blanks between them. Long ones share word 5-grams, those of fewer
than 20 words character 8-grams across a blank (within a word they say nothing of the words' order). A gram is a hash
of 48 bits. Two texts overlap if they are equal, or if of their grams, and of their rare grams, a stated share is in
both; of short ones the words must agree as well, but for a few that were replaced, put in or left out.
"""

import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

WORDS, CHARACTERS = 5, 8

SHORT = 20
"""Words; texts of fewer are compared by characters, and only with each other."""

LONG_SHARE, SHORT_SHARE = 0.4, 0.3
"""Two texts overlap from this share on: of the shorter one's grams if they are long, of the longer one's if short."""

EDITS = 0.25
"""Short texts differ in at most this share of the longer one's words: replaced, put in or left out (Levenshtein)."""

FREQUENT = 50
"""Grams that stand in more different texts, on either side, are phrases: alone they make no overlap."""

_FEWEST = 3
# Shared rare grams; what shares fewer is no near-duplicate.

SLICE = 1 << 24
"""Grams held at once, at about 50 bytes each; what is compared with the texts beyond them is read again."""

_BLOCK, _BLOCK_TEXTS, _HITS = 1 << 20, 1 << 15, 1 << 18
_BITS = np.uint64(48)
_BASE = 0x9E3779B97F4A7C15
_WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    r"""Lower-case words with single blanks between them; what is neither letter nor digit parts words.

    Example:
        >>> normalised("  The boundary-layer,\tin THREE dimensions.")
        'the boundary layer in three dimensions'
    """
    return " ".join(_WORD.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()))


@dataclass(frozen=True)
class Shingles:
    """A block of texts as hashes.

    Attributes:
        hashes: Of each whole text, (texts,), uint64.
        short: Whether it is compared by characters, (texts,).
        owners: The text that a gram is of, ascending, (grams,).
        grams: Each of a text once, ascending within it, (grams,), uint64.
        words: Of each text if it is short: its words, four bytes each.
    """

    hashes: np.ndarray
    short: np.ndarray
    owners: np.ndarray
    grams: np.ndarray
    words: list[bytes]


def shingled(texts: list[str]) -> Shingles:
    """The grams of texts, all by one pass over their characters; at most 65,536 texts.

    The hash of characters s to e is the polynomial Σ h(cᵢ) Bⁱ⁻ˢ modulo 2⁶⁴, from one cumulative sum, then mixed.
    """
    clean = [normalised(text) for text in texts]
    codes = np.frombuffer(("\n".join(clean) + "\n").encode("utf-32-le", "surrogatepass"), np.uint32)
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(_mixed(codes.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(codes)), out=sums[1:])
    inverse = _powers(pow(_BASE, -1, 1 << 64), len(codes))

    def hashed(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return _mixed((sums[ends] - sums[starts]) * inverse[starts])

    lengths = np.fromiter(map(len, clean), np.int64, len(clean))
    text_ends = np.cumsum(lengths + 1) - 1
    text_starts = text_ends - lengths
    blanks = codes <= ord(" ")
    word_ends = np.flatnonzero(blanks)
    word_starts = np.concatenate([[0], word_ends[:-1] + 1])
    words_of = np.cumsum(codes[word_ends] == ord("\n")) - (codes[word_ends] == ord("\n"))
    there = word_ends > word_starts  # a text without a word has an empty one
    word_starts, word_ends, words_of = word_starts[there], word_ends[there], words_of[there]
    counts = np.bincount(words_of, minlength=len(texts))
    short = counts < SHORT
    # Long texts: words i to i + 4 of one text.
    last = max(0, len(words_of) - WORDS + 1)
    of_words = np.flatnonzero((words_of[:last] == words_of[WORDS - 1 :]) & ~short[words_of[:last]])
    by_words = hashed(word_starts[of_words], word_ends[of_words + WORDS - 1])
    # Short ones: all places with eight characters to go and, unless it is one word alone, a blank among the inner six.
    owners = np.repeat(np.arange(len(texts)), lengths + 1)
    places = np.flatnonzero(short[owners])
    places = places[places + CHARACTERS <= text_ends[owners[places]]]
    before = np.cumsum(blanks)
    inside = before[places + CHARACTERS - 2] > before[places]
    places = places[inside | (counts[owners[places]] == 1)]
    by_characters = hashed(places, places + CHARACTERS)
    numbers = hashed(word_starts, word_ends).astype(np.uint32)
    ends = np.cumsum(counts)
    bounds = zip(ends - counts, ends, short, strict=True)
    words = [numbers[start:end].tobytes() if few else b"" for start, end, few in bounds]
    # One number each, the text above the gram, is sorted several times faster than two.
    mine = np.concatenate([words_of[of_words], owners[places]]).astype(np.uint64)
    keys = np.sort((mine << _BITS) | (np.concatenate([by_words, by_characters]) >> (np.uint64(64) - _BITS)))
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
    grams = keys & ((np.uint64(1) << _BITS) - np.uint64(1))
    return Shingles(hashed(text_starts, text_ends), short, (keys >> _BITS).astype(np.int64), grams, words)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hashes of numbers: the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    powers: np.ndarray = np.multiply.accumulate(factors)
    return powers


def blocks(texts: Iterable[str]) -> Iterator[Shingles]:
    """The texts' grams, a million characters at a time."""
    block: list[str] = []
    characters = 0
    for text in texts:
        block.append(text)
        characters += len(text)
        if characters >= _BLOCK or len(block) == _BLOCK_TEXTS:
            yield shingled(block)
            block, characters = [], 0
    if block:
        yield shingled(block)


class _Joined:
    """Arrays of one type that are put together in the end."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.parts = kind, [np.empty(0, kind)]

    def add(self, part: np.ndarray) -> None:
        self.parts.append(part.astype(self.kind))

    def whole(self) -> np.ndarray:
        """All of them; they are let go."""
        whole = np.concatenate(self.parts)
        self.parts.clear()
        return whole


class Index:
    """Texts, to be found by their grams. Equal ones are one: `same` says which a text is.

    Args:
        read: The texts' grams, in order.
        most: Hold at most about so many grams: those divisible by 2, 4, …, a sample that is alike in all texts.

    Attributes:
        keep: Of so many grams one is held.
        hashes: Of the different texts, ascending, (different,), uint64.
        same: The place in `hashes` of each text that was read, (texts,).
        first: The first text that was read of each different one, (different,).
        short: Whether it is compared by characters, (different,).
        words: Of each short one.
        grams: Of all texts, ascending; `counts` different texts have it.
        totals: Grams of each different text, (different,).
    """

    def __init__(self, read: Iterable[Shingles], most: int | None = None) -> None:
        hashes, short, owners, grams = _Joined(np.uint64), _Joined(bool), _Joined(np.int32), _Joined(np.uint64)
        words: list[bytes] = []
        self.keep, held = 1, 0
        for block in read:
            while most is not None and held > most:
                self.keep *= 2
                parts = list(zip(owners.parts, grams.parts, strict=True))
                kept_parts = [found % np.uint64(self.keep) == 0 for _, found in parts]
                owners.parts = [part[kept] for (part, _), kept in zip(parts, kept_parts, strict=True)]
                grams.parts = [part[kept] for (_, part), kept in zip(parts, kept_parts, strict=True)]
                held = sum(map(len, grams.parts))
            kept = block.grams % np.uint64(self.keep) == 0
            held += int(kept.sum())
            owners.add(block.owners[kept] + len(words))
            grams.add(block.grams[kept])
            hashes.add(block.hashes)
            short.add(block.short)
            words += block.words
        self.hashes, self.first, self.same = np.unique(hashes.whole(), return_index=True, return_inverse=True)
        self.short, self.words = short.whole()[self.first], [words[text] for text in self.first]
        chosen = np.zeros(len(words), bool)
        chosen[self.first] = True
        by_text = owners.whole()
        of_chosen = chosen[by_text]
        by_text, found = self.same.astype(np.int32)[by_text[of_chosen]], grams.whole()[of_chosen]
        order = np.argsort(found, kind="stable")
        found, by_gram = found[order], by_text[order]
        new = np.concatenate([[True], found[1:] != found[:-1]])[: len(found)]
        self.grams = found[new]
        starts = np.flatnonzero(new)
        self.counts = np.diff(starts, append=len(found))
        self.starts, self.owners = starts, by_gram
        # Each text's grams by their places in `grams`, ascending: what is sorted by gram, sorted by text and stable.
        places = np.repeat(np.arange(len(self.grams), dtype=np.int32), self.counts)
        self.places = places[np.argsort(by_gram, kind="stable")]
        self.totals = np.bincount(by_gram, minlength=len(self.hashes))
        self.ends = np.cumsum(self.totals)
        self._maybe = np.zeros(1 << 24, bool)
        self._maybe[self.grams & np.uint64((1 << 24) - 1)] = True

    def look_up(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these grams are there, and their places in `grams`."""
        maybe = np.flatnonzero(self._maybe[grams & np.uint64((1 << 24) - 1)])  # spares most of the searching
        found = np.searchsorted(self.grams, grams[maybe])
        found[found == len(self.grams)] = 0
        there = self.grams[found] == grams[maybe] if len(self.grams) else np.zeros(len(maybe), bool)
        return maybe[there], found[there]

    def places_of(self, text: int) -> np.ndarray:
        """Places of a different text's grams in `grams`, ascending."""
        return self.places[self.ends[text] - self.totals[text] : self.ends[text]]


@dataclass(frozen=True)
class Pairs:
    """Texts that overlap.

    Attributes:
        texts: Of those that were read, one of each different text, (pairs,).
        found: The different text of the index that each overlaps with, (pairs,).
        shares: Of the grams that are in both; 1 of equal texts too, (pairs,).
    """

    texts: np.ndarray
    found: np.ndarray
    shares: np.ndarray


@dataclass
class Seen:
    """What is known of the texts that were compared: 12 bytes each.

    Attributes:
        hashes: Of each text, (texts,).
        totals: Different grams of each, (texts,).
    """

    hashes: np.ndarray
    totals: np.ndarray


def compare(index: Index, texts: Iterable[str]) -> tuple[Pairs, Seen]:
    """The pairs of a text and a text of the index that overlap.

    Which grams are frequent is known once all is read, so what was found is kept in a temporary file meanwhile: 8 bytes
    for each gram that is in the index. Words are kept of short texts with a large enough share of such grams.

    Args:
        index: At most `SLICE` grams.
        texts: Read once, a million characters at a time.
    """
    hashes, totals, size = _Joined(np.uint64), _Joined(np.int32), 0
    words: dict[int, bytes] = {}
    with tempfile.TemporaryFile() as file:
        for block in blocks(texts):
            which, places = index.look_up(block.grams)
            np.stack([block.owners[which] + size, places], 1).astype(np.uint32).tofile(file)
            hashes.add(block.hashes)
            of_text = np.bincount(block.owners, minlength=len(block.hashes))
            totals.add(of_text)
            inside = np.bincount(block.owners[which], minlength=len(block.hashes))
            for text in np.flatnonzero(block.short & (inside >= _FEWEST) & (inside >= SHORT_SHARE * of_text)).tolist():
                words[size + text] = block.words[text]
            size += len(block.hashes)
        seen = Seen(hashes.whole(), totals.whole())
        file.flush()
        count = file.tell() // 8
        hits = np.memmap(file, np.uint32, "r", shape=(count, 2)) if count else np.empty((0, 2), np.uint32)
        _, first = np.unique(seen.hashes, return_index=True)
        counts = np.zeros(size, bool)
        counts[first] = True
        near = _near(index, partial(_chunks, hits, counts), seen.totals, lambda text: words.get(text, b""))
        del hits
    place = np.searchsorted(index.hashes, seen.hashes[first])
    place[place == len(index.hashes)] = 0
    equal = index.hashes[place] == seen.hashes[first] if len(index.hashes) else np.zeros(len(first), bool)
    worded = seen.hashes[first] != shingled([""]).hashes[0]  # texts without a word are equal to nothing
    exact = Pairs(first[equal & worded], place[equal & worded], np.ones(int((equal & worded).sum())))
    return _joined([exact, near]), seen


def compare_inside(index: Index) -> Pairs:
    """The pairs of different texts of an index that overlap, each once: `texts` and `found` are both of the index."""

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        texts, start = len(index.totals), 0
        while start < texts:
            held = index.ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(index.ends, held + _HITS)))
            owners = np.repeat(np.arange(start, min(end, texts)), index.totals[start:end])
            yield owners, index.places[held : held + len(owners)].astype(np.int64)
            start = end

    return _near(index, chunks, index.totals, index.words.__getitem__, inside=True)


def _chunks(hits: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(text, place) of the hits of texts that count, a text's all in one chunk."""
    start = 0
    while start < len(hits):
        end = min(start + _HITS, len(hits))
        while end < len(hits) and hits[end, 0] == hits[end - 1, 0]:
            end += 1
        chunk = np.asarray(hits[start:end]).astype(np.int64)
        chunk = chunk[counts[chunk[:, 0]]]
        yield chunk[:, 0], chunk[:, 1]
        start = end


def _near(
    index: Index,
    chunks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    totals: np.ndarray,
    words: Callable[[int], bytes],
    inside: bool = False,
) -> Pairs:
    """The pairs whose share of grams is large enough; candidates share rare grams, each is then verified with all."""
    there = np.zeros(len(index.grams), np.int64)
    for _, places in chunks():
        there += np.bincount(places, minlength=len(there))
    rare = (index.counts <= FREQUENT) & (there <= FREQUENT)
    of_index = np.bincount(index.owners[np.repeat(rare, index.counts)], minlength=len(index.totals))
    found = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for owners, places in chunks():
        chosen = rare[places]
        # A gram that the index does not have is rare as far as one knows.
        if not len(owners):
            continue
        first = owners[0]
        frequent = np.bincount(owners[~chosen] - first, minlength=owners[-1] - first + 1)
        a = np.repeat(owners[chosen], index.counts[places[chosen]])
        b = index.owners[_ranges(index.starts[places[chosen]], index.counts[places[chosen]])].astype(np.int64)
        if inside:
            a, b = a[a < b], b[a < b]
        keys = np.sort(a * len(index.totals) + b)
        new = np.flatnonzero(np.diff(keys, prepend=-1))
        shared = np.diff(new, append=len(keys))
        a, b = np.divmod(keys[new], len(index.totals))
        of_text = totals[a] - frequent[a - first]
        needed = np.where(
            index.short[b],
            SHORT_SHARE * np.maximum(of_text, of_index[b]),
            LONG_SHARE * np.minimum(of_text, of_index[b]),
        )
        candidates = np.flatnonzero((shared >= needed) & (shared >= _FEWEST))
        a, b = a[candidates], b[candidates]
        shares = np.zeros(len(a))
        for number, (text, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            mine = places[slice(*np.searchsorted(owners, [text, text + 1]))]
            both = len(np.intersect1d(mine, index.places_of(other), assume_unique=True))
            short = index.short[other]
            share = both / (max if short else min)(totals[text], index.totals[other])
            if share >= (SHORT_SHARE if short else LONG_SHARE) and not (
                short and _edits(words(text), index.words[other]) > EDITS
            ):
                shares[number] = share
        found.append(Pairs(a[shares > 0], b[shares > 0], shares[shares > 0]))
    return _joined(found)


def _edits(a: bytes, b: bytes) -> float:
    """Words replaced, put in or left out between two short texts, a share of the longer one's.

    Texts of one word each, as in scripts without blanks, are told by their characters alone: 0.
    """
    if len(a) == len(b) == 4:
        return 0.0
    mine, other = memoryview(a).cast("I").tolist(), memoryview(b).cast("I").tolist()
    longer = max(len(mine), len(other), 1)
    for end in (0, -1):
        while mine and other and mine[end] == other[end]:
            del mine[end], other[end]
    previous = list(range(len(other) + 1))
    for i, word in enumerate(mine, 1):
        current = [i]
        for j, same in enumerate(other, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (word != same)))
        previous = current
    return previous[-1] / longer


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, … of each range, one after the other."""
    ends = np.cumsum(counts)
    numbers: np.ndarray = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
    return numbers


def _joined(pairs: list[Pairs]) -> Pairs:
    """Pairs together, each once, with its largest share."""
    texts, found, shares = (np.concatenate([getattr(p, key) for p in pairs]) for key in ("texts", "found", "shares"))
    order = np.lexsort((-shares, found, texts))
    texts, found, shares = texts[order], found[order], shares[order]
    new = np.ones(len(texts), bool)
    new[1:] = (texts[1:] != texts[:-1]) | (found[1:] != found[:-1])
    return Pairs(texts[new], found[new], shares[new])


def indexes(texts: Iterable[str], largest: int = SLICE) -> Iterator[Index]:
    """Indexes of consecutive texts, each of at most `largest` grams (or one block)."""
    held: list[Shingles] = []
    grams = 0
    for block in blocks(texts):
        if held and grams + len(block.grams) > largest:
            yield Index(held)
            held, grams = [], 0
        held.append(block)
        grams += len(block.grams)
    if held:
        yield Index(chain(held))
