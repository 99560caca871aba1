"""What a batch's loss is: contrastive, distillation, or both, over packed embeddings; `pair_objectives` has others.

| objective | scores | what a query is asked |
|---|---|---|
| `Contrastive` | (queries, documents of all processes) | which document is mine? |
| `Distillation` | (queries, n_ways) | how does the teacher order my candidates? |
| `ContrastiveDistillation` | (queries, documents of all processes) | both, of the same scores |

Dense embeddings are texts of one token, so the same code trains dense and multi-vector models.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import min_max, packed_candidate_scores, packed_scores
from colbert_zero.models.encoding import reorder
from colbert_zero.processes import gather_rows, world_size
from colbert_zero.recipe.schema import Phase, Temperature
from colbert_zero.training.gradcache import LossOf, TokenisedTexts
from colbert_zero.training.losses import (
    FLAT,
    contrastive_loss,
    distillation_loss,
    false_negatives,
    logits,
    margin_mse_loss,
    normalised_entropy,
    too_near,
)
from colbert_zero.training.objective import Objective, identities, weight_of
from colbert_zero.training.pair_objectives import Binary, Listwise


def objective_of(spec: Phase) -> Objective:
    """The objective a phase asks for."""
    learned = isinstance(spec.temperature, Temperature) and spec.temperature.learnable
    temperature = spec.temperature.initial if isinstance(spec.temperature, Temperature) else spec.temperature
    common: dict[str, Any] = {
        "temperature": temperature,
        "learnable": learned,
        "length_normalised": spec.length_normalised,
    }
    if spec.objective == "binary":
        return Binary(mask_duplicates=spec.mask_duplicates)
    if spec.objective == "listwise":
        return Listwise(temperature, learned, mask_duplicates=spec.mask_duplicates)
    if spec.objective == "contrastive":
        return Contrastive(**common, mask_duplicates=spec.mask_duplicates, max_relative=spec.max_relative)
    teacher: dict[str, Any] = {
        "teacher_temperature": spec.teacher_temperature,
        "scaling": spec.student_scores or "min-max",
        "loss": spec.distillation_loss,
    }
    if spec.objective == "distillation":
        return Distillation(**common, **teacher)
    return ContrastiveDistillation(
        **common,
        **teacher,
        contrastive_temperature=spec.contrastive_temperature,
        contrastive_weight=spec.contrastive_weight,
        mask_duplicates=spec.mask_duplicates,
        max_relative=spec.max_relative,
    )


class _OfEmbeddings(Objective):
    """An objective whose scores are MaxSim.

    Args:
        temperature: As for every objective.
        learnable: Likewise.
        length_normalised: Divide each score by the query's number of tokens, as LateOn does.
    """

    def __init__(self, temperature: float = 1.0, learnable: bool = False, length_normalised: bool = False):
        super().__init__(temperature, learnable)
        self.length_normalised = length_normalised

    def _normalised(self, scores: Tensor, queries: Packed) -> Tensor:
        return scores / queries.lengths.clamp_min(1).to(scores)[:, None] if self.length_normalised else scores

    def _of_all_scores(self, queries: TokenisedTexts, of_scores: Callable[[Tensor], Tensor]) -> LossOf:
        """The loss of the scores of these queries with all processes' documents, (queries, documents)."""
        weight = weight_of(len(queries))

        def loss(query_embeddings: Packed, document_embeddings: Packed) -> Tensor:
            scores = packed_scores(query_embeddings, gather_documents(document_embeddings))
            if not len(queries):
                return scores.sum()
            return weight * of_scores(self._normalised(scores, query_embeddings))

        return loss


class Contrastive(_OfEmbeddings):
    """InfoNCE over MaxSim with in-batch and hard negatives (van den Oord et al. 2018, arXiv 1807.03748).

    Args:
        temperature: As for every objective; and `learnable`, `length_normalised`.
        learnable: See there.
        length_normalised: See there.
        mask_duplicates: A document equal to a query's own, and the own document of an equal query, are not counted as
            its negatives.
        max_relative: A query's candidate that scores above this share of its answer's recorded score is none either.

    Example:
        >>> from colbert_zero import Contrastive
        >>> f"{Contrastive(temperature=0.3).temperature:.1f}"
        '0.3'
    """

    def __init__(
        self,
        temperature: float = 1.0,
        learnable: bool = False,
        length_normalised: bool = False,
        mask_duplicates: bool = True,
        max_relative: float | None = None,
    ):
        super().__init__(temperature, learnable, length_normalised)
        self.mask_duplicates, self.max_relative = mask_duplicates, max_relative

    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None = None) -> LossOf:
        """Document i of the first column answers query i; all other documents, of all processes, are its negatives."""
        near = None if self.max_relative is None else too_near(_needed(teacher_scores), self.max_relative)
        positives, excluded = _answers(queries, documents, self.mask_duplicates, near)

        def of_scores(scores: Tensor) -> Tensor:
            if not self.entropies:
                self.entropies["temperature"] = normalised_entropy(logits(scores, self.temperature, excluded))
            return contrastive_loss(scores, self.temperature, positives, excluded)

        return self._of_all_scores(queries, of_scores)


class Distillation(_OfEmbeddings):
    """What a teacher's scores of each query's candidates teach; see `distillation_loss` and `margin_mse_loss`.

    Args:
        temperature: As for every objective; and `learnable`, `length_normalised`.
        learnable: See there.
        length_normalised: See there.
        teacher_temperature: Divides the teacher's side in its place.
        scaling: "min-max" or "raw": what becomes of the scores.
        loss: "kl" or "margin-mse"; the latter has no temperature.

    Example:
        >>> from colbert_zero import Distillation
        >>> Distillation(temperature=0.5, scaling="raw", teacher_temperature=0.1).scaling
        'raw'
    """

    def __init__(
        self,
        temperature: float = 1.0,
        learnable: bool = False,
        length_normalised: bool = False,
        teacher_temperature: float | None = None,
        scaling: str = "min-max",
        loss: str = "kl",
    ):
        super().__init__(temperature, learnable, length_normalised)
        self.teacher_temperature, self.scaling, self.loss = teacher_temperature, scaling, loss

    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None) -> LossOf:
        """Candidates stand column by column; MaxSim wants them query by query."""
        teacher_scores = _needed(teacher_scores)
        n_ways = teacher_scores.shape[1]
        weight = weight_of(len(queries))

        def loss(query_embeddings: Packed, document_embeddings: Packed) -> Tensor:
            candidates = reorder(document_embeddings, _query_by_query(len(documents), n_ways).flatten())
            scores = packed_candidate_scores(query_embeddings, candidates, n_ways)
            if not len(queries):
                return scores.sum()
            return weight * self._taught(self._normalised(scores, query_embeddings), teacher_scores)

        return loss

    def _taught(self, scores: Tensor, teacher_scores: Tensor) -> Tensor:
        """The loss of these scores, (queries, n_ways)."""
        if self.loss == "margin-mse":
            return margin_mse_loss(scores, teacher_scores, self.scaling)
        if not self.entropies:
            own = min_max(scores, FLAT) if self.scaling == "min-max" else scores
            self.entropies["temperature"] = normalised_entropy(own / self.temperature)
        return distillation_loss(scores, teacher_scores, self.temperature, self.teacher_temperature, self.scaling)


class ContrastiveDistillation(Distillation):
    """Contrastive and distillation in one: a weighted sum of both losses of the same scores, as mLateOn is trained.

    Args:
        contrastive_temperature: Divides the scores in the contrastive loss; None takes `temperature`.
        contrastive_weight: Of the contrastive loss; distillation's is 1.
        mask_duplicates: As for `Contrastive`.
        max_relative: Likewise.
        options: As for `Distillation`.

    Example:
        >>> from colbert_zero import ContrastiveDistillation
        >>> ContrastiveDistillation(contrastive_temperature=0.3, temperature=0.5).contrastive_weight
        1.0
    """

    def __init__(
        self,
        contrastive_temperature: float | None = None,
        contrastive_weight: float = 1.0,
        mask_duplicates: bool = True,
        max_relative: float | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.contrastive_temperature, self.contrastive_weight = contrastive_temperature, contrastive_weight
        self.mask_duplicates, self.max_relative = mask_duplicates, max_relative

    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None) -> LossOf:
        """A query's first candidate is its answer, all other candidates of all processes' queries its negatives."""
        teacher_scores = _needed(teacher_scores)
        near = None if self.max_relative is None else too_near(teacher_scores, self.max_relative)
        positives, excluded = _answers(queries, documents, self.mask_duplicates, near)
        own = _query_by_query(len(documents), teacher_scores.shape[1])

        def of_scores(scores: Tensor) -> Tensor:
            candidates = positives[0] + own.to(scores.device)
            taught = self._taught(scores.gather(1, candidates), teacher_scores)
            temperature = self.contrastive_temperature or self.temperature
            key = "contrastive_temperature" if self.contrastive_temperature else "temperature (the contrastive side)"
            if key not in self.entropies:
                self.entropies[key] = normalised_entropy(logits(scores, temperature, excluded))
            return taught + self.contrastive_weight * contrastive_loss(scores, temperature, positives, excluded)

        return self._of_all_scores(queries, of_scores)


def _needed(teacher_scores: Tensor | None) -> Tensor:
    if teacher_scores is None:
        raise ValueError("the candidates' scores are needed, (queries, n_ways)")
    return teacher_scores


def _query_by_query(documents: int, n_ways: int) -> Tensor:
    """Places of each query's candidates among documents that stand column by column, (queries, n_ways)."""
    return torch.arange(documents).view(n_ways, -1).T


def _answers(
    queries: TokenisedTexts, documents: TokenisedTexts, mask: bool, near: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Place of each query's answer among all processes' documents, and those that must not count as negatives.

    Args:
        queries: This process's.
        documents: Likewise, column by column.
        mask: Duplicates must not.
        near: Own candidates that must not, (queries, n_ways).
    """
    asked = identities(queries)
    not_asked = torch.full((len(documents) - len(queries),), -1, device=asked.device)
    everyone, start = gather_rows(torch.stack([identities(documents), torch.cat([asked, not_asked])], 1))
    positives = torch.arange(start, start + len(queries), device=asked.device)
    excluded = false_negatives(asked, positives, *everyone.unbind(1)) if mask else None
    if near is not None and len(queries):
        own = start + _query_by_query(len(documents), near.shape[1]).to(asked.device)
        excluded = torch.zeros(len(queries), len(everyone), dtype=torch.bool, device=asked.device).scatter(
            1, own, near
        ) | (False if excluded is None else excluded)
    return positives, excluded


# ---- Several processes


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
