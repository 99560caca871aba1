"""A model without the layers of its encoder: what its token embeddings score by themselves."""

import copy
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import evaluating

# Of any vocabulary, and none that often pads; the texts differ in their second token alone.
_TEXTS = [[6, 7, 8], [6, 9, 8]]


def without_layers(model: Encoder, whose: str) -> Encoder:
    """The same weights with every transformer layer passing on what comes in.

    Token embeddings, with the positions and the norms that the encoder has around its layers, go straight into the
    projection or the pooling. The model stays as it is; nothing is trained anew.

    Args:
        model: Dense or multi-vector.
        whose: Named in errors.

    Raises:
        ColbertZeroError: The layers cannot be found, or a token's vector still depends on other tokens.
    """
    transformer: Any = model[0]
    encoder = transformer.model if isinstance(transformer, Transformer) else transformer
    kind, bare = type(encoder).__name__, model
    try:
        if not (found := _layers(transformer)):
            raise LookupError("no list of modules in it holds attention")
        with evaluating(model):
            for name, values in _returned(transformer, found).items():
                passing = nn.ModuleList(_passing(layer, values) for layer in found[name])
                bare = replaced(bare, ["0", *name.split(".")], passing)
            vectors = _vectors(bare[0])
        if not torch.allclose(vectors[0, ::2], vectors[1, ::2], atol=1e-5):
            raise LookupError("without those that were found, a token's vector still depends on the others")
    except Exception as error:  # whatever an encoder of any family does that has no layer left
        raise ColbertZeroError(
            f"{whose}: the layers of its {kind} cannot be taken out ({reason(error)}); it is not scored without them"
        ) from error
    return bare


def _passing(layer: nn.Module, values: int | None) -> nn.Module:
    """A layer that passes on what comes in; it returns so many values, None: no tuple."""
    own = copy.copy(layer)

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if values is None else (hidden_states, *[None] * (values - 1))

    own.forward = forward
    return own


def _layers(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules that hold attention, by name: so transformers builds its encoders."""
    found = dict[str, nn.ModuleList]()
    for name, module in transformer.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and _has_attention(module):
            found[name] = module
    return found


def _has_attention(layers: nn.ModuleList) -> bool:
    return any("attention" in type(module).__name__.lower() for module in layers.modules())


def _returned(transformer: nn.Module, layers: dict[str, nn.ModuleList]) -> dict[str, int | None]:
    """How many values the layers of each list return."""
    returned = dict[str, int | None]()

    def note(name: str, output: Any) -> None:
        returned[name] = len(output) if isinstance(output, tuple) else None

    hooks = [
        module[0].register_forward_hook(lambda _, args, output, name=name: note(name, output))
        for name, module in layers.items()
    ]
    try:
        _vectors(transformer)
    finally:
        for hook in hooks:
            hook.remove()
    return returned


@torch.no_grad()
def _vectors(transformer: Any) -> Tensor:
    """Token vectors of two texts, (2, 3, hidden)."""
    ids = torch.tensor(_TEXTS, device=next(transformer.parameters()).device)
    vectors: Tensor = transformer({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["token_embeddings"]
    return vectors.float()


def replaced(module: Any, path: list[str], part: nn.Module) -> Any:
    """A module with another part at this path; what holds the part is copied, everything else is shared."""
    own = copy.copy(module)
    own._modules = dict(module._modules)
    own._modules[path[0]] = replaced(own._modules[path[0]], path[1:], part) if path[1:] else part
    return own
