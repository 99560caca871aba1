"""What queries and documents are wrapped in, and how long they may be: asked for, or a base's own.

A recipe that says nothing takes what its base was trained with; what it sets instead is told, and prompts or markers
other than those that a start was trained with are refused unless asked for.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.files import read_json

Representation = Literal["dense", "multi-vector", "cross-encoder"]
Asked = tuple[Representation, Mapping[str, str] | None, Mapping[str, str] | None]
"""What a phase trains, with the prompts and markers that its recipe asks for."""

TASKS = ("query", "document")
META = "colbert_zero.json"

MARKERS = {"query": "[Q]", "document": "[D]"}
TOKENS = {"query": 32, "document": 180}
LEAST_TOKENS = 3
"""Of a text beside what is put before it."""

DIM = 128
"""What the paper trains with: where neither the recipe nor its base says otherwise."""


@dataclass(frozen=True)
class Alignment:
    """What queries and documents are wrapped in, and how long they may be: the same in training and in use."""

    query_prompt: str
    document_prompt: str
    query_marker: str
    document_marker: str
    query_tokens: int
    document_tokens: int
    whole: bool = False
    """Whether these lengths hold markers and prompts too, which otherwise come on top of them."""

    def text_tokens(self, task: str, prefix_tokens: int) -> int:
        """The longest text beside a prefix of so many tokens."""
        tokens: int = getattr(self, f"{task}_tokens")
        return tokens - prefix_tokens if self.whole else tokens

    def prefix(self, task: str, representation: Representation) -> str:
        """What is put before a text: the marker (multi-vector only), then the prompt."""
        prompt, marker = getattr(self, f"{task}_prompt"), getattr(self, f"{task}_marker")
        return f"{marker} {prompt}" if representation == "multi-vector" and marker else prompt

    def prefixes(self, representation: Representation) -> list[str]:
        """What is put before queries, and before documents."""
        return [self.prefix(task, representation) for task in TASKS]


@dataclass(frozen=True)
class Own:
    """What a checkpoint has of its own.

    Attributes:
        representation: What it gives; None for a plain encoder.
        dim: Width of its token vectors, if it gives them.
        prompts: By task; None where it says nothing of any.
        markers: By task, in a multi-vector checkpoint: the special token that its prompt begins with, or "".
        tokens: Longest text by task, in tokens without marker and prompt; None where there is no bound.
        positions: Tokens that its encoder has positions for, marker and prompt among them; None where it has no bound.
        prefixes: Tokens that each marker and prompt takes which a recipe may put before its texts.
        filled_to: Tokens that queries of fewer are filled up to; None where they are not, or always to their length.
        skip_list: Words that a multi-vector checkpoint leaves out of documents.
        query_expansion: Whether it fills queries up, and attends to what fills them: `false`, `attend`, `ignore`.
        pool: Tokens of a document that a multi-vector checkpoint makes one of, about; 1: it pools none.
        can_recompute: Whether its layers can be computed again in a backward pass.
        linears: Names of the linear layers of its encoder, without where they stand.
        can_expand: Whether its tokenizer has a token to fill queries up with.
        similarity: What a dense checkpoint scores by.
        no_pairs: Why no cross-encoder can be made of its encoder; empty where one can, or none is asked for.
        words: For people.
    """

    representation: Representation | None = None
    dim: int | None = None
    prompts: Mapping[str, str] | None = None
    markers: Mapping[str, str] | None = None
    tokens: Mapping[str, int | None] | None = None
    positions: int | None = None
    prefixes: Mapping[str, int] = field(default_factory=dict)
    filled_to: int | None = None
    skip_list: Sequence[str] = ()
    query_expansion: str = "false"
    pool: float = 1.0
    can_recompute: bool = True
    linears: Sequence[str] = ()
    can_expand: bool = True
    similarity: str | None = None
    no_pairs: str = ""
    words: str = ""

    def room(self, prefix: str) -> int | None:
        """The longest text that positions leave beside a prefix."""
        return self.positions and self.positions - self.prefixes.get(prefix, 0)


FROM_SCRATCH = Own()


def align(
    own: Own,
    representation: Representation,
    prompts: Mapping[str, str] | None,
    markers: Mapping[str, str] | None,
    tokens: Mapping[str, int | None],
    whole: bool = False,
) -> Alignment:
    """What a recipe asks for, and where it says nothing the base's own, or else the paper's.

    Args:
        own: The base's.
        representation: What the phase trains.
        prompts: Asked for, by task; None where the recipe says nothing. One that begins with the base's marker, as
            PyLate writes it, is taken without.
        markers: Likewise.
        tokens: Likewise, longest text by task.
        whole: Whether these hold markers and prompts too.
    """
    had = own.markers or {"query": "", "document": ""}
    markers = markers or own.markers or MARKERS
    prompts = prompts or own.prompts or {"query": "", "document": ""}
    wrapped = Alignment(
        query_prompt=_without(prompts["query"], had["query"]),
        document_prompt=_without(prompts["document"], had["document"]),
        query_marker=markers["query"],
        document_marker=markers["document"],
        query_tokens=tokens.get("query") or 0,
        document_tokens=tokens.get("document") or 0,
        whole=whole,
    )
    return replace(
        wrapped,
        query_tokens=wrapped.query_tokens or _own_length(own, "query", wrapped, representation),
        document_tokens=wrapped.document_tokens or _own_length(own, "document", wrapped, representation),
    )


def _without(prompt: str, marker: str) -> str:
    return prompt.removeprefix(marker).removeprefix(" ") if marker and prompt.startswith(marker) else prompt


def _own_length(own: Own, task: str, wrapped: Alignment, representation: Representation) -> int:
    prefix = wrapped.prefix(task, representation)
    length, room = _usual_length(own, task), own.room(prefix)
    text = max(1, min(length, room)) if room is not None else length
    return text + own.prefixes.get(prefix, 0) if wrapped.whole else text


def _usual_length(own: Own, task: str) -> int:
    """A base's own length, or the paper's."""
    return (own.tokens and own.tokens[task]) or TOKENS[task]


def differences(own: Own, alignment: Alignment, representation: Representation) -> Iterator[str]:
    """What a phase has instead of its base's own, in words."""
    for task in TASKS:
        prefix = alignment.prefix(task, representation)
        had, now = _usual_length(own, task), alignment.text_tokens(task, own.prefixes.get(prefix, 0))
        if own.tokens and own.tokens[task] and now != had:
            yield f"{task}_tokens: {now} instead of its own {had}"
        elif now < had and now == own.room(prefix):
            yield f"{task}_tokens: {now}, as many as its positions leave"
    if own.representation == "multi-vector" and representation == "dense":
        yield "a dense phase leaves its head and its markers aside, and takes the mean of its encoder's states"
    if own.representation == "dense" and representation == "multi-vector":
        yield "a multi-vector phase takes its encoder, and a new projection in place of its pooling and what follows"
    markers = [marker for marker in (alignment.query_marker, alignment.document_marker) if marker]
    if own.representation != "multi-vector" and representation == "multi-vector" and markers:
        yield (
            f"markers {' and '.join(markers)} get random vectors where its tokenizer does not know them; "
            "`markers: {query: '', document: ''}` leaves them out"
        )


def read_alignment(folder: str | Path) -> dict[str, Any] | None:
    """What a checkpoint says of its prompts, markers and lengths; None where it was not made by this program.

    Raises:
        ColbertZeroError: It says nothing that could be understood.
    """
    path = Path(folder) / META
    if not path.is_file():
        return None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        known: dict[str, Any] = read_json(path)
        if all(isinstance(known[f"{task}_{what}"], str) for task in TASKS for what in ("prompt", "marker")):
            return known
    raise ColbertZeroError(f"{path}: not what this program writes; delete it, and the model counts as another's")


def check_alignment(own: Own, alignment: Alignment, representation: Representation, phase: str, parent: str) -> None:
    """Refuse to train on prompts or markers other than those a checkpoint was trained with.

    Raises:
        ColbertZeroError: Names both.
    """
    compared = {"prompt": own.prompts, "marker": own.markers if representation == "multi-vector" else None}
    for what, task in itertools.product(compared, TASKS):
        if (theirs := compared[what]) is not None:
            had, wants = theirs[task], getattr(alignment, f"{task}_{what}")
            if had != wants:
                raise ColbertZeroError(
                    f"phases.{phase}: its start, {parent}, was trained with the {task} {what} {had!r}, this phase has "
                    f"{wants!r}. Stripping or adding prompts hurts clearly; give it the same `{what}s`, or, for an "
                    "ablation, `allow_prompt_mismatch: true`"
                )


def check_lengths(own: Own, alignment: Alignment, representation: Representation, phase: str) -> None:
    """Refuse texts that a base's encoder has no positions for, and queries shorter than it fills them up to.

    Raises:
        ColbertZeroError: Names the length, what there is, and the mend.
    """
    for task in TASKS:
        prefix = alignment.prefix(task, representation)
        before = own.prefixes.get(prefix, 0)
        text = alignment.text_tokens(task, before)
        length = text + before
        if text < LEAST_TOKENS:
            raise ColbertZeroError(
                f"phases.{phase}: {task}_tokens: {length}, of which marker and prompt take {before}; raise it to "
                f"{before + LEAST_TOKENS} or more, or set `lengths: text`"
            )
        if own.positions and length > own.positions:
            raise ColbertZeroError(
                f"phases.{phase}: {task} texts of {length} tokens (with markers and prompts) do not fit the encoder's "
                f"{own.positions} positions; lower {task}_tokens"
            )
        if task == "query" and own.filled_to and length < own.filled_to:
            raise ColbertZeroError(
                f"phases.{phase}: queries of {length} tokens (with marker and prompt), but its start fills them up to "
                f"{own.filled_to}; raise query_tokens by {own.filled_to - length}"
            )


def check_similarity(similarity: str | None, phase: str, base: str) -> None:
    """Refuse to train a dense model that scores by anything but cosine or dot product.

    Raises:
        ColbertZeroError: Names what it scores by.
    """
    if similarity not in (None, "cosine", "dot"):
        raise ColbertZeroError(
            f"phases.{phase}: the start {base!r} scores by {similarity}; a dense phase trains cosine or dot product. "
            "Take another base, or a new head by `model.head: new`"
        )


def check_training(own: Own, gradient_checkpointing: bool, targets: Sequence[str], phase: str) -> None:
    """Refuse `gradient_checkpointing` of layers that cannot be computed again, and adapters of unknown layers.

    Raises:
        ColbertZeroError: Names the key and the mend.
    """
    if gradient_checkpointing and not own.can_recompute:
        raise ColbertZeroError(
            f"phases.{phase}.gradient_checkpointing: transformers cannot compute the layers of this encoder again; "
            "leave it out, and lower `mini_batch_tokens`"
        )
    if unknown := [name for name in targets if name not in own.linears]:
        raise ColbertZeroError(
            f"phases.{phase}.low_rank.targets: the encoder has no linear layers {unknown[0]!r}"
            f"{near(unknown[0], own.linears)}"
        )


def check_dim(own: Own, dim: int, base: str) -> None:
    """Refuse another width than that of a head that is kept.

    Raises:
        ColbertZeroError: Names both, and the way to a new head.
    """
    if own.dim != dim:
        raise ColbertZeroError(
            f"model.dim: {dim}, but {base!r} has token vectors of {own.dim}; make them equal, or ask for a new "
            "projection by `model.head: new`"
        )
