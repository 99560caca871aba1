"""What a batch's loss is for a cross-encoder, over the one number that it gives each pair of a query and a document.

| objective | what a query is asked |
|---|---|
| `Listwise` | which of my answer and my hard negatives is the answer? (Gao et al. 2021, arXiv 2101.08751) |
| `Binary` | of each of them by itself: is it an answer? (Nogueira and Cho 2019, arXiv 1901.04085) |
"""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from colbert_zero.maxsim.packed import Packed
from colbert_zero.training.gradcache import LossOf, TokenisedTexts
from colbert_zero.training.losses import logits
from colbert_zero.training.objective import Objective, identities, weight_of


class PairObjective(Objective):
    """A loss of each query's scores: of its answer, and then of its hard negatives.

    Args:
        temperature: Divides the scores; unitless, > 0.
        learnable: Train it too.
        mask_duplicates: A negative that reads as the answer does is left out.
    """

    def __init__(self, temperature: float = 1.0, learnable: bool = False, mask_duplicates: bool = True):
        super().__init__(temperature, learnable)
        self.mask_duplicates = mask_duplicates

    def of(self, queries: TokenisedTexts, documents: TokenisedTexts, teacher_scores: Tensor | None = None) -> LossOf:
        """The loss of a batch as a function of its scores, which stand in the place of embeddings.

        Args:
            queries: Each query together with its answer.
            documents: Each query together with its first hard negative, then with its second, …
            teacher_scores: Not used.
        """
        same = _side_by_side(identities(documents), len(queries)) == identities(queries)[:, None]
        weight = weight_of(len(queries))

        def loss(answers: Packed, others: Packed) -> Tensor:
            if not len(queries):
                return answers.values.sum() + others.values.sum()
            scores = torch.cat([answers.values, _side_by_side(others.values.flatten(), len(queries))], 1)
            left_out = same.to(scores.device) & self.mask_duplicates
            return weight * self.of_scores(scores, left_out)

        return loss

    @abstractmethod
    def of_scores(self, scores: Tensor, left_out: Tensor) -> Tensor:
        """The mean loss of queries, a scalar in nats.

        Args:
            scores: (queries, 1 + negatives), the answer's first.
            left_out: Negatives that do not count, (queries, negatives), bool.
        """


class Listwise(PairObjective):
    """A softmax over a query's answer and its hard negatives.

    Example:
        >>> from colbert_zero.training.pair_objectives import Listwise
        >>> scores, left_out = torch.tensor([[2.0, 0.0, 2.0]]), torch.tensor([[False, True]])
        >>> f"{Listwise().of_scores(scores, left_out):.4f}"  # log(1 + exp(-2))
        '0.1269'
    """

    def of_scores(self, scores: Tensor, left_out: Tensor) -> Tensor:
        """As of `PairObjective`."""
        of = logits(scores, self.temperature, _with_answers(left_out))
        return cross_entropy(of, torch.zeros(len(of), dtype=torch.int64, device=of.device))


class Binary(PairObjective):
    """Each pair by itself: the answer is one, a hard negative is none; the mean over a query's pairs.

    Example:
        >>> from colbert_zero.training.pair_objectives import Binary
        >>> f"{Binary().of_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([[False]])):.4f}"  # log 2
        '0.6931'
    """

    def of_scores(self, scores: Tensor, left_out: Tensor) -> Tensor:
        """As of `PairObjective`."""
        wanted = torch.zeros_like(scores)
        wanted[:, 0] = 1
        losses = binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        counted = ~_with_answers(left_out)
        return ((losses * counted).sum(1) / counted.sum(1)).mean()


def _with_answers(left_out: Tensor) -> Tensor:
    """The same of answers and negatives, (queries, 1 + negatives): no answer is left out."""
    return torch.cat([torch.zeros_like(left_out[:, :1]), left_out], 1)


def _side_by_side(values: Tensor, queries: int) -> Tensor:
    """Of what stands column by column the rows, (queries, columns)."""
    return values.view(-1, queries).T if queries else values.view(0, 0)
