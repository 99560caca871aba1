"""Low-rank training: the encoder's matrices stay, narrow factors beside them learn, and are merged at the end.

Source: LoRA, Hu et al. 2021, arXiv 2106.09685. The adapters are peft's, put into the encoder in place, so that all that
goes round it (chunks, checkpoints, evaluation) is the same; merged, the model is an ordinary one.
"""

from importlib.util import find_spec
from typing import Any, cast

import torch

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.recipe.schema import LowRank


def check_peft(whose: str) -> None:
    """Refuse low-rank training without peft.

    Raises:
        ColbertZeroError: Names the mend.
    """
    if find_spec("peft") is None:
        raise ColbertZeroError(
            f"{whose}.low_rank: peft is not installed; pip install colbert-zero[peft], or leave low_rank out"
        )


def check_no_zeros(held: bool, whose: str) -> None:
    """Refuse low-rank training of a start whose zeros are to stay.

    Raises:
        ColbertZeroError: Names the mend.
    """
    if held:
        raise ColbertZeroError(
            f"{whose}.low_rank: its start has zeros, which merged adapters would fill; leave low_rank out"
        )


def add_adapters(model: Encoder, asked: LowRank, seed: int) -> None:
    """Freeze the encoder and give its linear layers adapters that begin as nothing; heads are trained as before.

    Args:
        model: Dense or multi-vector; changed in place.
        asked: The recipe's entry.
        seed: Of the factors' random weights.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=asked.rank,
        lora_alpha=cast(int, asked.alpha),
        lora_dropout=asked.dropout,
        target_modules=list(asked.targets) if asked.targets else "all-linear",
        # BERT's and its kin's layer over the first token, whose output nothing here reads.
        exclude_modules=None if asked.targets else r"(.*\.)?pooler\..*",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model[0].get_submodule("model"))
    model[0].to(model.device)


def merge_adapters(model: Encoder) -> None:
    """Add the adapters to the matrices that they stand beside, and take them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder: Any = model[0].get_submodule("model")
    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())
    encoder.requires_grad_(True)
    if hasattr(encoder, "peft_config"):
        del encoder.peft_config
