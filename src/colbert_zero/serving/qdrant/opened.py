"""An index on Qdrant, opened: the methods of `Index`, answered by a collection.

    pooled    the query's mean token finds candidates in an HNSW graph of the documents' mean tokens
    tokens    MaxSim ranks the candidates; `exact` leaves the first step out and ranks all

A search answers from the collection as it is at that moment. Of a document of several passages the best one counts.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from colbert_zero.data.documents import number_of_text
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.evaluation.ranking import embed
from colbert_zero.evaluation.runs import Run
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.graphs import Graph
from colbert_zero.serving.explaining import Explainer
from colbert_zero.serving.identity import load_known
from colbert_zero.serving.index.opened import Answer, Hit, check_asked
from colbert_zero.serving.index.segments import UnknownDocumentError
from colbert_zero.serving.qdrant.collection import (
    POOLED,
    TOKENS,
    Address,
    Collection,
    Record,
    address_of,
    point_id,
    where_of,
)

if TYPE_CHECKING:
    from qdrant_client import models

CANDIDATES = 300
"""That MaxSim ranks, where nothing else is asked for."""

OVERSAMPLING = 4.0
"""Of quantised vectors: so many times k are scored again by the original ones."""

_QUERIES_AT_ONCE = 16

_PAYLOAD = ["document", "passage", "begin", "end", "digest", "text", "metadata"]

_MOST_VALUES = 20_000
"""Of all names of metadata together, that are counted."""


class _Found(NamedTuple):
    """A passage that was found."""

    score: float
    document: str
    passage: int
    span: tuple[int, int]
    payload: dict[str, Any]


class QdrantIndex:
    """An index on Qdrant, opened to be read.

    Attributes:
        path: Its address.
        manifest: What it is.
    """

    def __init__(
        self,
        collection: Collection,
        model: str | None,
        exact: bool,
        candidates: int | None,
        tell: Callable[[str], None],
        graph: Graph | None,
    ):
        self._graph = graph
        self.path, self.manifest = collection.address, collection.record()
        self._collection, self._place, self._tell, self._owner = collection, model, tell, True
        self._exact, self._candidates = exact, candidates
        self._encoder: Encoder | None = None
        self._documents = collection.count()

    @classmethod
    def open(
        cls,
        address: str | Address,
        model: str | None = None,
        exact: bool = False,
        candidates: int | None = None,
        tell: Callable[[str], None] = print,
        graph: Graph | None = None,
    ) -> Self:
        """Open an index. No model is loaded before it is needed.

        Args:
            address: As text, qdrant+http://localhost:6333/notes, or in parts.
            model: Where its model is now; where it was when the index was made, without.
            exact: Rank every passage by MaxSim, not the candidates alone.
            candidates: Passages that MaxSim ranks; 300, or k where that is more, without.
            tell: Told what is unusual.
            graph: That encodes queries in PyTorch's place, of the same model.

        Raises:
            ColbertZeroError: It cannot be reached, or is no index.
        """
        if candidates is not None and (exact or candidates < 1):
            raise ColbertZeroError("--candidates: at least one, and not with --exact, which ranks everything")
        address = address_of(address) if isinstance(address, str) else address
        collection = Collection(address, tell)
        try:
            return cls(collection, model, exact, candidates, tell, graph)
        except BaseException:
            collection.close()
            raise

    def reopened(self) -> "QdrantIndex":
        """This index, or its newest state, where something was written since; searches see that in any case.

        Raises:
            ColbertZeroError: It is there no more.
        """
        return self if self.newest() == self.manifest else self.anew()

    def newest(self) -> Record:
        """What the collection is now; raises as `open`."""
        return self._collection.record()

    def anew(self) -> "QdrantIndex":
        """The same collection opened again, with the model that is loaded if it is the same; raises as `open`."""
        # The local mode's folder is open once: who opened it lets go of it.
        collection = Collection(self.path, self._tell) if self.path.remote else self._collection
        newer = QdrantIndex(collection, self._place, self._exact, self._candidates, self._tell, self._graph)
        newer._owner = self.path.remote
        if newer.manifest.model == self.manifest.model:
            newer._encoder = self._encoder
        return newer

    def close(self) -> None:
        """Let go of the connection."""
        if self._owner:
            self._collection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._documents

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
        if (unfinished := self.manifest.unfinished) is not None:
            found.append(
                f"an addition is going on or was stopped: {unfinished.documents:,} documents are still to come; the "
                "same `index` command goes on"
            )
        return found

    def notes_of(self, k: int) -> list[str]:
        """What an answer of so many documents lacks, and why."""
        ranked = self._ranks(k)
        if self._exact or (self.manifest.passages is None and self._documents <= ranked):
            return self.notes
        return [
            *self.notes,
            f"only {ranked:,} candidates, the nearest by mean vectors, were scored; a better document may be missing; "
            "--exact scores all",
        ]

    def search(
        self,
        query: str,
        k: int = 10,
        where: Mapping[str, str | float | bool] | None = None,
        explain: bool = False,
    ) -> Answer:
        """The best documents of a query.

        Args:
            query: Text.
            k: How many, > 0.
            where: Only documents whose metadata has these values.
            explain: Say of each which words the query chose.

        Raises:
            ColbertZeroError: No document has such metadata, the model cannot be loaded, or has no words to show; or the
                server fails.
        """
        return self.search_all([query], k, where, explain)[0]

    def search_all(
        self,
        queries: list[str],
        k: int = 10,
        where: Mapping[str, str | float | bool] | None = None,
        explain: bool = False,
    ) -> list[Answer]:
        """As `search`, for many queries at once."""
        values = check_asked(queries, k, where, self.manifest.metadata_keys)
        explainers = [Explainer(self.encoder, query) if explain else None for query in queries]
        answers = []
        for query, found, explainer in zip(queries, self._best(queries, k, values, _PAYLOAD), explainers, strict=True):
            hits, replaced = self._hits(found, explainer)
            answers.append(Answer(query, hits, [*self.notes_of(k), *replaced]))
        return answers

    def run(self, queries: dict[str, str], k: int = 1000, where: Mapping[str, str | float | bool] | None = None) -> Run:
        """The rankings of {query id: text} as a run."""
        texts = list(queries.values())
        values = check_asked(texts, k, where, self.manifest.metadata_keys)
        rankings = self._best(texts, k, values, ["document", "passage", "begin", "end"])
        return {
            query_id: [(found.document, found.score) for found in ranking]
            for query_id, ranking in zip(queries, rankings, strict=True)
        }

    def explain(self, query: str, identifier: str) -> Hit:
        """Why a document has its score with a query, wherever it is ranked; its rank here is 1.

        Args:
            query: Text.
            identifier: The document's id.

        Raises:
            UnknownDocumentError: No document has it.
            ColbertZeroError: The model has no words to show, or the document no token that is scored.
        """
        from qdrant_client import models

        check_asked([query], 1, None, [])
        explainer = Explainer(self.encoder, query)
        if not self._collection.retrieve([point_id(identifier, 0)], []):
            raise UnknownDocumentError(f"{self.path} has no document {short(repr(identifier))}")
        [vectors] = self._embedded([query])
        only = models.Filter(must=[_matches("document", identifier)])
        [found] = self._ranked([self._request(vectors, 1, only, True, _PAYLOAD)], 1)
        hits, _ = self._hits(found, explainer)
        if not hits:
            raise ColbertZeroError(f"{short(identifier)} has no token that is scored, so nothing to show")
        return hits[0]

    def metadata_values(self, most: int = 50) -> dict[str, list[str] | None]:
        """The values of each name of metadata as text, the most frequent first; None of one that has more than these.

        The 20,000 most frequent of all names are looked at: a value rarer than these is not among them.

        Args:
            most: Values that are told of a name.
        """
        values: dict[str, list[str]] = {key: [] for key in sorted(self.manifest.metadata_keys)}
        first = self._filter(None, _matches("passage", 0))
        found = self._collection.ask(
            lambda client: client.facet(
                self._collection.name, "where", facet_filter=first, limit=_MOST_VALUES, exact=True
            )
        )
        for hit in found.hits:
            key, value = json.loads(str(hit.value))
            if key in values:
                values[key].append(value)
        return {key: some if len(some) <= most else None for key, some in values.items()}

    # ---- Asking

    def _embedded(self, queries: list[str]) -> list[Tensor]:
        """(tokens, dim) of each query, on the CPU."""
        embedded = embed(self.encoder, queries, "query")
        return list(embedded.values.cpu().float().split(embedded.lengths.tolist()))

    def _best(self, queries: list[str], k: int, where: dict[str, str] | None, payload: list[str]) -> list[list[_Found]]:
        """The best passage of each query's best documents."""
        chosen = self._filter(where)
        requests = [self._request(vectors, k, chosen, self._exact, payload) for vectors in self._embedded(queries)]
        return self._ranked(requests, k)

    def _filter(self, where: dict[str, str] | None, *more: "models.FieldCondition") -> "models.Filter | None":
        from qdrant_client import models

        must: list[Any] = list(more)
        for key, value in (where or {}).items():
            # As text, or as a number: "1.0" is both, and a number is kept as 1.
            forms = dict.fromkeys([value, number_of_text(value) or value])
            match = models.MatchAny(any=[where_of(key, form) for form in forms])
            must.append(models.FieldCondition(key="where", match=match))
        return models.Filter(must=must) if must else None

    def _request(
        self, vectors: Tensor, k: int, chosen: "models.Filter | None", exact: bool, payload: list[str]
    ) -> "models.QueryRequest":
        from qdrant_client import models

        if not len(vectors):
            raise ColbertZeroError("the query has no token that is scored; write another")
        remote, prefetch = self.path.remote, None
        if not exact:
            pooled = vectors.mean(0).tolist()
            prefetch = models.Prefetch(query=pooled, using=POOLED, limit=self._ranks(k), filter=chosen)
        # Four times as many as are asked for are scored again by the original vectors; `exact` asks these alone.
        again = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        quantised = models.QuantizationSearchParams(ignore=True) if exact else again
        return models.QueryRequest(
            query=vectors.tolist(),
            using=TOKENS,
            prefetch=prefetch,
            filter=chosen,
            limit=k,
            with_payload=payload,
            params=models.SearchParams(exact=exact, quantization=quantised) if remote else None,
        )

    def _ranks(self, k: int) -> int:
        """Passages that MaxSim ranks for k documents."""
        if self._candidates is not None and self._candidates < k:
            raise ColbertZeroError(f"--candidates {self._candidates}: fewer than the {k} documents that are asked for")
        return self._candidates or max(CANDIDATES, k)

    def _ranked(self, requests: list["models.QueryRequest"], k: int) -> list[list[_Found]]:
        """What requests find, equal scores by document id."""
        points: list[list[Any]] = []
        name = self._collection.name
        if self.manifest.passages is None:
            for start in range(0, len(requests), _QUERIES_AT_ONCE):
                some = requests[start : start + _QUERIES_AT_ONCE]
                answers = self._collection.ask(lambda client, some=some: client.query_batch_points(name, some))  # type: ignore[misc]
                points += [answer.points for answer in answers]
        else:
            for one in requests:
                groups = self._collection.ask(lambda client, one=one: client.query_points_groups(  # type: ignore[misc]
                    name, "document", one.query, using=TOKENS, prefetch=one.prefetch, query_filter=one.filter,
                    search_params=one.params, limit=k, group_size=1, with_payload=one.with_payload,
                ))  # fmt: skip
                points.append([hit for group in groups.groups for hit in group.hits])
        return [sorted(map(_found, some), key=lambda found: (-found.score, found.document)) for some in points]

    # ---- Answering

    def _hits(self, ranking: list[_Found], explainer: Explainer | None) -> tuple[list[Hit], list[str]]:
        """Documents as they are answered, and a note of those that are being replaced at this moment."""
        firsts = {found.document: found.payload for found in ranking if found.passage == 0}
        others = [point_id(found.document, 0) for found in ranking if found.document not in firsts]
        for point in self._collection.retrieve(others, _PAYLOAD).values():
            firsts[point.payload["document"]] = point.payload
        whole = [found for found in ranking if firsts.get(found.document, {}).get("digest") == found.payload["digest"]]
        stored: dict[str, Tensor] = {}
        if explainer:
            ids = [point_id(found.document, found.passage) for found in whole]
            points = self._collection.retrieve(ids, [], [TOKENS])
            stored = {key: torch.tensor(point.vector[TOKENS]) for key, point in points.items()}
        hits: list[Hit] = []
        for found in whole:
            first, explanation = firsts[found.document], None
            if explainer:
                with suppress(KeyError):  # deleted since
                    vectors = stored[point_id(found.document, found.passage)]
                    explanation = explainer.explain(first["text"], found.span, vectors)
            hits.append(Hit(len(hits) + 1, found.document, found.score, first["text"], first["metadata"], explanation))
        gone = len(ranking) - len(whole)
        notes = [f"{gone:,} documents are being replaced or deleted at this moment, and left out"] if gone else []
        return hits, notes


def _matches(key: str, value: str | int) -> "models.FieldCondition":
    from qdrant_client import models

    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _found(point: Any) -> _Found:
    payload = point.payload
    return _Found(point.score, payload["document"], payload["passage"], (payload["begin"], payload["end"]), payload)
