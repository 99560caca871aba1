"""Which token vectors of a multi-vector model are scored: without a skip list's, with those that fill queries up."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import Own
from colbert_zero.models.checkpoints import Encoder


@dataclass(frozen=True)
class ScoredTokens:
    """What a phase asks for; None is what its start has.

    Attributes:
        skip_list: Words whose tokens are left out of documents.
        query_expansion: False, or whether tokens that queries are filled up with are attended to.
        pool: Tokens of a document that become one, about, wherever it is not trained.
    """

    skip_list: tuple[str, ...] | None = None
    query_expansion: Literal[False, "attend", "ignore"] | None = None
    pool: int | None = None


def set_scored(model: Encoder, asked: ScoredTokens, query_tokens: int) -> None:
    """Give a model the skip list and the query expansion that are asked for.

    A base's own expansion keeps its token and its strategy.

    Args:
        model: Multi-vector.
        asked: See there.
        query_tokens: Longest query with marker and prompt, which others are filled up to.

    Raises:
        ColbertZeroError: The model has no module that leaves tokens out.
    """
    transformer: Any = model[0]
    if asked.skip_list is not None:
        mask = next((module for module in model if isinstance(module, MultiVectorMask)), None)
        if mask is None:
            raise ColbertZeroError(
                "model.skip_list: the base has no module that leaves tokens out (MultiVectorMask); leave the key out, "
                "or take a new head by `model.head: new`"
            )
        mask.skiplist_words = list(asked.skip_list)
        mask.resolve_with_tokenizer(model.tokenizer)
    if asked.query_expansion is not None:
        had, attend = transformer.query_expansion, asked.query_expansion == "attend"
        if not asked.query_expansion:
            transformer.query_expansion, transformer.query_length = None, query_tokens
        elif had:
            transformer.query_expansion = {**had, "attend": attend}
        else:
            transformer.query_length = None
            transformer.query_expansion = {"strategy": "fixed", "attend": attend, "length": query_tokens}


def scored_differences(own: Own, asked: ScoredTokens) -> Iterator[str]:
    """What multi-vector phases score instead of what their base does, in words."""
    if asked.skip_list is not None and own.skip_list and set(asked.skip_list) != set(own.skip_list):
        yield f"skip_list: {len(asked.skip_list)} words instead of its own {len(own.skip_list)}"
    expansion = str(asked.query_expansion).lower()
    if asked.query_expansion is not None and own.representation == "multi-vector" and expansion != own.query_expansion:
        yield f"query_expansion: {expansion} instead of its own {own.query_expansion}"
    if asked.pool is not None and own.pool > 1 and asked.pool != own.pool:
        yield f"pool: {asked.pool} instead of its own {own.pool:g}"


def check_expansion(own: Own, asked: ScoredTokens) -> None:
    """Refuse to fill queries up with a token that there is not.

    Raises:
        ColbertZeroError: Names the mend.
    """
    if asked.query_expansion and not own.can_expand:
        raise ColbertZeroError(
            f"model.query_expansion: {asked.query_expansion}, but the base's tokenizer has no mask token to fill "
            "queries up with; take `false`, or a base that was trained with one"
        )


def unknown_words(model: Encoder, asked: ScoredTokens) -> list[str]:
    """Words of the skip list that are no single token of the model's, and so are not skipped."""
    tokenizer: Any = model.tokenizer
    known = tokenizer.get_vocab()
    return [word for word in asked.skip_list or () if word not in known]


def scored_in_words(model: Encoder) -> tuple[list[str], str]:
    """A model's skip list; and its query expansion: `false`, `attend` or `ignore`."""
    skipped = [word for module in model if isinstance(module, MultiVectorMask) for word in module.skiplist_words]
    transformer: Any = model[0]
    expansion = transformer.query_expansion
    return skipped, ("attend" if expansion.get("attend") else "ignore") if expansion else "false"
