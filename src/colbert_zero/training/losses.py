"""The losses as formulas, over scores."""

import torch
from torch import Tensor
from torch.nn import functional as F

from colbert_zero.maxsim.scores import min_max, span

FLAT = 1e-6
"""A student's scores of one query that span less count as equal."""

_ENTROPY_QUERIES = 256


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
    return F.cross_entropy(logits(scores, temperature, excluded), positives)


def logits(scores: Tensor, temperature: Tensor | float, excluded: Tensor | None) -> Tensor:
    """Scores before the softmax: divided by the temperature, −inf where a document does not count."""
    divided = scores / temperature
    return divided if excluded is None else divided.masked_fill(excluded, float("-inf"))


@torch.no_grad()
def normalised_entropy(of: Tensor) -> float | None:
    """Mean entropy of the first queries' softmax, as a share of the most it can be: 0 one-hot, 1 flat.

    Args:
        of: Logits, (queries, documents); −inf where a document does not count. Queries with one that counts are left
            out.

    Returns:
        None where no query has two.
    """
    found = entropies(of[:_ENTROPY_QUERIES])
    return float(found.mean()) if len(found) else None


def entropies(of: Tensor) -> Tensor:
    """Entropy of each query's softmax, as a share of the most it can be: (queries with two documents that count,).

    Args:
        of: As for `normalised_entropy`.
    """
    of = of.float()
    counted = of.isfinite().sum(1)
    of, counted = of[counted > 1], counted[counted > 1]
    found: Tensor = torch.special.entr(of.softmax(1)).sum(1) / counted.log()
    return found


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
    teacher_scores = _of_the_same_shape(student_scores, teacher_scores)
    teacher = F.log_softmax(min_max(teacher_scores) / (teacher_temperature or temperature), dim=1)
    if scaling == "raw":
        student = F.log_softmax(student_scores / temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    student = F.log_softmax(min_max(student_scores, FLAT) / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return divergence.where(_telling(student_scores, teacher_scores), 0).mean()


def margin_mse_loss(student_scores: Tensor, teacher_scores: Tensor, scaling: str = "min-max") -> Tensor:
    """Squared difference of margins: by how much each query's first candidate beats each of the others.

    Args:
        student_scores: MaxSim, (queries, n_ways), float32; the first candidate is the query's answer.
        teacher_scores: (queries, n_ways).
        scaling: "min-max" brings both sides' scores of each query to [0, 1], and a query says nothing where either
            side's are all equal; "raw" takes both as they are, so the teacher's must be on MaxSim's scale.

    Returns:
        Scalar, in the scores' unit squared; mean over queries and their n_ways - 1 margins.

    Raises:
        ValueError: The shapes differ; names both.

    Source: Hofstätter et al. 2020, arXiv 2010.02666, equation 6, with one margin a negative.
    """
    teacher_scores = _of_the_same_shape(student_scores, teacher_scores)
    if scaling == "raw":
        return F.mse_loss(_margins(student_scores), _margins(teacher_scores))
    student, teacher = _margins(min_max(student_scores, FLAT)), _margins(min_max(teacher_scores))
    return (student - teacher).square().mean(1).where(_telling(student_scores, teacher_scores), 0).mean()


def _margins(scores: Tensor) -> Tensor:
    return scores[:, :1] - scores[:, 1:]


def _of_the_same_shape(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(f"student scores {tuple(student_scores.shape)}, teacher scores {tuple(teacher_scores.shape)}")
    return teacher_scores.float()


def _telling(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Queries of which both sides prefer something, (queries,)."""
    return (span(student_scores) >= FLAT) & (span(teacher_scores) > 0)


def too_near(scores: Tensor, max_relative: float) -> Tensor:
    """Candidates whose recorded score is too near to their answer's for them to be its negatives.

    Args:
        scores: (queries, n_ways); the first candidate is the query's answer.
        max_relative: Share of the answer's score that a negative may have, in (0, 1]. Of an answer that scores 0 or
            less there are no shares: a negative may have its score.

    Returns:
        (queries, n_ways), never true of the answer.

    Source: NV-Retriever, Moreira et al. 2024, arXiv 2407.15831, section 3.1 (TopK-PercPos).
    """
    answers = scores[:, :1]
    near = scores > torch.minimum(answers, max_relative * answers)
    near[:, 0] = False
    return near


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
