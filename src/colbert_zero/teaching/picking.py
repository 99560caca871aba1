"""Which of the candidates that miners found become a query's negatives, and what kept the others out."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from operator import itemgetter

import numpy as np

from colbert_zero.recipe.data import Mined
from colbert_zero.recipe.miners import RANDOM
from colbert_zero.teaching.derived import share_out
from colbert_zero.teaching.near_duplicates import NEAR, containment, grams

POSITIVE, NEAR_DUPLICATE, SKIP, MAX_RELATIVE = "positive", "near_duplicate", "skip", "max_relative"
REASONS = (POSITIVE, NEAR_DUPLICATE, SKIP, MAX_RELATIVE)
"""Why a candidate is no negative, in the order in which it is asked."""

_EXAMPLES = 3


@dataclass
class Counts:
    """What became of the candidates that were looked at: those after a query's last negative were not.

    Attributes:
        looked_at: Candidates of each miner.
        removed: Of each miner, candidates by the reason they were left out for.
        kept: Negatives of each miner.
        filled: Of these, negatives in the place of others that another miner was to give.
        filled_up: Rows with such.
        left_out: Rows with too few negatives, which are not written.
        examples: Of each reason a few: (query's number, its document's, the candidate's, and these two's scores).
    """

    looked_at: Counter[str] = field(default_factory=Counter)
    removed: dict[str, Counter[str]] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)
    filled: Counter[str] = field(default_factory=Counter)
    filled_up: int = 0
    left_out: int = 0
    examples: dict[str, list[tuple[int, int, int, float, float]]] = field(default_factory=dict)


def is_below(score: float, positive: float, max_relative: float) -> bool:
    """Whether a candidate scores clearly less than the positive: below that share of it.

    Below 0, where a share would be more, by as much: positive - (1 - max_relative) * |positive|.

    Source: "TopK-PercPos", NV-Retriever, arXiv 2407.15831; below 0 as sentence-transformers' `relative_margin`.

    Example:
        >>> is_below(0.94, 1.0, 0.95), is_below(0.96, 1.0, 0.95), is_below(-1.06, -1.0, 0.95)
        (True, False, True)
    """
    return score < positive - (1 - max_relative) * abs(positive)


class Picker:
    """Picks a row's negatives.

    Args:
        spec: Shares, how many, `skip` and `threshold`.
        text_of: A document's text by number.
    """

    def __init__(self, spec: Mined, text_of: Callable[[int], str]) -> None:
        self.spec, self.counts = spec, Counts()
        # As large a total as there may be negatives: shares alone would be given as they are.
        scaled = {name: share * 1000 for name, share in spec.shares.items()}
        self.quotas = share_out(scaled, spec.negatives)
        self._grams = lru_cache(4096)(lambda document: grams(text_of(document)))

    def pick(
        self, query: int, positive: int, answers: np.ndarray, ranked: dict[str, list[int]], scores: dict[int, float]
    ) -> list[int] | None:
        """A row's negatives, those of all miners in turn; None where there are too few.

        Args:
            query: Its number.
            positive: The row's document.
            answers: All documents known to answer the query.
            ranked: Of each miner its candidates, best first, and of `random` some anyway.
            scores: The judge's, of the positive and of all candidates.
        """
        taken: set[int] = set()
        known, like = set(answers.tolist()), [self._grams(answer) for answer in answers.tolist()]
        left = {
            name: self._left(name, found, query, positive, known, like, scores, taken) for name, found in ranked.items()
        }
        places: list[tuple[float, int]] = []
        kept, filled = Counter[str](), Counter[str]()
        for name, quota in self.quotas.items():
            found = list(islice(left[name], quota))
            places += [((place + 0.5) / quota, document) for place, document in enumerate(found)]
            kept[name] = len(found)
        negatives = [document for _, document in sorted(places, key=itemgetter(0))]
        for name in sorted(left, key=RANDOM.__eq__):
            found = list(islice(left[name], self.spec.negatives - len(negatives)))
            negatives += found
            filled[name] = len(found)
        if len(negatives) < self.spec.negatives:
            self.counts.left_out += 1
            return None
        self.counts.kept += kept + filled
        self.counts.filled += filled
        self.counts.filled_up += bool(filled.total())
        return negatives

    def _left(
        self,
        miner: str,
        found: list[int],
        query: int,
        positive: int,
        known: set[int],
        like: list[frozenset[str]],
        scores: dict[int, float],
        taken: set[int],
    ) -> Iterator[int]:
        """Candidates of a miner that no filter removes, not taken yet; counted as they are looked at."""
        removed, limit = self.counts.removed.setdefault(miner, Counter()), self.spec.threshold
        to_skip = 0 if miner == RANDOM else self.spec.skip
        for document in found:
            if document in taken:
                continue
            self.counts.looked_at[miner] += 1
            reason = None
            if document in known:
                reason = POSITIVE
            elif to_skip:
                to_skip -= 1
                reason = SKIP
            elif any(containment(self._grams(document), answer) >= NEAR for answer in like):
                reason = NEAR_DUPLICATE
            elif limit is not None and not is_below(scores[document], scores[positive], limit):
                reason = MAX_RELATIVE
            if reason is None:
                taken.add(document)
                yield document
                continue
            removed[reason] += 1
            if reason not in (NEAR_DUPLICATE, MAX_RELATIVE):
                continue
            examples = self.counts.examples.setdefault(reason, [])
            if len(examples) < _EXAMPLES and not any(query == shown for shown, *_ in examples):
                examples.append((query, positive, document, scores[positive], scores[document]))
