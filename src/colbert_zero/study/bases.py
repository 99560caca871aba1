"""A study's base: which commit of the Hub's it is, whatever the branch does meanwhile, and what it has of its own."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colbert_zero.data.sources import folder_fingerprints
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import fingerprint, is_commit, place_of, read_json, write_json
from colbert_zero.models.alignment import FROM_SCRATCH, Asked, Own
from colbert_zero.models.bases import check_base, commit_on_hub, find_commit, is_hub_id
from colbert_zero.models.encoders import read_own
from colbert_zero.recipe.schema import Model

_RECORD, _OWN = "commits.json", "base.json"


def name_of(model: Model) -> str:
    """A base as it was asked for: ID, or ID@REVISION."""
    return f"{model.base}@{model.revision}" if model.revision else str(model.base)


def kept(folder: Path, model: Model) -> str | None:
    """The commit that a study keeps for its base; None of a folder, an architecture, and where none is kept yet."""
    if model.base is None or not is_hub_id(model.base):
        return None
    return model.revision if is_commit(model.revision) else _read(folder).get(name_of(model))


def keep(folder: Path, model: Model, commit: str | None) -> None:
    """Keep the commit from which training begins now."""
    if commit and commit != kept(folder, model):
        write_json(folder / _RECORD, _read(folder) | {name_of(model): commit})


def settle(model: Model, folder: Path, refresh: bool, say: Callable[[str], None]) -> tuple[str | None, bool]:
    """The commit of a Hub base that this study trains from; and whether the Hub is silent.

    Args:
        model: The recipe's entry.
        folder: The study's.
        refresh: Take the commit that the Hub has today.
        say: Told what is used, and a branch that has moved.

    Returns:
        The commit; None of a folder, of an architecture, and of a base that phases were trained from before commits
        were kept.

    Raises:
        ColbertZeroError: The base cannot be had, or there is nothing to refresh.
    """
    if model.base is None or not is_hub_id(model.base) or is_commit(model.revision):
        if refresh:
            raise ColbertZeroError(
                "--refresh-base: the recipe's base is no branch of the Hub's; a folder's contents count as they are, "
                "and another commit is named by model.revision"
            )
        return kept(folder, model), False
    name, before = name_of(model), kept(folder, model)
    if not refresh and before is None and _was_trained_from(folder, model):
        say(
            f"model.base: which commit of {name} this study was trained from was not kept at the time; --refresh-base "
            "takes and keeps today's, and trains anew"
        )
        return None, False
    if refresh and (silent := commit_on_hub(model.base, model.revision)[1]):
        raise ColbertZeroError(f"--refresh-base: {name} cannot be asked for, since {silent}; leave the option out")
    if refresh or before is None:
        commit, silent = find_commit(model.base, model.revision)
        anew = f", no longer {before}: what starts from it is trained anew" if before not in (None, commit) else ""
        say(f"model.base: {name} is commit {commit}{anew}{f', by the cache, since {silent}' if silent else ''}")
        return commit, bool(silent)
    try:
        today, silent = commit_on_hub(model.base, model.revision)
    except ColbertZeroError as error:  # taken from the Hub since; what is in the cache still serves
        say(f"{error}. Going on with commit {before}, from the cache; the Hub is asked for nothing else in this run")
        return before, True
    if silent:
        say(f"model.base: {name} is commit {before}, as before; whether it has moved is not known: {silent}")
    elif today != before:
        say(f"model.base: {name} has moved to {today}; this study stays at {before}, --refresh-base takes the new one")
    return before, bool(silent)


def _was_trained_from(folder: Path, model: Model) -> bool:
    """Whether phases of a version that kept no commits were trained from this base."""
    if (folder / _RECORD).exists() or not any(folder.glob("phases/*/phase.json")):
        return False
    recipe = folder / "recipe.json"
    return not recipe.is_file() or bool(read_json(recipe)["model"]["base"] == model.base)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    if not path.is_file():
        return {}
    try:
        known = read_json(path)
    except ValueError:
        known = None
    if not isinstance(known, dict) or not all(
        isinstance(commit, str) and is_commit(commit) for commit in known.values()
    ):
        raise ColbertZeroError(f"{path}: not what this program writes; delete it, and the Hub is asked again")
    return known


# ---- What it has of its own


def options_of(model: Model, commit: str | None) -> dict[str, Any]:
    """What a base is loaded with."""
    folder = os.path.isdir(place_of(str(model.base)))
    options = {"revision": None if folder else commit or model.revision, "trust_remote_code": model.trust_remote_code}
    return {key: value for key, value in options.items() if value}


def own_of(model: Model, commit: str | None, folder: Path, data: Path, asked: list[Asked]) -> Own:
    """What a base has of its own: read once, and kept in the study's folder.

    Args:
        model: The recipe's entry.
        commit: Of a Hub base.
        folder: The study's.
        data: Where checksums of files are kept.
        asked: As for `read_own`.

    Raises:
        ColbertZeroError: The base cannot be had, or is none.
    """
    if model.base is None:
        return FROM_SCRATCH
    place, options, path = place_of(model.base), options_of(model, commit), folder / _OWN
    of = fingerprint(options, asked, folder_fingerprints(Path(place), data) if os.path.isdir(place) else place)
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or damaged: read anew
        if (known := read_json(path)).pop("of") == of:
            return Own(**known)
    check_base(model.base, commit, model.trust_remote_code)
    own = read_own(place, asked, **options)
    if folder.is_dir():
        write_json(path, {"of": of, **asdict(own)})
    return own
