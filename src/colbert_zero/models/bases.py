"""The model a study starts from, or one to evaluate: whether it is there, which commit the Hub has, what it holds."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from sentence_transformers.util import load_file_path

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.models.kinds import Kind, is_cross_encoder, kind_of, trainable_kind
from colbert_zero.models.untrusted import check_checkpoint, check_files, check_no_pickles

TIMEOUT_SECONDS = 5
"""How long the Hub is waited for, once."""

_LOGIN = "log in (`hf auth login`, or HF_TOKEN)"
_FILES = ("config.json", "modules.json")


def is_hub_id(base: str) -> bool:
    """Whether a base that is no folder here can be a name on the Hub."""
    return not Path(os.path.expanduser(base)).exists() and not base.startswith((".", "/", "~")) and base.count("/") < 2


def commit_on_hub(base: str, revision: str | None, whose: str = "model.base") -> tuple[str | None, str]:
    """The commit that the Hub has for a branch or tag today; None where it does not answer, and why.

    Raises:
        ColbertZeroError: It answers that there is no such model, or none for this account.
    """
    try:
        with _answers(base, revision, whose):
            return HfApi().model_info(base, revision=revision, timeout=TIMEOUT_SECONDS).sha, ""
    except ColbertZeroError:
        raise
    except Exception as error:  # the Hub's client lets through the errors of its HTTP library, which changed
        return None, _silence(error)


def cached_commit(base: str, revision: str | None) -> str | None:
    """The commit that the Hub's cache holds for a branch, tag or commit."""
    folder = snapshot(base, revision)
    return folder.name if folder else None


def find_commit(base: str, revision: str | None, whose: str = "model.base") -> tuple[str, str]:
    """The commit of a Hub id, and why it is the cache's where it is.

    Raises:
        ColbertZeroError: It cannot be had; says why, and the mend.
    """
    commit, why = commit_on_hub(base, revision, whose)
    if commit is not None:
        with suppress(Exception):  # no more than a help; what is wrong is told when files are needed
            # Asked for by the branch's name, a file leaves in the cache which commit that is, for a time without a Hub.
            load_file_path(base, _FILES[0], revision=revision)
    elif (commit := cached_commit(base, revision)) is None:
        raise _not_to_be_had(base, whose, why)
    return commit, why


def go_offline() -> None:
    """Ask the Hub no more: each file that is not in the cache would be asked for six times, over half a minute."""
    constants.HF_HUB_OFFLINE = True


def check_base(
    base: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    whose: str = "model.base",
    trained: bool = True,
) -> None:
    """Refuse a base that is not there, cannot be read or is no text encoder, before anything is prepared for it.

    Args:
        base: Folder or Hub id; of the latter configuration files are fetched, and no weights.
        revision: Of a Hub id.
        trust_remote_code: Whether its author is trusted.
        whose: What names it.
        trained: Whether it is to be trained, and not only evaluated.

    Raises:
        ColbertZeroError: Names it and the mend.
    """
    path = Path(os.path.expanduser(base))
    if path.is_file():
        raise ColbertZeroError(f"{whose}: {base!r} is a file; name the folder of the checkpoint")
    if path.is_dir():
        if not any((path / name).is_file() for name in _FILES):
            raise ColbertZeroError(f"{whose}: {base!r} has no config.json; name the folder of a checkpoint")
        check_files(path)
        if _check_kind(str(path), None, whose, trained) != "encoder":
            check_no_pickles(str(path))
        check_checkpoint(str(path), None, trust_remote_code)
        _check_weights(path, base, whose)
        return
    if not is_hub_id(base):
        raise ColbertZeroError(f"{whose}: no such folder {base!r}")
    try:
        with _answers(base, revision, whose):
            _check_kind(base, revision, whose, trained)
            check_checkpoint(base, revision, trust_remote_code)
            if (folder := snapshot(base, revision)) is None and not constants.is_offline_mode():
                raise ColbertZeroError(f"{whose}: {base!r} has no config.json on the Hub; name another model")
            if folder and any(folder.rglob("*.safetensors")):
                _check_weights(folder, base, whose)
            else:
                files = HfApi().model_info(base, revision=revision, timeout=TIMEOUT_SECONDS).siblings
                if not any(file.rfilename.endswith(".safetensors") for file in files or ()):
                    raise _no_weights(base, whose)
    except ColbertZeroError:
        raise
    except Exception as error:  # as above
        raise _not_to_be_had(base, whose, _silence(error)) from None


def told_commit(model: str, whose: str, tell: Callable[[str], None]) -> str | None:
    """The commit that a Hub id has today, which is told; None of a folder. Arguments as of `find_checkpoint`."""
    if not is_hub_id(model):
        return None
    commit, silent = find_commit(model, None, whose)
    tell(f"{whose}: {model} at {commit}{f', from the cache: {silent}' if silent else ''}")
    if silent:
        go_offline()
    return commit


def find_checkpoint(model: str, whose: str, tell: Callable[[str], None], cross_encoder: bool = False) -> str | None:
    """The commit of a Hub id, None of a folder; what has no embeddings to score is refused.

    Args:
        model: Folder or Hub id.
        whose: What names it, for messages.
        tell: Told which commit it is, and how a plain encoder is scored.
        cross_encoder: Whether one is not refused.

    Raises:
        ColbertZeroError: It is not there, or no text encoder.
    """
    commit = told_commit(model, whose, tell)
    place = os.path.expanduser(model)
    if cross_encoder and (commit or os.path.isdir(place)) and is_cross_encoder(place, commit):
        return commit
    check_base(model, commit, whose=whose, trained=False)
    if kind_of(place, commit) == "encoder":
        tell(
            f"{whose}: {model} is a plain encoder, never trained to give embeddings: it is scored by the mean of its "
            "states and their cosine"
        )
    return commit


def _silence(error: Exception) -> str:
    """Why the Hub says nothing."""
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is not asked (HF_HUB_OFFLINE is set, or it did not answer before)"
    return f"{constants.ENDPOINT} does not answer ({reason(error)})"


def _not_to_be_had(base: str, whose: str, why: str) -> ColbertZeroError:
    return ColbertZeroError(
        f"{whose}: {base!r} is no folder here and not whole in the Hub's cache ({constants.HF_HUB_CACHE}), and {why}; "
        f"fetch it where there is a connection (`hf download {base}`), or name a folder"
    )


def _check_kind(base: str, revision: str | None, whose: str, trained: bool) -> Kind:
    return (trainable_kind if trained else kind_of)(base, revision, f"{whose}: ")


def snapshot(base: str, revision: str | None) -> Path | None:
    """Where the Hub's cache holds the files of a revision; None where it does not."""
    for name in _FILES:
        file = try_to_load_from_cache(base, name, revision=revision)
        if isinstance(file, str):
            return Path(file).parent
    return None


def _check_weights(folder: Path, base: str, whose: str) -> None:
    """Open every file of weights, of which only the heads are read: half a download, or a pointer of Git LFS."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise _no_weights(base, whose)
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except Exception as error:  # the library's own, and those of the file
            raise ColbertZeroError(f"{whose}: {file} cannot be read ({reason(error)}); fetch it again") from None


def _no_weights(base: str, whose: str) -> ColbertZeroError:
    return ColbertZeroError(
        f"{whose}: {base!r} has no weights as safetensors; load it once and save it with save_pretrained(FOLDER)"
    )


@contextmanager
def _answers(base: str, revision: str | None, whose: str) -> Iterator[None]:
    """What the Hub answers, in words with the mend; that it does not answer is left to the caller."""
    try:
        yield
    except GatedRepoError:
        raise ColbertZeroError(
            f"{whose}: {base!r} is gated; ask for access at {constants.ENDPOINT}/{base}, and {_LOGIN}"
        ) from None
    except RevisionNotFoundError:
        raise ColbertZeroError(f"model.revision: {base!r} has no branch, tag or commit {revision!r}") from None
    except RepositoryNotFoundError:
        raise ColbertZeroError(
            f"{whose}: {base!r} is no folder here, and the Hub has no such model that this account may see; check "
            f"the name, or {_LOGIN}"
        ) from None
    except HFValidationError:
        raise ColbertZeroError(f"{whose}: no such folder {base!r}, and no name that the Hub can hold") from None
