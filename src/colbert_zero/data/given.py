"""Training sources by what a user calls them on the command line: files, or a source of a recipe."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from colbert_zero.data.by_file import KINDS
from colbert_zero.data.prepared import Source, open_source
from colbert_zero.data.readers import input_files
from colbert_zero.data.sources import prepare_source
from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.files import user_cache
from colbert_zero.recipe.data import Mined, Scored, SourceSpec
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.recipe.schema import Recipe

Title = Callable[[str], Any]
"""Gives a context in which a source's preparation is shown: what it yields is called with (done, total)."""


def load_sources(
    words: list[str], option: str, folder: Path, tell: Callable[[str], None], shown: Title
) -> list[Source]:
    """Sources as training would read them, each prepared in a folder; all names are checked before any is read.

    Args:
        words: `FILE` or a glob of files (.jsonl, .parquet, .tsv; .gz too), or `RECIPE:NAME` for a recipe's source; of a
            mined or scored one what it is made of.
        option: What the user gave them to, for messages.
        folder: For copies of the rows as Arrow files.
        tell: Told what a mined or scored source is made of.
        shown: Shows the preparation of one.

    Raises:
        ColbertZeroError: There is no such file or source, two have one name, or a row cannot be used.
    """
    found: dict[str, tuple[str, Recipe]] = {}
    for word in dict.fromkeys(words):
        name, recipe = _of_files(word, option) or _of_recipe(word, option, tell)
        if name in found:
            raise ColbertZeroError(
                f"{option} {word}: {found[name][0]} is called {name} too; rename a file, or give the files as one glob"
            )
        found[name] = word, recipe
    cache = (user_cache() or folder) / "docstrings"
    sources = []
    for name, (word, recipe) in found.items():
        with shown(f"reading {name}") as report:
            try:
                prepared = prepare_source(name, recipe, folder, cache, report)
            except ColbertZeroError as error:
                if ":" in word and not Path(word).exists():
                    raise
                raise ColbertZeroError(
                    f"{error}. (Files with other columns, or bad rows to pass over: describe them as a source of a "
                    f"recipe, and name it {option} RECIPE:{name})"
                ) from None
        sources.append(open_source(name, prepared, recipe.sources[name]))
    return sources


def _of_files(word: str, option: str) -> tuple[str, Recipe] | None:
    """A recipe of nothing but the files that a word means; None if it means a recipe's source."""
    suffix = next((suffix for suffix in sorted(KINDS, key=len, reverse=True) if word.endswith(suffix)), None)
    if suffix is None:
        if ":" in word and not os.path.exists(os.path.expanduser(word)):
            return None
        raise ColbertZeroError(
            f"{option} {word}: a file or glob of {', '.join(KINDS)}, or RECIPE:NAME for a recipe's source is expected"
        )
    stem = Path(word).name.removesuffix(suffix)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or re.sub(r"[^A-Za-z0-9_-]+", "-", Path(word).parent.name)
    spec: SourceSpec = TypeAdapter(SourceSpec).validate_python({"kind": KINDS[suffix], "path": word})
    try:
        input_files(name, "path", [word])
    except ColbertZeroError as error:
        raise ColbertZeroError(f"{option} {str(error).removeprefix(f'sources.{name}.path: ')}") from None
    return name or "rows", Recipe.model_construct(sources={name or "rows": spec}, collections={}, seed=1)


def _of_recipe(word: str, option: str, tell: Callable[[str], None]) -> tuple[str, Recipe]:
    path, _, name = word.rpartition(":")
    recipe = load_recipe(path)
    if name not in recipe.sources:
        raise ColbertZeroError(f"{option} {word}: {path} has no source {name!r}{near(name, recipe.sources)}")
    spec = recipe.sources[name]
    while isinstance(spec, Mined | Scored):
        tell(f"{word}: its texts are those of {spec.of}, of which it is made")
        name, spec = spec.of, recipe.sources[spec.of]
    return name, recipe
