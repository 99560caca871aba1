"""Queries fitted to a new domain in closed form, while documents, and every index of them, stay as they are.

Each query token q is moved to where, on the domain's own pairs, the document token t stood that MaxSim picked for it:

    q' = normalise(q + step · h(q) W)        h(q) = ReLU(q R), R random     (projection)
    W  = (G + λ I)⁻¹ C                       h(q) = q                       (linear)
    G  = Σ h(q)ᵀ h(q),  C = Σ h(q)ᵀ (t − q)  over all query tokens

G and C are sums, so domains add up in any order and nothing of an earlier one need be kept but its sums. Without pairs,
from documents d alone, queries can be decorrelated: G = Σ dᵀ d and q' = normalise(q (G / λ + I)⁻¹).

Since ReLU(q) − ReLU(−q) = q, two of sentence-transformers' own `Dense` modules say all of it, on the query route of its
own `Router`; the document route is empty. So an adapted checkpoint needs nothing of this program to be loaded.

Source: RanPAC, arXiv 2307.02251: random ReLU features of frozen ones, sums over tasks, one ridge regression. Its
targets are classes; here they are vectors, and only the query side is widened, because an index cannot be.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router
from torch import Tensor

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import read_json, write_json
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.alignment import META
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.comparing import TOLERANCE, difference, in_words, vectors_of
from colbert_zero.models.contents import contents_of
from colbert_zero.models.heads import TOKENS

FOLDER = "adapting"
"""In an adapted checkpoint: its record and the sums. No module is loaded from there."""

RECORD, SUMS = "record.json", "statistics.safetensors"

DOCUMENT_TOLERANCE = 1e-6
"""Of documents' vectors, before and after."""

Way = Literal["projection", "linear", "decorrelate"]


@dataclass(frozen=True)
class Form:
    """How queries are moved, W aside.

    Attributes:
        way: See the module.
        dim: Of a token vector.
        projection: R, (dim, M), float32; None of the other ways.
        normalised: Whether the model's token vectors have length 1.
    """

    way: Way
    dim: int
    projection: Tensor | None
    normalised: bool

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.dim if self.projection is None else self.projection.shape[1]

    def features(self, queries: Tensor) -> Tensor:
        """Features h of token vectors, (tokens, dim) to (tokens, width)."""
        return queries if self.projection is None else torch.relu(queries @ self.projection)

    def moved(self, queries: Tensor, weights: Tensor) -> Tensor:
        """Token vectors q', (tokens, dim), with W, (width, dim), that has its step in it."""
        moved = queries + self.features(queries) @ weights
        return torch.nn.functional.normalize(moved, dim=-1) if self.normalised else moved


def form_of(model: MultiVectorEncoder, way: Way, features: int, seed: int) -> Form:
    """The form that a model's queries are moved in.

    Args:
        model: Says the width of its vectors, and whether they have length 1.
        way: See the module.
        features: M, of a projection.
        seed: Of R.
    """
    dim = int(model.get_embedding_dimension() or 0)
    normalised = any(isinstance(m, Normalize) and m.module_output_name == TOKENS for m in model)
    return Form(way, dim, random_projection(dim, features, seed) if way == "projection" else None, normalised)


def random_projection(dim: int, features: int, seed: int) -> Tensor:
    """R ~ N(0, 1 / dim), (dim, features), float32: the same for the same seed.

    Example:
        >>> random_projection(4, 2, seed=1).shape
        torch.Size([4, 2])
    """
    drawn: Tensor = torch.randn(dim, features, generator=torch.Generator().manual_seed(seed))
    return drawn / math.sqrt(dim)


@dataclass(frozen=True)
class Statistics:
    """All that is kept of a domain's pairs.

    Attributes:
        gram: G, (width, width), float64.
        cross: C, (width, dim), float64; nothing but zeros where documents alone were summed.
        tokens: How many.
    """

    gram: Tensor
    cross: Tensor
    tokens: int

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.gram + other.gram, self.cross + other.cross, self.tokens + other.tokens)


def no_statistics(form: Form) -> Statistics:
    """The sums over no tokens."""
    gram, cross = (torch.zeros(form.width, size, dtype=torch.float64) for size in (form.width, form.dim))
    return Statistics(gram, cross, 0)


def statistics_of_pairs(form: Form, queries: Packed, documents: Packed) -> Statistics:
    """The sums over pairs.

    Args:
        form: Not `decorrelate`.
        queries: Without an adapter.
        documents: Document i is query i's. A pair of which one has no tokens says nothing.

    Example:
        >>> pairs = Packed(torch.tensor([[1.0, 0.0]]), torch.tensor([1])), Packed(torch.eye(2), torch.tensor([2]))
        >>> statistics_of_pairs(Form("linear", 2, None, True), *pairs).tokens
        1
    """
    moved, targets = _with_targets(queries, documents)
    features, offsets = form.features(moved).double(), (targets - moved).double()
    return Statistics(features.T @ features, features.T @ offsets, len(moved))


def statistics_of_documents(form: Form, documents: Packed) -> Statistics:
    """The sums over documents alone, as `decorrelate` takes them."""
    values = documents.values.double()
    return Statistics(values.T @ values, values.new_zeros(form.width, form.dim), len(values))


def _with_targets(queries: Packed, documents: Packed) -> tuple[Tensor, Tensor]:
    """Query tokens, and of each the token of its own document that MaxSim picks: both (tokens, dim)."""
    moved, targets = [queries.values[:0]], [queries.values[:0]]
    sides = (side.values.split(side.lengths.tolist()) for side in (queries, documents))
    for query, document in zip(*sides, strict=True):
        if len(query) and len(document):
            moved.append(query)
            targets.append(document[(query @ document.T).argmax(1)])
    return torch.cat(moved), torch.cat(targets)


def solve(form: Form, statistics: Statistics, ridge: float) -> Tensor:
    """W of a full step, (width, dim), float64.

    Args:
        form: Of the statistics.
        statistics: Of one domain, or of several, added.
        ridge: λ, as a share of G's mean eigenvalue, so that it means the same whatever the number of tokens; > 0.

    Raises:
        ValueError: There are no tokens.

    Example:
        >>> form = Form("linear", 2, None, normalised=True)
        >>> sums = Statistics(torch.eye(2).double() * 3, torch.eye(2).double() * 2, 6)
        >>> solve(form, sums, ridge=1.0)[0, 0].item()
        0.333333...
    """
    if not statistics.tokens:
        raise ValueError("no tokens to fit to")
    gram = (statistics.gram + statistics.gram.T) / 2  # of rounding alone not symmetric
    identity = torch.eye(form.width, dtype=gram.dtype)
    scale = ridge * float(gram.trace()) / form.width
    if form.way == "decorrelate":
        solved: Tensor = torch.linalg.inv(gram / scale + identity) - identity
    else:
        solved = torch.linalg.solve(gram + scale * identity, statistics.cross)
    return solved


def with_route(model: MultiVectorEncoder, form: Form, weights: Tensor) -> MultiVectorEncoder:
    """The same model with queries moved.

    Args:
        model: Without an adapter; stays as it is.
        form: Of the weights.
        weights: W with its step in it, (width, dim).
    """
    route = Router.for_query_document(list(_query_modules(form, weights)), [])
    return _with_modules(model, [*model, route.to(model.device)])


def without_route(model: MultiVectorEncoder) -> MultiVectorEncoder:
    """An adapted model as it was before; one that is not adapted as it is."""
    return _with_modules(model, [module for module in model if not isinstance(module, Router)])


def has_route(model: Encoder) -> bool:
    """Whether queries go through modules of their own."""
    return any(isinstance(module, Router) for module in model)


def _with_modules(model: MultiVectorEncoder, modules: list[Any]) -> MultiVectorEncoder:
    own = copy.copy(model)
    own._modules = {str(place): module for place, module in enumerate(modules)}
    return own


def _query_modules(form: Form, weights: Tensor) -> Iterator[Any]:
    """The stock modules that give q + h W."""
    identity, weights = torch.eye(form.dim), weights.float()
    if form.projection is None:
        yield _dense(identity + weights.T, torch.nn.Identity())
    else:
        yield _dense(torch.cat([form.projection.T, identity, -identity]), torch.nn.ReLU())
        yield _dense(torch.cat([weights.T, identity, -identity], dim=1), torch.nn.Identity())
    if form.normalised:
        yield Normalize(TOKENS)


def _dense(weight: Tensor, activation: torch.nn.Module) -> Dense:
    """(out, in) as a module without bias."""
    return Dense(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        activation_function=activation,
        init_weight=weight.contiguous(),
        module_input_name=TOKENS,
    )


@dataclass(frozen=True)
class Adaptation:
    """What an adapted checkpoint says of itself.

    Attributes:
        way: See the module.
        features: M; 0 without a projection.
        seed: Of R, and of which pairs were held out.
        ridge: λ that was chosen, as `solve` takes it.
        step: That was chosen.
        domains: {name: digest of its pairs} of all that the sums hold, in the order they were added.
        base: Contents of the folder of the model that was adapted first, and of each on the way here; of a Hub id
            `commit` says which.
        commit: Of a Hub id.
        contents: Of this folder.
        found: What was measured when it was made.
    """

    way: Way
    features: int
    seed: int
    ridge: float
    step: float
    domains: dict[str, str]
    base: list[str]
    commit: str | None
    contents: str | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def adapts(self, contents: str | None, commit: str | None) -> bool:
        """Whether documents' vectors are those of a model that is known by contents or commit."""
        return commit == self.commit if commit else contents in self.base


def save_adapted(
    folder: Path,
    model: MultiVectorEncoder,
    form: Form,
    statistics: Statistics,
    weights: Tensor,
    adaptation: Adaptation,
    alignment: dict[str, Any] | None,
) -> None:
    """Write an adapted checkpoint into an empty folder, and read it again.

    Args:
        folder: Temporary (`files.atomic_folder`).
        model: Without an adapter.
        form: Of the statistics.
        statistics: Of all domains.
        weights: W with its step in it.
        adaptation: For the record; its `contents` are filled in.
        alignment: What the model's own colbert_zero.json says.

    Raises:
        ColbertZeroError: What was written gives documents or queries other vectors than it should.
    """
    adapted = with_route(model, form, weights)
    adapted.save_pretrained(str(folder), create_model_card=False)
    if alignment:
        write_json(folder / META, alignment)
    (folder / FOLDER).mkdir()
    save_file({"gram": statistics.gram, "cross": statistics.cross}, folder / FOLDER / SUMS)
    _check_written(folder, model, adapted)
    written = {**adaptation.__dict__, "tokens": statistics.tokens, "contents": contents_of(folder)}
    write_json(folder / FOLDER / RECORD, {"format": 1, **written})


def _check_written(folder: Path, model: MultiVectorEncoder, adapted: MultiVectorEncoder) -> None:
    read = load_model(folder, device=str(model.device))
    before, expected, found = (vectors_of(encoder) for encoder in (model, adapted, read))
    queries = len(before) // 2
    if not (apart := difference(before[queries:], found[queries:])) <= DOCUMENT_TOLERANCE:
        raise ColbertZeroError(f"MODEL: adapted, it gives documents other vectors ({apart:.1e}); please report it")
    if not (apart := difference(expected, found)) <= TOLERANCE:
        raise ColbertZeroError(f"MODEL: written and read again, vectors are {in_words(apart)}; please report it")


def read_adaptation(folder: str | Path) -> Adaptation | None:
    """What an adapted checkpoint says of itself; None of any other.

    Raises:
        ColbertZeroError: It says nothing that could be understood.
    """
    path = Path(folder) / FOLDER / RECORD
    if not path.is_file():
        return None
    try:
        said = read_json(path)
        if said["format"] != 1:
            raise ValueError(f"format {said['format']}, written by a newer version")
        return Adaptation(**{name: said[name] for name in Adaptation.__dataclass_fields__})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ColbertZeroError(f"{path}: cannot be read ({reason(error)}); adapt the model again") from None


def read_statistics(folder: str | Path, form: Form) -> Statistics:
    """The sums beside an adapted checkpoint.

    Raises:
        ColbertZeroError: They are not there, or not of this form.
    """
    path = Path(folder) / FOLDER / SUMS
    try:
        tokens, sums = int(read_json(path.with_name(RECORD))["tokens"]), load_file(path)
        read = Statistics(sums["gram"], sums["cross"], tokens)
    except Exception as error:  # of the file, or of what reads it
        raise ColbertZeroError(
            f"{path}: cannot be read ({reason(error)}), so no domain can be added; adapt the model that this one was "
            "made of"
        ) from None
    shapes = tuple(read.gram.shape), tuple(read.cross.shape)
    if shapes != ((form.width, form.width), (form.width, form.dim)) or read.gram.dtype != torch.float64:
        raise ColbertZeroError(f"{path}: shapes {shapes} are not those of {form.width} features; adapt the base again")
    return read
