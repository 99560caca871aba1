"""What moves the weights: the optimiser and its learning rate's schedule."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from colbert_zero.recipe.schema import Phase

_NO_DECAY = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)", "log_temperature"]
"""Parts of the names of what does not decay: biases, norms and a learned temperature."""

_SCHEDULES = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}


def optimiser_of(trained: nn.ModuleDict, spec: Phase, steps: int) -> tuple[Optimizer, LRScheduler]:
    """The optimiser that a phase asks for, and its learning rate's schedule.

    Args:
        trained: The `model`, and the `objective` with what it learns.
        spec: The phase.
        steps: Its length; a schedule with a `horizon` goes on beyond.
    """
    decaying = set(get_parameter_names(trained, [nn.LayerNorm], _NO_DECAY))
    named = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    matrices = _matrices(trained) if spec.optimiser == "muon" else set()
    by_adamw = {name: weight for name, weight in named.items() if id(weight) not in matrices}
    groups = [
        {"params": [w for name, w in by_adamw.items() if name in decaying], "weight_decay": spec.weight_decay},
        {"params": [w for name, w in by_adamw.items() if name not in decaying], "weight_decay": 0.0},
    ]
    optimiser: Optimizer = AdamW(groups, lr=spec.learning_rate, betas=spec.betas, fused=True)
    if matrices:
        by_muon = [weight for weight in named.values() if id(weight) in matrices]
        # Its updates are scaled to AdamW's size, so that one learning rate serves both (arXiv 2502.16982).
        muon = Muon(by_muon, lr=spec.learning_rate, weight_decay=spec.weight_decay, adjust_lr_fn="match_rms_adamw")
        optimiser = Together(optimiser, muon)
    return optimiser, _schedule(optimiser, spec, steps)


def warm_up_steps(spec: Phase, steps: int) -> int:
    """Steps in which the learning rate rises."""
    return math.ceil(spec.warmup if spec.warmup >= 1 else spec.warmup * max(spec.horizon or 0, steps))


def _schedule(optimiser: Optimizer, spec: Phase, steps: int) -> LRScheduler:
    options: dict[str, Any] = {}
    horizon = max(spec.horizon or 0, steps)
    if spec.schedule == "wsd":
        options = {"num_decay_steps": math.ceil(spec.decay * horizon), "decay_type": "1-sqrt"}
    return cast(
        LRScheduler,
        get_scheduler(
            _SCHEDULES.get(spec.schedule, spec.schedule),
            optimiser,
            warm_up_steps(spec, steps),
            horizon,
            scheduler_specific_kwargs=options,
        ),
    )


def _matrices(trained: nn.ModuleDict) -> set[int]:
    """The matrices of the encoder's layers, by identity: neither token embeddings nor what follows the encoder."""
    encoder = cast(Any, trained["model"])[0]
    tables = {id(module.weight) for module in encoder.modules() if isinstance(module, nn.Embedding)}
    return {id(w) for w in encoder.parameters() if w.ndim == 2 and w.requires_grad} - tables


class Together(Optimizer):
    """Several optimisers as one, each with parameters of its own.

    Args:
        parts: In whose order groups and parameters are counted.
    """

    def __init__(self, *parts: Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        # The very same mappings: a schedule that sets the rate of one of ours sets it in the part.
        self.param_groups = [group for part in parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Moments and settings of all, as if of one."""
        groups: list[dict[str, Any]] = []
        state: dict[int, dict[str, Tensor]] = {}
        for part in self.parts:
            first = sum(len(group["params"]) for group in groups)
            own = part.state_dict()
            state |= {first + index: values for index, values in own["state"].items()}
            groups += [g | {"params": [first + index for index in g["params"]]} for g in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        groups, first = list(state_dict["param_groups"]), 0
        for part in self.parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            count = sum(len(group["params"]) for group in own)
            state = {i - first: v for i, v in state_dict["state"].items() if first <= i < first + count}
            own = [group | {"params": [index - first for index in group["params"]]} for group in own]
            part.load_state_dict({"state": state, "param_groups": own})
            first += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]
