"""Which model made an index, and that the one that searches is the same."""

import os
from collections.abc import Callable
from typing import Any

from sentence_transformers import MultiVectorEncoder

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import place_of
from colbert_zero.models.adapting import read_adaptation
from colbert_zero.models.bases import find_checkpoint
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.contents import contents_of
from colbert_zero.models.encoding import prompt_of
from colbert_zero.models.graphs import Graph, computed_by
from colbert_zero.models.kinds import kind_of
from colbert_zero.models.scored_tokens import scored_in_words
from colbert_zero.serving.index.manifest import ModelIdentity


def load_identified(
    place: str, whose: str, tell: Callable[[str], None], **options: Any
) -> tuple[Encoder, ModelIdentity]:
    """A checkpoint, and what it is known by.

    Args:
        place: Folder or Hub id.
        whose: What names it, for messages.
        tell: Told which commit a Hub id is at.
        options: Of `load_model`.

    Raises:
        ColbertZeroError: It is not there, or gives no embeddings.
    """
    commit = find_checkpoint(place, whose, tell)
    return _loaded(place, commit, options)


def load_known(
    known: ModelIdentity, place: str | None, tell: Callable[[str], None], graph: Graph | None = None
) -> Encoder:
    """The model of an index.

    Args:
        known: What the index says of it.
        place: Where it is now; where it was, without.
        tell: Told what is unusual.
        graph: That computes it in PyTorch's place.

    Raises:
        ColbertZeroError: It is not there, or another.
    """
    try:
        commit = known.commit if (place or known.place) == known.place else None
        if commit is None:
            commit = find_checkpoint(place or known.place, "--model" if place else "the index's model", tell)
        same = commit == known.commit if known.commit else contents_of(place or known.place) == known.contents
        same = same or (commit is None and _is_adapted(known, place or known.place, tell))
    except ColbertZeroError as error:
        if place:
            raise
        raise ColbertZeroError(f"{error}. If it lies elsewhere now, say where: --model PLACE") from None
    if not same:
        raise ColbertZeroError(
            f"{place or known.place} is not the model that this index was made with: {_differs(known, place, commit)}. "
            "Vectors of two models cannot be compared; search with that one (--model PLACE), or index again with this"
        )
    options = {"device": "cpu"} if graph else {}
    encoder = load_model(place_of(place or known.place), revision=commit, **options)
    return computed_by(encoder, graph) if graph else encoder


def _is_adapted(known: ModelIdentity, place: str, tell: Callable[[str], None]) -> bool:
    """Whether a folder holds the index's model with queries fitted to a domain: documents' vectors are the same."""
    said = read_adaptation(place_of(place))
    if said is None or not said.adapts(known.contents, known.commit) or said.contents != contents_of(place):
        return False
    tell(f"{place}: the index's model, its queries adapted to {', '.join(said.domains)}")
    return True


def _differs(known: ModelIdentity, place: str | None, commit: str | None) -> str:
    if known.commit:
        return f"{known.place} at commit {known.commit[:12]}, not {commit[:12] if commit else 'a folder'}"
    return "its files have changed since" if place in (None, known.place) else f"that was {known.place}"


def _loaded(place: str, commit: str | None, options: dict[str, Any]) -> tuple[Encoder, ModelIdentity]:
    folder = place_of(place)
    encoder = load_model(folder, revision=commit, **options)
    transformer: Any = encoder[0]
    multi_vector = isinstance(encoder, MultiVectorEncoder)
    skipped, expansion = scored_in_words(encoder) if multi_vector else ([], "false")
    identity = ModelIdentity(
        place=os.path.abspath(folder) if commit is None else place,
        commit=commit,
        contents=None if commit else contents_of(place),
        representation=kind_of(folder, commit),
        dim=encoder.get_embedding_dimension() or 0,
        query_prompt=prompt_of(encoder, "query") or "",
        document_prompt=prompt_of(encoder, "document") or "",
        query_tokens=_longest(transformer, "query_length"),
        document_tokens=_longest(transformer, "document_length"),
        skip_list=skipped,
        query_expansion=expansion,
    )
    return encoder, identity


def _longest(transformer: Any, name: str) -> int | None:
    """The longest text, with all that is put around it; a tokenizer without a bound of its own says 10 ** 30."""
    length: int | None = getattr(transformer, name, None) or getattr(transformer, "max_seq_length", None)
    return length if length and length < 10**9 else None
