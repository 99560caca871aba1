"""A smaller encoder from a trained one: fewer layers, fewer neurons, zeros, weights on a grid. Nothing is trained anew.

Of these, fewer layers and neurons (and tokens: `vocabulary`) make the file smaller and encoding faster. Zeros and
grids stand in the file as ordinary float numbers, so that every loader reads them: they say what a model would lose if
it were stored and computed so, and take as many bytes as before. `packed_bytes` is what they would take.

Source of the question: Li et al. 2020, "Train Large, Then Compress" (arXiv 2002.11794), which prunes and quantises. How
zeros are chosen here, by magnitude within each matrix, and fewer layers and neurons are not taken from it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import torch
from sentence_transformers.base.modules import Dense, Transformer
from torch import Tensor
from transformers import PreTrainedModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.axes import State, Table, built, join, pick, pick_layers, size, split, table_of
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.comparing import vectors_of
from colbert_zero.models.encoding import Task
from colbert_zero.models.layers import replaced
from colbert_zero.watch import stop_if_asked

Bits = Literal[4, 8]
"""Of a number on a grid."""

TASKS: tuple[Task, Task] = ("query", "document")


@dataclass(frozen=True)
class Cuts:
    """What is asked for; each as it stands by itself changes nothing.

    Attributes:
        layers: Those that are kept, from 0, ascending; None: all, or `count` of them.
        neurons: Share of each feed-forward layer's that is kept.
        zeros: Share of each matrix of the layers that becomes 0.
        bits: Of each number of a matrix; None: as they are.
        count: How many layers are kept, in place of which; `removals` chooses them by what hurts least.
    """

    layers: tuple[int, ...] | None = None
    neurons: float = 1.0
    zeros: float = 0.0
    bits: Bits | None = None
    count: int | None = None


@dataclass(frozen=True)
class Deviation:
    """How far token vectors are from those before, of texts as queries and as documents.

    Attributes:
        cosine: Mean over the token vectors of both.
        least: Of one token.
        texts: How many.
        retokenised: Of these, counted once as a query and once as a document, with another number of vectors; they
            are left out of the cosines.
    """

    cosine: float
    least: float
    texts: int
    retokenised: int


class Removal(TypedDict):
    """A layer that was left out on the way to fewer.

    Attributes:
        layer: By its number in the whole model; None where one was only tried.
        cosine: Mean over token vectors, without it and of the whole model.
        others: The same of each layer that was tried and stayed.
    """

    layer: int | None
    cosine: float
    others: dict[int, float]


def encoder_of(model: Encoder, whose: str) -> PreTrainedModel:
    """The encoder of a model.

    Raises:
        ColbertZeroError: It begins with something else.
    """
    first: Any = model[0]
    if not isinstance(first, Transformer):
        raise ColbertZeroError(
            f"{whose}: begins with a {type(first).__name__}; only one encoder of transformers, for queries and "
            "documents alike, can be cut; name such a model"
        )
    return cast(PreTrainedModel, first.model)


def with_encoder(model: Encoder, encoder: PreTrainedModel) -> Encoder:
    """The same model with another encoder; everything else is shared."""
    return cast(Encoder, replaced(model, ["0", "model"], encoder))


def cut(model: Encoder, cuts: Cuts, whose: str) -> Encoder:
    """The model with layers and neurons left out, then zeros, then grids; vectors of all else are as they were.

    Args:
        model: Dense or multi-vector; stays as it is.
        cuts: Without a `count`.
        whose: How messages of errors on the model begin.

    Raises:
        ColbertZeroError: The model type has no table, or a cut is none that it can take.
    """
    encoder = encoder_of(model, whose)
    if cuts.count is not None:
        raise ValueError("which layers is for `removals` to say")
    check_cuts(encoder, cuts, whose)
    if cuts.layers is not None:
        encoder = keep_layers(encoder, cuts.layers, whose)
    if cuts.neurons < 1:
        encoder = keep_neurons(encoder, cuts.neurons, whose)
    if cuts.zeros > 0:
        encoder = with_zeros(encoder, cuts.zeros, whose)
    if cuts.bits is None:
        return with_encoder(model, encoder)
    return _on_grids(with_encoder(model, encoder), cuts.bits, whose)


def check_cuts(encoder: PreTrainedModel, cuts: Cuts, whose: str) -> None:
    """Refuse what cannot be cut, before anything is measured.

    Raises:
        ColbertZeroError: Names the cut, and what would do.
    """
    table = table_of(encoder, whose)
    layers = layers_in(encoder, table)
    if cuts.count is not None and not 1 <= cuts.count <= layers:
        raise ColbertZeroError(f"layers: {cuts.count}, of the {layers} that there are; keep 1 to {layers}")
    if cuts.layers is not None:
        named = ", ".join(map(str, cuts.layers))
        if not cuts.layers or not all(0 <= number < layers for number in cuts.layers):
            raise ColbertZeroError(f"layers: [{named}], and there are 0 to {layers - 1}; name some of these")
        if list(cuts.layers) != sorted(set(cuts.layers)):
            raise ColbertZeroError(f"layers: [{named}] is not ascending; name each layer that is kept once, in order")
        if table.first_stays and cuts.layers[0] != 0:
            raise ColbertZeroError(
                f"layers: [{named}] leaves layer 0 out, which a {encoder.config.model_type} cannot: "
                f"{table.first_stays}; keep 0"
            )
    neurons = size(table, encoder.config, "neurons")
    if not 0 < cuts.neurons <= 1 or round(cuts.neurons * neurons) < 1:
        raise ColbertZeroError(f"neurons: {cuts.neurons:g}, of {neurons}; the share that is kept is above 0, at most 1")
    if not 0 <= cuts.zeros < 1:
        raise ColbertZeroError(f"zeros: {cuts.zeros:g}; the share that becomes 0 is at least 0, below 1")
    if cuts.bits not in (None, 4, 8):
        raise ColbertZeroError(f"bits: {cuts.bits}; 8 or 4")


def layers_in(encoder: PreTrainedModel, table: Table) -> int:
    """How many layers there are."""
    return int(getattr(encoder.config, table.keys["layers"]))


def keep_layers(encoder: PreTrainedModel, kept: Sequence[int], whose: str) -> PreTrainedModel:
    """An encoder of these layers alone, in their order, with what the configuration says of each."""
    table, config = table_of(encoder, whose), cast(Any, encoder.config)
    lists = {key: getattr(config, key, None) for key in table.per_layer}
    changes = {key: [values[number] for number in kept] for key, values in lists.items() if values is not None}
    state = pick_layers(encoder.state_dict(), table, kept)
    return built(encoder, state, {table.keys["layers"]: len(kept), **changes}, whose)


def keep_neurons(encoder: PreTrainedModel, share: float, whose: str) -> PreTrainedModel:
    """An encoder of fewer neurons: in each layer those of most `importance`, in their order, as many everywhere."""
    table, state = table_of(encoder, whose), encoder.state_dict()
    count = round(share * size(table, encoder.config, "neurons"))
    chosen = [
        importance(state, table, layer).topk(count).indices.sort().values for layer in range(layers_in(encoder, table))
    ]
    return built(encoder, pick(state, table, "neurons", chosen), {table.keys["neurons"]: count}, whose)


def importance(state: State, table: Table, layer: int) -> Tensor:
    """Of each neuron of a layer, (neurons,): the product of the lengths of what goes into it and what leaves by it.

    That is ‖fc1's row‖ · ‖fc2's column‖; of a GeGLU neuron, act(input) · gate, the lengths of both its rows are in the
    product. It is the same whatever factor is moved from one of these matrices into another.

    Args:
        state: The encoder's arrays.
        table: Of the encoder.
        layer: Its number.
    """
    into, out_of = (f"{table.layer.format(layer)}{module}.weight" for module in (table.into, table.out_of))
    lengths: Tensor = state[out_of].norm(dim=0)
    for part in split(state[into], table.within[table.into]):
        lengths = lengths * part.norm(dim=1)
    return lengths


def matrices(encoder: PreTrainedModel, table: Table) -> list[str]:
    """Names of the matrices within layers."""
    state = encoder.state_dict()
    return [name for name, tensor in state.items() if tensor.dim() == 2 and table.layer_of(name)[0] is not None]


def with_zeros(encoder: PreTrainedModel, share: float, whose: str) -> PreTrainedModel:
    """An encoder in each of whose layers' matrices a share of the numbers, the smallest, is 0.

    A fused matrix is several. Embeddings, norms and biases stay as they are.
    """
    table, state = table_of(encoder, whose), dict(encoder.state_dict())
    for name in matrices(encoder, table):
        parts = split(state[name], table.within[table.layer_of(name)[1].removesuffix(".weight")])
        state[name] = join([smallest_zeroed(part, share) for part in parts])
    return built(encoder, state, {}, whose)


def smallest_zeroed(matrix: Tensor, share: float) -> Tensor:
    """A matrix with the share of its numbers that are nearest to 0 made 0; of equal ones, the first.

    Example:
        >>> smallest_zeroed(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 0.5).tolist()
        [[3.0, 0.0], [0.0, -4.0]]
    """
    count = round(share * matrix.numel())
    smallest = matrix.abs().flatten().argsort(stable=True)[:count]
    return matrix.flatten().index_fill(0, smallest, 0.0).view_as(matrix)


def on_grid(matrix: Tensor, bits: Bits) -> Tensor:
    """A matrix whose rows each lie on a grid of their own: whole multiples, at most ±(2^(bits − 1) − 1), of a step.

    The step is the row's largest absolute value over that number, so 0 and the largest stay as they are.

    Example:
        >>> on_grid(torch.tensor([[7.0, -2.2, 0.4]]), 4).tolist()
        [[7.0, -2.0, 0.0]]
    """
    levels = 2 ** (bits - 1) - 1
    step = matrix.abs().amax(1, keepdim=True) / levels
    whole = torch.where(step > 0, matrix / step, 0).round()
    return cast(Tensor, whole * step)


def _on_grids(model: Encoder, bits: Bits, whose: str) -> Encoder:
    """The model with every matrix on a grid, a row by itself: of the encoder, embeddings too, and linear heads."""
    encoder = encoder_of(model, whose)
    state = {name: on_grid(t, bits) if t.dim() == 2 else t for name, t in encoder.state_dict().items()}
    model = with_encoder(model, built(encoder, state, {}, whose))
    for name, module in list(model.named_children())[1:]:
        if isinstance(module, Dense):
            head = copy.deepcopy(module)
            with torch.no_grad():
                head.linear.weight.copy_(on_grid(head.linear.weight, bits))
            model = cast(Encoder, replaced(model, [name], head))
    return model


def deviation(before: Encoder, after: Encoder, texts: list[str]) -> Deviation:
    """How far token vectors are from those before; texts are encoded as queries and as documents.

    Args:
        before: Dense or multi-vector.
        after: Of the same kind.
        texts: At least one.
    """
    return deviation_of(both_ways(before, texts), both_ways(after, texts))


def both_ways(model: Encoder, texts: list[str]) -> list[Tensor]:
    """Token vectors of each text as a query, and then as a document, (tokens, dim)."""
    return vectors_of(model, dict.fromkeys(TASKS, texts))


def deviation_of(before: list[Tensor], after: list[Tensor]) -> Deviation:
    """The same of what `both_ways` gives."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.shape == b.shape]
    texts, apart = len(before) // len(TASKS), len(before) - len(pairs)
    if not pairs:
        return Deviation(0.0, 0.0, texts, apart)
    one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
    cosines = torch.nn.functional.cosine_similarity(one, other, dim=1)
    return Deviation(float(cosines.mean()), float(cosines.min()), texts, apart)


def removals(
    model: Encoder,
    count: int,
    texts: list[str],
    whose: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[Removal]:
    """Layers to leave out until so many are left, one by one: that without which token vectors change least.

    Args:
        model: Dense or multi-vector.
        count: Layers that are left; all: one step is tried, and nothing is left out.
        texts: Whose vectors are compared, with those of the whole model.
        whose: How messages of errors begin.
        progress: Called after each trial with how many there were, and are in all.

    Returns:
        A removal a step; where nothing is to be left out, one with the layer None; none where no layer can go.
    """
    encoder = encoder_of(model, whose)
    table = table_of(encoder, whose)
    left = list(range(layers_in(encoder, table)))
    if len(left) == 1:
        return []
    before, found = both_ways(model, texts), list[Removal]()
    steps = range(max(1, len(left) - count))
    trials, done = sum(len(left) - step - bool(table.first_stays) for step in steps), 0
    for _ in steps:
        cosines: dict[int, float] = {}
        for number in left[1 if table.first_stays else 0 :]:
            stop_if_asked()
            kept = [other for other in left if other != number]
            without = with_encoder(model, keep_layers(encoder, kept, whose))
            cosines[number] = deviation_of(before, both_ways(without, texts)).cosine
            done += 1
            if progress:
                progress(done, trials)
        if len(left) == count:
            found.append(Removal(layer=None, cosine=1.0, others=cosines))
            break
        best = max(cosines, key=lambda number: cosines[number])
        others = {number: cosine for number, cosine in cosines.items() if number != best}
        found.append(Removal(layer=best, cosine=cosines[best], others=others))
        left.remove(best)
    return found


def kept_after(layers: int, left_out: Sequence[Removal]) -> tuple[int, ...]:
    """Numbers of the layers that stay.

    Example:
        >>> kept_after(4, [Removal(layer=2, cosine=0.9, others={})])
        (0, 1, 3)
    """
    gone = {removal["layer"] for removal in left_out}
    return tuple(number for number in range(layers) if number not in gone)


def parameters(model: Encoder) -> int:
    """Numbers of a model, encoder and heads."""
    return sum(parameter.numel() for parameter in model.parameters())


def zeros_in(model: Encoder, whose: str) -> tuple[int, int]:
    """How many numbers in the matrices of the layers are 0, and how many there are."""
    encoder = encoder_of(model, whose)
    state = encoder.state_dict()
    found = [state[name] for name in matrices(encoder, table_of(encoder, whose))]
    return sum(int((tensor == 0).sum()) for tensor in found), sum(tensor.numel() for tensor in found)


def packed_bytes(model: Encoder, bits: Bits | None) -> int:
    """What the numbers would take, were those of a grid stored as whole numbers with a step a row, and zeros as a bit.

    Args:
        model: With float numbers.
        bits: Of the grid that its matrices lie on.
    """
    total = 0
    for parameter in model.parameters():
        numbers, rows = parameter.numel(), len(parameter)
        each = bits / 8 if bits and parameter.dim() == 2 else parameter.element_size()
        steps = rows * parameter.element_size() if bits and parameter.dim() == 2 else 0
        there = int(parameter.count_nonzero())
        total += int(min(numbers * each, numbers / 8 + there * each)) + steps
    return total
