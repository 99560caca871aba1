"""Checkpoints as they exist: whether one is there, what kind it is, loaded with float32 weights and without pickles."""

import os
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import load_file_path

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import read_json
from colbert_zero.models.untrusted import check_checkpoint, check_no_pickles

Encoder = MultiVectorEncoder | SentenceTransformer


# Stated outright, because a checkpoint's own JSON may say otherwise. Weights are float32 whatever they were saved in:
# in half precision, steps as small as those of a late phase would leave most of them where they are.
SAFE = {"use_safetensors": True, "weights_only": True, "dtype": torch.float32}


def check_base(base: str, revision: str | None = None) -> None:
    """Refuse a base that is not there, before anything is prepared for it.

    Raises:
        ColbertZeroError: Names it and the mend.
    """
    path = Path(os.path.expanduser(base))
    if path.is_file():
        raise ColbertZeroError(f"model.base: {base!r} is a file; name the folder of the checkpoint")
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "modules.json")):
            raise ColbertZeroError(f"model.base: {base!r} has no config.json; name the folder of a checkpoint")
        return
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ColbertZeroError(f"model.base: no such folder {base!r}")
    try:
        found = load_file_path(base, "config.json", revision=revision) or load_file_path(
            base, "modules.json", revision=revision
        )
    except Exception as error:  # the Hub's client lets through the errors of its HTTP library, which changed
        raise ColbertZeroError(
            f"model.base: {base!r} is no folder, and the Hub's cannot be had: {reason(error)}"
        ) from None
    if found is None:
        raise ColbertZeroError(
            f"model.base: {base!r} is no folder here, and no model of the Hub that can be reached; check the name and "
            "the connection"
        )


def is_stanford(base: str, local: dict[str, Any]) -> bool:
    """Whether a checkpoint is laid out as Stanford's ColBERT: a transformers one with its projection inside."""
    config = load_file_path(base, "config.json", **local)
    return config is not None and "HF_ColBERT" in (read_json(Path(config)).get("architectures") or [])


def usable_positions(transformer: Transformer) -> int | None:
    """Tokens that an encoder has positions for; RoBERTa and its kin count from their padding's number + 1."""
    positions: int | None = getattr(transformer.config, "max_position_embeddings", None)
    table = getattr(getattr(transformer.model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return positions - padding - 1 if positions and padding is not None else positions


def give_padding(tokenizer: Any, whose: str) -> None:
    """Let the end token pad where a tokenizer has none of its own; the mask hides it.

    Raises:
        ColbertZeroError: It has no end token either.
    """
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise ColbertZeroError(f"{whose} has no padding token and no end token; give it a padding token and save it")
    tokenizer.pad_token = tokenizer.eos_token


def load_model(path: str | Path, **options: Any) -> Encoder:
    """Load a dense or multi-vector checkpoint (folder or Hub id), whichever it is. Safetensors only.

    Args:
        path: Folder or Hub id.
        options: As for `assemble`.

    Raises:
        ColbertZeroError: It cannot be loaded, or its weights are a pickle.
    """
    path = str(path)
    local = {key: options[key] for key in ("revision",) if options.get(key)}
    if os.path.isdir(path):
        check_no_pickles(path)
    try:
        check_checkpoint(path, options.get("revision"), options.get("trust_remote_code", False))
        kind = ""
        if config := load_file_path(path, "config_sentence_transformers.json", **local):
            kind = read_json(Path(config)).get("model_type") or ""
        elif not load_file_path(path, "config.json", **local):
            raise OSError("no config.json or config_sentence_transformers.json there")
        multi_vector = kind in ("MultiVectorEncoder", "ColBERT") or (not kind and _scores_tokens(path, local))
        model_class = MultiVectorEncoder if multi_vector else SentenceTransformer
        attention = {key: options.pop(key) for key in ("attn_implementation",) if key in options}
        model = model_class(path, model_kwargs={**SAFE, **attention}, **options)
        if isinstance(model[0], Transformer) and model[0].tokenizer is not None:
            give_padding(model[0].tokenizer, f"{path}: its tokenizer")
            if (positions := usable_positions(model[0])) and (model[0].max_seq_length or positions + 1) > positions:
                model[0].max_seq_length = positions
        return model
    except ColbertZeroError:
        raise
    except Exception as error:  # as in `assemble`
        raise ColbertZeroError(
            f"{path}: cannot be loaded as a dense or multi-vector checkpoint: {reason(error)}"
        ) from error


def _scores_tokens(path: str, local: dict[str, Any]) -> bool:
    """Whether a checkpoint that does not name its class has the signs of a multi-vector one.

    Stanford's architecture, MaxSim as its similarity, or a module of PyLate's.
    """
    if is_stanford(path, local):
        return True
    config = load_file_path(path, "config_sentence_transformers.json", **local)
    if config and str(read_json(Path(config)).get("similarity_fn_name")).lower() == "maxsim":
        return True
    modules = load_file_path(path, "modules.json", **local)
    return modules is not None and any(str(m.get("type")).startswith("pylate.") for m in read_json(Path(modules)))
