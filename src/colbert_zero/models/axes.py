"""On which axis each dimension of an encoder's arrays lies: one table a model type.

An encoder is a set of arrays whose dimensions lie on named axes, and its layers are an axis too: the number in an
array's name. To leave neurons or layers out, or to repeat them, is then one operation, `pick`: on every array, the
entries that are chosen of an axis, in their order. A fused matrix is several arrays one below the other: the same
entries are taken of each.

    axis        what lies on it                                             bert           modernbert
    vocabulary  tokens                                                      vocab_size     vocab_size
    positions   places of a text, where they have vectors                   max_position…  none, they turn
    types       kinds of a text's token                                     type_vocab…    none
    embedding   numbers of a token's vector, where it is not `hidden`       electra alone
    hidden      numbers of the residual stream                              hidden_size    hidden_size
    heads       the heads' numbers, head by head                            num_attention… num_attention…
    neurons     of the feed-forward layers                                  intermediate…  intermediate…
    layers      the layers, in the arrays' names                            num_hidden…    num_hidden…
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from colbert_zero.errors import ColbertZeroError, reason

Axis = Literal["vocabulary", "positions", "types", "embedding", "hidden", "heads", "neurons"]
"""Of an array's dimension."""

State = dict[str, Tensor]
"""An encoder's arrays by name."""


@dataclass(frozen=True)
class Array:
    """One array.

    Attributes:
        axes: Of its dimensions.
        parts: Of a fused one, what lies in its equal blocks along the first dimension.
    """

    axes: tuple[Axis, ...]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A model type.

    Attributes:
        keys: Of its configuration, by axis.
        layer: How the names of a layer's arrays begin; `{}` is its number.
        around: Arrays outside of the layers, `weight` and `bias` left out; a bias lies on the weight's first axis.
        within: Likewise a layer's.
        into: The matrix within that makes neurons, one of each row; if it has parts, one of each part's, multiplied
            with each other, as in GeGLU.
        out_of: The matrix within by which neurons are added to the residual stream, one of each column.
        per_layer: Keys of its configuration that hold a list, an entry a layer.
        first_stays: Why layer 0 can be no other's successor; empty where it can.
    """

    keys: Mapping[str, str]
    layer: str
    around: Mapping[str, Array]
    within: Mapping[str, Array]
    into: str
    out_of: str
    per_layer: tuple[str, ...] = ()
    first_stays: str = ""

    def layer_of(self, name: str) -> tuple[int | None, str]:
        """The number of the layer that an array is in, and its name there; None outside of them, and the whole name."""
        begin, end = self.layer.split("{}")
        found = re.fullmatch(re.escape(begin) + r"(\d+)" + re.escape(end) + "(.+)", name)
        return (int(found[1]), found[2]) if found else (None, name)

    def array(self, name: str) -> Array | None:
        """What the table says of an array; None where it does not know it."""
        layer, inner = self.layer_of(name)
        module, _, kind = inner.rpartition(".")
        known = (self.around if layer is None else self.within).get(module)
        if known is None or kind not in ("weight", "bias"):
            return None
        return known if kind == "weight" else replace(known, axes=known.axes[:1])


_NORM, _SQUARE = Array(("hidden",)), Array(("hidden", "hidden"))
_TO_HEADS, _FROM_HEADS = Array(("heads", "hidden")), Array(("hidden", "heads"))
_TO_NEURONS, _FROM_NEURONS = Array(("neurons", "hidden")), Array(("hidden", "neurons"))

_BERT = Table(
    keys={
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "neurons": "intermediate_size",
        "layers": "num_hidden_layers",
    },
    layer="encoder.layer.{}.",
    around={
        "embeddings.word_embeddings": Array(("vocabulary", "hidden")),
        "embeddings.position_embeddings": Array(("positions", "hidden")),
        "embeddings.token_type_embeddings": Array(("types", "hidden")),
        "embeddings.LayerNorm": _NORM,
        "pooler.dense": _SQUARE,
    },
    within={
        "attention.self.query": _TO_HEADS,
        "attention.self.key": _TO_HEADS,
        "attention.self.value": _TO_HEADS,
        "attention.output.dense": _FROM_HEADS,
        "attention.output.LayerNorm": _NORM,
        "intermediate.dense": _TO_NEURONS,
        "output.dense": _FROM_NEURONS,
        "output.LayerNorm": _NORM,
    },
    into="intermediate.dense",
    out_of="output.dense",
)

_ELECTRA = replace(
    _BERT,
    keys={**_BERT.keys, "embedding": "embedding_size"},
    around={
        "embeddings.word_embeddings": Array(("vocabulary", "embedding")),
        "embeddings.position_embeddings": Array(("positions", "embedding")),
        "embeddings.token_type_embeddings": Array(("types", "embedding")),
        "embeddings.LayerNorm": Array(("embedding",)),
        "embeddings_project": Array(("hidden", "embedding")),
    },
)

_DISTILBERT = Table(
    keys={
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "hidden": "dim",
        "heads": "n_heads",
        "neurons": "hidden_dim",
        "layers": "n_layers",
    },
    layer="transformer.layer.{}.",
    around={
        "embeddings.word_embeddings": Array(("vocabulary", "hidden")),
        "embeddings.position_embeddings": Array(("positions", "hidden")),
        "embeddings.LayerNorm": _NORM,
    },
    within={
        "attention.q_lin": _TO_HEADS,
        "attention.k_lin": _TO_HEADS,
        "attention.v_lin": _TO_HEADS,
        "attention.out_lin": _FROM_HEADS,
        "sa_layer_norm": _NORM,
        "ffn.lin1": _TO_NEURONS,
        "ffn.lin2": _FROM_NEURONS,
        "output_layer_norm": _NORM,
    },
    into="ffn.lin1",
    out_of="ffn.lin2",
)

_MODERNBERT = Table(
    keys={
        "vocabulary": "vocab_size",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "neurons": "intermediate_size",
        "layers": "num_hidden_layers",
    },
    layer="layers.{}.",
    around={
        "embeddings.tok_embeddings": Array(("vocabulary", "hidden")),
        "embeddings.norm": _NORM,
        "final_norm": _NORM,
    },
    within={
        "attn_norm": _NORM,
        "attn.Wqkv": Array(("heads", "hidden"), ("query", "key", "value")),
        "attn.Wo": _FROM_HEADS,
        "mlp_norm": _NORM,
        "mlp.Wi": Array(("neurons", "hidden"), ("input", "gate")),
        "mlp.Wo": _FROM_NEURONS,
    },
    into="mlp.Wi",
    out_of="mlp.Wo",
    per_layer=("layer_types",),
    first_stays="its layer 0 has no norm before its attention, which every other layer has",
)

TABLES: Mapping[str, Table] = {
    "bert": _BERT,
    "modernbert": _MODERNBERT,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
}
"""By transformers' `model_type`."""


def table_of(encoder: PreTrainedModel, whose: str) -> Table:
    """The table of an encoder, each of whose arrays it is found to describe.

    Args:
        encoder: Of transformers.
        whose: How the message of an error begins.

    Raises:
        ColbertZeroError: There is none of its type, or the encoder has arrays of other shapes than it says.
    """
    kind = str(encoder.config.model_type)
    if kind not in TABLES:
        raise ColbertZeroError(f"{whose}: the arrays of a {kind!r} are not known here; known are {', '.join(TABLES)}")
    table, config = TABLES[kind], cast(Any, encoder.config)
    if "embedding" in table.keys and config.embedding_size == config.hidden_size:
        # Then nothing lies between a token's vector and the residual stream: they are one axis.
        around = {
            name: replace(array, axes=tuple("hidden" if axis == "embedding" else axis for axis in array.axes))
            for name, array in table.around.items()
        }
        table = replace(table, around=around)
    for name, tensor in encoder.state_dict().items():
        array = table.array(name)
        said = array and tuple(
            size(table, config, axis) * (max(1, len(array.parts)) if place == 0 else 1)
            for place, axis in enumerate(array.axes)
        )
        if said != tuple(tensor.shape):
            what = f"is {tuple(tensor.shape)}, and {said} was expected" if said else "is not known here"
            raise ColbertZeroError(f"{whose}: its array {name} {what}; it is no plain {kind}")
    return table


def size(table: Table, config: Any, axis: Axis) -> int:
    """Entries of an axis; of heads their numbers, which in these types are as many as the residual stream's."""
    return int(getattr(config, table.keys["hidden" if axis == "heads" else axis]))


def split(tensor: Tensor, array: Array) -> tuple[Tensor, ...]:
    """A fused array's parts; of any other the array itself. They are views.

    Example:
        >>> wide = torch.arange(6.).reshape(6, 1)
        >>> [part.flatten().tolist() for part in split(wide, Array(("neurons", "hidden"), ("input", "gate")))]
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    return tensor.chunk(len(array.parts)) if array.parts else (tensor,)


def join(parts: Sequence[Tensor]) -> Tensor:
    """What `split` took apart."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def pick(state: State, table: Table, axis: Axis, chosen: Tensor | Sequence[Tensor]) -> State:
    """An encoder's arrays with the chosen entries of an axis, in that order; one may be chosen more than once.

    Args:
        state: Arrays by name; they stay as they are.
        table: Of the encoder.
        axis: Not `heads`, whose entries belong together.
        chosen: Indices, (n,) int64; or of each layer its own, for what lies within layers alone.
    """
    picked: State = {}
    for name, tensor in state.items():
        layer, _ = table.layer_of(name)
        array = cast(Array, table.array(name))
        if axis in array.axes:
            indices = chosen if isinstance(chosen, Tensor) else chosen[cast(int, layer)]
            parts = list(split(tensor, array))
            for place, lies_on in enumerate(array.axes):
                if lies_on == axis:
                    parts = [part.index_select(place, indices) for part in parts]
            tensor = join(parts)
        picked[name] = tensor
    return picked


def pick_layers(state: State, table: Table, chosen: Sequence[int]) -> State:
    """An encoder's arrays with the chosen layers, in that order; one may be chosen more than once."""
    picked = {name: tensor for name, tensor in state.items() if table.layer_of(name)[0] is None}
    for place, number in enumerate(chosen):
        for name, tensor in state.items():
            layer, inner = table.layer_of(name)
            if layer == number:
                picked[table.layer.format(place) + inner] = tensor
    return picked


def built(encoder: PreTrainedModel, state: State, changes: Mapping[str, Any], whose: str) -> PreTrainedModel:
    """An encoder of the same type with another configuration and these arrays, all of them and no other.

    Args:
        encoder: Stays as it is.
        state: Arrays of the new shapes; copied.
        changes: Of the configuration, by its keys.
        whose: How the message of an error begins.

    Raises:
        ColbertZeroError: The arrays do not fit.
    """
    config = copy.deepcopy(encoder.config)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced at once
        new: Any = type(encoder)(config)
    if getattr(encoder, "pooler", None) is None and hasattr(new, "pooler"):
        new.pooler = None
    try:
        new.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ColbertZeroError(
            f"{whose}: the arrays that are left make no {type(encoder).__name__}: {reason(error)}"
        ) from error
    return cast(PreTrainedModel, new.to(encoder.dtype).train(encoder.training))
