"""An index, opened: search in it, and what it answers."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from colbert_zero.data.documents import documents_of, value_as_text
from colbert_zero.data.rows import text_fault
from colbert_zero.errors import ColbertZeroError, near, short
from colbert_zero.evaluation.ensembles import FUSION_DEPTH, fuse
from colbert_zero.evaluation.ranking import embed
from colbert_zero.evaluation.runs import Run
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.graphs import Graph
from colbert_zero.serving.explaining import Explainer, Explanation
from colbert_zero.serving.identity import load_known
from colbert_zero.serving.index.building import DEFAULTS, Settings
from colbert_zero.serving.index.building import build as build_index
from colbert_zero.serving.index.first_stage import FirstStage, bm25_ranking, candidates, first_stage_of
from colbert_zero.serving.index.manifest import Manifest, read_manifest
from colbert_zero.serving.index.searching import Chosen, Place, Ranking, best_documents
from colbert_zero.serving.index.segments import DamagedError, Segment, UnknownDocumentError, raise_open_files

ATTEMPTS = 20
"""Of opening while a writer compacts again and again."""

_SHOWN = 300

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        rank: From 1.
        id: Its own.
        score: MaxSim, or of a dense model its similarity; with BM25 the weighted sum of both.
        text: What was encoded, the title first.
        metadata: JSON values by name.
        explanation: Why it has its score, where that was asked for.
    """

    rank: int
    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    explanation: Explanation | None = None

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        return f"{self.rank:3}. {self.score:8.4f}  {self.id}\n     {text}"


@dataclass(frozen=True)
class Answer(Sequence[Hit]):
    """What an index answers to a query: hits, the best first.

    Attributes:
        query: As asked.
        hits: The documents.
        notes: What the answer lacks, and why.
    """

    query: str
    hits: list[Hit]
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, place: Any) -> Any:
        return self.hits[place]

    def __len__(self) -> int:
        return len(self.hits)

    def __str__(self) -> str:
        hits = [str(hit) for hit in self.hits] or ["nothing found"]
        return "\n".join([self.query, *hits, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Drawn in a notebook: words that the query chose are shaded, where an explanation was asked for."""
        rows = []
        for hit in self.hits:
            shown = hit.explanation.html(hit.text) if hit.explanation else escape(hit.text[:_SHOWN])
            rows.append(
                f"<tr><td>{hit.rank}</td><td>{hit.score:.4f}</td><td>{escape(hit.id)}</td>"
                f'<td style="text-align:left">{shown}</td></tr>'
            )
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        head = "<tr><th></th><th>score</th><th>document</th><th>text</th></tr>"
        return f"<p>{escape(self.query)}</p><table>{head}{''.join(rows)}</table>{notes}"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def check_asked(
    queries: list[str], k: int, where: Mapping[str, str | float | bool] | None, keys: list[str]
) -> dict[str, str]:
    """Refuse what no index can answer.

    Args:
        queries: Texts.
        k: Documents asked for.
        where: Of metadata.
        keys: Names of metadata that documents have.

    Returns:
        The values of `where` as text, as metadata are compared.

    Raises:
        ColbertZeroError: Says what.
    """
    if k < 1:
        raise ColbertZeroError(f"k: {k}; ask for one document or more")
    for query in queries:
        if not query.strip():
            raise ColbertZeroError("the query is empty; write what to look for")
        if fault := text_fault(query.replace("\0", " ")):
            raise ColbertZeroError(f"the query {fault}; mend it")
    found = {}
    for key, value in (where or {}).items():
        if key not in keys:
            raise ColbertZeroError(f"--where {short(key)}: no document has metadata of that name{near(key, keys)}")
        if not isinstance(value, str | bool | int | float):
            raise ColbertZeroError(f"--where {short(key)}: {short(repr(value))}; write a text, a number, true or false")
        found[key] = value_as_text(value)
        if fault := text_fault(found[key].replace("\0", " ")):
            raise ColbertZeroError(f"--where {short(key)}: the value {fault}; no document has such a one")
    return found


class Index:
    r"""An index, opened to be read.

    It answers from the state it was opened in, whatever is written meanwhile; `reopened` has the newest.

    Attributes:
        path: Its folder.
        manifest: What it consists of.
        damaged: Segments that cannot be used, and why; every answer names them.

    Example:
        >>> from pathlib import Path
        >>> from colbert_zero import Index
        >>> model.save_pretrained("my-model")
        >>> _ = Path("notes.jsonl").write_text('{"_id": "a", "text": "The lift of a wing."}\n')
        >>> index = Index.build("my-model", "notes.jsonl", "notes.index")
        notes.index: 1 documents added
        >>> [hit.id for hit in index.search("wing")]
        ['a']
        >>> len(Index.open("notes.index"))
        1
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        model: str | None,
        memory_bytes: int,
        tell: Callable[[str], None],
        graph: Graph | None,
    ):
        self.path, self.manifest, self._graph = path, manifest, graph
        self._place, self._memory_bytes, self._tell = model, memory_bytes, tell
        self._encoder: Encoder | None = None
        self.damaged: dict[str, str] = {}
        self._segments: dict[str, Segment] = {}
        for entry in manifest.segments:
            try:
                self._segments[entry.name] = Segment(path, entry, manifest)
            except DamagedError as error:
                self.damaged[entry.name] = str(error)
            except ColbertZeroError:
                self.close()
                raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: str | None = None,
        memory_bytes: int | None = None,
        tell: Callable[[str], None] = print,
        graph: Graph | None = None,
    ) -> Self:
        """Open an index. No vector is read and no model loaded before they are needed.

        Args:
            path: Its folder.
            model: Where its model is now; where it was when the index was made, without.
            memory_bytes: Vectors that may stay in memory between searches; a quarter of the machine's, without.
            tell: Told what is unusual of the model.
            graph: That encodes queries in PyTorch's place, of the same model.

        Raises:
            ColbertZeroError: It is no index.
        """
        raise_open_files()
        folder = Path(path).absolute()
        memory = psutil.virtual_memory().total // 4 if memory_bytes is None else memory_bytes
        manifest = read_manifest(folder)
        for left in reversed(range(ATTEMPTS)):
            index = cls(folder, manifest, model, memory, tell, graph)
            # What was compacted away between the manifest and its segments is not damaged.
            if not left or not index.damaged or (newer := read_manifest(folder)).generation == manifest.generation:
                break
            index.close()
            manifest = newer
        return index

    @classmethod
    def build(
        cls,
        model: str | Path,
        corpus: str | Path | list[str],
        out: str | Path,
        settings: Settings = DEFAULTS,
        tell: Callable[[str], None] = print,
    ) -> Self:
        """Index a corpus, as `colbert-zero index` does, and open the index; one that was stopped goes on.

        Args:
            model: Folder or Hub id, multi-vector or dense.
            corpus: Files, globs or folders, as for `--corpus`.
            out: The index's folder.
            settings: How it is kept.
            tell: Told what is unusual.

        Raises:
            ColbertZeroError: See `building.build`.
        """
        paths = corpus if isinstance(corpus, list) else [str(corpus)]
        added = build_index(str(model), documents_of(paths, "corpus"), Path(out), settings, tell)
        for line in added.told(out):
            tell(line)
        return cls.open(out, tell=tell)

    def reopened(self) -> "Index":
        """This index, or its newest state with the same model, where something was written since, or put in its place.

        Raises:
            ColbertZeroError: It is there no more.
        """
        return self if read_manifest(self.path) == self.manifest else self.anew()

    def anew(self) -> "Index":
        """What is at its place now, opened again, with the model that is loaded if it is the same; raises as `open`."""
        newer = Index.open(self.path, self._place, self._memory_bytes, self._tell, self._graph)
        if newer.manifest.model == self.manifest.model:
            newer._encoder = self._encoder
        return newer

    def close(self) -> None:
        """Let go of its files."""
        for segment in self._segments.values():
            segment.close()
        self._segments = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        # A copy, for who asks beside the thread that searches, which leaves out what is damaged.
        return sum(segment.entry.live for segment in list(self._segments.values()))

    @property
    def segments(self) -> list[Segment]:
        """Those that can be used."""
        return list(self._segments.values())

    @property
    def encoder(self) -> Encoder:
        """The model that the index was made with, loaded when it is first needed.

        Raises:
            ColbertZeroError: It is not where it was, or another.
        """
        if self._encoder is None:
            self._encoder = load_known(self.manifest.model, self._place, self._tell, self._graph)
        return self._encoder

    @property
    def notes(self) -> list[str]:
        """What every answer lacks, and why."""
        found = []
        for entry in self.manifest.segments:
            if entry.name in self.damaged:
                found.append(
                    f"segment {entry.name} is damaged ({self.damaged[entry.name]}): its {entry.live:,} documents are "
                    f"not searched; colbert-zero index check {self.path}"
                )
        if self.manifest.unfinished:
            found.append(
                f"an addition is going on or was stopped: {self.manifest.unfinished.documents:,} documents are still "
                "to come; the same `index` command goes on"
            )
        return found

    def notes_of(self, first: str | None, with_bm25: float | None = None) -> list[str]:
        """What an answer lacks that a first stage had part in; what scores are that BM25 has part in."""
        more = [f"only candidates of {first} were scored; a better document may be missing"] if first else []
        if with_bm25:
            more.append(
                f"scores are 1 × the model's + {with_bm25:g} × BM25's, each min-max normalised over its best "
                f"{FUSION_DEPTH:,} documents"
            )
        return self.notes + more

    def search(
        self,
        query: str,
        k: int = 10,
        where: Mapping[str, str | float | bool] | None = None,
        explain: bool = False,
        first: str | None = None,
        with_bm25: float | None = None,
    ) -> Answer:
        """The best documents of a query: exactly, or of a first stage's candidates.

        Args:
            query: Text.
            k: How many, > 0.
            where: Only documents whose metadata has these values, as text.
            explain: Say of each which words the query chose.
            first: A first stage, pooled:1000 or bm25:1000 (`first_stage`); without it every document is scored.
            with_bm25: Weight of BM25 beside the model, whose weight is 1: an ensemble of both (`evaluation.ensembles`).

        Raises:
            ColbertZeroError: No document has such metadata, the model cannot be loaded, or has no words to show;
                there is no such first stage, or the weight is not above 0.
        """
        return self.search_all([query], k, where, explain, first, with_bm25)[0]

    def search_all(
        self,
        queries: list[str],
        k: int = 10,
        where: Mapping[str, str | float | bool] | None = None,
        explain: bool = False,
        first: str | None = None,
        with_bm25: float | None = None,
    ) -> list[Answer]:
        """As `search`, for many queries in one pass over the index; with a first stage, one by one."""
        check_weight(with_bm25, explain)
        values = check_asked(queries, k, where, self.manifest.metadata_keys)
        stage = first_stage_of(first, self.manifest) if first else None
        explainers = [Explainer(self.encoder, query) if explain else None for query in queries]
        embedded = embed(self.encoder, queries, "query")
        parts = embedded.values.split(embedded.lengths.tolist())

        def read() -> list[Answer]:
            answers = []
            for query, ranking, explainer, vectors in zip(
                queries, self._best(queries, embedded, k, values, stage, with_bm25), explainers, parts, strict=True
            ):
                hits = [self._hit(rank, *found) for rank, found in enumerate(ranking, 1)]
                if explainer:
                    places = [place for _, place in ranking]
                    hits = [self._explained(*pair, explainer, vectors) for pair in zip(hits, places, strict=True)]
                answers.append(Answer(query, hits, self.notes_of(first, with_bm25)))
            return answers

        return self._whole(read)

    def explain(self, query: str, identifier: str) -> Hit:
        """Why a document has its score with a query, wherever it is ranked; its rank here is 1.

        Args:
            query: Text.
            identifier: The document's id.

        Raises:
            UnknownDocumentError: No document has it.
            ColbertZeroError: The model has no words to show, or the document no token that is scored.
        """
        check_asked([query], 1, None, [])
        if text_fault(identifier):
            raise UnknownDocumentError(f"{self.path} has no document {short(repr(identifier))}")
        explainer = Explainer(self.encoder, query)
        embedded = embed(self.encoder, [query], "query")

        def read() -> Hit:
            for segment in self._segments.values():
                if (number := segment.number_of(identifier)) is not None:
                    [ranking] = best_documents([segment], embedded, 1, _only(number))
                    if not ranking:
                        raise ColbertZeroError(f"{short(identifier)} has no token that is scored, so nothing to show")
                    return self._explained(self._hit(1, *ranking[0]), ranking[0][1], explainer, embedded.values)
            raise UnknownDocumentError(f"{self.path} has no document {short(repr(identifier))}")

        return self._whole(read)

    def metadata_values(self, most: int = 50) -> dict[str, list[str] | None]:
        """The values of each name of metadata as text, the most frequent first; None of one that has more than these.

        Args:
            most: Values that are told of a name.
        """

        def read() -> dict[str, list[str] | None]:
            counts: dict[str, Counter[str] | None] = {}
            for segment in self._segments.values():
                for key, value in segment.values():
                    if (count := counts.setdefault(key, Counter())) is not None:
                        count[value] += 1
                        if len(count) > most:
                            counts[key] = None
            names = sorted(counts)
            return {name: None if (c := counts[name]) is None else [v for v, _ in c.most_common()] for name in names}

        return self._whole(read)

    def run(
        self,
        queries: dict[str, str],
        k: int = 1000,
        where: Mapping[str, str | float | bool] | None = None,
        first: str | None = None,
        with_bm25: float | None = None,
    ) -> Run:
        """The rankings of {query id: text} as a run."""
        check_weight(with_bm25)
        texts = list(queries.values())
        values = check_asked(texts, k, where, self.manifest.metadata_keys)
        stage = first_stage_of(first, self.manifest) if first else None
        embedded = embed(self.encoder, texts, "query")
        rankings = self._whole(lambda: self._best(texts, embedded, k, values, stage, with_bm25))
        return {
            query_id: [(place.id, score) for score, place in ranking]
            for query_id, ranking in zip(queries, rankings, strict=True)
        }

    def search_vectors(
        self, queries: Packed, k: int = 10, where: Mapping[str, str | float | bool] | None = None
    ) -> list[Ranking]:
        """The best documents of queries that are embedded already, (score, place)."""
        asked = check_asked([], k, where, self.manifest.metadata_keys)
        return self._whole(lambda: self._best([], queries, k, asked, None))

    def _best(
        self,
        texts: list[str],
        queries: Packed,
        k: int,
        where: dict[str, str] | None,
        stage: FirstStage | None,
        with_bm25: float | None = None,
    ) -> list[Ranking]:
        if with_bm25:
            chosen = self._chosen(where)
            by_model = self._best(texts, queries, FUSION_DEPTH, where, stage)
            by_bm25 = [bm25_ranking(self.segments, text, FUSION_DEPTH, chosen) for text in texts]
            return [_fused(*rankings, with_bm25, k) for rankings in zip(by_model, by_bm25, strict=True)]
        segments = self.segments
        release = sum(segment.vectors.nbytes for segment in segments) > self._memory_bytes
        chosen = self._chosen(where)
        if stage is None:
            return best_documents(segments, queries, k, chosen, release)
        found = []
        for text, vectors in zip(texts, queries.values.split(queries.lengths.tolist()), strict=True):
            masks = candidates(segments, stage, text, vectors, chosen)
            one = Packed(vectors, torch.tensor([len(vectors)]))
            found += best_documents(segments, one, k, _named(masks), release)
        return found

    def _chosen(self, where: dict[str, str] | None) -> Chosen | None:
        return _named({segment.name: _with_values(segment, where) for segment in self.segments}) if where else None

    def _whole(self, read: Callable[[], _Read]) -> _Read:
        """What is read of the segments; one that turns out damaged is left out from now on."""
        while True:
            try:
                return read()
            except DamagedError as error:
                self.damaged[error.segment] = str(error)
                self._segments.pop(error.segment).close()

    def _explained(self, hit: Hit, place: Place, explainer: Explainer, query: Tensor) -> Hit:
        span, vectors = _best_passage(self._segments[place.segment], place.number, query.cpu())
        return replace(hit, explanation=explainer.explain(hit.text, span, vectors))

    def _hit(self, rank: int, score: float, place: Place) -> Hit:
        row, metadata = self._segments[place.segment].document(place.number)
        return Hit(rank, row.id, score, row.text, metadata)


NO_PARTS = "{0}: shows the parts of the model's score, and with BM25 a document has another; leave out {0} or {1}"
"""Why a score that BM25 has part in is not explained, of two options."""


def check_weight(with_bm25: float | None, explain: bool = False) -> None:
    """Refuse a weight that is none, and parts of a score that has others.

    Raises:
        ColbertZeroError: Says what.
    """
    if with_bm25 is None:
        return
    if not 0 < with_bm25 < math.inf:
        raise ColbertZeroError(f"--with-bm25 {with_bm25:g}: write a weight above 0, as in --with-bm25 1")
    if explain:
        raise ColbertZeroError(NO_PARTS.format("--explain", "--with-bm25"))


def _fused(by_model: Ranking, by_bm25: Ranking, weight: float, k: int) -> Ranking:
    """Both rankings of a query as one."""
    places = {place.id: place for ranking in (by_model, by_bm25) for _, place in ranking}
    runs = [{"": [(place.id, score) for score, place in ranking]} for ranking in (by_model, by_bm25)]
    return [(score, places[name]) for name, score in fuse([(1.0, runs[0]), (weight, runs[1])], k)[""]]


def _best_passage(segment: Segment, number: int, query: Tensor) -> tuple[tuple[int, int], Tensor]:
    """The passage of a document that scores best, in characters, and its vectors on the CPU."""
    first, last = (int(place) for place in segment.first_passages[[number, number + 1]])
    found = []
    for place in range(first, last):
        vectors = segment.tokens(int(segment.starts[place]), int(segment.starts[place + 1])).float()
        if len(vectors):
            span = int(segment.passages.begins[place]), int(segment.passages.ends[place])
            found.append((float((query @ vectors.T).amax(1).sum()), span, vectors))
    _, span, vectors = max(found, key=lambda passage: passage[0])
    return span, vectors


def _only(number: int) -> Chosen:
    return lambda segment: np.arange(segment.entry.documents) == number


def _named(masks: dict[str, np.ndarray]) -> Chosen:
    return lambda segment: masks[segment.name]


def _with_values(segment: Segment, where: dict[str, str]) -> np.ndarray:
    mask = np.ones(segment.entry.documents, bool)
    for key, value in where.items():
        mask &= segment.with_value(key, value)
    return mask
