"""Checkpoints as they exist: whether one is there, what kind it is, loaded with float32 weights and without pickles."""

import os
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import load_file_path

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.models.kinds import kind_of
from colbert_zero.models.untrusted import check_checkpoint, check_no_pickles

Encoder = MultiVectorEncoder | SentenceTransformer
"""Gives embeddings of texts."""
Trainable = Encoder | CrossEncoder
"""What a phase can train."""


# Stated outright, because a checkpoint's own JSON may say otherwise. Weights are float32 whatever they were saved in:
# in half precision, steps as small as those of a late phase would leave most of them where they are.
SAFE = {"use_safetensors": True, "weights_only": True, "dtype": torch.float32}


def usable_positions(transformer: Transformer) -> int | None:
    """Tokens that an encoder has positions for; RoBERTa and its kin count from their padding's number + 1."""
    positions: int | None = getattr(transformer.config, "max_position_embeddings", None)
    encoder = getattr(transformer.model, "base_model", transformer.model)  # below a classifier's head
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if not positions or positions < 0:  # XLNet says -1: its positions are relative
        return None
    return positions - padding - 1 if padding is not None else positions


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
        if not any(load_file_path(path, name, **local) for name in ("config.json", "modules.json")):
            raise OSError("no config.json or modules.json there")
        model_class = MultiVectorEncoder if kind_of(path, **local) == "multi-vector" else SentenceTransformer
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
