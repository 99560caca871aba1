"""A recipe's entries and keys, with their defaults and what they mean."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from colbert_zero.recipe.data import CollectionSpec, NamedCollection, SourceSpec, written_out
from colbert_zero.recipe.entry import Entry, Float, Int, Name, Neutral, Precision, Seed
from colbert_zero.recipe.named import GROUPS
from colbert_zero.recipe.untrained import Adapt, Compress, Merge

Beta = Annotated[Float, Field(ge=0, lt=1)]


def _form(value: Any) -> str:
    return "mapping" if isinstance(value, dict | Temperature) else "number"


def _head_form(value: Any) -> str:
    return "layers" if isinstance(value, list) else "new"


def _negatives_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "number"


def _skip_list_form(value: Any) -> str:
    return "words" if isinstance(value, list) else "name"


class PerTask(Entry):
    """One string for queries, one for documents."""

    query: str = ""
    """For queries."""
    document: str = ""
    """For documents."""


class HeadLayer(Entry):
    """A layer of a new head, over token vectors."""

    width: Int = Field(ge=1)
    """Of what it gives."""
    residual: bool = False
    """Add what comes in, through a linear layer of its own where the widths differ."""
    activation: Literal["identity", "relu", "gelu", "silu", "tanh"] = "identity"
    """After its linear layer, before what comes in is added."""
    bias: bool = False
    """Whether its linear layer has one."""


class Model(Entry):
    """The encoder: a base to start from, or an architecture to train from scratch. Exactly one of the two."""

    base: str | None = None
    """A Hub id or a local folder: a transformers encoder or a sentence-transformers checkpoint."""
    revision: str | None = None
    """Commit, branch or tag of a Hub id. Which commit a branch or tag was is found at a study's first run and kept;
    `--refresh-base` takes the one of today."""
    architecture: dict[str, Any] | None = None
    """A transformers configuration (`model_type` and its keys), started from random weights."""
    vocabulary: Int = Field(8192, ge=300, le=1_000_000)
    """Entries of the byte-level BPE tokenizer trained on the recipe's sources; for `architecture` only."""
    dim: Int | None = Field(None, ge=1)
    """Width of a token vector; unset, that of a multi-vector base, else 128."""
    head: Annotated[
        Annotated[Literal["new"] | None, Tag("new")] | Annotated[list[HeadLayer], Field(min_length=1), Tag("layers")],
        Discriminator(_head_form),
        Neutral(None),
    ] = None
    """Unset, a first phase of the base's kind keeps its head: its projections, or its pooling and what follows. `new`
    puts a new one in its place: a linear projection without bias, or mean pooling. A list of layers does too, and the
    projection comes after them; sentence-transformers loads each as one of its `Dense`."""
    start: Annotated[Literal["random", "orthogonal", "pca"], Neutral("random")] = "random"
    """A new projection's weights. Orthonormal rows keep a pre-trained encoder's geometry: all of it where `dim` is its
    width, most of it below. `pca` takes the principal directions of up to 100,000 tokens of the documents that the
    phase reads first, and keeps more."""
    skip_list: Annotated[
        Annotated[Literal["punctuation"] | None, Tag("name")] | Annotated[list[str], Tag("words")],
        Discriminator(_skip_list_form),
        Neutral(None),
    ] = None
    """Words whose tokens are left out of documents by multi-vector phases, in training and afterwards: `punctuation`,
    the 32 ASCII marks (as in the paper), or a list, each word a token of the tokenizer's (in byte-level ones a word
    after a blank is another). Unset, a multi-vector base's own, else none."""
    query_expansion: Annotated[Literal["attend", "ignore", False] | None, Neutral(None)] = None
    """Whether multi-vector phases fill queries up with mask tokens that are scored too, as in ColBERT, and whether
    the query attends to these; `false` is neither. Unset, a multi-vector base's own, else `false`. Encoding without
    padding (`flash_attention_2`) has no states of tokens that are ignored."""
    pool: Annotated[Int | None, Field(ge=1), Neutral(None)] = None
    """Token vectors of a document that become one, about, where models of multi-vector phases are evaluated, and in
    their checkpoints: hierarchical clustering, as in arXiv 2409.14683. Training scores all tokens. Unset, a
    multi-vector base's own, else 1, which pools none. It is part of every phase's id; `evaluate --pool` shows what
    another number is worth without training anew."""
    attention: Literal["sdpa", "flash_attention_2"] | None = None
    """How the encoder attends; `flash_attention_2` needs CUDA and bfloat16, and encodes without padding."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Only for models whose authors you trust."""


RERANKED = 50
"""Of BM25's best, what a cross-encoder ranks anew where nothing else is said."""


class Teacher(Entry):
    """A teacher: the weighted sum of its parts' scores, each min-max normalised over a query's candidates."""

    pipeline: list[str] = Field(default_factory=list)
    """Phases of a scorer trained for this purpose (often longer than the students), as in `pipelines`."""
    pipeline_weight: Float = Field(1.0, ge=0)
    """Weight of that scorer."""
    model: Annotated[str | None, Neutral(None)] = None
    """A scorer that is there already: folder or Hub id of a cross-encoder, or of a dense or multi-vector checkpoint."""
    model_weight: Annotated[Float, Field(ge=0), Neutral(1.0)] = 1.0
    """Weight of that one."""
    bm25_weight: Float = Field(0.0, ge=0)
    """Weight of BM25 on the source's documents."""
    rerank: Annotated[Int, Field(ge=1, le=1000), Neutral(RERANKED)] = RERANKED
    """Of a cross-encoder: how many of BM25's best it ranks anew when it is measured on the
    collections. Its scores for students do not depend on it."""
    precision: Annotated[Precision, Neutral("float32")] = "float32"
    """In what its models have their encoder's weights when they score for students, not when they are measured on
    collections; a cross-encoder scores in bfloat16 anyway on a GPU that has it. `auto` is bfloat16 where the device
    multiplies it faster: decided when scoring begins, told, recorded."""


CHOICE_ROUNDS, CHOICE_TEMPERATURE = 20, 0.05
"""Of a greedy choice: rounds at most, and the temperature of its softmax, where nothing else is said."""


class Ensemble(Entry):
    """Several systems as one: the weighted sum of their scores, each min-max normalised over its best 1,000 documents.

    Members are `bm25`, pipelines, checkpoints on the way (`PIPELINE@PHASE`), and dense baselines by the names they have
    in results.json.
    """

    members: dict[str, Annotated[Float, Field(gt=0)]] = Field(default_factory=dict)
    """Systems with their weights; or give `of`."""
    of: list[str] = Field(default_factory=list)
    """Systems to choose from."""
    choose: Literal["greedy"] | None = None
    """How: one by one, each as often as it helps (Caruana et al., 2004); one that is chosen twice has weight 2."""
    on: str | None = None
    """The collection to choose on. It is for choosing then: no system is compared on it, and no mean has it."""
    temperature: Float = Field(CHOICE_TEMPERATURE, gt=0)
    """Of the choice, whose objective is smooth: the cross-entropy of a query's relevant documents under the softmax of
    the members' mean normalised scores, divided by it."""
    rounds: Int = Field(CHOICE_ROUNDS, ge=1)
    """Of the choice, at most; it ends earlier where no member helps."""

    @property
    def names(self) -> list[str]:
        """Its members, or what they are chosen from."""
        return self.of or list(self.members)


class Temperature(Entry):
    """A temperature that is trained along with the weights."""

    initial: Float = Field(gt=0)
    """Where it starts."""
    learnable: bool = True
    """Whether it is trained."""


class LowRank(Entry):
    """Adapters in place of an encoder's own weights."""

    rank: Int = Field(16, ge=1)
    """Width of the two factors."""
    alpha: Float = Field(32.0, gt=0)
    """Their product is multiplied by it and divided by the rank."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the linear layers that get some, as the encoder has them (`query`, `Wqkv`, …); unset, all."""
    dropout: Float = Field(0.0, ge=0, lt=1)
    """Of what comes into an adapter."""


class Negatives(NamedTuple):
    """How many hard negatives a query gets.

    Attributes:
        taken: None takes as many as every row has, the first ones.
        of: Of how many they are drawn, or at most so many of all; None takes the first.
        max_relative: They are taken from scored candidates, of which this share of the answer's score is the most;
            None where rows are pairs.
    """

    taken: int | None
    of: int | None
    max_relative: float | None = None

    def of_part(self, least: int) -> int:
        """How many a query of a part gets, whose rows have at least so many."""
        return min(least, self.of or least) if self.taken is None else self.taken


class Phase(Entry):
    """One training phase."""

    kind: Annotated[Literal["train"], Neutral("train")] = "train"
    """`train`, `compress`, `merge` or `adapt`: what the phase does with its start. The keys here are of `train`."""
    representation: Literal["dense", "multi-vector", "cross-encoder"]
    """One vector a text, or one a token; or no vectors but a score of a query and a document that are read together, in
    a teacher's pipeline: a new head on the encoder of its start, without prompts and markers, a pair at most
    `query_tokens` + `document_tokens` - 1 long."""
    objective: Literal["contrastive", "distillation", "contrastive + distillation", "listwise", "binary"]
    """InfoNCE over the batch and the hard negatives; what a teacher's scores of a query's candidates teach; or the sum
    of both over the same scores, where the first candidate is the query's answer (mLateOn). Of a cross-encoder: a
    softmax over a query's answer and its hard negatives, or each of these pairs as an answer or none by itself."""
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
    learning_rate: Float = Field(ge=0)
    """The optimiser's, at its highest; 0 changes nothing, and shows what its start is worth."""
    optimiser: Annotated[Literal["adamw", "muon"], Neutral("adamw")] = "adamw"
    """AdamW; or Muon for the matrices of the encoder's layers and AdamW for the rest (embeddings, heads, biases,
    norms), at one rate, since Muon's updates are scaled to AdamW's size (arXiv 2502.16982)."""
    betas: Annotated[tuple[Beta, Beta], Neutral((0.9, 0.999))] = (0.9, 0.999)
    """AdamW's decay of its two moments."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "linear"
    """How the learning rate goes on after the warm-up: constant; down to 0; or constant and then down to 0, as 1 - the
    square root of the way (`wsd`, arXiv 2405.18392)."""
    decay: Annotated[Float, Field(gt=0, le=1), Neutral(0.2)] = 0.2
    """Of `schedule: wsd`: share of the steps in which the learning rate falls."""
    warmup: Float = Field(0.05, ge=0)
    """Share of the steps in which the learning rate rises from 0; from 1 on, their number."""
    horizon: Annotated[Int | None, Field(ge=1), Neutral(None)] = None
    """Steps that the schedule is made for, at least the phase's, which takes the first ones: LateOn stopped at 90,000
    of 110,000. Unset, the phase's."""
    weight_decay: Float = Field(0.01, ge=0)
    """The optimiser's; biases, norms and a learned temperature do not decay. The paper has 0."""
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
    distillation_loss: Annotated[Literal["kl", "margin-mse"], Neutral("kl")] = "kl"
    """Of distillation: KL divergence of softmaxes, or the squared difference of margins between a query's first
    candidate, its answer, and the others (arXiv 2010.02666), which has no temperature. With `student_scores: raw`
    margin-mse takes the teacher's scores as they are too."""
    contrastive_temperature: Annotated[Float | None, Field(gt=0), Neutral(None)] = None
    """Of `contrastive + distillation`: divides the scores in the contrastive loss, in place of `temperature`."""
    contrastive_weight: Annotated[Float, Field(gt=0), Neutral(1.0)] = 1.0
    """Of `contrastive + distillation`: of the contrastive loss in the sum; distillation's is 1."""
    mask_duplicates: Annotated[bool, Neutral(True)] = True
    """Of contrastive losses: do not count as a query's negatives a document equal to its own, nor the own document of
    an equal query. The paper's scripts mask none."""
    length_normalised: bool = False
    """Divide MaxSim by the query's number of tokens: one scale of scores whatever the query's length (LateOn). In
    distillation with `student_scores: raw` only."""
    negatives: Annotated[
        Annotated[Int, Field(ge=0), Tag("number")]
        | Annotated[str, Field(pattern=r"^(all|(all|[1-9]\d*) of [1-9]\d*)$"), Tag("text")],
        Discriminator(_negatives_form),
    ] = 0
    """Hard negatives per query: the row's first so many; 0 uses in-batch negatives alone; `all` takes as many as every
    row of a part has (the paper's rule), of a streamed one as many as its first row has, `all of 10` at most ten; `7 of
    50` draws seven anew at each reading, of the row's first fifty or however many it has."""
    max_relative: Annotated[Float | None, Field(gt=0, le=1), Neutral(None)] = None
    """Of contrastive losses on rows with recorded scores, whose first candidate is the answer: a candidate that scores
    above this share of its answer's score is no negative of its query (NV-Retriever, arXiv 2407.15831: 0.95). Those
    below are taken first; where they are fewer than asked for, the query has fewer. An answer that scores 0 or less has
    no shares, so only what scores above it is left out, which is told."""
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
    precision: Precision = "float32"
    """Arithmetic of the encoder in both of its passes, and on CUDA of the products in scores; weights, sums of products
    and losses are float32. `auto` is bfloat16 where the device multiplies it faster (CUDA, a CPU's AMX or AVX-512
    BF16), float32 else: decided when the phase starts, told, and kept by who goes on with it. The phase's id holds what
    is asked here, its record what came of it. In bfloat16 a processor attends in plain products, unless
    `model.attention` says otherwise: the gradient of fused attention is slow there."""
    gradient_checkpointing: Annotated[bool, Neutral(False)] = False
    """Keep of each layer of the encoder what comes in alone, and compute the rest again for the gradient (arXiv
    1604.06174): the same gradients, a third more computing, a fraction of the memory for a chunk of
    `mini_batch_tokens`. Not part of the phase's id."""
    compile: Annotated[bool, Neutral(False)] = False
    """Compile the encoder for training (`torch.compile`, for texts of any length), which takes a minute or more and
    pays in long phases. Needs a C++ compiler, on CUDA Triton too. Not part of the phase's id."""
    low_rank: Annotated[LowRank | None, Neutral(None)] = None
    """Train low-rank adapters of the encoder's linear layers (LoRA, arXiv 2106.09685) and the heads; all else of the
    encoder is frozen, token embeddings too, so that new markers keep their random vectors. Merged when saved. Needs
    peft: `pip install colbert-zero[peft]`."""
    checkpoint_every: Int = Field(200, ge=1)
    """Steps between checkpoints from which a killed run continues."""
    keep_checkpoints: Int = Field(2, ge=1)
    """How many of them are kept, the newest ones; the best by `evaluate_every` stays beside them."""
    evaluate_every: Int | None = Field(None, ge=1)
    """Steps between evaluations on small collections (see `validation`); the last step is one of them."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint the phase ends with: its last, or the best by `evaluate_every`, by mean nDCG@10."""
    seed: Seed | None = None
    """Overrides the recipe's for this phase: order of the data, dropout, a new projection's weights."""

    @model_validator(mode="before")
    @classmethod
    def _student_scores(cls, data: Any) -> Any:
        unset = isinstance(data, dict) and data.get("student_scores") is None
        return data | {"student_scores": "min-max"} if unset and "distillation" in str(data.get("objective")) else data

    @property
    def hard_negatives(self) -> Negatives:
        """How many hard negatives a query gets, and of how many."""
        most = None if self.distils else self.max_relative
        if isinstance(self.negatives, int):
            return Negatives(self.negatives, None, most)
        taken, _, of = self.negatives.partition(" of ")
        return Negatives(None if taken == "all" else int(taken), int(of) if of else None, most)

    @property
    def contrasts(self) -> bool:
        """Whether a query's answer is told from all documents of the batch."""
        return "contrastive" in self.objective

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher's scores."""
        return "distillation" in self.objective

    @property
    def targets(self) -> list[str]:
        """Linear layers that get adapters by name."""
        return (self.low_rank and self.low_rank.targets) or []

    @property
    def reads_pairs(self) -> bool:
        """Whether it reads a query and a document together."""
        return self.representation == "cross-encoder"

    @property
    def reads_scores(self) -> bool:
        """Whether its rows must be candidates with scores."""
        return self.distils or self.max_relative is not None


def _kind_of_phase(value: Any) -> str:
    kind = value.get("kind", "train") if isinstance(value, dict) else getattr(value, "kind", "train")
    return str(kind)


PhaseSpec = Annotated[
    Annotated[Phase, Tag("train")]
    | Annotated[Compress, Tag("compress")]
    | Annotated[Merge, Tag("merge")]
    | Annotated[Adapt, Tag("adapt")],
    Discriminator(_kind_of_phase),
]
"""What turns one checkpoint into another."""


class Validation(Entry):
    """The small collections of `evaluate_every` and of sweeps: NanoBEIR, or a sample of the recipe's own collections.

    With the sample, `select: best` and a sweep choose by queries that the report then tests on; prefer NanoBEIR. What
    an encoder's layers add is always measured on the sample.
    """

    nanobeir: bool = True
    """Use NanoBEIR (13 English sets of 50 queries) from the Hub where it can be reached; otherwise the sample."""
    documents: Annotated[Int, Field(ge=1)] = 2000
    """The sample: documents per collection; all that are judged for its queries, then others, by a hash."""
    queries: Annotated[Int, Field(ge=1)] = 100
    """The sample: queries per collection, by a hash."""
    layers: Annotated[bool, Neutral(True)] = True
    """After each phase, score the model on the sample with its encoder's layers and without them; told and recorded."""


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
    query_tokens: Int | None = Field(None, ge=3)
    """Longest query, in tokens with the tokenizer's own special ones; markers and prompts come on top. Unset, the
    base's own, or 32 where it has none."""
    document_tokens: Int | None = Field(None, ge=3)
    """Longest document, counted likewise; unset, the base's own, or 180."""
    lengths: Annotated[Literal["text", "all"], Neutral("text")] = "text"
    """What the lengths hold: texts, with markers and prompts on top of them; or all, as in the paper's scripts."""
    markers: PerTask | None = None
    """Special tokens that tell queries and documents apart in multi-vector phases; unset, those of a multi-vector base,
    else [Q] and [D]."""
    prompts: PerTask | None = None
    """Words put before every query and document, in all phases; unset, the base's own."""
    sources: dict[Name, SourceSpec] = Field(min_length=1)
    """Training data by name."""
    collections: Annotated[dict[Name, CollectionSpec], AfterValidator(written_out)] = Field(min_length=1)
    """What the models are compared on, by name."""
    teachers: dict[Name, Teacher] = Field(default_factory=dict)
    """What scores the candidates for distillation, by name."""
    phases: dict[Name, PhaseSpec] = Field(min_length=1)
    """Phases by name, each of a `kind`: `train` if nothing is said."""
    pipelines: dict[Name, Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """Lists of phases, each starting from the one before; a shared beginning is trained once."""
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    """Several of the study's systems as one, by name: compared with the best of its members and with BM25."""
    validation: Validation = Validation()
    """The small collections that training and sweeps are judged on."""
    leaks: Annotated[bool, Neutral(True)] = True
    """Before training, look for the collections' queries and documents in the sources, equal or nearly; told, and
    marked in the report. At most 200,000 rows and as many documents are looked at, about two minutes on two cores;
    `colbert-zero leaks` looks at all."""
    reporters: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Where each step's figures go besides the records: TensorBoard files, Weights & Biases; nowhere by default."""

    def chains_to(self, phase: str) -> dict[tuple[str, ...], str]:
        """Chains of phases that end in one, PHASE or PIPELINE@PHASE; of each a pipeline or teacher that has it."""
        pipeline, _, name = phase.rpartition("@")
        # A pipeline and a teacher may have one name.
        chains = [*self.pipelines.items(), *((name, teacher.pipeline) for name, teacher in self.teachers.items())]
        return {tuple(c[: c.index(name) + 1]): n for n, c in chains if name in c and pipeline in ("", n)}

    @property
    def for_choosing(self) -> set[str]:
        """Collections that ensembles are chosen on, and nothing is compared on."""
        return {ensemble.on for ensemble in self.ensembles.values() if ensemble.on}

    def system_chain(self, system: str) -> tuple[str, ...] | None:
        """The chain of phases behind a system's name; None where no pipeline has such a one.

        A system is a pipeline, PIPELINE@PHASE, or a dense baseline's phases joined by `+`.
        """
        dense = (chain for chain in self._dense_chains() if "+".join(chain) == system)
        return self.chain_named(system) or next(dense, None)

    def systems(self) -> list[str]:
        """Names that a member of an ensemble may have."""
        on_the_way = [f"{name}@{phase}" for name, chain in self.pipelines.items() for phase in chain[:-1]]
        return list(dict.fromkeys(["bm25", *self.pipelines, *on_the_way, *map("+".join, self._dense_chains())]))

    def _dense_chains(self) -> list[tuple[str, ...]]:
        """Beginnings of pipelines that end in a dense phase."""
        beginnings = [tuple(chain[:end]) for chain in self.pipelines.values() for end in range(1, len(chain) + 1)]
        dense = (c for c in beginnings if c[-1] in self.phases and self.representation_after(c) == "dense")
        return list(dict.fromkeys(dense))

    @property
    def trained(self) -> dict[str, Phase]:
        """The phases that are trained."""
        return {name: phase for name, phase in self.phases.items() if isinstance(phase, Phase)}

    def representation_after(self, chain: Sequence[str]) -> str | None:
        """What a model is after a chain of phases; None where none of them is trained: as its base."""
        return next((self.trained[name].representation for name in reversed(chain) if name in self.trained), None)

    def chain_named(self, name: str) -> tuple[str, ...] | None:
        """The chain that PIPELINE or PIPELINE@PHASE means; None of no such."""
        pipeline, at, phase = name.partition("@")
        chain = tuple(self.pipelines.get(pipeline, ()))
        if not at:
            return chain or None
        return chain[: chain.index(phase) + 1] if phase in chain else None

    def seed_of(self, phase: Phase | Adapt) -> int:
        """A phase's seed."""
        return self.seed if phase.seed is None else phase.seed

    def whole_of(self, collection: str) -> str:
        """The name under which a collection counts in means: of a part, where all are there, the whole's."""
        spec = self.collections[collection]
        part = spec.of.part if isinstance(spec, NamedCollection) else None
        whole = collection.removesuffix(f"-{part}")
        if part is None or whole == collection:
            return collection
        parts = [f"{whole}-{named.part}" for named in GROUPS["beir/cqadupstack"]]
        return whole if all(name in self.collections for name in parts) else collection

    def longest(self, phase: Phase) -> dict[str, int | None]:
        """Query and document tokens that a phase is asked for."""
        return {
            "query": phase.query_tokens or self.query_tokens,
            "document": phase.document_tokens or self.document_tokens,
        }
