"""The first steps of a training, looked at for signs that it learns nothing; later steps are not.

One that goes on from a checkpoint is looked at from there: whether its weights move, while these steps are not over.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from colbert_zero.models.kept_zeros import held
from colbert_zero.training.objective import Objective
from colbert_zero.training.optimiser import warm_up_steps
from colbert_zero.training.training import Training

LOOKED_AT = 10
"""Steps whose losses are looked at; and after the warm-up, before weights are."""

ALIKE = 0.001
"""A softmax whose entropy is within this share of its most is flat; below this share of it, one-hot."""

NO_LOSS = 1e-6
"""Nats below which a loss is 0."""

_WEIGHTS = 1000


class FirstSteps:
    """Tells of a softmax that is flat or one-hot, of a loss of 0 and of weights that do not move.

    Args:
        training: Of which it tells.
        model: Trained; a sample of its weights is kept until they are looked at. Token embeddings are not in it,
            since a token that did not come does not move.
        objective: Knows the entropy of the first softmax.
        tell: Tells the user, and keeps it for the record.
        begun: Steps that were done before.
    """

    def __init__(
        self, training: Training, model: nn.Module, objective: Objective, tell: Callable[[str], None], begun: int = 0
    ):
        self.training, self.objective, self.tell, self.begun = training, objective, tell, begun
        self.place = f"phases.{training.name}"
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        self.weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and id(p) not in tables]
        self.before = [_sample(p).clone() for p in self.weights]
        may_move = held(model)
        self.moving = [
            _sample(may_move[id(p)]) if id(p) in may_move else torch.ones_like(before, dtype=torch.bool)
            for p, before in zip(self.weights, self.before, strict=True)
        ]
        warm_up = warm_up_steps(training.spec, training.steps)
        self.losses_until = min(training.steps, LOOKED_AT)
        self.weights_until = min(training.steps, warm_up + LOOKED_AT)
        self.no_loss = True

    def after(self, step: int, loss: float) -> None:
        """A step is done, from 1; its loss is the mean over all queries, in nats."""
        if step > self.weights_until:
            return
        self.no_loss &= loss < NO_LOSS
        if step == 1:
            self._tell_entropies()
        if step == self.losses_until and self.no_loss and not self.begun:
            self.tell(
                f"{self.place}: the loss is 0 at each of the first {step} steps, so nothing is learned. Are the "
                "documents left out as answers of equal queries? Is the temperature far below the scores' differences?"
            )
        if step == self.weights_until:
            self._tell_weights(step)
            self.weights = self.before = self.moving = []

    def _tell_entropies(self) -> None:
        for key, entropy in self.objective.entropies.items():
            if entropy is None:
                self.tell(
                    f"{self.place}: in the first batch no query has a document to tell from its own: all others are "
                    "equal to it, or answer an equal query. Check its sources' texts, and query_tokens"
                )
            elif entropy > 1 - ALIKE:
                self.tell(
                    f"{self.place}.{key}: this makes every softmax of the first batch flat (entropy "
                    f"{entropy:.2%} of the most it can be): right and wrong documents count nearly alike; lower it"
                )
            elif entropy < ALIKE:
                self.tell(
                    f"{self.place}.{key}: this makes every softmax of the first batch one-hot (entropy "
                    f"{entropy:.2%} of the most it can be): all but one document a query are without effect; raise it"
                )

    def _tell_weights(self, step: int) -> None:
        rate = self.training.spec.learning_rate
        if self.no_loss or not rate:  # told already, or asked for
            return
        triples = zip(self.before, self.weights, self.moving, strict=True)
        unchanged = torch.cat([(before == _sample(p))[moving] for before, p, moving in triples]).float().mean().item()
        if unchanged > 0.5:
            self.tell(
                f"{self.place}.learning_rate: {rate:g} leaves {unchanged:.0%} of the weights as they were after "
                f"{step - self.begun} steps; raise it"
            )


def _sample(weights: Tensor) -> Tensor:
    """A thousand of a tensor's entries, evenly spaced."""
    flat = weights.detach().flatten()
    return flat[:: max(1, len(flat) // _WEIGHTS)]
