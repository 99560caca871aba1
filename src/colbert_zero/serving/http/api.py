"""The HTTP API: what may be asked, and how it is answered. docs/serving.md describes it for its user."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from starlette.exceptions import HTTPException

from colbert_zero import __version__
from colbert_zero.data.documents import value_as_text
from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.models.encoding import Task
from colbert_zero.serving.http.batching import QueueFullError
from colbert_zero.serving.http.guard import CLIENT_GONE, Guard, Problem
from colbert_zero.serving.http.service import DiskError, Limits, SearchOptions, Service
from colbert_zero.serving.index.first_stage import first_stage_of
from colbert_zero.serving.index.opened import NO_PARTS, Hit, Index
from colbert_zero.serving.index.segments import UnknownDocumentError
from colbert_zero.serving.opening import AnyIndex
from colbert_zero.serving.qdrant.collection import UnavailableError

PAGE = Path(__file__).parents[1] / "page"
"""Files of the web page."""

_DESCRIPTION = """Late-interaction search in an index of ColBERT-Zero, exact unless a first stage is asked for; and why
each document was found.

A mistake is answered `{"error": {"code", "message", "place"}}`. 503 with `Retry-After`: the queue is full."""


_HIT = TypeAdapter(Hit)

_ADDRESS = ["q", "k", "explain", "where", "first", "with_bm25"]
"""Parameters of a search by address."""


def _no_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; write what to look for")
    return text


class _Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class SearchAnswer(BaseModel):
    """What the index answers to a query."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    query: str
    hits: list[Hit]
    """The best documents, the best first."""
    notes: list[str]
    """What the answer lacks, and why; what scores are that BM25 has part in."""
    seconds: float
    """From the request's head to its answer, waiting included."""


class EmbedAnswer(BaseModel):
    """Embeddings as the index has them, before they are stored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    embeddings: list[list[list[float]]] | list[list[float]]
    """Of each text: token vectors (tokens, dim); of a dense model one vector (dim)."""
    kind: Task
    dim: int
    notes: list[str]
    """What was cut off."""


class IndexAnswer(BaseModel):
    """What is served."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    documents: int
    model: str
    """Its id on the Hub with the commit, or its folder's name."""
    representation: str
    """multi-vector or dense."""
    dim: int
    storage: str
    """How vectors are kept: float16, float32 or int8."""
    generation: int
    """Raised by every change."""
    metadata: dict[str, list[str] | None]
    """The values of each name as text, the most frequent first; null where they are more than 50, or uncounted."""
    notes: list[str]
    """What every answer lacks, and why."""
    writable: bool


class Ready(BaseModel):
    """That it answers from an index that is there and whole, and what encodes its queries."""

    ready: bool
    documents: int
    generation: int
    queries_encoded_by: str


class Health(BaseModel):
    """That the process lives."""

    healthy: bool


class Added(BaseModel):
    """What was added; a search finds it now."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    added: int
    replaced: int
    """Of these: put in the place of another of the same id."""
    there: int
    """Passed over: there already, with the same text and metadata."""
    cut: int
    """Longer than the model reads: their ends cannot be found."""
    unfindable: int
    """Without a token that is scored: never found."""
    left_out: dict[str, int]
    """What was left out, by reason."""


class Deleted(BaseModel):
    """What was deleted."""

    deleted: int


class NewDocument(BaseModel):
    """A document to be found. All other keys are its metadata."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    id: Annotated[str, Field(min_length=1, max_length=1024)]
    text: str
    title: str | None = None
    """Put before the text, and kept in the metadata."""


class Mistake(BaseModel):
    """What is wrong."""

    code: str
    message: str
    place: str | None
    """Of the request: `k`, `where.year`, `Authorization`."""


class MistakeAnswer(BaseModel):
    """The answer to a request that cannot be answered."""

    error: Mistake


_MISTAKES: dict[int | str, dict[str, Any]] = {
    status: {"model": MistakeAnswer, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "The key is missing or another",
        408: "The body came too slowly",
        413: "The body is too large",
        421: "Asked under another name than this machine's own",
        422: "The request is wrong; `place` says where",
        500: "A fault of the server",
        503: "The queue is full, or the index is not ready; try again after `Retry-After` seconds",
        504: "Not answered within the time limit",
    }.items()
}


def make_app(service: Service, key: str | None = None, local: bool = True) -> FastAPI:
    """The API of an index.

    Args:
        service: Closed with the app.
        key: That every request must send, but those for the page, /health, /ready and /openapi.json.
        local: Answer to this machine's own names alone, where there is no key.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="ColBERT-Zero", version=__version__, description=_DESCRIPTION, lifespan=lifespan, responses=_MISTAKES,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics, key=key, local=local)
    _tell_mistakes(app)
    _add_reading(app, service)
    _add_state(app, service)
    if service.writable:
        _add_writing(app, service)
    _add_page(app)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    limits = service.limits
    Text = Annotated[str, Field(max_length=limits.characters), AfterValidator(_no_blank)]
    ten = min(10, limits.k)
    K = Annotated[int, Field(ge=1, le=limits.k)]
    First = Annotated[str, Field(min_length=1, max_length=40)] | None
    Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
    Value = Annotated[str, Field(max_length=4096)] | bool | int | Annotated[float, Field(allow_inf_nan=False)]

    class SearchRequest(_Strict):
        """A query."""

        query: Text
        k: K = ten
        """How many documents."""
        where: Annotated[dict[str, Value], Field(max_length=20)] | None = None
        """Only documents whose metadata has these values."""
        explain: bool = False
        """Say of each document which words the query chose."""
        first: First = None
        """Score only so many candidates of a first stage: pooled:1000 or bm25:1000."""
        with_bm25: Annotated[Weight, Field(strict=True)] | None = None
        """Rank by the model and BM25 together: BM25's weight beside the model's 1."""

    class ExplainRequest(_Strict):
        """A query and a document."""

        query: Text
        id: Annotated[str, Field(min_length=1, max_length=1024)]

    class EmbedRequest(_Strict):
        """Texts of one kind: a model treats queries and documents differently."""

        texts: Annotated[
            list[Annotated[str, Field(max_length=limits.characters)]], Field(min_length=1, max_length=limits.texts)
        ]
        kind: Task

    async def searched(request: Request, query: str, options: SearchOptions) -> Response:
        began = request.state.deadline - limits.seconds
        _check_options(options, service.current.state.index, limits)
        answer = await _awaited(request, service.search(query, options, request.state.deadline), limits.seconds)
        notes = list(dict.fromkeys([*answer.notes, *service.current.notes]))
        found = SearchAnswer.model_construct(
            query=query, hits=answer.hits, notes=notes, seconds=time.monotonic() - began
        )
        # Many long texts take a while, in which others are to be heard.
        return await asyncio.to_thread(_json, found)

    @app.post("/search", response_model=SearchAnswer, summary="Search")
    async def search(request: Request, asked: SearchRequest) -> Response:
        where = {name: value_as_text(value) for name, value in (asked.where or {}).items()}
        ways = asked.explain, asked.first, asked.with_bm25
        return await searched(request, asked.query, SearchOptions(asked.k, tuple(sorted(where.items())), *ways))

    @app.get("/search", response_model=SearchAnswer, summary="Search, for a browser's address line or curl")
    async def search_by_address(
        request: Request,
        q: Annotated[Text, Query(description="The query.")],
        k: Annotated[K, Query(description="How many documents.")] = ten,
        explain: bool = False,
        where: Annotated[
            list[Annotated[str, Field(pattern="^[^=]+=", max_length=4096)]] | None,
            Query(max_length=20, description="NAME=VALUE of the metadata; may be given several times."),
        ] = None,
        first: Annotated[First, Query(description="A first stage, pooled:1000 or bm25:1000.")] = None,
        with_bm25: Annotated[Weight | None, Query(description="BM25's weight beside the model's 1.")] = None,
    ) -> Response:
        for name in request.query_params:
            if name not in _ADDRESS:
                why = f"no parameter has that name{near(name, _ADDRESS)}"
                raise Problem(422, "unknown_parameter", why, _place(("query", name)))
        chosen = dict(one.split("=", 1) for one in where or [])
        options = SearchOptions(k, tuple(sorted(chosen.items())), explain, first, with_bm25)
        return await searched(request, q, options)

    @app.post(
        "/explain", response_model=Hit, summary="Why a document has its score",
        responses={404: {"model": MistakeAnswer, "description": "No document has that id"}},
    )  # fmt: skip
    async def explain(request: Request, asked: ExplainRequest) -> Response:
        _refuse_dense(service.current.state.index.manifest.model.representation)
        future = service.explain(asked.query, asked.id, request.state.deadline)
        hit = await _awaited(request, future, limits.seconds)
        return Response(_HIT.dump_json(hit), media_type="application/json")

    @app.post("/embed", response_model=EmbedAnswer, summary="Embeddings of queries or documents")
    async def embed(request: Request, asked: EmbedRequest) -> Response:
        future = service.embed(asked.texts, asked.kind, request.state.deadline)
        embedded = await _awaited(request, future, limits.seconds)
        model = service.current.state.index.manifest.model
        longest = model.query_tokens if asked.kind == "query" else model.document_tokens
        notes = []
        if embedded.cut:
            notes.append(
                f"{embedded.cut} of the texts are longer than the {longest} tokens that the model reads: their ends "
                "are cut off"
            )
        return await asyncio.to_thread(
            _json, EmbedAnswer.model_construct(embeddings=embedded.vectors, kind=asked.kind, dim=model.dim, notes=notes)
        )


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/index", response_model=IndexAnswer, summary="What is served")
    async def index() -> Response:
        state = service.current.state
        manifest = state.index.manifest
        known = manifest.model
        # A folder's place on this machine is nobody's business.
        name = Path(known.place).name if Path(known.place).is_absolute() else known.place
        model = f"{name} at {known.commit}" if known.commit else name
        values = state.values if state.values is not None else dict.fromkeys(manifest.metadata_keys)
        return _json(
            IndexAnswer(
                documents=len(state.index), model=model, representation=manifest.model.representation,
                dim=manifest.model.dim, storage=manifest.storage, generation=manifest.generation, metadata=values,
                notes=service.current.notes, writable=service.writable,
            )
        )  # fmt: skip

    @app.get("/health", response_model=Health, summary="Whether the process lives")
    async def health() -> Response:
        return _json(Health(healthy=True))

    @app.get("/ready", response_model=Ready, summary="Whether it answers from the index on disk")
    async def ready() -> Response:
        if why := service.not_ready():
            raise Problem(503, "not_ready", why, retry=5)
        index = service.current.state.index
        generation, words = index.manifest.generation, service.queries_encoded_by
        return _json(Ready(ready=True, documents=len(index), generation=generation, queries_encoded_by=words))

    @app.get("/metrics", summary="For Prometheus", response_class=Response,
             responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_writing(app: FastAPI, service: Service) -> None:
    full = {
        "model": MistakeAnswer,
        "description": "The index cannot be written, its disk is full say; it is as it was before",
    }
    taken = {"model": MistakeAnswer, "description": "An id is taken by another document, or another run is writing"}
    unknown = {"model": MistakeAnswer, "description": "No document has that id"}
    New = Annotated[list[NewDocument], Field(min_length=1, max_length=10_000)]

    @app.post("/documents", response_model=Added, summary="Add documents", responses={409: taken, 507: full})
    async def add(
        documents: New,
        replace: Annotated[bool, Query(description="Put a document in the place of another of its id.")] = False,
    ) -> Response:
        # Not `model_dump`: that fails on metadata nested deeply.
        rows = [dict(document) for document in documents]
        done = await _written(service.add(rows, replace))
        return _json(
            Added(
                added=done.documents, replaced=done.replaced, there=done.there, cut=done.cut,
                unfindable=done.unfindable, left_out=dict(done.left_out),
            )
        )  # fmt: skip

    @app.delete(
        "/documents/{id:path}", response_model=Deleted, summary="Delete a document",
        responses={404: unknown, 409: taken, 507: full},
    )  # fmt: skip
    async def delete(id: str) -> Response:
        return _json(Deleted(deleted=await _written(service.delete(id))))


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (PAGE / "index.html").is_file():
            raise Problem(404, "no_page", "this installation has no page; the API is described in /openapi.json")
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    if PAGE.is_dir():
        app.mount("/page", StaticFiles(directory=PAGE), name="page")


# ---- How requests are waited for, and mistakes told


async def _awaited(request: Request, future: "Future[Any]", seconds: float) -> Any:
    """What a future gives, until the client goes or the time is up: then it is not computed any more.

    Raises:
        Problem: The time is up.
        asyncio.CancelledError: The client has gone.
    """
    answer = asyncio.wrap_future(future)
    gone = asyncio.create_task(_disconnected(request))
    try:
        left = max(0.0, request.state.deadline - time.monotonic())
        done, _ = await asyncio.wait({answer, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
        if gone in done:
            raise _GoneError
        raise TimeoutError
    except TimeoutError:
        raise Problem(504, "too_long", f"not answered within {seconds:g} s; try again, or ask for less") from None
    finally:
        answer.cancel()
        gone.cancel()


class _GoneError(Exception):
    """The client did not wait."""


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _written(future: "Future[Any]") -> Any:
    """What a write gives, without a time limit: what was accepted is done, also if its client goes.

    Raises:
        Problem: It was refused.
    """
    return await asyncio.shield(asyncio.wrap_future(future))


def _tell_mistakes(app: FastAPI) -> None:
    def answer(error: Problem) -> Response:
        return JSONResponse(error.content, error.status, error.headers)

    @app.exception_handler(Problem)
    async def own(_: Request, error: Problem) -> Response:
        return answer(error)

    @app.exception_handler(_GoneError)
    async def gone(_: Request, __: _GoneError) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> Response:
        return answer(Problem(503, "queue_full", "as many requests wait as may", retry=error.retry_seconds))

    @app.exception_handler(UnknownDocumentError)
    async def unknown(_: Request, error: UnknownDocumentError) -> Response:
        return answer(Problem(404, "no_document", str(error), "id"))

    @app.exception_handler(DiskError)
    async def disk(_: Request, error: DiskError) -> Response:
        return answer(Problem(507, "disk", str(error)))

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, error: UnavailableError) -> Response:
        return answer(Problem(503, "unavailable", str(error), retry=max(1, error.seconds)))

    @app.exception_handler(ColbertZeroError)
    async def refused(request: Request, error: ColbertZeroError) -> Response:
        return answer(Problem(409 if request.url.path.startswith("/documents") else 422, "refused", str(error)))

    @app.exception_handler(MemoryError)
    async def memory(_: Request, __: MemoryError) -> Response:
        return answer(Problem(503, "memory", "too little memory for this; ask for less", retry=5))

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> Response:
        code = {400: "not_json", 404: "not_found", 405: "wrong_method"}.get(error.status_code, "refused")
        content = Problem(error.status_code, code, str(error.detail)).content
        return JSONResponse(content, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = [(_place(mistake["loc"]), mistake["msg"]) for mistake in error.errors()]
        if any(mistake["type"] == "json_invalid" for mistake in error.errors()):
            return answer(Problem(400, "not_json", f"the body is not JSON: {found[0][1]}", "body"))
        told = "; ".join(f"{place}: {message}" for place, message in found[:5])
        return answer(Problem(422, "invalid", told, found[0][0]))


def _place(loc: tuple[Any, ...]) -> str:
    """Where in a request: `where.year`, `texts.3`."""
    inside = ".".join(str(part) for part in loc[1:])
    return ascii(inside or str(loc[0])).strip("'\"")[:200]


def _check_options(options: SearchOptions, index: AnyIndex, limits: Limits) -> None:
    """Refuse what the index cannot answer, before it waits for its turn.

    Raises:
        Problem: Says what.
    """
    known = index.manifest
    if options.explain:
        if options.k > limits.explained:
            raise Problem(422, "k_too_large", f"with explanations at most {limits.explained} documents at once", "k")
        _refuse_dense(known.model.representation)
    for name, _ in options.where:
        if name not in known.metadata_keys:
            hint = near(name, known.metadata_keys)
            raise Problem(422, "unknown_metadata", f"no document has metadata of that name{hint}", f"where.{name}")
    for place, way in (("first", options.first), ("with_bm25", options.with_bm25)):
        if way is not None and not isinstance(index, Index):
            why = f"{place} is for an index of files, and this one is on Qdrant; leave it out"
            raise Problem(422, "on_qdrant", why, place)
    if options.explain and options.with_bm25 is not None:
        raise Problem(422, "explain_with_bm25", NO_PARTS.format("explain", "with_bm25"), "explain")
    if options.first is not None and isinstance(index, Index):
        try:
            first_stage_of(options.first, index.manifest)
        except ColbertZeroError as error:
            raise Problem(422, "first_stage", str(error).removeprefix("--first "), "first") from None


def _refuse_dense(representation: str) -> None:
    if representation == "dense":
        raise Problem(
            422, "dense", "the index's model is dense, with one vector a text, so there are no words to show", "explain"
        )


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
