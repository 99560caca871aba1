"""How often a query's nearest document is its own, and which models differ in that: what a base is chosen by.

    pairs ──▶ a sample in which every text has one answer ──▶ queries q, documents d; q's own is d
    model ──▶ scores of all q with all d ──▶ hit of q: 1 where its own scores above every other document,
                                                      ½ where the highest of the others scores as high, else 0

recall@1 is the mean of the hits. Nothing is trained: of each query all pairs but its own are what it could be mistaken
for. That is leave-one-out accuracy of the nearest neighbour with a pair in place of a class. Ranking pre-trained models
by that accuracy of their frozen features, on the training data of the task itself, is of "Deep Ensembles for Low-Data
Transfer Learning" (arXiv 2010.06866); pairs and MaxSim are not.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import embed
from colbert_zero.evaluation.significance import (
    bootstrap_means,
    equal_within,
    holm,
    paired_randomisation,
    percentile_interval,
)
from colbert_zero.files import Progress, fingerprint
from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import Task, concatenate, reorder
from colbert_zero.watch import stop_if_asked

MARGIN = 0.02
"""Of recall@1, within which a model is as good as the best."""

_BLOCK_TEXTS, _BLOCK_QUERIES = 256, 64


class Sample(NamedTuple):
    """Pairs whose texts all differ: query i's one answer is document i.

    Attributes:
        queries: Texts.
        documents: Texts, as many.
        drawn_from: How many of them each source has.
        left_out: Pairs that were drawn and not taken, since another one has their query or document.
    """

    queries: list[str]
    documents: list[str]
    drawn_from: dict[str, int]
    left_out: int


def sample_pairs(pairs: Iterable[tuple[str, str, str]], count: int, seed: int) -> Sample:
    """Draw pairs by their texts and the seed alone; of those that share a text one is taken.

    No document of the sample is an answer to two of its queries, also by pairs that were not drawn.

    Args:
        pairs: (source, query, document); equal ones count once.
        count: At most so many are drawn.
        seed: Of the draw.

    Example:
        >>> found = sample_pairs([("s", "a", "1"), ("s", "a", "2"), ("s", "b", "3")], 5, seed=1)
        >>> len(found.queries), found.left_out
        (2, 1)
    """
    sources = {(query, document): source for source, query, document in pairs}
    answers, askers = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for query, document in sources:
        answers[query].append(document)
        askers[document].append(query)
    # A text may be had by no more pairs: it is in the sample, or answers what is, or is answered by it.
    queries, documents = set[str](), set[str]()
    taken, left_out = list[tuple[str, str]](), 0
    for query, document in sorted(sources, key=lambda pair: (fingerprint(seed, *pair), pair)):
        if len(taken) == count:
            break
        if query in queries or document in documents:
            left_out += 1
            continue
        taken.append((query, document))
        documents.update(answers[query])
        queries.update(askers[document])
    drawn = Counter(sources[pair] for pair in taken)
    return Sample([query for query, _ in taken], [document for _, document in taken], dict(drawn), left_out)


def hits_in(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Whether each query's own document scores above all others: 1, or ½ where it is as high as the highest of them.

    Args:
        scores: (queries, documents), at least two documents.
        own: Column of each query's own, (queries,).

    Example:
        >>> hits_in(np.array([[3, 1, 2], [2, 2, 1], [1, 0, 0]]), np.array([0, 1, 2])).tolist()
        [1.0, 0.5, 0.0]
    """
    rows = np.arange(len(scores))
    others = scores.astype(float)
    mine = others[rows, own]
    others[rows, own] = -np.inf
    highest = others.max(axis=1)
    hits: np.ndarray = (mine > highest) + 0.5 * (mine == highest)
    return hits


class EmbeddedSample(NamedTuple):
    """A model's embeddings of a sample, and the seconds that its documents took."""

    queries: Packed
    documents: Packed
    seconds: float


def embed_sample(model: Encoder, sample: Sample, progress: Progress | None = None) -> EmbeddedSample:
    """Embeddings of a sample's texts, on the model's device.

    Args:
        model: Dense, by cosine or dot product, or multi-vector.
        sample: See there.
        progress: Called with the texts done, and all.

    Raises:
        ColbertZeroError: The model's similarity is another.
    """
    done, total, sides = 0, 2 * len(sample.queries), []
    tasks: list[tuple[Task, list[str]]] = [("query", sample.queries), ("document", sample.documents)]
    for task, texts in tasks:
        blocks, started = [], time.perf_counter()
        for start in range(0, len(texts), _BLOCK_TEXTS):
            stop_if_asked()
            block = texts[start : start + _BLOCK_TEXTS]
            blocks.append(embed(model, block, task))
            done += len(block)
            if progress:
                progress(done, total)
        sides.append(concatenate(blocks))
    return EmbeddedSample(sides[0], sides[1], time.perf_counter() - started)


def hits_of(embedded: EmbeddedSample, whose: str) -> np.ndarray:
    """The hit of each query, (queries,), by MaxSim, which of one vector a text is their product.

    Args:
        embedded: A sample's.
        whose: Named in errors.

    Raises:
        ColbertZeroError: A score is not finite.
    """
    found = []
    for rows in torch.arange(len(embedded.queries.lengths)).split(_BLOCK_QUERIES):
        stop_if_asked()
        scores = packed_scores(reorder(embedded.queries, rows), embedded.documents).cpu().numpy()
        if not np.isfinite(scores).all():
            raise ColbertZeroError(f"{whose}: gives scores that are not finite; fetch it again")
        found.append(hits_in(scores, rows.numpy()))
    return np.concatenate(found)


def bm25_hits(sample: Sample) -> np.ndarray:
    """The same by BM25 of the sample's documents: what a model should beat."""
    bm25, every, found = Bm25(sample.documents), np.arange(len(sample.documents)), []
    for rows in np.split(every, range(_BLOCK_QUERIES, len(every), _BLOCK_QUERIES)):
        candidates = np.broadcast_to(every, (len(rows), len(every)))
        found.append(hits_in(bm25.score_pairs([sample.queries[row] for row in rows], candidates), rows))
    return np.concatenate(found)


def apart_from_best(hits: Mapping[str, np.ndarray], margin: float = MARGIN) -> dict[str, dict[str, Any]]:
    """How far each model is from that of the highest mean, and whether that is shown.

    Args:
        hits: Of each model, (queries,), the same queries in the same order; at least two models.
        margin: Within which a model is as good.

    Returns:
        Of each model, best first: `verdict`, and of all but the best `difference` (its mean less the best's), its
        95 % `interval_of_difference` (paired bootstrap over queries), `equal_within` (two one-sided tests), `p_value`
        (paired randomisation) and `p_value_holm`, over these models. The verdict is `best`; `as good`, where it is
        shown to be equal within the margin; `worse`, where Holm's p-value is below .05 and it is not; else `not told
        apart`. That the best was chosen by the same queries favours it.

    Example:
        >>> apart_from_best({"a": np.zeros(100), "b": np.ones(100)})["a"]["verdict"]
        'worse'
    """
    order = sorted(hits, key=lambda name: -hits[name].mean())
    best, *others = order
    found: dict[str, dict[str, Any]] = {best: {"verdict": "best"}}
    for name in others:
        difference = hits[name] - hits[best]
        means = bootstrap_means([difference])[0]
        found[name] = {
            "difference": float(difference.mean()),
            "interval_of_difference": list(percentile_interval(means)),
            "equal_within": equal_within(means),
            "p_value": paired_randomisation(hits[name], hits[best]),
        }
    for name, p in zip(others, holm([found[name]["p_value"] for name in others]), strict=True):
        about = found[name]
        about["p_value_holm"] = p
        about["verdict"] = (
            "as good" if about["equal_within"] < margin else "worse" if p < 0.05 else "not told apart"
        )  # fmt: skip
    return found
