"""A model's queries fitted to domains, and kept only where that helps on pairs of them that were held out.

    pairs ──▶ by their documents ──▶ four fifths: the sums that W is solved from (models/adapting)
                                └──▶ one fifth, held out: choose λ and the step, and judge

λ and step are chosen by nDCG@10 of the held-out queries. What is reported is cross-fitted: a query's score after is
that under the λ and step that the other half of the held-out pairs would choose, so that no pair judges a choice which
it had a part in.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
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
from colbert_zero.models.encoding import Task, encode, reorder
from colbert_zero.report.records import MEASURE
from colbert_zero.watch import stop_if_asked

Embed = Callable[[list[str], Task], Packed]
"""Token vectors of texts, on the CPU."""

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
            "them is held out; add some"
        )
    held = [pair for pair in pairs if _digest(str(seed), pair[1])[0] % _SHARE == 0][:MOST_HELD_OUT]
    # A document's pairs stay together, also those of the last one.
    documents, queries = {document for _, document in held}, {query for query, _ in held}
    others = [pair for pair in pairs if pair[1] not in documents]
    fitted = [pair for pair in others if pair[0] not in queries]
    if min(len(held), len(fitted)) < FEWEST_HELD_OUT or len(documents) < 2:
        raise ColbertZeroError(
            f"--pairs: {domain.name} has {len({d for _, d in pairs})} different documents and "
            f"{len({q for q, _ in pairs})} different queries, too few to hold some out "
            f"({len(held)} pairs would be, {len(fitted)} left to fit to); add pairs of others"
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
class Judges:
    """Held-out queries, encoded, and the documents that they are ranked among.

    Attributes:
        queries: Without an adapter.
        documents: Encoded.
        positive: Which documents are a query's own, (queries, documents), bool.
        fold: 0 or 1 of each query, (queries,).
        before: nDCG@10 of each query of the given model, (queries,).
        candidates: Its best documents, and the query's own, (queries, n), int64.
    """

    queries: Packed
    documents: Packed
    positive: np.ndarray
    fold: np.ndarray
    before: np.ndarray
    candidates: Tensor

    def judged(self, form: Form, choices: "Choices") -> np.ndarray:
        """The nDCG@10 of each query among all documents, moved as the other fold chooses, (queries,)."""
        found = np.empty(len(self.fold))
        for fold, choice in enumerate(choices.judging):
            rows = np.flatnonzero(self.fold == fold)
            queries = _moved(form, reorder(self.queries, torch.from_numpy(rows)), choice.weights)
            found[rows] = ndcg(_all_scores(queries, self.documents), self.positive[rows])
        return found

    def among_candidates(self, form: Form, weights: Tensor) -> np.ndarray:
        """The nDCG@10 of each query, moved, among its candidates."""
        queries, ways, found = _moved(form, self.queries, weights), self.candidates.shape[1], []
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


class Fitted(NamedTuple):
    """What came of it.

    Attributes:
        statistics: Of all domains, those before included.
        weights: W with its step in it, (width, dim), float64.
        ridge: λ, chosen on all held-out pairs.
        step: Likewise.
        domains: Counts of each, means before and after (cross-fitted), their difference, its interval and p-value.
        difference: Mean over domains of nDCG@10, after less before.
        interval: Of it, 95 %.
        seconds: That it took.
    """

    statistics: Statistics
    weights: Tensor
    ridge: float
    step: float
    domains: dict[str, dict[str, Any]]
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
    sizes = {name: len(part.fitted) + len(part.held_out) for name, part in parts.items()}
    statistics, held, done = known or no_statistics(form), dict[str, Judges](), 0
    embed = partial(_embed, bare)
    for domain in domains:
        for added, pairs in sums_of(embed, form, domain, parts[domain.name], seed):
            statistics += added
            if progress:
                progress(done + pairs, sum(sizes.values()))
        before = None if bare is model else partial(_embed, model)
        held[domain.name] = hold(embed, before, domain, parts[domain.name], seed)
        done += sizes[domain.name]
        if progress:
            progress(done, sum(sizes.values()))
    choices = choose(form, statistics, held)
    measured = {name: one.judged(form, choices) for name, one in held.items()}
    about = {
        domain.name: {
            "pairs": len(set(domain.pairs)),
            "fitted": len(parts[domain.name].fitted),
            "held_out": len(parts[domain.name].held_out),
            "left_out": parts[domain.name].shared,
            "queries": len(held[domain.name].before),
            "documents": len(held[domain.name].documents.lengths),
            **_compared(held[domain.name].before, measured[domain.name], seed),
        }
        for domain in domains
    }
    drawn = bootstrap_means([measured[name] - one.before for name, one in held.items()], seed=seed).mean(axis=0)
    return Fitted(
        statistics,
        choices.of_all.weights,
        choices.of_all.ridge,
        choices.of_all.step,
        about,
        float(np.mean([one["difference"] for one in about.values()])),
        percentile_interval(drawn),
        time.monotonic() - started,
    )


class Choice(NamedTuple):
    """How far queries are moved: λ, the step, and W with its step in it, (width, dim), float64."""

    ridge: float
    step: float
    weights: Tensor


class Choices(NamedTuple):
    """What all held-out queries choose, and what those of each fold are judged by: the other fold's choice."""

    of_all: Choice
    judging: tuple[Choice, Choice]


def choose(form: Form, statistics: Statistics, held: dict[str, Judges]) -> Choices:
    """Choose λ and the step by the mean over domains of nDCG@10 among each held-out query's candidates.

    Args:
        form: Of the statistics.
        statistics: Of the fitted pairs.
        held: {domain: held-out pairs}.
    """
    points = list(product(RIDGES, STEPS if form.way != "decorrelate" else STEPS[-1:]))
    solved = {ridge: solve(form, statistics, ridge) for ridge in RIDGES}
    # {domain: (points, queries)}
    tried = {
        name: np.stack([one.among_candidates(form, step * solved[ridge]) for ridge, step in points])
        for name, one in held.items()
    }

    def best(counted: dict[str, np.ndarray]) -> Choice:
        means = np.mean([scores[:, counted[name]].mean(1) for name, scores in tried.items()], axis=0)
        ridge, step = points[int(np.argmax(means))]
        return Choice(ridge, step, step * solved[ridge])

    of_all = best({name: one.fold >= 0 for name, one in held.items()})
    first, second = (best({name: one.fold != fold for name, one in held.items()}) for fold in (0, 1))
    return Choices(of_all, (first, second))


def _compared(before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, Any]:
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "difference": float((after - before).mean()),
        "interval": list(percentile_interval(bootstrap_means([after - before], seed=seed)[0])),
        "p_value": paired_randomisation(after, before, seed=seed),
    }


def _moved(form: Form, queries: Packed, weights: Tensor) -> Packed:
    return Packed(form.moved(queries.values, weights.float()), queries.lengths)


def sums_of(embed: Embed, form: Form, domain: Domain, parts: Split, seed: int) -> Iterator[tuple[Statistics, int]]:
    """A domain's sums, some hundreds of texts at a time, and how many pairs are done.

    Args:
        embed: Without an adapter.
        form: Of the sums.
        domain: Of whose corpus, if it has one, `decorrelate` takes the documents.
        parts: Its pairs; no held-out document is summed.
        seed: Of which documents, if there are more than `MOST_SUMMED`.
    """
    if form.way == "decorrelate":
        held = {document for _, document in parts.held_out}
        corpus = domain.corpus or [document for _, document in parts.fitted]
        texts = sampled((text for text in corpus if text not in held), MOST_SUMMED, seed)
        for start in range(0, len(texts), _BLOCK):
            stop_if_asked()
            yield statistics_of_documents(form, embed(texts[start : start + _BLOCK], "document")), 0
        return
    for start in range(0, len(parts.fitted), _BLOCK):
        stop_if_asked()
        block = parts.fitted[start : start + _BLOCK]
        queries, documents = embed([q for q, _ in block], "query"), embed([d for _, d in block], "document")
        yield statistics_of_pairs(form, queries, documents), start + len(block)


def hold(
    embed: Embed, before: Embed | None, domain: Domain, parts: Split, seed: int, most: int = MOST_RANKED
) -> Judges:
    """Encode held-out queries and what they are ranked among.

    Args:
        embed: Without an adapter.
        before: Queries as the given model has them, where that has an adapter.
        domain: Its corpus, or its fitted documents, stand among the ranked.
        parts: Of the domain.
        seed: Of which documents.
        most: Documents to rank.
    """
    fitted, held_out, _ = parts
    queries = list(dict.fromkeys(query for query, _ in held_out))
    own = list(dict.fromkeys(document for _, document in held_out))
    others = sampled(
        set(domain.corpus or (document for _, document in fitted)) - set(own), max(0, most - len(own)), seed
    )
    texts = {text: i for i, text in enumerate([*own, *others])}
    at, positive = {query: i for i, query in enumerate(queries)}, np.zeros((len(queries), len(texts)), bool)
    fold = np.zeros(len(queries), int)
    for query, document in held_out:
        positive[at[query], texts[document]] = True
        fold[at[query]] = _digest(str(seed), document)[1] % 2
    if len(set(fold)) < 2:  # a handful of queries
        fold = np.arange(len(queries)) % 2
    documents, plain = embed(list(texts), "document"), embed(queries, "query")
    scores = _all_scores(before(queries, "query") if before else plain, documents)
    ways = min(len(texts), _CANDIDATES)
    # A query's own documents stand first, whatever their scores.
    candidates = np.argsort(-(scores + 1e6 * positive), axis=1, kind="stable")[:, :ways]
    return Judges(plain, documents, positive, fold, ndcg(scores, positive), torch.from_numpy(candidates))


def _embed(model: MultiVectorEncoder, texts: list[str], task: Task) -> Packed:
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
