"""Checkpoints from elsewhere: nothing in one may run code, or reach for files outside it.

sentence-transformers and transformers import no class that a checkpoint names, other than their own, unless they are
told to trust it. What they do follow are links, and arguments and file names in a checkpoint's JSON.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentence_transformers.util import load_file_path

from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import is_inside, parse_json

_LARGEST_JSON = 1 << 26

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")

_INDEX, _ADAPTER = "model.safetensors.index.json", "adapter_config.json"

_SETTINGS = [
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]

_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")

_HARMLESS = {
    "add_pooling_layer", "attn_implementation", "dtype", "do_lower_case", "max_length", "model_max_length",
    "padding_side", "torch_dtype", "truncation_side", "trust_remote_code", "use_cache",
}  # fmt: skip


def check_no_pickles(folder: str) -> None:
    """Refuse a folder with a pickle in it, whether it would be loaded or not.

    Raises:
        ColbertZeroError: Names the file.
    """
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix in _PICKLES:
            raise ColbertZeroError(
                f"{file}: a pickle can run code when loaded; save the model's weights as safetensors instead"
            )


def check_checkpoint(path: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Refuse a checkpoint whose links or JSON lead out of it or pass on arguments that could run code.

    Of a Hub id only the files at its root are looked at; what is beside them is its own in any case.

    Args:
        path: Folder or Hub id.
        revision: Of a Hub id.
        trust_remote_code: Look at links and sizes alone.

    Raises:
        ColbertZeroError: Names the file and the mend.
    """
    if os.path.isdir(path):
        check_files(Path(path))
    if trust_remote_code:
        return
    for file in _json_files(path, revision):
        content = _read(file)
        for wrong in _faults(file.name, content):
            raise ColbertZeroError(f"{file}: {wrong}; remove it, or trust the checkpoint's author: trust_remote_code")


def check_files(folder: Path) -> None:
    """Refuse a folder with links out of it, with files that are none, or with JSON of a size that no checkpoint has.

    Raises:
        ColbertZeroError: Names the file and the mend.
    """
    for file in folder.rglob("*"):
        if not is_inside(file, folder):
            raise ColbertZeroError(
                f"{file}: a link to {os.path.realpath(file)}, outside the folder; copy the file there"
            )
        if file.exists() and not file.is_file() and not file.is_dir():
            raise ColbertZeroError(f"{file}: no ordinary file; fetch the checkpoint again")
        if file.suffix == ".json" and file.is_file() and file.stat().st_size > _LARGEST_JSON:
            raise ColbertZeroError(f"{file}: larger than {_LARGEST_JSON >> 20} MB, which no checkpoint's JSON is")


def _json_files(path: str, revision: str | None) -> Iterator[Path]:
    """The JSON files whose content is looked at."""
    names = ["config.json", _INDEX, _ADAPTER, *_SETTINGS]
    if os.path.isdir(path):
        yield from (file for file in sorted(Path(path).rglob("*.json")) if file.name in names)
        return
    for name in names:
        file = load_file_path(path, name, revision=revision)
        if file is not None:
            yield Path(file)
        # The first settings found are the ones that count; without a configuration there is nothing to load.
        if (file is None) == (name == "config.json") and name in ("config.json", *_SETTINGS):
            return


def _read(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ColbertZeroError(f"{file}: cannot be read as JSON: {reason(error)}; fetch it again") from None
    if not isinstance(content, dict):
        raise ColbertZeroError(f"{file}: not an object with keys; fetch it again")
    return content


def _faults(name: str, content: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a file's content."""
    if name == _ADAPTER:
        yield "an adapter names a model outside the folder to be loaded too"
    elif name == _INDEX:
        shards = content.get("weight_map")
        for shard in shards.values() if isinstance(shards, dict) else [shards]:
            if not isinstance(shard, str) or os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
                yield f"weights in {short(repr(shard))}, which is no safetensors file in the folder"
    elif name == "config.json":
        for key, value in _implementations(content):
            yield f"`{key}` would fetch and run {short(repr(value))}"
        activation = str(content.get("activation_function"))
        if "." in activation and not activation.startswith("torch."):
            yield f"`activation_function` is {short(repr(activation))}, not one of torch"
    else:
        if content.get("tokenizer_name_or_path"):
            yield f"a tokenizer outside the folder, {short(repr(content['tokenizer_name_or_path']))}"
        for key in _ARGUMENTS:
            arguments = content.get(key) or {}
            if not isinstance(arguments, dict):
                yield f"`{key}` is no object"
            elif unknown := sorted(arguments.keys() - _HARMLESS):
                yield f"`{key}` has {short(', '.join(unknown))}, which can reach outside the folder"
            else:
                for argument, value in _implementations(arguments):
                    yield f"`{argument}` would fetch and run {short(repr(value))}"


def _implementations(value: Any) -> Iterator[tuple[str, str]]:
    """(key, name) of attention code named after a repository, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        names = inner.values() if isinstance(inner, dict) else [inner]
        if key.endswith("_implementation"):
            yield from ((key, name) for name in names if isinstance(name, str) and "/" in name)
        yield from _implementations(inner)
