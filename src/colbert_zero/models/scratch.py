"""Encoders with random weights, and tokenizers trained on the recipe's sources."""

import difflib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from colbert_zero.errors import ColbertZeroError, reason

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def check_architecture(architecture: dict[str, Any]) -> PreTrainedModel:
    """Refuse an unknown model type or key before anything is loaded; returns the encoder without weights.

    Raises:
        ColbertZeroError: Names the key and the nearest known one.
    """
    keys = {key: value for key, value in architecture.items() if key != "model_type"}
    try:
        known = AutoConfig.for_model(architecture["model_type"])
    except ValueError:
        raise ColbertZeroError(
            f"model.architecture.model_type: {architecture['model_type']!r} is not a transformers architecture; "
            "bert and modernbert are good ones"
        ) from None
    names = set(known.to_dict()) | set(known.attribute_map)
    for key in keys:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ColbertZeroError(f"model.architecture.{key}: unknown key of {architecture['model_type']}{hint}")
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.for_model(**architecture))
    except Exception as error:  # each architecture checks its sizes in its own way, or fails in a layer
        raise ColbertZeroError(f"model.architecture: {reason(error)}") from None
    senses = getattr(model, "input_modalities", "text")
    if "input_ids" not in inspect.signature(model.forward).parameters or senses not in ("text", ["text"], ("text",)):
        raise ColbertZeroError(
            f"model.architecture.model_type: {architecture['model_type']!r} reads no text, or not text alone; bert and "
            "modernbert do"
        )
    return cast(PreTrainedModel, model)


def train_tokenizer(texts: Iterable[str], vocabulary: int, markers: list[str], longest: int) -> PreTrainedTokenizerFast:
    """A lower-casing BPE tokenizer over words and punctuation, trained on texts; the markers are special tokens of it.

    A word has the same tokens wherever it stands, also in `torch.nn`, which lexical matching lives on. Byte-level BPE
    rather than WordPiece, because the same texts give the same tokenizer: WordPiece training numbers its ## pieces in
    the order of a randomly seeded hash map.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    words, characters = pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, characters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*_SPECIAL.values(), *dict.fromkeys(m for m in markers if m)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, **_SPECIAL)


def write_scratch(folder: Path, architecture: dict[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Write an encoder with random weights and its tokenizer in the transformers layout."""
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in _SPECIAL if name != "unk_token"}
    ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **architecture})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
