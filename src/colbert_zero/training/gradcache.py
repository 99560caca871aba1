"""GradCache (Gao et al. 2021, arXiv 2101.06983): a loss over the whole batch, in the memory of one chunk.

texts ─── encode, no graph ───▶ embeddings ─── loss ───▶ scalar
                                    │ ▲                    │
                                    │ └──── gradient ──────┘
                                    ▼
texts ─── encode again, with graph, chunk by chunk ───▶ gradient of the weights
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from sentence_transformers.base.losses.gradcache import RandContext
from torch import Tensor

from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.checkpoints import Trainable
from colbert_zero.models.encoding import (
    EXPANSION,
    chunk_tokens,
    chunks_of,
    concatenate,
    forward,
    reorder,
    token_rows,
    width_of,
)

LossOf = Callable[[Packed, Packed], Tensor]
"""The loss of the packed embeddings of all queries and all documents of a batch; a scalar, in nats."""
Precision = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a pass is encoded: autocast, or nothing."""


class TokenisedTexts:
    """Tokenised texts of one task.

    Attributes:
        task: "query" or "document".
        inputs: `input_ids`, `attention_mask` and, where queries are filled up, the positions of that, all (texts,
            tokens), padded; and the prompt's length, where pooling leaves it out.
        used: Tokens that are text or scored, (texts, tokens).
        lengths: Where each text ends; tokens before it that are not used are holes, not padding.
    """

    def __init__(self, task: str, **inputs: Tensor):
        self.task, self.inputs = task, inputs
        self.used = inputs["attention_mask"].bool()
        if EXPANSION in inputs:
            self.used = self.used | inputs[EXPANSION].bool()
        positions = torch.arange(1, self.used.shape[1] + 1, device=self.used.device)
        self.lengths: list[int] = (self.used * positions).amax(1).tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "TokenisedTexts":
        """The same on a device."""
        return TokenisedTexts(self.task, **{name: tensor.to(device) for name, tensor in self.inputs.items()})

    def chunks(self, most_tokens: int) -> list[list[int]]:
        """Texts of like length together, each chunk at most so many tokens with its padding; longest first."""
        return chunks_of(self.lengths, most_tokens)

    def padded(self, chunks: list[list[int]]) -> int:
        """Tokens of these chunks, padding included."""
        return sum(len(chunk) * self.lengths[chunk[0]] for chunk in chunks)

    def features(self, chunk: list[int]) -> dict[str, Tensor]:
        """Model inputs of a chunk, cut to its longest text."""
        width = max(1, max(self.lengths[i] for i in chunk))
        rows = torch.tensor(chunk, device=self.used.device)
        return {name: tensor[rows, :width] for name, tensor in self.inputs.items()}


class Work(NamedTuple):
    """What a process computed for one batch, in tokens but for `texts`."""

    texts: int
    tokens: int
    """Real ones."""
    padding: int
    """Beside them, since a chunk is as wide as its longest text."""
    repeated: int
    """Encoded a second time, padding included."""


def chunks_for(sides: Sequence[TokenisedTexts], mini_batch_tokens: int, device: torch.device) -> list[list[list[int]]]:
    """Which texts of each side are encoded together: at most so many tokens, and no more than is fastest there."""
    return [side.chunks(min(mini_batch_tokens, chunk_tokens(device))) for side in sides]


def work_of(sides: Sequence[TokenisedTexts], chunks: Sequence[list[list[int]]], mini_batch_tokens: int) -> Work:
    """What a batch in these chunks takes: it is encoded once if the activations of all of it may be kept."""
    tokens = sum(int(side.used.sum()) for side in sides)
    padded = sum(side.padded(side_chunks) for side, side_chunks in zip(sides, chunks, strict=True))
    return Work(sum(map(len, sides)), tokens, padded - tokens, 0 if padded <= mini_batch_tokens else padded)


def grad_cache(
    model: Trainable,
    sides: Sequence[TokenisedTexts],
    loss_of: LossOf,
    mini_batch_tokens: int,
    precision: Precision = nullcontext,
) -> tuple[Tensor, Work]:
    """Add the gradients of a batch's loss to the weights.

    A batch whose activations fit in `mini_batch_tokens` is encoded once. Either way texts of like length are encoded
    together, so that little is padding. Dropout is replayed: a chunk's second pass starts from the random state of its
    first. Under autocast the weights are cast once a pass.

    Args:
        model: Dense, multi-vector or a cross-encoder, whose scores stand in the place of embeddings.
        sides: Queries and documents.
        loss_of: What the loss is, given their embeddings.
        mini_batch_tokens: Tokens whose activations may be kept for the backward pass, padding included.
        precision: Of both passes.

    Returns:
        The loss, a scalar without gradient, and what was computed.
    """
    chunks = chunks_for(sides, mini_batch_tokens, model.device)
    work = work_of(sides, chunks, mini_batch_tokens)
    fits = not work.repeated
    with torch.set_grad_enabled(fits), precision():
        encoded = [_encode(model, *both) for both in zip(sides, chunks, strict=True)]
    embeddings = [texts for texts, _ in encoded]
    if not fits:
        embeddings = [Packed(texts.values.requires_grad_(), texts.lengths) for texts in embeddings]
    loss = loss_of(*embeddings)
    loss.backward()
    if not fits:
        with precision():
            for side, side_chunks, (_, states), texts in zip(sides, chunks, encoded, embeddings, strict=True):
                gradient = texts.values.grad
                assert gradient is not None
                for chunk, state in zip(side_chunks, states, strict=True):
                    with state:
                        values = forward(model, side.features(chunk), side.task).values
                    rows = token_rows(texts.lengths, torch.tensor(chunk))
                    values.backward(gradient[rows.to(gradient.device)])
    return loss.detach(), work


def _encode(model: Trainable, texts: TokenisedTexts, chunks: list[list[int]]) -> tuple[Packed, list[RandContext]]:
    """Embeddings of all texts in their order, and the random state before each chunk."""
    if not chunks:
        return _no_texts(model), []
    states, parts = [], []
    for chunk in chunks:
        features = texts.features(chunk)
        states.append(RandContext(*features.values()))
        parts.append(forward(model, features, texts.task))
    order = torch.tensor([i for chunk in chunks for i in chunk])
    return reorder(concatenate(parts), order.argsort()), states


def _no_texts(model: Trainable) -> Packed:
    """Embeddings of a process without a share; its gradient, empty too, takes part in what all exchange."""
    values = torch.zeros(0, width_of(model), device=model.device)
    return Packed(values.requires_grad_(torch.is_grad_enabled()), torch.zeros(0, dtype=torch.int64))
