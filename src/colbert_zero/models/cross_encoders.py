"""Cross-encoders: a query and a document are read together, and one number says how well they go together.

They have no vectors, so they rank nothing by themselves; they teach, and rank what another found anew. A new one is a
start's encoder with a new head, sentence-transformers' `CrossEncoder` of one label, and is saved as that.
"""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from sentence_transformers import CrossEncoder
from transformers.utils import logging

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.checkpoints import SAFE, usable_positions
from colbert_zero.models.encoders import Tokenise, load_encoder, why_no_pairs
from colbert_zero.models.kinds import is_cross_encoder
from colbert_zero.models.untrusted import check_checkpoint, check_files, check_no_pickles

_READ = ("input_ids", "attention_mask", "token_type_ids")


def load_cross_encoder(
    path: str, revision: str | None = None, whose: str = "", dtype: torch.dtype = torch.float32, **options: Any
) -> CrossEncoder:
    """Load a cross-encoder of one number a pair. Safetensors only.

    Args:
        path: Folder or Hub id.
        revision: Of a Hub id.
        whose: How the message of an error begins.
        dtype: Of its weights.
        options: `attn_implementation`.

    Raises:
        ColbertZeroError: It cannot be loaded, or gives several numbers a pair.
    """
    if Path(path).is_dir():
        check_files(Path(path))
        check_no_pickles(path)
    check_checkpoint(path, revision)
    try:
        model: CrossEncoder = CrossEncoder(path, revision=revision, model_kwargs={**SAFE, "dtype": dtype, **options})
    except Exception as error:  # loading fails in many ways
        raise ColbertZeroError(f"{whose}cannot be loaded ({reason(error)})") from error
    if model.num_labels != 1:
        raise ColbertZeroError(f"{whose}a classifier, which gives {model.num_labels} numbers a pair; a teacher has one")
    return model


def assemble_cross_encoder(start: str, alignment: Alignment, seed: int, phase: str, **options: Any) -> CrossEncoder:
    """The cross-encoder that a phase starts from.

    Args:
        start: Hub id or folder. A cross-encoder is taken as it is; of any other checkpoint the encoder, with a new head
            for one score.
        alignment: Of which the lengths count: a pair has at most both of them in tokens, where its encoder has
            positions for so many; the longer of the two texts is cut first.
        seed: Of the head's random weights.
        phase: Named in errors.
        options: `attn_implementation`; `revision` and `trust_remote_code` for the Hub.

    Raises:
        ColbertZeroError: The start cannot be loaded, or no cross-encoder can be made of it.
    """
    attention = {key: options[key] for key in ("attn_implementation",) if key in options}
    if is_cross_encoder(start, options.get("revision")):
        model = load_cross_encoder(start, options.get("revision"), f"phases.{phase}: {start!r}: ", **attention)
    else:
        # From here on, because loading makes a pooler, which the head reads, where the start's file has none.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _with_new_head(load_encoder(start, options, f"phases.{phase}"), phase, attention)
    transformer: Any = model[0]
    # Both lengths count the tokenizer's own special tokens, of which a pair has one fewer than two texts.
    longest = alignment.query_tokens + alignment.document_tokens - 1
    model.max_seq_length = min(longest, usable_positions(transformer) or longest)
    for module in model.modules():
        if hasattr(module, "can_flatten_inputs"):
            module.can_flatten_inputs = False  # type: ignore[assignment]
    return model


def _with_new_head(transformer: Any, phase: str, attention: dict[str, Any]) -> CrossEncoder:
    if why := why_no_pairs(transformer):
        raise no_cross_encoder(why, phase)
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        # By every process, where the model's own save_pretrained would leave it to the first.
        encoder = transformer.model
        config = copy.deepcopy(encoder.config)
        config.architectures = [type(encoder).__name__]
        config.save_pretrained(folder)
        save_model(encoder, f"{folder}/model.safetensors", {"format": "pt"})
        transformer.tokenizer.save_pretrained(folder)
        try:
            with _quiet():  # it reports that the head is new, which is why it is made
                model: CrossEncoder = CrossEncoder(folder, num_labels=1, model_kwargs={**SAFE, **attention})
            own: Any = model.config
            if own.pad_token_id is None:  # decoders look for a text's last token by it
                own.pad_token_id = model.tokenizer.pad_token_id
            model.predict([("one", "two"), ("one", "two and three")])
        except Exception as error:  # each architecture has conditions of its own
            why = f"a {type(transformer.model).__name__} does not score pairs ({reason(error)})"
            raise no_cross_encoder(why, phase) from error
    return model


def no_cross_encoder(why: str, phase: str) -> ColbertZeroError:
    """What to say of a phase of whose start no cross-encoder can be made."""
    return ColbertZeroError(f"phases.{phase}: no cross-encoder can be made of its start: {why}; take another")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says below an error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def pair_tokeniser(model: CrossEncoder) -> Tokenise:
    """A model's tokenizer of pairs of a query and a document."""

    def tokenise(pairs: list[Any], task: str) -> dict[str, torch.Tensor]:
        features = model.preprocess(pairs)
        return {key: torch.from_numpy(np.asarray(features[key], np.int64)) for key in _READ if key in features}

    return tokenise
