"""A model made ready for others: checked, written into a folder of its own with its card, pushed to the Hub.

What it gives is compared once as a stranger will have it, by sentence-transformers alone from the folder as it is
written, with what this program computes from the model where it lies: two readings of one checkpoint that differ would
give others scores that nobody measured.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import HfApi, constants, get_token
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer

from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import atomic_folder, file_fingerprint, parse_json, read_json, write_json
from colbert_zero.models.adapting import FOLDER, SUMS
from colbert_zero.models.bases import find_checkpoint
from colbert_zero.models.checkpoints import SAFE, load_model
from colbert_zero.models.comparing import TEXTS, TOLERANCE, difference, in_words, vectors_of
from colbert_zero.models.kinds import is_cross_encoder, kind_of
from colbert_zero.report.card import CARD, HERE, bare_card, card_of, is_card, licence_of, with_licence
from colbert_zero.report.trained import Found

PUBLISHED = Path("published")
"""Where folders are written if nothing else is said."""

RECORD = ".colbert-zero-published"
"""In a folder that was written: {file: digest} of all others, so that nothing else is ever replaced. Not pushed."""

_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".md", ".jinja")
_PAGE_OF_TOKENS = {"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"}
"""Tables of tokens, in which anything may look like a path."""
_PLACE = re.compile(r"(/|~/|file://|[A-Za-z]:[\\/])[^/\\\s]+[/\\].*", re.DOTALL)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]*")

PublishedKind = Literal["multi-vector", "dense", "cross-encoder"]


class Publication(NamedTuple):
    """What was done.

    Attributes:
        folder: Written.
        url: Of the commit on the Hub; None where nothing was pushed.
        licence: That its card names.
        difference: Largest between the two readings.
    """

    folder: Path
    url: str | None
    licence: str | None
    difference: float


def publish(
    found: Found,
    to: str | None,
    licence: str | None,
    private: bool,
    tell: Callable[[str], None],
) -> Publication:
    """Check a model, write it into a folder with its card, and push that if it is to go to the Hub.

    Args:
        found: By `find_model`.
        to: A folder, or a repository on the Hub; None: a folder in `published`.
        licence: For the card, by the Hub's identifier.
        private: Of a new repository.
        tell: Told what is left out, and what is to be known.

    Raises:
        ColbertZeroError: The model cannot be published as it is, or the Hub refuses it; names the mend.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ColbertZeroError(f"--licence {short(licence)}: write the Hub's identifier, as in apache-2.0, mit, other")
    repo, out = _target(to, found)
    if repo and get_token() is None:
        tell(f"{repo}: not pushed, no token is there; `hf auth login`, or HF_TOKEN, and the same command again")
        repo_to_push = None
    else:
        repo_to_push = repo
    _check_out(out, found.folder)
    kind = _kind(found.folder, tell)
    files = list(_files(found.folder, tell))
    text = _card(found, kind, repo, licence, tell)
    with atomic_folder(Path(os.path.realpath(out))) as temporary:
        for file in files:
            target = temporary / file.relative_to(found.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (temporary / CARD).write_text(text, encoding="utf-8")
        for wrong in _places(temporary, found.folder):
            raise ColbertZeroError(wrong)
        difference = _round_trip(found.folder, temporary, kind)
        write_json(temporary / RECORD, _digests(temporary))
    named = licence_of(text)
    if named is None:
        tell("no licence is named, so others may not use it; --licence apache-2.0, or which it is")
    return Publication(out, _push(out, repo_to_push, private, tell) if repo_to_push else None, named, difference)


def _target(to: str | None, found: Found) -> tuple[str | None, Path]:
    """The repository, if it is one, and the folder to write."""
    if to is None:
        return None, PUBLISHED / found.name
    path = Path(os.path.expanduser(to))
    if to.startswith((".", "/", "~")) or path.exists() or ("/" in to and path.parent.is_dir()) or "/" not in to:
        return None, path
    repo = to.removeprefix("hf://")
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", repo):
        raise ColbertZeroError(f"--to {short(to)}: name a folder (./NAME), or a repository of the Hub (USER/NAME)")
    return repo, PUBLISHED / repo.split("/")[1]


def _check_out(out: Path, model: Path) -> None:
    """Refuse to write over what is no publication, or into the model."""
    real, own = Path(os.path.realpath(out)), Path(os.path.realpath(model))
    if real.is_relative_to(own) or own.is_relative_to(real):
        raise ColbertZeroError(f"--to {out}: the model itself lies there; name another folder")
    if Path(os.path.realpath(os.getcwd())).is_relative_to(real):
        raise ColbertZeroError(f"--to {out}: you work in there, and it would be replaced; name another, as in ./NAME")
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / RECORD).is_file()):
        raise ColbertZeroError(f"--to {out} is there, and nothing that `publish` wrote; name another, or remove it")
    try:
        written = dict(read_json(out / RECORD)) if any(out.iterdir()) else {}
    except (OSError, ValueError, TypeError):
        written = {}
    others = sorted(name for name, digest in _digests(out).items() if written.get(name) != digest)
    if others:
        raise ColbertZeroError(
            f"--to {out} has {short(others[0])}{f' and {len(others) - 1:,} more' if others[1:] else ''}, which "
            "`publish` did not write, or not so; it would be lost: take it away, or name another folder"
        )


def _digests(folder: Path) -> dict[str, str]:
    """{name: digest} of all in a folder but the record; an empty folder or a link is no file of ours, and has none."""
    found = {}
    for file in folder.rglob("*"):
        if file.is_symlink() or (file.is_dir() and not any(file.iterdir())):
            found[file.relative_to(folder).as_posix()] = ""
        elif file.is_file() and file != folder / RECORD:
            found[file.relative_to(folder).as_posix()] = file_fingerprint(file)
    return found


def _kind(folder: Path, tell: Callable[[str], None]) -> PublishedKind:
    find_checkpoint(str(folder), "MODEL", tell, cross_encoder=True)
    if is_cross_encoder(str(folder), None):
        return "cross-encoder"
    kind = kind_of(str(folder))
    if kind == "encoder":
        raise ColbertZeroError(f"MODEL: {folder} is a plain encoder, never trained to give embeddings; train it first")
    return kind


def _files(folder: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """The files that make the model; what is hidden is left out, and told.

    Raises:
        ColbertZeroError: One is neither weights as safetensors, nor text.
    """
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder)
        if name == Path(RECORD):
            continue
        if any(part.startswith(".") for part in name.parts):
            tell(f"left out, hidden: {name}")
        elif name == Path(FOLDER, SUMS):
            tell(f"left out, read by `adapt` alone: {name}")
        elif file.suffix in _SUFFIXES:
            if name != Path(CARD):
                yield file
        else:
            raise ColbertZeroError(f"{file}: a model is published as safetensors, JSON and text alone; take it out")


def _card(found: Found, kind: PublishedKind, repo: str | None, licence: str | None, tell: Callable[[str], None]) -> str:
    """The card: from the records beside the model, unless its folder has one of somebody else's."""
    there = found.folder / CARD
    if there.is_file() and not is_card(there):
        try:
            text = there.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ColbertZeroError(f"{there}: not UTF-8; save it so") from None
    elif (made := card_of(found.folder)) is not None:
        text = made
    elif there.is_file():
        text = there.read_text(encoding="utf-8")
    else:
        tell("no record of its training lies beside the model, so its card says how to load it and no more")
        text = bare_card(found.name, kind)
    text = text.replace(HERE, repo) if repo else text
    return with_licence(text, licence) if licence else text


def _places(folder: Path, model: Path) -> Iterator[str]:
    """What in a folder names a place on this machine, and the mend."""
    for file in sorted(folder.rglob("*.json")):
        if file.name not in _PAGE_OF_TOKENS:
            name = file.relative_to(folder)
            try:
                content = parse_json(file.read_text(encoding="utf-8"))
            except ValueError as error:
                yield f"{model / name}: is no JSON that others can read ({reason(error)}); mend it, or take it out"
                return
            for key, value in _strings(content):
                if _PLACE.fullmatch(value):
                    yield f"{model / name}: `{key}` is {short(repr(value))}, a place on a machine; take the key out"
    mine = {str(Path.home()), os.getcwd(), str(model.absolute()), os.path.realpath(model)} - {"/", "/root"}
    text = (folder / CARD).read_text(encoding="utf-8")
    for place in sorted(place for place in mine if place in text):
        yield f"{model / CARD}: names {place}, a place on this machine; take it out"


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a JSON value."""
    if isinstance(value, str):
        yield key, value
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _strings(inner, str(name))
    for inner in value if isinstance(value, list) else ():
        yield from _strings(inner, key)


# ---- The round trip


def _round_trip(model: Path, published: Path, kind: PublishedKind) -> float:
    """The largest difference between what is published and what this program computes.

    Raises:
        ColbertZeroError: It is more than rounding, or what is published cannot be loaded.
    """
    ours = _ours(model, kind)
    try:
        theirs = _theirs(published, kind)
    except Exception as error:  # of sentence-transformers, with any checkpoint
        raise ColbertZeroError(
            f"MODEL: sentence-transformers alone cannot load or run {model}: {reason(error)}; load it and save it "
            "with save_pretrained(FOLDER), and publish that"
        ) from None
    apart = difference(ours, theirs)
    if not apart <= TOLERANCE:
        raise ColbertZeroError(_differs(model, in_words(apart)))
    return apart


def _differs(model: Path, how: str) -> str:
    return (
        f"MODEL: {model} gives others another result than here ({how}). Its weights are perhaps kept in half "
        "precision, or its tokenizer lacks its padding or longest length: load it here, save it anew and publish that "
        "(`colbert_zero.models.checkpoints.load_model(IT).save_pretrained(FOLDER)`)"
    )


@torch.no_grad()
def _ours(model: Path, kind: PublishedKind) -> list[torch.Tensor]:
    """What this program scores: of each text its vectors; of a cross-encoder the scores of pairs."""
    if kind == "cross-encoder":
        return [torch.as_tensor(CrossEncoder(str(model), device="cpu", model_kwargs=dict(SAFE)).predict(_pairs()))]
    return vectors_of(load_model(model, device="cpu"))


@torch.no_grad()
def _theirs(folder: Path, kind: PublishedKind) -> list[torch.Tensor]:
    """The same by sentence-transformers alone, from the published folder."""
    if kind == "cross-encoder":
        return [torch.as_tensor(CrossEncoder(str(folder), device="cpu").predict(_pairs()))]
    if kind == "multi-vector":
        several = MultiVectorEncoder(str(folder), device="cpu")
        return [v.float() for v in [*several.encode_query(TEXTS["query"]), *several.encode_document(TEXTS["document"])]]
    one = SentenceTransformer(str(folder), device="cpu")
    found = [one.encode_query(TEXTS["query"]), one.encode_document(TEXTS["document"])]
    return [torch.as_tensor(vector).float()[None] for side in found for vector in side]


def _pairs() -> list[tuple[str, str]]:
    return [(query, document) for query in TEXTS["query"] for document in TEXTS["document"]]


# ---- The Hub


def _push(folder: Path, repo: str, private: bool, tell: Callable[[str], None]) -> str:
    """Push a folder as one model; files of the repository that it does not have stay, and are told.

    Returns:
        Address of the commit.

    Raises:
        ColbertZeroError: The Hub does not take it; the folder is kept.
    """
    try:
        hub = HfApi()
        hub.create_repo(repo, private=private, exist_ok=True)
        others = sorted(set(hub.list_repo_files(repo)) - set(_digests(folder)) - {".gitattributes"})
        if others:
            tell(f"{repo} has files of before, which stay: {', '.join(others)}")
        pushed = hub.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=RECORD, commit_message="Published by colbert-zero"
        )
    except Exception as error:  # the Hub's client lets through the errors of its HTTP library
        raise ColbertZeroError(
            f"--to {repo}: {constants.ENDPOINT} does not take it: {reason(error)}. The folder is whole: {folder}; the "
            f"same command again, or `hf upload {repo} {folder} --exclude {RECORD}`"
        ) from None
    return str(pushed.commit_url)
