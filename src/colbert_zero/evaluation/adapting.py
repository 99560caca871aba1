"""A model's queries fitted to domains, and kept only where that helps on pairs of them that were held out.

    pairs ──▶ by their documents ──▶ four fifths: the sums that W is solved from (models/adapting)
                                └──▶ one fifth, held out: choose λ and the step, and judge

λ and step are chosen by nDCG@10 of the held-out queries. What is reported is cross-fitted: a query's score after is
that under the λ and step that the other half of the held-out pairs would choose, so that no pair judges a choice which
it had a part in.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from torch import Tensor

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.significance import bootstrap_means, paired_randomisation, percentile_interval
from colbert_zero.files import Progress
from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import packed_candidate_scores, packed_scores
from colbert_zero.models.adapting import (
    Form,
    Statistics,
    no_statistics,
    solve,
    statistics_of_documents,
    statistics_of_pairs,
)
from colbert_zero.models.encoding import encode, reorder
from colbert_zero.watch import stop_if_asked

MEASURE = "nDCG@10"

FEWEST = 100
"""Pairs of a domain."""

FEWEST_HELD_OUT = 10

MOST_HELD_OUT = 400
"""Pairs of a domain that choose and judge; what is more is fitted to."""

MOST_RANKED = 1000
"""Documents that held-out queries are ranked among."""

MOST_SUMMED = 5000
"""Documents of a corpus whose tokens are summed to decorrelate."""

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

STEPS = (0.25, 0.5, 1.0)

_SHARE, _CANDIDATES, _BLOCK = 5, 30, 256


@dataclass(frozen=True)
class Domain:
    """Pairs to fit to.

    Attributes:
        name: For messages and the record.
        pairs: (query, document); equal ones count once.
        corpus: Other documents of the domain, among which queries are ranked and whose tokens decorrelate; without,
            the documents of the pairs.
    """

    name: str
    pairs: list[tuple[str, str]]
    corpus: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of its pairs, in any order."""
        of_pairs = sorted(_digest(query, document) for query, document in set(self.pairs))
        return hashlib.blake2b(b"".join(of_pairs), digest_size=16).hexdigest()


class Split(NamedTuple):
    """A domain's pairs.

    Attributes:
        fitted: Whose sums are taken.
        held_out: None of whose queries or documents are among the fitted.
        shared: How many pairs were left out of both, since their query stands among the held-out ones.
    """

    fitted: list[tuple[str, str]]
    held_out: list[tuple[str, str]]
    shared: int


def split(domain: Domain, seed: int) -> Split:
    """Hold out a fifth of a domain's documents, at most `MOST_HELD_OUT` pairs, by the texts and the seed alone.

    Raises:
        ColbertZeroError: There are too few pairs, or documents.

    Example:
        >>> parts = split(Domain("d", [(f"q{i}", f"d{i}") for i in range(200)]), seed=1)
        >>> len(parts.fitted) + len(parts.held_out), parts.shared
        (200, 0)
    """
    pairs = sorted(set(domain.pairs), key=lambda pair: (_digest(str(seed), pair[1]), pair))
    if len(pairs) < FEWEST:
        raise ColbertZeroError(
            f"--pairs: {domain.name} has {len(pairs)} different pairs; at least {FEWEST} are needed, since a fifth of "
            "them is held out"
        )
    held = [pair for pair in pairs if _digest(str(seed), pair[1])[0] % _SHARE == 0][:MOST_HELD_OUT]
    # A document's pairs stay together, also those of the last one.
    documents, queries = {document for _, document in held}, {query for query, _ in held}
    others = [pair for pair in pairs if pair[1] not in documents]
    fitted = [pair for pair in others if pair[0] not in queries]
    if min(len(held), len(fitted)) < FEWEST_HELD_OUT or len(documents) < 2:
        raise ColbertZeroError(
            f"--pairs: {domain.name} has {len({d for _, d in pairs})} different documents and "
            f"{len({q for q, _ in pairs})} different queries, too few to hold some out ({len(held)} pairs would be, {len(fitted)} left to fit to)"
        )
    return Split(fitted, held, len(pairs) - len(held) - len(fitted))


def _digest(*texts: str) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    for text in texts:
        hashed.update(len(text).to_bytes(8) + text.encode("utf-8", "surrogatepass"))
    return hashed.digest()


def sampled(texts: Iterable[str], most: int, seed: int) -> list[str]:
    """Different texts, at most so many, chosen by the texts and the seed alone."""
    drawn = nsmallest(most, {_digest(str(seed), text): text for text in texts}.items())
    return [text for _, text in drawn]


@dataclass
class HeldOut:
    """Held-out queries, encoded, and the documents that they are ranked among.

    Attributes:
        queries: Without an adapter.
        before: As the given model has them.
        documents: Encoded.
        positive: Which documents are a query's own, (queries, documents), bool.
        fold: 0 or 1 of each query, (queries,).
        candidates: The best documents before, and the query's own, (queries, n), int64.
    """

    queries: Packed
    before: Packed
    documents: Packed
    positive: np.ndarray
    fold: np.ndarray
    scores_before: np.ndarray
    candidates: Tensor

    def ranked(self, queries: Packed) -> np.ndarray:
        """nDCG@10 of each query among all documents."""
        return ndcg(_all_scores(queries, self.documents), self.positive)

    def chosen_by(self, queries: Packed) -> np.ndarray:
        """nDCG@10 of each query among its candidates."""
        ways, found = self.candidates.shape[1], []
        for rows in torch.arange(len(queries.lengths)).split(_BLOCK // 4):
            documents = reorder(self.documents, self.candidates[rows].flatten())
            found.append(packed_candidate_scores(reorder(queries, rows), documents, ways).cpu().numpy())
        positive = np.take_along_axis(self.positive, self.candidates.numpy(), axis=1)
        return ndcg(np.concatenate(found), positive)


def _all_scores(queries: Packed, documents: Packed) -> np.ndarray:
    found = []
    for rows in torch.arange(len(queries.lengths)).split(_BLOCK // 4):
        stop_if_asked()
        found.append(packed_scores(reorder(queries, rows), documents).cpu().numpy())
    return np.concatenate(found)


def ndcg(scores: np.ndarray, positive: np.ndarray, depth: int = 10) -> np.ndarray:
    """The nDCG of each query with judgements of 0 and 1; of equal scores the other document stands first.

    Args:
        scores: (queries, documents).
        positive: Whether a document is right, same shape; every query has one.
        depth: Ranks that count.

    Source: Järvelin and Kekäläinen, 2002, with discount log2(1 + rank), as trec_eval.

    Example:
        >>> ndcg(np.array([[0.2, 0.9, 0.1]]), np.array([[True, False, False]])).round(4).tolist()
        [0.6309]
    """
    order = np.lexsort((positive, -scores), axis=1)[:, :depth]
    gains = np.take_along_axis(positive, order, axis=1)
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    ideal = np.array([discounts[:count].sum() for count in positive.sum(1)])
    found: np.ndarray = (gains @ discounts[: gains.shape[1]]) / ideal
    return found


class Measured(NamedTuple):
    """What adapting does on one domain's held-out pairs.

    Attributes:
        before: nDCG@10 of each query, (queries,).
        after: Cross-fitted.
        about: Counts, means, interval, for the record.
    """

    before: np.ndarray
    after: np.ndarray
    about: dict[str, Any]


class Fitted(NamedTuple):
    """What came of it.

    Attributes:
        statistics: Of all domains, those before included.
        weights: W with its step in it, (width, dim), float64.
        ridge: λ, chosen on all held-out pairs.
        step: Likewise.
        domains: What it does on each.
        difference: Mean over domains of nDCG@10, after less before.
        interval: Of it, 95 %.
        seconds: That it took.
    """

    statistics: Statistics
    weights: Tensor
    ridge: float
    step: float
    domains: dict[str, Measured]
    difference: float
    interval: tuple[float, float]
    seconds: float

    @property
    def helps(self) -> bool:
        """Whether held-out queries are answered better on average, each domain weighing the same."""
        return self.difference > 0


def fit(
    model: MultiVectorEncoder,
    bare: MultiVectorEncoder,
    domains: list[Domain],
    form: Form,
    seed: int,
    known: Statistics | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit a model's queries to domains, choose λ and step, and judge, all on parts of the pairs.

    Args:
        model: As it is given: what the outcome is compared with.
        bare: Without an adapter; the same, where it has none.
        domains: In any order; each weighs the same in what is chosen, and each token in what is fitted.
        form: See `models.adapting`.
        seed: Of which pairs are held out.
        known: The sums of earlier domains.
        progress: Called with the pairs done and all.

    Raises:
        ColbertZeroError: A domain has too few pairs.
    """
    started = time.monotonic()
    parts = {domain.name: split(domain, seed) for domain in domains}
    total, done = sum(len(p.fitted) + len(p.held_out) for p in parts.values()), 0
    statistics, held = known or no_statistics(form), dict[str, HeldOut]()
    for domain in domains:
        fitted, held_out, _ = parts[domain.name]
        if form.way == "decorrelate":
            for added in sums_of_documents(bare, form, _to_sum(domain, fitted, seed)):
                statistics += added
        else:
            for added in sums_of_pairs(bare, form, fitted):
                statistics, done = statistics + added, done + min(_BLOCK, len(fitted))
                if progress:
                    progress(min(done, total), total)
        held[domain.name] = hold(model, bare, domain, held_out, fitted, seed)
        done = sum(len(parts[name].fitted) + len(parts[name].held_out) for name in held)
        if progress:
            progress(done, total)
    points = list(product(RIDGES, STEPS if form.way != "decorrelate" else STEPS[-1:]))
    solved = {ridge: solve(form, statistics, ridge) for ridge in RIDGES}
    # {domain: (points, queries)}
    tried = {
        name: np.stack([one.chosen_by(_moved(form, one.queries, s * solved[r])) for r, s in points])
        for name, one in held.items()
    }
    chosen = [_best(tried, {name: one.fold != fold for name, one in held.items()}) for fold in (0, 1)]
    ridge, step = points[_best(tried, {name: one.fold >= 0 for name, one in held.items()})]
    measured = {}
    for domain in domains:
        one, at = held[domain.name], parts[domain.name]
        ranked = {i: one.ranked(_moved(form, one.queries, points[i][1] * solved[points[i][0]])) for i in set(chosen)}
        before, after = one.scores_before, np.where(one.fold == 0, ranked[chosen[0]], ranked[chosen[1]])
        counts = {"pairs": len(set(domain.pairs)), "fitted": len(at.fitted), "held_out": len(at.held_out),
                  "left_out": at.shared, "queries": len(before), "documents": len(one.documents.lengths)}  # fmt: skip
        measured[domain.name] = Measured(before, after, {**counts, **_compared(before, after, seed)})
    drawn = bootstrap_means([m.after - m.before for m in measured.values()], seed=seed).mean(axis=0)
    difference = float(np.mean([m.about["difference"] for m in measured.values()]))
    weights = step * solved[ridge]
    seconds = time.monotonic() - started
    return Fitted(statistics, weights, ridge, step, measured, difference, percentile_interval(drawn), seconds)


def _compared(before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, Any]:
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "difference": float((after - before).mean()),
        "interval": list(percentile_interval(bootstrap_means([after - before], seed=seed)[0])),
        "p_value": paired_randomisation(after, before, seed=seed),
    }


def _best(tried: dict[str, np.ndarray], counted: dict[str, np.ndarray]) -> int:
    """The point with the best mean over domains of the mean over the counted queries; of equal ones the first."""
    return int(np.argmax(np.mean([scores[:, counted[name]].mean(1) for name, scores in tried.items()], axis=0)))


def _moved(form: Form, queries: Packed, weights: Tensor) -> Packed:
    return Packed(form.moved(queries.values, weights.float()), queries.lengths)


def sums_of_pairs(bare: MultiVectorEncoder, form: Form, pairs: list[tuple[str, str]]) -> Iterator[Statistics]:
    """The sums over pairs, some hundreds at a time."""
    for start in range(0, len(pairs), _BLOCK):
        stop_if_asked()
        queries, documents = zip(*pairs[start : start + _BLOCK], strict=True)
        encoded = _embed(bare, list(queries), "query"), _embed(bare, list(documents), "document")
        yield statistics_of_pairs(form, *encoded)


def sums_of_documents(bare: MultiVectorEncoder, form: Form, documents: list[str]) -> Iterator[Statistics]:
    """The sums over documents alone, some hundreds at a time."""
    for start in range(0, len(documents), _BLOCK):
        stop_if_asked()
        yield statistics_of_documents(form, _embed(bare, documents[start : start + _BLOCK], "document"))


def _to_sum(domain: Domain, fitted: list[tuple[str, str]], seed: int) -> list[str]:
    return sampled(domain.corpus or (document for _, document in fitted), MOST_SUMMED, seed)


def hold(
    model: MultiVectorEncoder,
    bare: MultiVectorEncoder,
    domain: Domain,
    held_out: list[tuple[str, str]],
    fitted: list[tuple[str, str]],
    seed: int,
) -> HeldOut:
    """Encode held-out queries and what they are ranked among; arguments as for `fit` and of `Split`."""
    queries = list(dict.fromkeys(query for query, _ in held_out))
    own = list(dict.fromkeys(document for _, document in held_out))
    others = sampled(
        set(domain.corpus or (document for _, document in fitted)) - set(own), max(0, MOST_RANKED - len(own)), seed
    )
    texts = {text: i for i, text in enumerate([*own, *others])}
    at, positive = {query: i for i, query in enumerate(queries)}, np.zeros((len(queries), len(texts)), bool)
    fold = np.zeros(len(queries), int)
    for query, document in held_out:
        positive[at[query], texts[document]] = True
        fold[at[query]] = _digest(str(seed), document)[1] % 2
    if len(set(fold)) < 2:  # a handful of queries
        fold = np.arange(len(queries)) % 2
    documents, plain = _embed(bare, list(texts), "document"), _embed(bare, queries, "query")
    before = plain if bare is model else _embed(model, queries, "query")
    scores = _all_scores(before, documents)
    ways = min(len(texts), _CANDIDATES)
    # A query's own documents stand first, whatever their scores.
    candidates = np.argsort(-(scores + 1e6 * positive), axis=1, kind="stable")[:, :ways]
    return HeldOut(plain, before, documents, positive, fold, ndcg(scores, positive), torch.from_numpy(candidates))


def _embed(model: MultiVectorEncoder, texts: list[str], task: Any) -> Packed:
    """On the CPU, where float64 is at home."""
    found = encode(model, texts, task)
    return Packed(found.values.float().cpu(), found.lengths)


def verdict(fitted: Fitted) -> str:
    """Why it is, or is not, kept."""
    points, (low, high) = 100 * fitted.difference, (100 * value for value in fitted.interval)
    where = f"{MEASURE} on its own held-out pairs (95 % interval {low:+.1f} to {high:+.1f})"
    if points == 0:
        return f"would change nothing in {where}"
    if not fitted.helps:
        return f"would lose {-points:.1f} points of {where}"
    shown = "" if low > 0 else "; that it helps is not shown"
    return f"gains {points:.1f} points of {where}{shown}"
