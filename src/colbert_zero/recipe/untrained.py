"""Phases that are not trained: a checkpoint is cut, merged with others, or its queries are fitted in closed form."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from colbert_zero.recipe.entry import Entry, Float, Int, Seed


def _list_form(value: Any) -> str:
    return "list" if isinstance(value, list) else "one"


TextsOf = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[str], Field(min_length=1), Tag("list")], Discriminator(_list_form)
]
"""A path as `compress --corpus` takes it, or names from `sources`."""

Layers = Annotated[
    Annotated[Int, Field(ge=1), Tag("one")]
    | Annotated[list[Annotated[Int, Field(ge=0)]], Field(min_length=1), Tag("list")],
    Discriminator(_list_form),
]


class Untrained(Entry):
    """A phase that makes another checkpoint of its start, and trains nothing."""

    reads_pairs: ClassVar[bool] = False
    select: ClassVar[Literal["last"]] = "last"
    evaluate_every: ClassVar[None] = None


class Compress(Untrained):
    """A smaller model: fewer layers, neurons and tokens; or zeros and grids, which show what storing it so would cost.

    Nothing is trained; a distillation phase after it, with the uncut pipeline as its teacher, heals what was lost.
    """

    kind: Literal["compress"]
    """`compress`."""
    layers: Layers | None = None
    """Which layers are kept, from 0, as `[0, 2, 3, 5]`; or how many, chosen by what hurts least on `corpus`."""
    neurons: Float = Field(1.0, gt=0, le=1)
    """Share of each layer's neurons that is kept."""
    zeros: Float = Field(0.0, ge=0, lt=1)
    """Share of each matrix in layers, the smallest numbers, that becomes 0, and stays 0 while later phases train. No
    fewer bytes."""
    bits: Literal[8, 4] | None = None
    """Puts every matrix on a grid of so many bits; a later phase leaves the grid. No fewer bytes."""
    vocabulary: TextsOf | None = None
    """Keep the tokens of these texts: a path (JSON lines, Parquet or a BEIR folder), or a list of `sources`."""
    corpus: TextsOf | None = None
    """Texts by which layers are chosen, and on which it is measured how far token vectors move; likewise."""

    @property
    def sources(self) -> list[str]:
        """Names from `sources` whose texts it reads."""
        named = [texts for texts in (self.vocabulary, self.corpus) if isinstance(texts, list)]
        return list(dict.fromkeys(name for names in named for name in names))

    @property
    def reshapes(self) -> bool:
        """Whether its arrays have other shapes than its start's."""
        return self.layers is not None or self.neurons < 1 or self.vocabulary is not None


class Merge(Untrained):
    """One model of several that are alike in architecture, tokenizer, prompts, markers and lengths, number by number.

    Projections that began with other random weights are refused: their mean is neither.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["merge"]
    """`merge`."""
    others: list[str] = Field(alias="with", min_length=1)
    """What its start is merged with: PIPELINE, or PIPELINE@PHASE."""
    weights: list[Annotated[Float, Field(gt=0)]] | None = None
    """Of its start and then of the others; unset, all alike. Only their ratios count."""
    method: Literal["linear", "slerp", "multislerp", "karcher"] = "linear"
    """A mean; or, by way of mergekit, a mean on the sphere: of two (`slerp`) or of several."""

    @property
    def sources(self) -> list[str]:
        """It reads no texts."""
        return []


class Adapt(Untrained):
    """A multi-vector model's queries fitted to domains in closed form; documents, and every index, stay as they are.

    A fifth of each domain's documents is held out with its pairs, to choose how far queries are moved. Where that does
    not help on them, the model stays as it is, which is told and recorded.
    """

    kind: Literal["adapt"]
    """`adapt`."""
    sources: list[str] = Field(min_length=1)
    """Names from `sources`: pairs, of each 100 at least; each is a domain."""
    projection: Int | None = Field(None, ge=0)
    """Fit to pairs, with so many random features of query tokens; 0: none, a linear map."""
    decorrelate: bool = False
    """Fit to documents alone; the pairs choose how far, and judge. So it is, too, where `projection` is not given."""
    corpus: str | None = None
    """Documents of the domain, among which held-out queries are ranked and whose tokens `decorrelate` counts: a path as
    for `compress`. Unset, those of the pairs."""
    seed: Seed | None = None
    """Overrides the recipe's: of the features, and of which pairs are held out."""

    @property
    def way(self) -> Literal["projection", "linear", "decorrelate"]:
        """How queries are moved."""
        return "decorrelate" if self.projection is None else "projection" if self.projection else "linear"


AnyUntrained = Compress | Merge | Adapt
