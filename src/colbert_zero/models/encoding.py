"""Texts to packed embeddings, little padding, the texts' order kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device
from torch import Tensor

from colbert_zero.maxsim.packed import Packed, pack, row_ranges, row_starts
from colbert_zero.models.checkpoints import Encoder, Trainable

Task = Literal["query", "document"]

# Names under which a model may keep its prompt, the first present one counting, as in encode_document.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

EXPANSION = "query_expansion_positions"
"""Feature of queries that are filled up, as in ColBERT: the tokens that are scored though no text stands there."""

PROMPT_LENGTH = "prompt_length"
"""Feature of texts whose pooling leaves the prompt out: how many tokens that is, in each row, (texts, 1)."""

TEXTS_TOKENISED_AT_ONCE = 512


def chunk_tokens(device: torch.device) -> int:
    """Tokens encoded at once where memory does not ask for less: the caches of a CPU want few, a GPU's units many."""
    return 2048 if device.type == "cpu" else 16_384


@torch.no_grad()
def encode(model: Encoder, texts: list[str], task: Task, mini_batch_tokens: int | None = None) -> Packed:
    """Embed texts without gradients, as the model's encode_query and encode_document do.

    Args:
        model: A multi-vector model, or a dense one, whose texts have one token each here.
        texts: Any order; sorted by length inside, so that a batch has little padding.
        task: Chooses prompt, length, expansion and skip list.
        mini_batch_tokens: Most tokens of one forward pass, padding included; a single text may exceed it.

    Returns:
        The texts' scored tokens in the order of `texts`, float32, on the model's device.
    """
    if not texts:
        return Packed(torch.zeros(0, width_of(model)), torch.zeros(0, dtype=torch.int64))
    budget = mini_batch_tokens or chunk_tokens(model.device)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    encoded: list[int] = []
    parts: list[Packed] = []
    with evaluating(model):
        for start in range(0, len(texts), TEXTS_TOKENISED_AT_ONCE):
            group = by_length[start : start + TEXTS_TOKENISED_AT_ONCE]
            features = model.preprocess([texts[i] for i in group], prompt=prompt_of(model, task), task=task)
            chunks = []
            for rows, chunk in _chunks(features, budget):
                chunks.append(forward(model, chunk, task))
                encoded += [group[row] for row in rows]
            # One copy a group: thousands of small tensors, alive together, would leave the heap in pieces.
            parts.append(concatenate(chunks))
    return reorder(concatenate(parts), torch.tensor(encoded).argsort())


def concatenate(parts: list[Packed]) -> Packed:
    """Packed texts, one part after the other."""
    return Packed(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))


def reorder(texts: Packed, order: Tensor) -> Packed:
    """Packed texts in another order, which may repeat or leave out some. Differentiable.

    Args:
        texts: Packed.
        order: The new order: place i takes text order[i], (n,), int64, on the CPU.
    """
    rows = token_rows(texts.lengths, order)
    return Packed(texts.values.index_select(0, rows.to(texts.values.device)), texts.lengths[order])


def token_rows(lengths: Tensor, order: Tensor) -> Tensor:
    """Rows of these texts' tokens among all packed tokens, text by text in this order, (tokens,) int64."""
    return row_ranges(row_starts(lengths)[:-1][order], lengths[order])


def prompt_of(model: Encoder, task: str) -> str | None:
    """The prompt encode_query or encode_document would choose."""
    names = [name for name in PROMPT_NAMES[task] if name in model.prompts]
    name = names[0] if names else model.default_prompt_name
    return model.prompts.get(name) if name else None


@contextmanager
def evaluating(model: Encoder) -> Iterator[None]:
    """Evaluation mode and padded inputs inside, each module's own settings after."""
    training = [module for module in model.modules() if module.training]
    flattening: list[Any] = [module for module in model.modules() if getattr(module, "can_flatten_inputs", False)]
    model.eval()
    # Inputs flattened for flash attention have no rows to sort by length.
    for module in flattening:
        module.can_flatten_inputs = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in flattening:
            module.can_flatten_inputs = True


def _chunks(features: dict[str, Any], mini_batch_tokens: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Cut tokenised texts into chunks of like length: (row numbers, features without idle columns)."""
    used = features["attention_mask"].bool()
    if (expansion := features.get(EXPANSION)) is not None:
        used = used | expansion.bool()
    # Padding may stand on either side, so a row needs the columns from its first used one to its last.
    columns = torch.arange(used.shape[1])
    first = torch.where(used, columns, used.shape[1]).amin(1)
    last = torch.where(used, columns, -1).amax(1)
    for rows in chunks_of((last - first + 1).tolist(), mini_batch_tokens):
        window = slice(int(first[rows].min()), int(last[rows].max()) + 1)
        yield rows, {name: _cut(value, used.shape, rows, window) for name, value in features.items()}


def chunks_of(lengths: list[int], most_tokens: int) -> list[list[int]]:
    """Texts of like length together, each chunk at most so many tokens with its padding, or one text; longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    chunks, start = [], 0
    while start < len(order):
        # The first text of a chunk sets its width.
        count = max(1, most_tokens // max(1, lengths[order[start]]))
        chunks.append(order[start : start + count])
        start += count
    return chunks


def _cut(value: Any, shape: torch.Size, rows: list[int], window: slice) -> Any:
    if isinstance(value, Tensor) and value.shape[:2] == shape:
        return value[rows, window]
    return value


def forward(model: Any, features: dict[str, Any], task: str) -> Packed:
    """Packed embeddings of tokenised texts; a dense text has one token, and a pair's score stands as one of width 1.

    Differentiable.

    They are of `scored_type`, in which a CUDA device's matrix units score them; MaxSim sums products in float32
    either way.

    Args:
        model: Dense, multi-vector or a cross-encoder, possibly wrapped.
        features: `input_ids` and `attention_mask`, (texts, tokens), and whatever else the model reads.
        task: "query" or "document".
    """
    transformer = getattr(model, "module", model)[0]
    # Set where flash attention takes texts without padding.
    if getattr(transformer, "data_collator", None) is not None:
        pooled = {key: features[key] for key in (PROMPT_LENGTH,) if key in features}
        features = pooled | unpadded(
            features["input_ids"], features["attention_mask"], transformer._flatten_position_offset
        )
    device = next(model.parameters()).device
    out = model(batch_to_device(features, device), task=task)
    scored = scored_type(device)
    if "scores" in out:
        return pack(out["scores"].float().reshape(-1, 1, 1))
    if "sentence_embedding" in out:
        return pack(out["sentence_embedding"].to(scored)[:, None])
    return pack(out["token_embeddings"].to(scored), out["attention_mask"])


def width_of(model: Trainable) -> int:
    """Numbers of an embedding; a cross-encoder's score is one."""
    return 1 if isinstance(model, CrossEncoder) else cast(Encoder, model).get_embedding_dimension() or 0


def scored_type(device: torch.device) -> torch.dtype:
    """The type that embeddings reach MaxSim in, here and now: autocast's on a CUDA device, else float32."""
    autocast = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if autocast else torch.float32


def unpadded(input_ids: Tensor, attention_mask: Tensor, first_position: int = 0) -> dict[str, Any]:
    """Texts one behind the other, as flash attention's variable-length functions take them.

    Args:
        input_ids: (texts, tokens), padded on the right.
        attention_mask: (texts, tokens).
        first_position: Of every text; RoBERTa counts from its padding's number + 1.

    Returns:
        What transformers' DataCollatorWithFlattening returns for the same texts.
    """
    real = attention_mask.bool()
    lengths = real.sum(1)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    texts = torch.arange(len(real), device=real.device).to(torch.int32)
    longest = int(lengths.max())
    return {
        "input_ids": input_ids[real][None],
        "position_ids": (real.cumsum(1) - 1 + first_position)[real][None],
        "seq_idx": texts.repeat_interleave(lengths)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
