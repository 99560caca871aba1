"""A recipe's entries and keys, with their defaults and what they mean."""

from collections.abc import Set
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]


class Neutral:
    """Beside a field: the values that mean what the program did before the key existed.

    At one of them a key stays out of every fingerprint, so that a new key retrains nothing that is finished.
    """

    def __init__(self, *values: Any):
        self.values = values


class Entry(BaseModel):
    """An entry of a recipe: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def asked(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """What is asked for, for a fingerprint: all values, without keys at a neutral one (`Neutral`).

        Args:
            exclude: Keys of this entry that do not change what is made.
        """
        values = self.model_dump(exclude=set(exclude))
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            neutral = [v for mark in field.metadata if isinstance(mark, Neutral) for v in mark.values]
            if key in exclude or value in neutral:
                values.pop(key, None)
            elif isinstance(value, Entry):
                values[key] = value.asked()
        return values


def _no_switch(value: Any) -> Any:
    # Otherwise `steps: yes` would be one step.
    if isinstance(value, bool):
        raise PydanticCustomError("switch", "should be a number")
    return value


Int = Annotated[int, BeforeValidator(_no_switch)]

Float = Annotated[float, BeforeValidator(_no_switch)]

Seed = Annotated[Int, Field(ge=0, lt=2**32)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _form(value: Any) -> str:
    return "mapping" if isinstance(value, dict | Temperature) else "number"


Paths = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(_as_list),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]


class PerTask(Entry):
    """One string for queries, one for documents."""

    query: str = ""
    """For queries."""
    document: str = ""
    """For documents."""


class Model(Entry):
    """The encoder: a base to start from, or an architecture to train from scratch. Exactly one of the two."""

    base: str | None = None
    """A Hub id or a local folder: a transformers encoder or a sentence-transformers checkpoint."""
    revision: str | None = None
    """Commit, branch or tag of a Hub id."""
    architecture: dict[str, Any] | None = None
    """A transformers configuration (`model_type` and its keys), started from random weights."""
    vocabulary: Int = Field(8192, ge=300, le=1_000_000)
    """Entries of the byte-level BPE tokenizer trained on the recipe's sources; for `architecture` only."""
    dim: Int = Field(128, ge=1)
    """Width of a token vector after the projection (linear, without bias)."""
    attention: Literal["sdpa", "flash_attention_2"] | None = None
    """How the encoder attends; `flash_attention_2` needs CUDA and bfloat16, and encodes without padding."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Only for models whose authors you trust."""


class Columns(Entry):
    """Names of a source's columns, where they differ from the usual."""

    query: str = "query"
    """Text of the query."""
    document: str = "document"
    """Text of the document that answers it."""
    negative: str = "negative"
    """Hard negatives: one text, or a list of texts. May be missing."""
    documents: str = "documents"
    """Scored candidates: a list of texts."""
    scores: str = "scores"
    """Their scores: a list of numbers."""


class _Source(Entry):
    on_bad_rows: Literal["error", "skip"] = "error"
    """A row that cannot be used: stop before training and say where it is, or pass over it and count it."""
    limit: Int | None = Field(None, ge=1)
    """Use at most this many rows of each part: the first usable ones; what comes after is not read."""


class _Table(_Source):
    columns: Columns = Columns()
    """Names of the columns, where they differ from the usual."""
    path: Paths | None = None
    """File or files of rows (globs allowed): `query`, `document` and optionally `negative`, or `query`,
    `documents` and `scores`. Each file is a part of its own."""
    train: Paths | None = None
    """Three-table form, for distillation: files of `query_id`, `document_ids` and `scores`."""
    queries: Paths | None = None
    """Three-table form: files of `query_id` and `text`."""
    documents: Paths | None = None
    """Three-table form: files of `document_id` and `text`."""


class Streamable(Entry):
    """For data that can only be streamed: larger than the disk, or not worth a copy."""

    streaming: bool = False
    """Read the rows as training comes to them, through a bounded shuffle buffer, and copy nothing."""
    shuffle_buffer: Int | None = Field(None, ge=2)
    """With `streaming`: rows of a part that are held and shuffled among themselves, 65,536 by default, rounded up to
    whole batches."""


class Jsonl(_Table):
    """JSON lines, plain or gzipped (.gz).

    A row is a pair (`query`, `document`, optional `negative`: text or list), or candidates with a teacher's scores
    (`query`, `documents`, `scores`).
    """

    kind: Literal["jsonl"]
    """JSON lines."""


class Parquet(_Table, Streamable):
    """Parquet files, with rows as of `jsonl`."""

    kind: Literal["parquet"]
    """Parquet files."""


class Hub(_Source, Streamable):
    """A data set of the Hugging Face Hub, or a local folder of the same layout."""

    kind: Literal["hub"]
    """A data set."""
    columns: Columns = Columns()
    """Names of the columns, where they differ from the usual."""
    path: str
    """Hub id or folder."""
    revision: str | None = None
    """Commit, branch or tag; a full commit hash keeps the data as they are today."""
    configs: Annotated[list[str], Field(min_length=1)] | None = None
    """Configurations to read, each a part of its own; all of them by default."""
    split: str = "train"
    """Split of each configuration."""
    train: str | None = None
    """Three-table form: the configuration with `query_id`, `document_ids` and `scores`."""
    queries: str | None = None
    """Three-table form: the configuration with `query_id` and `text`."""
    documents: str | None = None
    """Three-table form: the configuration with `document_id` and `text`."""


class Docstrings(Entry):
    """Docstrings of installed Python packages, parsed and never imported; each package is a part."""

    kind: Literal["docstrings"]
    """Docstrings."""
    packages: Annotated[list[str], Field(min_length=1)] | None = None
    """Top-level packages; by default the standard library and everything installed."""
    min_rows: Int = Field(256, ge=1)
    """Packages with fewer pairs are put together as one part, `others`."""
    limit: Int | None = Field(None, ge=1)
    """Use at most this many rows of each part (the first ones)."""


class Mined(Entry):
    """Pairs of another source with hard negatives found by BM25 among that source's documents."""

    kind: Literal["mined"]
    """Mined hard negatives."""
    of: str
    """The source of pairs."""
    negatives: Int = Field(7, ge=1, le=200)
    """Hard negatives kept per query."""
    skip: Int = Field(0, ge=0)
    """Leave out this many of BM25's best first: among near-duplicates they are often answers nobody marked."""
    depth: Int = Field(50, ge=1, le=1000)
    """How many of BM25's best documents are looked at; the positive and texts equal to it are left out."""
    queries: Int | None = Field(None, ge=1)
    """How many of the source's pairs to use, spread over its parts in proportion; all by default."""


class Scored(Entry):
    """Candidates of a mined source with a teacher's scores, for distillation."""

    kind: Literal["scored"]
    """Teacher scores."""
    of: str
    """The mined source: each row's positive and negatives are the query's candidates."""
    teacher: str
    """A name from `teachers`."""
    queries: Int | None = Field(None, ge=1)
    """How many of the source's rows to score, spread over its parts in proportion; all by default."""


SourceSpec = Annotated[Jsonl | Parquet | Hub | Docstrings | Mined | Scored, Field(discriminator="kind")]


class HeldOut(Entry):
    """Pairs kept out of all training: their documents are the corpus, a query's own document its answer."""

    kind: Literal["held-out"]
    """Held-out pairs."""
    source: str
    """The source of pairs."""
    documents: Int = Field(3000, ge=10)
    """Pairs held out."""
    queries: Int | None = Field(None, ge=1)
    """How many of them serve as queries; all by default."""


class Beir(Entry):
    """A folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""

    kind: Literal["beir"]
    """A BEIR folder."""
    path: str
    """The folder."""
    split: str = "test"
    """Which qrels."""


class HubCollection(Entry):
    """A collection of the Hub (NanoBEIR, MTEB): the configurations corpus, queries and qrels; or a folder."""

    kind: Literal["hub"]
    """A collection."""
    path: str
    """Hub id or folder."""
    revision: str | None = None
    """Commit, branch or tag."""
    split: str = "train"
    """Split of each configuration that has it."""


CollectionSpec = Annotated[HeldOut | Beir | HubCollection, Field(discriminator="kind")]


class Teacher(Entry):
    """A teacher: the weighted sum of its parts' scores, each min-max normalised over a query's candidates."""

    pipeline: list[str] = Field(default_factory=list)
    """Phases of a scorer trained for this purpose (often longer than the students), as in `pipelines`."""
    pipeline_weight: Float = Field(1.0, ge=0)
    """Weight of that scorer."""
    bm25_weight: Float = Field(0.0, ge=0)
    """Weight of BM25 on the source's documents."""


class Temperature(Entry):
    """A temperature that is trained along with the weights."""

    initial: Float = Field(gt=0)
    """Where it starts."""
    learnable: bool = True
    """Whether it is trained."""


class Phase(Entry):
    """One training phase."""

    representation: Literal["dense", "multi-vector"]
    """One vector a text, or one a token."""
    objective: Literal["contrastive", "distillation"]
    """InfoNCE over the batch and the hard negatives, or KL divergence from a teacher's scores."""
    sources: list[str] = Field(min_length=1)
    """Names from `sources`; a batch comes from one part of one, drawn in proportion to rows ** alpha."""
    alpha: Float = Field(1.0, ge=0, le=1)
    """1 reads every row equally often, less reads small parts more often."""
    global_batch_size: Int = Field(ge=2)
    """Queries per optimiser step, over all devices."""
    mini_batch_tokens: Int = Field(32_768, ge=1)
    """Tokens, padding included, whose activations may be kept at once: a batch of no more is encoded once, a larger one
    twice (GradCache), in chunks of at most so many. Chunks are never longer than is fastest: 2,048 on a CPU, 16,384 on
    a GPU."""
    learning_rate: Float = Field(gt=0)
    """AdamW's, at its highest."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate goes on after the warm-up: constant, or down to 0."""
    warmup: Float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Float = Field(0.01, ge=0)
    """AdamW's."""
    max_gradient_norm: Float = Field(1.0, gt=0)
    """Longer gradients are cut to it."""
    temperature: Annotated[
        Annotated[Float, Field(gt=0), Tag("number")] | Annotated[Temperature, Tag("mapping")],
        Discriminator(_form),
    ] = 1.0
    """Divides the scores. MaxSim sums over query tokens: 1 suits it; dense models want 0.02 to 0.05."""
    teacher_temperature: Float | None = Field(None, gt=0)
    """Divides the teacher's scores, which span [0, 1], in place of `temperature`; for `student_scores: raw`, which span
    more."""
    student_scores: Annotated[Literal["min-max", "raw"] | None, Neutral(None, "raw")] = None
    """Of distillation: `min-max` (the default there) brings the student's scores of a query's candidates to [0, 1], as
    the teacher's are; `raw` takes MaxSim as it is, and wants a `teacher_temperature`."""
    length_normalised: bool = False
    """Divide MaxSim by the query's number of tokens: one scale of scores whatever the query's length (LateOn). In
    distillation with `student_scores: raw` only."""
    negatives: Int = Field(0, ge=0)
    """Hard negatives per query, taken from the source's; 0 uses in-batch negatives alone."""
    steps: Int | None = Field(None, ge=1)
    """Length of the phase in optimiser steps; or give `epochs`."""
    epochs: Float | None = Field(None, gt=0)
    """Length of the phase in passes over the mixture (1 by default); or give `steps`."""
    query_tokens: Int | None = Field(None, ge=3)
    """Overrides the recipe's for this phase."""
    document_tokens: Int | None = Field(None, ge=3)
    """Overrides the recipe's for this phase."""
    prompts: PerTask | None = None
    """Overrides the recipe's for this phase."""
    allow_prompt_mismatch: bool = False
    """Start from a checkpoint trained with other prompts; it hurts, and is for the ablation that shows so."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoder in both of its passes, and on CUDA of the products in scores; weights, sums of products
    and losses are float32."""
    checkpoint_every: Int = Field(200, ge=1)
    """Steps between checkpoints from which a killed run continues."""
    keep_checkpoints: Int = Field(2, ge=1)
    """How many of them are kept, the newest ones; the best by `evaluate_every` stays beside them."""
    evaluate_every: Int | None = Field(None, ge=1)
    """Steps between evaluations on small collections (see `validation`); the last step is one of them."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint the phase ends with: its last, or the best by `evaluate_every`, by mean nDCG@10."""
    seed: Seed | None = None
    """Overrides the recipe's for this phase: another order of the data."""

    @model_validator(mode="before")
    @classmethod
    def _student_scores(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("objective") == "distillation" and data.get("student_scores") is None:
            return data | {"student_scores": "min-max"}
        return data


class Validation(Entry):
    """The small collections of `evaluate_every` and of sweeps: NanoBEIR, or a sample of the recipe's own collections.

    With the sample, `select: best` and a sweep choose by queries that the report then tests on; prefer NanoBEIR.
    """

    nanobeir: bool = True
    """Use NanoBEIR (13 English sets of 50 queries) from the Hub where it can be reached; otherwise the sample."""
    documents: Annotated[Int, Field(ge=1)] = 2000
    """The sample: documents per collection; all that are judged for its queries, then others, by a hash."""
    queries: Annotated[Int, Field(ge=1)] = 100
    """The sample: queries per collection, by a hash."""


class Recipe(Entry):
    """A study: models trained by pipelines of phases on the same data, compared on the same collections."""

    name: Name
    """Of the study, and of its folder."""
    description: str = ""
    """One line on what the study is about."""
    seed: Seed = 1
    """Order of the data, random weights, held-out pairs."""
    model: Model
    """The encoder every pipeline starts from."""
    query_tokens: Int = Field(32, ge=3)
    """Longest query, in tokens with the tokenizer's own special ones; markers and prompts come on top."""
    document_tokens: Int = Field(180, ge=3)
    """Longest document, counted likewise."""
    markers: PerTask = PerTask(query="[Q]", document="[D]")
    """Special tokens that tell queries and documents apart in multi-vector phases."""
    prompts: PerTask = PerTask()
    """Words put before every query and document, in all phases."""
    sources: dict[Name, SourceSpec] = Field(min_length=1)
    """Training data by name."""
    collections: dict[Name, CollectionSpec] = Field(min_length=1)
    """What the models are compared on, by name."""
    teachers: dict[Name, Teacher] = Field(default_factory=dict)
    """What scores the candidates for distillation, by name."""
    phases: dict[Name, Phase] = Field(min_length=1)
    """Training phases by name."""
    pipelines: dict[Name, Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """Lists of phases, each starting from the one before; a shared beginning is trained once."""
    validation: Validation = Validation()
    """The small collections that training and sweeps are judged on."""
    reporters: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Where each step's figures go besides the records: TensorBoard files, Weights & Biases; nowhere by default."""

    def lengths(self, phase: Phase) -> tuple[int, int]:
        """Query and document tokens of a phase."""
        return phase.query_tokens or self.query_tokens, phase.document_tokens or self.document_tokens
