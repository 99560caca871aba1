"""What a folder holds that a model is loaded from: its files, and one fingerprint of them."""

import hashlib
import os
from pathlib import Path

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import file_fingerprint, parse_json, place_of, to_json

_READ = (".json", ".safetensors", ".txt", ".model", ".metadata")

_NOT_READ = {"checksums.json"}


def contents_of(place: str | Path) -> str | None:
    """Fingerprint of the files of a folder that a model is loaded from; None of no folder.

    Folders in it that no module of the model is loaded from do not count.

    Raises:
        ColbertZeroError: Its modules.json cannot be read.
    """
    folder = Path(place_of(str(place)))
    if not folder.is_dir():
        return None
    read = model_files(folder)
    found = [[Path(os.path.relpath(file, folder)).as_posix(), file_fingerprint(file)] for file in read]
    return hashlib.blake2b(to_json(found).encode(), digest_size=16).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that a model is loaded from, sorted; raises as `contents_of`."""
    files = {file for pattern in ("*", "[0-9]*_*/*") for file in folder.glob(pattern)}
    files |= {file for head in _heads(folder) for file in head.rglob("*")}
    return sorted(f for f in files if f.is_file() and f.suffix in _READ and f.name not in _NOT_READ)


def _heads(folder: Path) -> list[Path]:
    """The folders of a checkpoint's modules, whatever they are called."""
    try:
        modules = parse_json((folder / "modules.json").read_text(encoding="utf-8"))
        return [folder / entry["path"] for entry in modules if entry["path"] not in ("", ".")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ColbertZeroError(f"{folder / 'modules.json'}: cannot be read ({reason(error)})") from None
