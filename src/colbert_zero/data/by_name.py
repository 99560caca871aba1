"""Collections by what a user calls them: a folder, a public collection's or a group's name, a Hub id."""

import os
from dataclasses import replace
from pathlib import Path

from colbert_zero.data.collection import DEFAULT_RULES, Collection, Rules
from colbert_zero.data.layouts import load_beir, load_collection, load_hub
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import place_of
from colbert_zero.recipe.named import GROUPS, HOME, Named, meant, members


def load_named(named: Named, rules: Rules = DEFAULT_RULES) -> Collection:
    """A public collection: from its folder in `BEIR_HOME` if there is one, else from the Hub; `place` says which.

    Raises:
        ColbertZeroError: Neither can be read.
    """
    home = os.environ.get(HOME)
    folder = Path(home).expanduser() / named.folder if home else None
    if folder is not None and folder.is_dir():
        return replace(load_beir(folder, named.qrels, named.name, rules), place=str(folder))
    try:
        found = load_hub(named.dataset, named.split, named.revision, rules)
    except ColbertZeroError as error:
        not_there = f" ({folder} does not exist)" if folder else ""
        raise ColbertZeroError(
            f"{named.name}: {error}; or let {HOME} name a folder that has {named.folder}/ with corpus.jsonl, "
            f"queries.jsonl and qrels/{named.qrels}.tsv{not_there}"
        ) from error
    at = f" at {named.revision[:7]}" if named.revision else f", split {named.split}"
    return replace(found, name=named.name, place=f"{named.dataset}{at}, on the Hub")


def named_by(word: str) -> list[Named]:
    """The public collections that a word means; none if it is a folder or a Hub id.

    Raises:
        ColbertZeroError: It begins as such names do, and is none.
    """
    if os.path.isdir(place_of(word)):
        return []
    found = members(word)
    if not found and word.split("/")[0] in GROUPS:
        raise ColbertZeroError(f"{word}: no such folder, no public collection of that name{meant(word)}")
    return found


def load_all(words: list[str], split: str | None = None, rules: Rules = DEFAULT_RULES) -> list[Collection]:
    """Collections by their names, folders or Hub ids, each once; all are read before any is returned.

    Args:
        words: What the user calls them. A folder that exists is meant before a name.
        split: Which judgements of folders and Hub ids; a name says which it has.
        rules: Where collections differ in what they mean.

    Raises:
        ColbertZeroError: One cannot be read, two have one name, or a name was given a split.
    """
    named = {word: named_by(word) for word in words}
    if split and any(named.values()):
        word, first = next((word, found[0]) for word, found in named.items() if found)
        raise ColbertZeroError(
            f"--split: {word} is evaluated on {first.qrels}; leave it out, it is for folders and Hub ids"
        )
    loaded: dict[str, Collection] = {}
    for word in dict.fromkeys(words):
        for each in named[word]:
            if each.name not in loaded:
                loaded[each.name] = load_named(each, rules)
        if not named[word]:
            found = _load_unnamed(word, split, rules)
            if found.name in loaded:
                raise ColbertZeroError(f"{word}: another collection is called {found.name} too; rename a folder")
            loaded[found.name] = found
    return list(loaded.values())


def _load_unnamed(word: str, split: str | None, rules: Rules) -> Collection:
    """A folder's or Hub id's; one that is none, and is called as public ones are, is told to stand before them."""
    try:
        return load_collection(word, split, rules)
    except ColbertZeroError as error:
        if not members(word):
            raise
        raise ColbertZeroError(
            f"{error}; the folder {word} here is meant before the public collections of that name"
        ) from None
