"""Data sets of the Hugging Face Hub, and folders laid out like one: loaded by `datasets`, kept inside their folder."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import is_inside
from colbert_zero.recipe.data import Hub


@contextmanager
def _said(told: str, mend: str = "") -> Iterator[None]:
    """Turn the many errors of the data sets library into one the user can act on."""
    try:
        yield
    except ColbertZeroError:
        raise
    except Exception as error:  # parsers of many formats, each with errors of its own
        # A damaged file's own error is the cause of the library's.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            mend = f"{mend}; where that is the cache, let HF_HOME name a folder that can be written"
        raise ColbertZeroError(f"{told}: {reason(cause)}{mend}") from error


def parts_of(spec: Hub, all_configs: Callable[[], Iterable[str]]) -> dict[str, tuple[str, str]]:
    """Configuration and split of each part of a source.

    Args:
        spec: The source's entry.
        all_configs: Asked where it names none.
    """
    if spec.splits:
        config = spec.configs[0] if spec.configs else "default"
        return {split: (config, split) for split in spec.splits}
    return {config: (config, spec.split) for config in spec.configs or all_configs()}


def config_names(path: str, revision: str | None, told: str, mend: str = "") -> list[str]:
    """The configurations of a data set.

    Args:
        path: Hub id or folder.
        revision: Commit, branch or tag.
        told: How the message of an error begins.
        mend: How it ends.

    Raises:
        ColbertZeroError: It cannot be read.
    """
    from datasets import get_dataset_config_names

    with _said(told, mend):
        names: list[str] = get_dataset_config_names(path, revision=revision)
        return names


def load(path: str, config: str, split: str | None, revision: str | None, told: str, mend: str = "") -> Any:
    """One configuration, memory-mapped: the split, or all of them by name.

    Raises:
        ColbertZeroError: It cannot be read, or its README points at files outside the folder.
    """
    from datasets import load_dataset

    with _said(told, mend):
        options: dict[str, Any] = {"revision": revision}
        if os.path.isdir(path):
            check_inside(path, config)
            # The library tells a local file by its time alone, so the copy it keeps may be of another.
            options = {"download_mode": "force_redownload", "verification_mode": "no_checks"}
        return load_dataset(path, config, split=split, **options)


def check_inside(path: str, config: str) -> None:
    """Refuse a local folder whose README or links lead to files outside it.

    Raises:
        ColbertZeroError: Names the file.
    """
    from datasets import load_dataset_builder

    for files in (load_dataset_builder(path, config).config.data_files or {}).values():
        for file in files:
            if "://" in file or not is_inside(Path(file), Path(path)):
                raise ColbertZeroError(
                    f"{path} ({config}): its README or a link leads to {file}, outside the folder; copy the file there"
                )


def rows(table: Any) -> Iterator[Any]:
    """Rows of a data set; in the place of one that cannot be read stands the error."""
    done = 0
    while done < len(table):
        try:
            for row in table.select(range(done, len(table))):
                yield row
                done += 1
        except Exception as error:  # decoders of many formats, each with errors of its own
            yield error
            done += 1
