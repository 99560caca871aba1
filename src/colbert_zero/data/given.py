"""Training sources by what a user calls them on the command line: files, a data set, or a source of a recipe."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from colbert_zero.data.prepared import Source, open_source
from colbert_zero.data.readers import input_files
from colbert_zero.data.sources import prepare_source
from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.files import user_cache
from colbert_zero.models.bases import is_hub_id
from colbert_zero.recipe.data import Mined, Scored, SourceSpec
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.recipe.schema import Recipe

_KINDS = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet", ".tsv": "tsv", ".tsv.gz": "tsv"}
"""Of files of rows, by how their names end."""

Title = Callable[[str], Any]
"""Gives a context in which a source's preparation is shown: what it yields is called with (done, total)."""


@dataclass(frozen=True)
class Given:
    """A source that was named.

    Attributes:
        word: What the user gave.
        option: To which option.
        name: The source's.
        recipe: Has it; one of nothing but this source, where no recipe was named.
        of_recipe: Whether one was.
    """

    word: str
    option: str
    name: str
    recipe: Recipe
    of_recipe: bool

    @property
    def spec(self) -> SourceSpec:
        """Its entry."""
        return self.recipe.sources[self.name]

    def load(self, folder: Path, shown: Title, skip: str = "") -> Source:
        """The source as training would read it, prepared in a folder.

        Args:
            folder: For copies of the rows as Arrow files.
            shown: Shows the preparation.
            skip: The option that passes over bad rows of files, where there is one.

        Raises:
            ColbertZeroError: A row cannot be used.
        """
        cache = (user_cache() or folder) / "docstrings"
        with shown(f"reading {self.name}") as report:
            try:
                prepared = prepare_source(self.name, self.recipe, folder, cache, report)
            except ColbertZeroError as error:
                if self.of_recipe:
                    raise
                told = str(error).replace(f"sources.{self.name}.on_bad_rows: skip", skip) if skip else str(error)
                raise ColbertZeroError(
                    f"{told}. (Files with other columns{'' if skip else ', or bad rows to pass over'}: describe them "
                    f"as a source of a recipe, and name it {self.option} RECIPE:{self.name})"
                ) from None
        return open_source(self.name, prepared, self.spec)


def is_of_recipe(word: str) -> bool:
    """Whether a word is RECIPE:NAME, and not a file or a folder."""
    return ":" in word and _kind(word) is None and not os.path.exists(os.path.expanduser(word))


def find_source(
    word: str,
    option: str,
    tell: Callable[[str], None],
    on_bad_rows: Literal["error", "skip"] = "error",
    derived: bool = True,
) -> Given:
    """A source by its name; nothing of it is read yet.

    Args:
        word: `FILE` or a glob of files (.jsonl, .parquet, .tsv; .gz too), a data set of the Hub (`OWNER/NAME`) or its
            folder, or `RECIPE:NAME` for a recipe's source; of a mined or scored one what it is made of.
        option: What the user gave it to, for messages.
        tell: Told what a mined or scored source is made of.
        on_bad_rows: What to do with rows of files and data sets that cannot be used; a recipe's source says so itself.
        derived: Whether a mined or scored source stands for what it is made of; else it is refused.

    Raises:
        ColbertZeroError: There is no such file or source.
    """
    if is_of_recipe(word):
        return _of_recipe(word, option, tell, derived)
    suffix = _kind(word)
    if suffix is None and not os.path.isdir(os.path.expanduser(word)) and not (is_hub_id(word) and "/" in word):
        raise ColbertZeroError(
            f"{option} {word}: a file or glob of {', '.join(_KINDS)}, OWNER/NAME of a data set of the Hub or its "
            "folder, or RECIPE:NAME for a recipe's source is expected"
        )
    if suffix:
        try:
            input_files("given", "path", [word])
        except ColbertZeroError as error:
            raise ColbertZeroError(f"{option} {str(error).removeprefix('sources.given.path: ')}") from None
    last, above = Path(word).name.removesuffix(suffix or ""), Path(word).parent.name
    name = next(filter(None, (re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") for text in (last, above))), "rows")
    spec: SourceSpec = TypeAdapter(SourceSpec).validate_python(
        {"kind": _KINDS[suffix] if suffix else "hub", "path": word, "on_bad_rows": on_bad_rows}
    )
    return Given(word, option, name, Recipe.model_construct(sources={name: spec}, collections={}, seed=1), False)


def load_sources(
    words: list[str], option: str, folder: Path, tell: Callable[[str], None], shown: Title, derived: bool = True
) -> list[Source]:
    """Sources as training would read them; all names are checked before any is read.

    Args:
        words: What `find_source` finds.
        option: What the user gave them to, for messages.
        folder: For copies of the rows as Arrow files.
        tell: Told what a mined or scored source is made of.
        shown: Shows the preparation of one.
        derived: As for `find_source`.

    Raises:
        ColbertZeroError: Also as `find_sources`: a row cannot be used.
    """
    return [given.load(folder, shown) for given in find_sources(words, option, tell, derived)]


def find_sources(words: list[str], option: str, tell: Callable[[str], None], derived: bool = True) -> list[Given]:
    """Several, each once: arguments as of `load_sources`.

    Raises:
        ColbertZeroError: There is no such file or source, or two have one name.
    """
    found: dict[str, Given] = {}
    for word in dict.fromkeys(words):
        given = find_source(word, option, tell, derived=derived)
        if given.name in found:
            raise ColbertZeroError(
                f"{option} {word}: {found[given.name].word} is called {given.name} too; rename a file, or give the "
                "files as one glob"
            )
        found[given.name] = given
    return list(found.values())


def _kind(word: str) -> str | None:
    """How the name of a file of rows ends; None of anything else."""
    if os.path.isdir(os.path.expanduser(word)):
        return None
    return next((suffix for suffix in sorted(_KINDS, key=len, reverse=True) if word.endswith(suffix)), None)


def _of_recipe(word: str, option: str, tell: Callable[[str], None], derived: bool) -> Given:
    path, _, name = word.rpartition(":")
    return source_of(load_recipe(path), path, name, option, tell, derived)


def source_of(
    recipe: Recipe, path: str, name: str, option: str, tell: Callable[[str], None], derived: bool = True
) -> Given:
    """A recipe's source.

    Args:
        recipe: Has it.
        path: The recipe's, for messages.
        name: The source's.
        option: What the user gave it to, for messages.
        tell: Told what a mined or scored source is made of.
        derived: As for `find_source`.

    Raises:
        ColbertZeroError: There is none of that name.
    """
    word = f"{path}:{name}"
    if name not in recipe.sources:
        raise ColbertZeroError(f"{option} {word}: {path} has no source {name!r}{near(name, recipe.sources)}")
    spec = recipe.sources[name]
    if isinstance(spec, Mined | Scored) and not derived:
        raise ColbertZeroError(
            f"{option} {word}: is made of {spec.of}, and its study's own. `colbert-zero mine --pairs RECIPE:NAME` "
            "mines into a file, and the recipe's `teachers` score what it mines itself"
        )
    while isinstance(spec, Mined | Scored):
        tell(f"{word}: its texts are those of {spec.of}, of which it is made")
        name, spec = spec.of, recipe.sources[spec.of]
    return Given(word, option, name, recipe, True)
