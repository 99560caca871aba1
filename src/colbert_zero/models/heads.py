"""New heads of multi-vector models: linear layers over token vectors, and the weights that they start with."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from sentence_transformers.base.modules.dense import Dense
from torch import Tensor, nn

from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import Task, evaluating, forward
from colbert_zero.recipe.schema import HeadLayer

TOKENS = "token_embeddings"

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Head:
    """What a multi-vector phase has where its start has no head, or where a new one is asked for.

    Attributes:
        new: Put a new one in place of the start's own.
        layers: Before the last linear layer, which gives the token vectors.
        start: Weights of that last layer: `random`; `orthogonal`: orthonormal rows (columns, where it is wider than
            what comes in); `pca`: principal directions of what comes in (`principal_directions`).
    """

    new: bool = False
    layers: tuple[HeadLayer, ...] = ()
    start: str = "random"


def new_layers(width: int, dim: int, seed: int, head: Head) -> list[Dense]:
    """A new head's linear layers, the last one without bias, each an ordinary `Dense` of sentence-transformers.

    Args:
        width: Of the encoder's states.
        dim: Of a token vector.
        seed: Of random weights.
        head: What is asked for.
    """
    layers = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in head.layers:
            activation = ACTIVATIONS[layer.activation]()
            layers.append(
                Dense(width, layer.width, layer.bias, activation, module_input_name=TOKENS, use_residual=layer.residual)
            )
            width = layer.width
        layers.append(Dense(width, dim, False, nn.Identity(), module_input_name=TOKENS))
        if head.start == "orthogonal":
            nn.init.orthogonal_(layers[-1].linear.weight)
    return layers


def last_layer(model: Encoder) -> Dense:
    """The last linear layer of a head."""
    return next(module for module in reversed(list(model)) if isinstance(module, Dense))


@torch.no_grad()
def principal_directions(model: Encoder, documents: Iterable[list[str]], tokens: int) -> Tensor:
    """The weights of a head's last layer that keep most of the products of what comes into it.

    Token vectors are compared by their cosine, so each counts with length 1, and no mean is taken off.

    Args:
        model: With a head.
        documents: Some at a time, read until there are enough tokens.
        tokens: Of documents, that are looked at.

    Returns:
        (dim, width): orthonormal rows, the first keeps most; where `dim` is above the width, zeros below them.
    """
    last = last_layer(model)
    products, seen = torch.zeros(last.in_features, last.in_features, dtype=torch.float64), 0
    states: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, features: states.append(_real(features[0])))
    try:
        with evaluating(model):
            for texts in documents:
                forward(model, _features(model, texts), "document")
                unit = nn.functional.normalize(states.pop()[: tokens - seen].double().cpu(), dim=1)
                products += unit.T @ unit
                seen += len(unit)
                if seen >= tokens:
                    break
    finally:
        hook.remove()
    directions = torch.linalg.eigh(products).eigenvectors.flip(1).T
    # A direction's sign is arbitrary; its largest entry is made positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    weights = torch.zeros(last.out_features, last.in_features)
    kept = (directions * largest.sign())[: last.out_features]
    weights[: len(kept)] = kept
    return weights


def _features(model: Encoder, texts: list[str]) -> dict[str, Tensor]:
    task: Task = "document"
    features: dict[str, Tensor] = model.preprocess(texts, prompt=model.prompts.get(task), task=task)
    return features


def _real(features: dict[str, Tensor]) -> Tensor:
    """States of real tokens; without padding all are."""
    states, mask = features[TOKENS], features.get("attention_mask")
    return states.flatten(0, -2) if mask is None else states[mask.bool()]
