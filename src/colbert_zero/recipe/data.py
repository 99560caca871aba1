"""A recipe's sources and collections."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from colbert_zero.recipe.entry import Entry, Float, Int, Neutral, Precision
from colbert_zero.recipe.miners import BM25, RANDOM, is_phase, judge_of, shares_of
from colbert_zero.recipe.named import GROUPS, MTEB, Named, meant, members


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _names(value: Any) -> Any:
    names = tuple(value) if isinstance(value, list) else value
    if not isinstance(names, str) and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise PydanticCustomError("names", "a column's name or a list of names")
    return names


def _name_or_two(value: Any) -> Any:
    names = _names(value)
    if isinstance(names, tuple) and len(names) != 2:
        raise PydanticCustomError("names", "a column's name, or two: of the documents and of the negatives")
    return names


Paths = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(_as_list),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]


class Columns(Entry):
    """Names of a source's columns, where they differ from the usual ones, which docs/data.md lists."""

    query: str = "query"
    """Text of the query; also `anchor` or `question`."""
    document: str = "document"
    """Text of the document that answers it, or a list, of which the first is used; also `positive`, `pos`,
    `positive_passages`, `answer`, `passage` or `context`."""
    negative: Annotated[str | tuple[str, ...], BeforeValidator(_names)] = "negative"
    """Hard negatives: one text, or a list of texts; or a list of such columns. May be missing; also `negatives`, `neg`,
    `hard_negative`, `hard_negatives`, `negative_passages`, or numbered, as `negative_1`."""
    documents: str = "documents"
    """Scored candidates: a list of texts."""
    scores: Annotated[str | tuple[str, str], BeforeValidator(_name_or_two)] = "scores"
    """Their scores: a list of numbers; or two columns, of scores of the document and of the negatives, which are the
    candidates then, as `[pos_scores, neg_scores]`."""


class _Source(Entry):
    on_bad_rows: Literal["error", "skip"] = "error"
    """A row that cannot be used: stop before training and say where it is, or pass over it and count it."""
    limit: Int | None = Field(None, ge=1)
    """Use at most this many rows of each part: the first usable ones; what comes after is not read."""


class _Rows(_Source):
    columns: Columns = Columns()
    """Names of the columns, where they differ from the usual."""
    candidates: Annotated[Int | None, Field(ge=2), Neutral(None)] = None
    """Of scored candidates, use a row's first so many; all by default."""


class _Table(_Rows):
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


class Tsv(_Rows):
    """Texts with tabs between them, plain or gzipped (.gz), as MS MARCO's triples.

    The first line is a header if it names the columns of a query and its document. Otherwise the columns are called
    1, 2, …: the query, its document, hard negatives if there are more after it. Quotes are part of the text.
    """

    kind: Literal["tsv"]
    """Tab-separated texts."""
    path: Paths
    """File or files of rows (globs allowed). Each file is a part of its own."""
    train: ClassVar[None] = None
    candidates: ClassVar[None] = None  # type: ignore[misc]


class Hub(_Rows, Streamable):
    """A data set of the Hugging Face Hub, or a local folder of the same layout."""

    kind: Literal["hub"]
    """A data set."""
    path: str
    """Hub id or folder."""
    revision: str | None = None
    """Commit, branch or tag; a full commit hash keeps the data as they are today."""
    configs: Annotated[list[str], Field(min_length=1)] | None = None
    """Configurations to read, each a part of its own; all of them by default."""
    split: str = "train"
    """Split of each configuration."""
    splits: Annotated[list[str] | None, Field(min_length=1), Neutral(None)] = None
    """Splits of one configuration, each a part of its own, in place of `split`."""
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


class Folder(Entry):
    """Pairs from the files of a folder: Markdown, HTML, text; for who has documents and no queries.

    Parts are `titles` (a file's title → its text), `headings` (title and heading → what stands below), `sentences` (a
    section's first sentence → its rest) and `links` (a link's text → what it leads to in the folder).
    """

    kind: Literal["folder"]
    """Files of a folder."""
    path: str
    """The folder; what lies in hidden folders, or outside by a link, is not read."""
    files: list[str] = Field(["*.md", "*.markdown", "*.html", "*.htm", "*.txt"], min_length=1)
    """Names of files, in any depth (globs)."""
    pairs: Annotated[list[Literal["titles", "headings", "sentences", "links"]] | None, Field(min_length=1)] = None
    """Which parts; all by default."""
    limit: Int | None = Field(None, ge=1)
    """Use at most this many rows of each part (the first ones)."""


def _mix(value: str) -> str:
    shares_of(value)
    return value


_MAX_RELATIVE = 0.95
"""Of a positive's score, what a negative's must be below where a model judges and nothing else is asked for."""


class Mined(Entry):
    """Pairs of another source with hard negatives: what `miners` rank high for a query and is not its answer."""

    kind: Literal["mined"]
    """Mined hard negatives."""
    of: str
    """The source of pairs."""
    negatives: Int = Field(7, ge=1, le=200)
    """Hard negatives kept per query."""
    skip: Int = Field(0, ge=0)
    """Leave out this many of a miner's best first: among near-duplicates they are often answers nobody marked."""
    depth: Int = Field(50, ge=1, le=1000)
    """How many of a miner's best documents are looked at; the positive and texts equal to it are left out."""
    queries: Int | None = Field(None, ge=1)
    """How many of the source's pairs to use, spread over its parts in proportion; all by default."""
    miners: Annotated[str, AfterValidator(_mix)] = BM25
    """`bm25`, a checkpoint (folder or Hub id; dense or multi-vector), a phase of this recipe, which is trained first
    (`@unsupervised`, or `full@unsupervised` where it starts differently in several pipelines), `random`, or a mix by
    shares, as `bm25:50,my/model:35,random:15`. Positives and near-duplicates of them are left out, and rows with too
    few negatives."""
    corpus: Annotated[Paths | None, Neutral(None)] = None
    """Documents to mine in, files of `text` and perhaps `title` (.jsonl, .jsonl.gz, .parquet; globs
    allowed) or a folder in BEIR layout; by default the source's own."""
    max_relative: Annotated[Float | None, Field(ge=0, le=1), Neutral(None)] = None
    """Keep a negative only if its score is below this share of the positive's, by the judge: 0.95 in NV-Retriever
    (arXiv 2407.15831); higher ones are often answers nobody marked. 0 keeps all. Unset, 0.95 where a model judges, and
    all where BM25 does, which judges poorly (docs/supervision.md)."""
    judge: Annotated[str | None, Neutral(None)] = None
    """What scores candidates and positives, `bm25`, a checkpoint or a phase with an @; by default the first model of
    `miners`, else BM25."""
    precision: Annotated[Precision, Neutral("float32")] = "float32"
    """In what models that mine or judge have their encoder's weights. `auto` is bfloat16 where the device multiplies it
    faster: decided when mining begins, told, and kept by who goes on with it."""

    @property
    def shares(self) -> dict[str, int]:
        """Each miner's share, in percent."""
        return shares_of(self.miners)

    @property
    def threshold(self) -> float | None:
        """Of the positive's score, what a negative's must be below; None where that does not matter."""
        if self.max_relative is None:
            return None if judge_of(self.shares, self.judge) == BM25 else _MAX_RELATIVE
        return self.max_relative or None

    @property
    def models(self) -> list[str]:
        """Checkpoints and phases that mine or judge; the judge last."""
        judge = judge_of(self.shares, self.judge)
        names = dict.fromkeys([*(name for name in self.shares if name != judge), judge])
        return [name for name in names if name not in (BM25, RANDOM)]

    @property
    def phases(self) -> list[str]:
        """Those that are phases of the recipe."""
        return [name for name in self.models if is_phase(name)]


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


SourceSpec = Annotated[Jsonl | Parquet | Tsv | Hub | Docstrings | Folder | Mined | Scored, Field(discriminator="kind")]


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


class _Rules(Entry):
    exclude_self: Annotated[bool | None, Neutral(None)] = None
    """Leave a query's own document, the one of the same id, out of its ranking, unless it is judged. By default where
    its text also holds the query's, as in ArguAna, whose queries are documents."""
    on_missing: Annotated[Literal["error", "count"] | None, Neutral(None)] = None
    """Judgements of documents or queries that are not there: stop, or count them; such a document is never found, as
    other tools have it, and such a query is left out. By default documents are counted if they are few, at most 5 % of
    the judgements."""


class Beir(_Rules):
    """A folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; also gzipped, of Parquet files, with TREC's qrels."""

    kind: Literal["beir"]
    """A BEIR folder."""
    path: str
    """The folder."""
    split: str = "test"
    """Which qrels."""


class HubCollection(_Rules):
    """A collection of the Hub (NanoBEIR, MTEB): the configurations corpus, queries and qrels; or a folder."""

    kind: Literal["hub"]
    """A collection."""
    path: str
    """Hub id or folder."""
    revision: str | None = None
    """Commit, branch or tag."""
    split: str = "train"
    """Split of each configuration that has it."""


def _known_name(name: str) -> str:
    if not members(name):
        mend = "; `evaluate` alone hands tasks to mteb" if name.startswith(MTEB) else meant(name)
        raise PydanticCustomError("name", f"a public collection's name{mend}")
    return name


class NamedCollection(_Rules):
    """A public collection: of BEIR, NanoBEIR or the decontaminated BEIR; from the Hub, or a folder in `BEIR_HOME`."""

    kind: Literal["named"]
    """A public collection."""
    name: Annotated[str, AfterValidator(_known_name)]
    """As `beir/scifact`, `nanobeir/scifact`, `decontaminated/scifact`; docs/data.md lists them. `beir`, `nanobeir` and
    `decontaminated` stand for all of theirs, `beir/cqadupstack` for its 12 parts: an entry each, of this one's name, a
    dash and the collection's."""

    @property
    def of(self) -> Named:
        """The collection, once groups are written out."""
        return members(self.name)[0]


CollectionSpec = Annotated[HeldOut | Beir | HubCollection | NamedCollection, Field(discriminator="kind")]


def written_out(collections: dict[str, CollectionSpec]) -> dict[str, CollectionSpec]:
    """Collections with an entry for each of a group's, so `beir: {kind: named, name: beir}` gives `beir-scifact` too.

    Raises:
        PydanticCustomError: Two entries would have one name.
    """
    entries: list[tuple[str, CollectionSpec]] = []
    for entry, spec in collections.items():
        if not isinstance(spec, NamedCollection) or spec.name not in GROUPS:
            entries.append((entry, spec))
            continue
        for named in GROUPS[spec.name]:
            below = named.name.removeprefix(f"{spec.name}/").replace("/", "-")
            entries.append((f"{entry}-{below}", spec.model_copy(update={"name": named.name})))
    names = [name for name, _ in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PydanticCustomError("names", f"entries of different names, but a group has {', '.join(twice)} too")
    return dict(entries)
