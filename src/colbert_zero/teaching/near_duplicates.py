"""Texts that say the same: equal but for case, punctuation and spaces, or sharing most of their word 5-grams."""

from colbert_zero.data.overlap import normalised

NEAR = 0.8
"""Share of the shorter text's 5-grams, from which on two texts count as near-duplicates."""

_GRAM = 5


def grams(text: str) -> frozenset[str]:
    """A text's word 5-grams, normalised (NFKC, case folded, words alone); of fewer words all of them as one.

    Example:
        >>> sorted(grams("The lift of a Wing, in air."))
        ['lift of a wing in', 'of a wing in air', 'the lift of a wing']
        >>> grams("Sorting.")
        frozenset({'sorting'})
    """
    words = normalised(text).split()
    count = max(1, len(words) - _GRAM + 1) if words else 0
    return frozenset(" ".join(words[first : first + _GRAM]) for first in range(count))


def containment(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of the grams of the text with fewer that the other has too, 0 to 1; 0 if either has none.

    Source: Broder, "On the resemblance and containment of documents", 1997.
    """
    fewer = min(len(one), len(other))
    return len(one & other) / fewer if fewer else 0.0
