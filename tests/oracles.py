"""The plain, slow, obviously right versions."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from colbert_zero.training.gradcache import grad_cache


def maxsim(query: Tensor, document: Tensor) -> float:
    """MaxSim of two texts' token embeddings, (q_tokens, dim) and (d_tokens, dim), in float64."""
    return sum(max(float(torch.dot(q.double(), d.double())) for d in document) for q in query)


def maxsim_matrix(queries: list[Tensor], documents: list[Tensor]) -> Tensor:
    """MaxSim of every query with every document, (queries, documents), float64."""
    return torch.stack([torch.stack([(q.double() @ d.double().T).amax(1).sum() for d in documents]) for q in queries])


def distillation(student: Tensor, teacher: Tensor, temperature: float, scaling: str) -> Tensor:
    """KL divergence from teacher to student over one query's candidates, both (n_ways,), in float64.

    The teacher's scores are min-max normalised, the student's too with that scaling; a query that has no preference on
    either side then says nothing.
    """
    s, t = student.double(), teacher.double()
    t_span, s_span = (float((x.max() - x.min()).detach()) for x in (t, s))
    if scaling == "min-max":
        if t_span == 0 or s_span < 1e-6:
            return 0 * s.sum()
        s = (s - s.amin()) / (s.amax() - s.amin())
    target = ((t - t.min()) / (t_span or 1) / temperature).softmax(0)
    return (target * (target.log() - (s / temperature).log_softmax(0))).sum()


def margin_mse(student: Tensor, teacher: Tensor, scaling: str) -> Tensor:
    """Mean squared difference of the margins of one query's first candidate, both (n_ways,), in float64.

    With min-max scaling both sides are normalised, and a query without a preference on either side says nothing.
    """
    s, t = student.double(), teacher.double()
    if scaling == "min-max":
        if float(t.max() - t.min()) == 0 or float((s.max() - s.min()).detach()) < 1e-6:
            return 0 * s.sum()
        s, t = ((x - x.amin()) / (x.amax() - x.amin()) for x in (s, t))
    return torch.stack([((s[0] - s[i]) - (t[0] - t[i])) ** 2 for i in range(1, len(s))]).mean()


def listwise(scores: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """Cross entropy of one query's answer, the first of its scores, (1 + negatives,), in float64."""
    counted = [scores[0], *(score for score, out in zip(scores[1:], left_out, strict=True) if not out)]
    weights = [(score.double() / temperature).exp() for score in counted]
    return -(weights[0] / sum(weights)).log()


def binary(scores: Tensor, left_out: Tensor) -> Tensor:
    """Mean of one query's pairs, (1 + negatives,): -log of what a sigmoid says of the right label, in float64."""
    said = scores.double().sigmoid()
    losses = [-said[0].log(), *(-(1 - p).log() for p, out in zip(said[1:], left_out, strict=True) if not out)]
    return torch.stack(losses).mean()


def ndcg(ranking: Sequence[str], grades: dict[str, int], cutoff: int = 10) -> float:
    """nDCG with linear gains and a log2 discount, as trec_eval defines it."""

    def dcg(gains: Sequence[int]) -> float:
        return sum(max(gain, 0) / math.log2(place + 1) for place, gain in enumerate(gains[:cutoff], 1))

    ideal = dcg(sorted(grades.values(), reverse=True))
    return dcg([grades.get(document_id, 0) for document_id in ranking]) / ideal if ideal else 0.0


def recall(ranking: Sequence[str], grades: dict[str, int], cutoff: int = 100) -> float:
    """Share of the relevant documents among the first `cutoff`."""
    relevant = {document_id for document_id, grade in grades.items() if grade > 0}
    return len(relevant & set(ranking[:cutoff])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], grades: dict[str, int], cutoff: int = 10) -> float:
    """1 / the place of the first relevant document among the first `cutoff`."""
    for place, document_id in enumerate(ranking[:cutoff], 1):
        if grades.get(document_id, 0) > 0:
            return 1 / place
    return 0.0


def train(model, objective, batches, spec, seed: int) -> list[float]:
    """One process's training as a paper would write it: AdamW, schedule, clipping, autocast. The losses."""
    torch.manual_seed(seed)
    model.train()
    named = [*model.named_parameters(), *objective.named_parameters()]
    trained = [(name, p) for name, p in named if p.requires_grad]
    plain = [p for name, p in trained if name.endswith("bias") or "norm" in name.lower() or name == "log_temperature"]
    decaying = [p for _, p in trained if not any(p is other for other in plain)]
    groups = [{"params": decaying, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, fused=True)
    warmup, losses = math.ceil(spec.warmup * len(batches)), []

    def rate(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        left = (step - warmup) / max(1, len(batches) - warmup)
        return {"constant": 1.0, "linear": 1 - left, "cosine": 0.5 * (1 + math.cos(math.pi * left))}[spec.schedule]

    for step in range(len(batches)):
        queries, documents, scores = batches[step]
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * rate(step)
        precision = lambda: torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bfloat16")  # noqa: E731
        loss_of = objective.of(queries, documents, scores)
        loss, _ = grad_cache(model, (queries, documents), loss_of, spec.mini_batch_tokens, precision)
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def pooled(vectors: Tensor, factor: int) -> Tensor:
    """A document's token vectors, (tokens, dim) of length 1, pooled as by Clavié et al. 2024 (arXiv 2409.14683).

    Two clusters at a time become one, those whose joining adds least to the squared distances from the centres (Ward,
    by the recurrence of Lance and Williams on cosine distances), until there are `tokens // factor` beside the first
    token. Each is then its mean, at length 1.
    """
    rest = vectors[1:].double()
    members = [[i] for i in range(len(rest))]
    apart = {(i, j): float(1 - rest[i] @ rest[j]) ** 2 for j in range(len(rest)) for i in range(j)}
    while len(members) > max(1, len(rest) // factor):
        i, j = min(apart, key=lambda pair: apart[pair])
        sizes = [len(cluster) for cluster in members]
        joined, all_apart = apart.pop((i, j)), dict(apart)
        for k in range(len(members)):
            if k not in (i, j):
                to_i, to_j = (all_apart[min(k, other), max(k, other)] for other in (i, j))
                weighed = (sizes[i] + sizes[k]) * to_i + (sizes[j] + sizes[k]) * to_j - sizes[k] * joined
                apart[min(i, k), max(i, k)] = weighed / (sizes[i] + sizes[j] + sizes[k])
        members[i] += members.pop(j)
        apart = {(a - (a > j), b - (b > j)): value for (a, b), value in apart.items() if j not in (a, b)}
    means = torch.stack([rest[cluster].mean(0) for cluster in members])
    return torch.nn.functional.normalize(torch.cat([vectors[:1].double(), means]), dim=1)


def fewer_neurons(into: Tensor, bias: Tensor | None, out_of: Tensor, keep: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """A feed-forward layer's matrices with its most important neurons: a loop over neurons and numbers.

    Args:
        into: (neurons, hidden), or (2 × neurons, hidden) where the second half are gates.
        bias: Of the same rows.
        out_of: (hidden, neurons).
        keep: How many stay.
    """
    neurons = out_of.shape[1]
    rows = [[i, i + neurons] if len(into) == 2 * neurons else [i] for i in range(neurons)]

    def length(vector: Tensor) -> float:
        return math.sqrt(sum(float(x) ** 2 for x in vector))

    importance = [length(out_of[:, i]) * math.prod(length(into[row]) for row in rows[i]) for i in range(neurons)]
    chosen = sorted(sorted(range(neurons), key=lambda i: -importance[i])[:keep])
    halves = [[rows[i][half] for i in chosen] for half in range(len(rows[0]))]
    taken = [row for half in halves for row in half]
    return into[taken], None if bias is None else bias[taken], out_of[:, chosen]


def sums_of_pairs(queries, documents, projection=None):
    """G and C of `models.adapting`, token by token, in float64; queries and documents are lists of (tokens, dim)."""
    dim = queries[0].shape[1]
    width = dim if projection is None else projection.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, dim, dtype=torch.float64)
    for query, document in zip(queries, documents, strict=True):
        for token in query.double():
            picked = max(document.double(), key=lambda other: float(token @ other))
            features = token if projection is None else torch.relu(token @ projection.double())
            gram += torch.outer(features, features)
            cross += torch.outer(features, picked - token)
    return gram, cross


@contextmanager
def attention_without_head(joining: torch.nn.Module, head: int, size: int) -> Iterator[None]:
    """An encoder inside of which one head gives 0, before the heads are joined by this module."""

    def silenced(_, inputs):
        [heads] = inputs
        return torch.cat([heads[..., : head * size], 0 * heads[..., :size], heads[..., (head + 1) * size :]], -1)

    hook = joining.register_forward_pre_hook(silenced)
    try:
        yield
    finally:
        hook.remove()
