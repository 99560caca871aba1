"""A vocabulary cut to a corpus: the tokens that its texts have, with what any other text needs to be written at all.

Of a small encoder the vectors of its vocabulary are half the bytes. A corpus uses a part of them.

WordPiece cuts a word from its front into the longest pieces that it knows. A piece that it took of all is still the
longest of fewer, so a text of the corpus has the same tokens as before, by new numbers, and the same vectors. A word
that the corpus does not have is cut into smaller pieces than before, at worst into letters, which all stay.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json, write_json
from colbert_zero.models.axes import built, pick, table_of
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import prompt_of

_AT_ONCE = 1000


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that stay.

    Attributes:
        kept: Their numbers before, ascending; place i is the number after.
        before: How many there were.
        texts: How many texts were read for it.
    """

    kept: list[int]
    before: int
    texts: int


def why_kept(model: Encoder) -> str | None:
    """Why a model's vocabulary cannot be cut; None where it can."""
    if any(module.keep_only_token_ids for module in model if isinstance(module, MultiVectorMask)):
        return "the model scores tokens by their numbers (keep_only_token_ids)"
    return _why_kept(model.tokenizer)


def check_vocabulary(model: Encoder) -> None:
    """Refuse a vocabulary that cannot be cut.

    Raises:
        ColbertZeroError: Says why.
    """
    _refuse(why_kept(model))


def check_tokenizer(tokenizer: Any) -> None:
    """The same of a tokenizer by itself; raises as `check_vocabulary`."""
    _refuse(_why_kept(tokenizer))


def _why_kept(tokenizer: Any) -> str | None:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return "the tokenizer is none of the `tokenizers` library, and only those are cut"
    kind = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"]
    if kind != "WordPiece":
        return (
            f"the tokenizer is of the kind {kind}, and only WordPiece's is cut: there, texts of the corpus keep their "
            "tokens"
        )
    return None


def _refuse(why: str | None) -> None:
    if why:
        raise ColbertZeroError(f"vocabulary: {why}; leave `vocabulary` out")


def vocabulary_of(model: Encoder, texts: Iterable[str]) -> Vocabulary:
    """The tokens of texts, whole and with the model's prompts, and those that always stay.

    Those are special and added tokens (markers are), the words of a skip list, and each single character, at the
    beginning of a word and within.

    Args:
        model: Its tokenizer is WordPiece's.
        texts: Read once.

    Raises:
        ColbertZeroError: The tokenizer is another, or there is no text.
    """
    check_vocabulary(model)
    first, tokenizer = cast(Any, model[0]), cast(Any, model.tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    prompts = {"", *(prompt_of(model, task) or "" for task in ("query", "document"))}
    used, count, left = set[int](), 0, iter(texts)
    while some := list(islice(left, _AT_ONCE)):
        count += len(some)
        some = [text.lower() for text in some] if getattr(first, "do_lower_case", False) else some
        for prompt in prompts:
            for encoding in backend.encode_batch([prompt + text for text in some]):
                used.update(encoding.ids)
    if not count:
        raise ColbertZeroError("vocabulary: its documents have no text; name some that have")
    known = tokenizer.get_vocab()
    begin = json.loads(backend.to_str())["model"]["continuing_subword_prefix"]
    used.update(number for token, number in known.items() if len(token.removeprefix(begin)) == 1)
    used.update(tokenizer.all_special_ids, tokenizer.added_tokens_decoder)
    for mask in (module for module in model if isinstance(module, MultiVectorMask)):
        used.update(known[word] for word in mask.skiplist_words if word in known)
    return Vocabulary(sorted(used), len(known), count)


def keep_tokens(encoder: PreTrainedModel, vocabulary: Vocabulary, whose: str) -> PreTrainedModel:
    """An encoder with the vectors of these tokens alone, and their new numbers in its configuration."""
    table, config = table_of(encoder, whose), cast(Any, encoder.config)
    number = {old: new for new, old in enumerate(vocabulary.kept)}
    changes: dict[str, Any] = {table.keys["vocabulary"]: len(vocabulary.kept)}
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            changes[key] = number.get(value)
    state = pick(encoder.state_dict(), table, "vocabulary", torch.tensor(vocabulary.kept))
    return built(encoder, state, changes, whose)


def rewrite_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Cut the tokenizer of a written checkpoint.

    Args:
        folder: Has the tokenizer as it was before.
        vocabulary: What stays.

    Raises:
        ColbertZeroError: What is written is not read as it was meant.
    """
    number = {old: new for new, old in enumerate(vocabulary.kept)}
    file = folder / "tokenizer.json"
    whole = read_json(file)
    words = {token: number[old] for token, old in whole["model"]["vocab"].items() if old in number}
    whole["model"]["vocab"] = dict(sorted(words.items(), key=lambda item: item[1]))
    for added in whole["added_tokens"]:
        added["id"] = number[added["id"]]
    _renumber(whole.get("post_processor"), number)
    if whole.get("padding"):
        whole["padding"]["pad_id"] = number[whole["padding"]["pad_id"]]
    write_json(file, whole)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        written = read_json(settings)
        if "added_tokens_decoder" in written:
            written["added_tokens_decoder"] = {
                str(number[int(old)]): token for old, token in written["added_tokens_decoder"].items()
            }
            write_json(settings, written)
    if (plain := folder / "vocab.txt").is_file():
        plain.write_text("".join(f"{token}\n" for token in whole["model"]["vocab"]), encoding="utf-8")
    found = Tokenizer.from_file(str(file)).get_vocab()
    wanted = words | {added["content"]: added["id"] for added in whole["added_tokens"]}
    if found != wanted:
        wrong = next(token for token in wanted if found.get(token) != wanted[token])
        raise ColbertZeroError(
            f"vocabulary: the tokenizer cannot be cut: {wrong!r} would be {found.get(wrong)}, and not "
            f"{wanted[wrong]}; cut layers or neurons alone"
        )


def _renumber(processor: Any, number: dict[int, int]) -> None:
    """New numbers of the tokens that are put around texts."""
    if not processor:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, number)
    special = processor.get("special_tokens", {})
    for token in special.values() if isinstance(special, dict) else special:
        token["ids"] = [number[old] for old in token["ids"]]
    for key in ("sep", "cls"):  # BertProcessing: [token, number]
        if key in processor:
            processor[key] = [processor[key][0], number[processor[key][1]]]
