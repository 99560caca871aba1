"""The model before any phase, where it is trained from scratch: its tokenizer and random weights."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from colbert_zero.data.prepared import Source
from colbert_zero.files import atomic_folder
from colbert_zero.models.alignment import MARKERS, TASKS, TOKENS
from colbert_zero.models.scratch import train_tokenizer, write_scratch
from colbert_zero.recipe.schema import Recipe

TOKENIZER_ROWS = 100_000
"""Rows of a streamed source that a tokenizer is trained on: its parts' first ones."""


def write_start(folder: Path, recipe: Recipe, sources: Iterable[Source]) -> Path:
    """Write a tokenizer trained on all texts of the sources, and an encoder with random weights."""
    assert recipe.model.architecture is not None
    markers = recipe.markers.model_dump() if recipe.markers else MARKERS
    lengths = [recipe.longest(phase) for phase in recipe.trained.values()]
    longest = max(sum(asked[task] or TOKENS[task] for task in TASKS) for asked in lengths) + 64
    tokenizer = train_tokenizer(_texts(sources), recipe.model.vocabulary, list(markers.values()), longest)
    with atomic_folder(folder) as temporary:
        write_scratch(temporary, recipe.model.architecture, tokenizer, recipe.seed)
    return folder


def _texts(sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        for part in source.parts.values():
            for rows in part.sample(TOKENIZER_ROWS // len(source.parts)):
                yield from rows["query"]
                yield from rows.get("document", ())
                for candidates in rows.get("documents", ()):
                    yield from candidates
