"""The two objectives, contrastive and distillation, over packed embeddings.

| objective | scores | what a query is asked |
|---|---|---|
| `Contrastive` | (queries, documents of all processes) | which document is mine? |
| `Distillation` | (queries, n_ways) | how does the teacher order my candidates? |

Dense embeddings are texts of one token, so the same code trains dense and multi-vector models.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import min_max, packed_candidate_scores, packed_scores, span
from colbert_zero.models.encoding import reorder
from colbert_zero.processes import gather_rows, sums, world_size
from colbert_zero.recipe.schema import Phase, Temperature
from colbert_zero.training.gradcache import LossOf, TokenisedTexts

FLAT = 1e-6
"""A student's scores of one query that span less count as equal."""

_ENTROPY_QUERIES = 256


def objective_of(spec: Phase) -> "Objective":
    """The objective a phase asks for."""
    learned = isinstance(spec.temperature, Temperature) and spec.temperature.learnable
    temperature = spec.temperature.initial if isinstance(spec.temperature, Temperature) else spec.temperature
    if spec.objective == "contrastive":
        return Contrastive(temperature, learned, spec.length_normalised)
    scaling = spec.student_scores or "min-max"
    return Distillation(temperature, learned, spec.length_normalised, spec.teacher_temperature, scaling)


class Objective(nn.Module, ABC):
    """What a batch's loss is, and its temperature.

    With several processes each has its own queries and their documents, as many as it likes, also none; the mean of
    their losses is the loss of all queries together, and so are their gradients'.

    Args:
        temperature: Divides the scores; unitless, > 0.
        learnable: Train the temperature too.
        length_normalised: Divide each score by the query's number of tokens, as LateOn does.

    Attributes:
        entropies: Of each softmax of the first batch (`normalised_entropy`), by the recipe's key of its temperature.
    """

    def __init__(self, temperature: float = 1.0, learnable: bool = False, length_normalised: bool = False):
        super().__init__()
        self.length_normalised = length_normalised
        self.entropies: dict[str, float | None] = {}
        # The logarithm keeps a learned temperature above 0.
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log(), requires_grad=learnable)

    @property
    def temperature(self) -> Tensor:
        """Scores are divided by it; scalar."""
        return self.log_temperature.exp()

    @abstractmethod
    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None) -> LossOf:
        """The loss of a batch as a function of its embeddings.

        Args:
            queries: This process's.
            documents: Their documents, column by column: document i of each column belongs to query i.
            teacher_scores: (queries, n_ways), for distillation.
        """

    def _normalised(self, scores: Tensor, queries: Packed) -> Tensor:
        return scores / queries.lengths.clamp_min(1).to(scores)[:, None] if self.length_normalised else scores


class Contrastive(Objective):
    """InfoNCE over MaxSim with in-batch and hard negatives (van den Oord et al. 2018, arXiv 1807.03748).

    A document equal to a query's own, and the own document of an equal query, are not counted as its negatives.
    """

    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None = None) -> LossOf:
        """Document i of the first column answers query i; all other documents, of all processes, are its negatives."""
        asked = identities(queries)
        not_asked = torch.full((len(documents) - len(queries),), -1, device=asked.device)
        everyone, start = gather_rows(torch.stack([identities(documents), torch.cat([asked, not_asked])], 1))
        positives = torch.arange(start, start + len(queries), device=asked.device)
        excluded = false_negatives(asked, positives, *everyone.unbind(1))
        weight = _weight(len(queries))

        def loss(query_embeddings: Packed, document_embeddings: Packed) -> Tensor:
            scores = packed_scores(query_embeddings, gather_documents(document_embeddings))
            if not len(queries):
                return scores.sum()
            scores = self._normalised(scores, query_embeddings)
            if not self.entropies:
                self.entropies["temperature"] = normalised_entropy(_logits(scores, self.temperature, excluded))
            return weight * contrastive_loss(scores, self.temperature, positives, excluded)

        return loss


class Distillation(Objective):
    """KL divergence from a teacher over each query's candidates; see `distillation_loss`.

    Args:
        temperature: As for every objective; and `learnable`, `length_normalised`.
        learnable: See there.
        length_normalised: See there.
        teacher_temperature: Divides the teacher's side in its place.
        scaling: "min-max" or "raw": what becomes of the student's scores.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        learnable: bool = False,
        length_normalised: bool = False,
        teacher_temperature: float | None = None,
        scaling: str = "min-max",
    ):
        super().__init__(temperature, learnable, length_normalised)
        self.teacher_temperature, self.scaling = teacher_temperature, scaling

    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None) -> LossOf:
        """Candidates stand column by column; MaxSim wants them query by query."""
        if teacher_scores is None:
            raise ValueError("distillation needs the teacher's scores, (queries, n_ways)")
        n_ways = teacher_scores.shape[1]
        weight = _weight(len(queries))

        def loss(query_embeddings: Packed, document_embeddings: Packed) -> Tensor:
            by_query = torch.arange(len(documents)).view(n_ways, len(queries)).T.flatten()
            candidates = reorder(document_embeddings, by_query)
            scores = packed_candidate_scores(query_embeddings, candidates, n_ways)
            if not len(queries):
                return scores.sum()
            scores = self._normalised(scores, query_embeddings)
            temperatures = self.temperature, self.teacher_temperature
            if not self.entropies:
                own = min_max(scores, FLAT) if self.scaling == "min-max" else scores
                self.entropies["temperature"] = normalised_entropy(own / self.temperature)
                key = "teacher_temperature" if self.teacher_temperature else "temperature (the teacher's side)"
                self.entropies[key] = normalised_entropy(
                    min_max(teacher_scores.float()) / (temperatures[1] or temperatures[0])
                )
            return weight * distillation_loss(scores, teacher_scores, *temperatures, self.scaling)

        return loss


def contrastive_loss(
    scores: Tensor, temperature: Tensor | float, positives: Tensor, excluded: Tensor | None = None
) -> Tensor:
    """InfoNCE: cross-entropy of each query's own document among all.

    Args:
        scores: (queries, documents), float32.
        temperature: Divides the scores; unitless, > 0.
        positives: Place of each query's own document, (queries,).
        excluded: (queries, documents), true where a document is left out of a query's sum.

    Returns:
        Scalar in nats, mean over queries.

    Source: van den Oord et al. 2018, arXiv 1807.03748, equation 4.
    """
    return F.cross_entropy(_logits(scores, temperature, excluded), positives)


def _logits(scores: Tensor, temperature: Tensor | float, excluded: Tensor | None) -> Tensor:
    logits = scores / temperature
    return logits if excluded is None else logits.masked_fill(excluded, float("-inf"))


@torch.no_grad()
def normalised_entropy(logits: Tensor) -> float | None:
    """Mean entropy of the first queries' softmax, as a share of the most it can be: 0 one-hot, 1 flat.

    Args:
        logits: (queries, documents); −inf where a document does not count. Queries with one that counts are left out.

    Returns:
        None where no query has two.
    """
    logits = logits[:_ENTROPY_QUERIES].float()
    counted = logits.isfinite().sum(1)
    logits, counted = logits[counted > 1], counted[counted > 1]
    if not len(logits):
        return None
    p = logits.softmax(1)
    return float((torch.special.entr(p).sum(1) / counted.log()).mean())


def distillation_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    temperature: Tensor | float,
    teacher_temperature: float | None = None,
    scaling: str = "min-max",
) -> Tensor:
    """KL divergence from teacher to student over each query's candidates.

    With min-max scaling a query says nothing, and has neither loss nor gradient, where either side's scores are all
    equal: the student's within `FLAT`, below which its scaling would blow rounding up.

    Args:
        student_scores: MaxSim, (queries, n_ways), float32.
        teacher_scores: Any real scale, (queries, n_ways); min-max normalised per query here.
        temperature: Divides both sides; unitless, > 0.
        teacher_temperature: Divides the teacher's side instead, where the student's scores span more than [0, 1].
        scaling: "min-max" brings the student's scores of each query to [0, 1] too; "raw" takes them as they are.

    Returns:
        Scalar in nats, mean over queries.

    Raises:
        ValueError: The shapes differ; names both.

    Source: ColBERTv2, arXiv 2112.01488, section 3.2; both sides min-max normalised: JaColBERTv2.5, arXiv 2407.20750,
    and ColBERT-Zero, arXiv 2602.16609.
    """
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(f"student scores {tuple(student_scores.shape)}, teacher scores {tuple(teacher_scores.shape)}")
    teacher_scores = teacher_scores.float()
    teacher = F.log_softmax(min_max(teacher_scores) / (teacher_temperature or temperature), dim=1)
    if scaling == "raw":
        student = F.log_softmax(student_scores / temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    student = F.log_softmax(min_max(student_scores, FLAT) / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    telling = (span(student_scores) >= FLAT) & (span(teacher_scores) > 0)
    return divergence.where(telling, 0).mean()


# ---- What must not count as a negative


def false_negatives(queries: Tensor, positives: Tensor, documents: Tensor, asked: Tensor) -> Tensor | None:
    """Documents that must not count as negatives of a query, because they answer it.

    Args:
        queries: Identity of each query's text, (queries,).
        positives: Place of each query's own document, (queries,).
        documents: Identity of each document's text, (documents,).
        asked: Identity of the query that a document is the own document of, (documents,); -1 for hard negatives.

    Returns:
        (queries, documents), true where the document equals the query's own or is the own document of an equal
        query, except its own place; None where there is none.
    """
    excluded = (documents[positives][:, None] == documents) | (queries[:, None] == asked)
    excluded[torch.arange(len(queries)), positives] = False
    return excluded if bool(excluded.any()) else None


def identities(texts: TokenisedTexts) -> Tensor:
    """A number per text, equal for equal token sequences, in every process: (texts,) int64.

    A sum of token ids with random odd weights modulo 2^64. Two texts that differ are equal in it with a probability of
    at most 2^v / 2^63, 2^v being the power of two in a difference of ids: 2^-46 for ids below 2^17 (multiplicative
    hashing, Dietzfelbinger et al. 1997).
    """
    width = texts.used.shape[1]
    weights = torch.randint(-(2**62), 2**62, (width,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    real = (texts.inputs["input_ids"] + 1) * texts.used
    return (real * weights.to(real.device)).sum(1)


# ---- Several processes


def _weight(queries: int) -> float:
    """Of a process's mean over its own queries, so that the processes' mean is the mean over all queries."""
    return queries * world_size() / max(1.0, sums(queries)[0])


def gather_documents(documents: Packed) -> Packed:
    """Documents of all processes; the gradient of this process's own is summed over all, in one exchange."""
    if world_size() == 1:
        return documents
    lengths, _ = gather_rows(documents.lengths.to(documents.values.device))
    values = _Gather.apply(documents.values)  # type: ignore[no-untyped-call]
    return Packed(values, lengths.cpu())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gathered, ctx.start = gather_rows(values)
        ctx.count = len(values)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]
