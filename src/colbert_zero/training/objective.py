"""What every objective is: a loss of a batch's embeddings, with a temperature."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from colbert_zero.processes import sums, world_size
from colbert_zero.training.gradcache import LossOf, TokenisedTexts


class Objective(nn.Module, ABC):
    """What a batch's loss is, and its temperature.

    With several processes each has its own queries and their documents, as many as it likes, also none; the mean of
    their losses is the loss of all queries together, and so are their gradients'.

    Args:
        temperature: Divides the scores; unitless, > 0.
        learnable: Train the temperature too.

    Attributes:
        entropies: Of each softmax over the batch's documents in the first batch (`normalised_entropy`), by the recipe's
            key of its temperature; a cross-encoder's are not kept, since a new head's are flat anyway.
    """

    def __init__(self, temperature: float = 1.0, learnable: bool = False):
        super().__init__()
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


def identities(texts: TokenisedTexts) -> Tensor:
    """A number per text, equal for equal token sequences, however padded, in every process: (texts,) int64.

    A sum of token ids with random odd weights modulo 2^64. Two texts that differ are equal in it with a probability of
    at most 2^v / 2^63, 2^v being the power of two in a difference of ids: 2^-46 for ids below 2^17 (multiplicative
    hashing, Dietzfelbinger et al. 1997).
    """
    width = texts.used.shape[1]
    weights = torch.randint(-(2**62), 2**62, (width,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    real = (texts.inputs["input_ids"] + 1) * texts.used
    places = texts.used.cumsum(1) - 1  # padding may stand before a text
    return (real * weights.to(real.device)[places]).sum(1)


def weight_of(queries: int) -> float:
    """Of a process's mean over its own queries, so that the processes' mean is the mean over all queries."""
    return queries * world_size() / max(1.0, sums(queries)[0])
