"""From row numbers to model inputs: global batch k of a phase, tokenised."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Part
from colbert_zero.data.streams import StreamedPart
from colbert_zero.models.encoders import Model
from colbert_zero.processes import process_rank, share


class Batches:
    """Item k is this process's share of global batch k: columns of token ids as sentence-transformers names them.

    The shares of all processes, put together in the order of their ranks, are the global batch.

    Args:
        parts: The sources' parts by name.
        order: Which rows a batch has.
        model: Its tokenizer, prompts and lengths.
        steps: Length.
        negatives: Hard negatives a query, the row's first ones.
    """

    def __init__(self, parts: Mapping[str, Part], order: Order, model: Model, steps: int, negatives: int):
        self.parts, self.order, self.steps, self.negatives = parts, order, steps, negatives
        self.share = share(order.global_batch_size, "global_batch_size")
        self.streams = {name: part for name, part in parts.items() if isinstance(part, StreamedPart)}
        self.tokenize = _tokenizer(model)
        # The losses sort texts by length and take the padding out themselves, chunk by chunk.
        for module in model.modules():
            if hasattr(module, "can_flatten_inputs"):
                module.can_flatten_inputs = False  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        name, indices = self.order.batch(step)
        rows = self.parts[name].read(indices[process_rank() * self.share : (process_rank() + 1) * self.share])
        batch: dict[str, Any] = {}
        for column, texts in columns(rows, self.negatives):
            task = "query" if column == "query" else "document"
            for key, value in self.tokenize(texts, task).items():
                batch[f"{column}_{key}"] = value
            batch[f"{column}_task"] = task
        if "scores" in rows:
            batch["label"] = torch.tensor(rows["scores"])
        return batch

    def stream_states(self, step: int) -> dict[str, Any]:
        """From where each streamed part can be read on for batch `step` and all that follow; JSON, for a checkpoint.

        Batches that were read ahead do not matter.
        """
        read = [name for name in self.streams if name in self.order.names]
        return {name: self.streams[name].state(self.order.block(name, step)) for name in read}

    def restore_streams(self, states: Mapping[str, Any]) -> None:
        """Let streamed parts go on from a checkpoint's states rather than from their start."""
        for name, state in states.items():
            self.streams[name].restore(state)

    def dropped(self) -> dict[str, dict[str, int]]:
        """Rows of streamed parts left out so far, by part and reason."""
        return {name: part.dropped for name, part in self.streams.items() if part.dropped}


class Prefetched:
    """Batches from a step on, read and tokenised by a thread while the step before is computed.

    The tokenizer lets go of Python's lock, so one thread is enough to keep ahead of a training step.

    Args:
        batches: Item k belongs to step k.
        first: The step to begin at, asked for when iteration starts; reaching it costs nothing.

    Attributes:
        waited_seconds: How long training waited for a batch.
    """

    AHEAD = 2

    def __init__(self, batches: Batches, first: Callable[[], int]):
        self.dataset, self.first = batches, first
        self.waited_seconds = 0.0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        steps = iter(range(self.first(), len(self.dataset)))
        with ThreadPoolExecutor(1) as pool:
            pending = deque(pool.submit(self.dataset.__getitem__, step) for step in islice(steps, self.AHEAD))
            while pending:
                started = time.monotonic()
                batch = pending.popleft().result()
                self.waited_seconds += time.monotonic() - started
                pending.extend(pool.submit(self.dataset.__getitem__, step) for step in islice(steps, 1))
                yield batch


def columns(rows: dict[str, list[Any]], negatives: int) -> list[tuple[str, list[str]]]:
    """Text columns of a batch in the order the losses want: the query, then each document column."""
    result = [("query", rows["query"])]
    if "documents" in rows:
        ways = len(rows["documents"][0])
        return result + [(f"document_{k}", [row[k] for row in rows["documents"]]) for k in range(ways)]
    result.append(("document", rows["document"]))
    return result + [(f"negative_{k}", [row[k] for row in rows["negatives"]]) for k in range(negatives)]


def _tokenizer(model: Model) -> Callable[[list[str], str], dict[str, torch.Tensor]]:
    transformer: Any = model[0]
    # As lists, since transformers takes as long to turn them into tensors as the tokenizer took to make them. Query
    # expansion, and checks of generative models, want tensors before that.
    plain = transformer.transformer_task == "feature-extraction" and transformer.query_expansion is None
    options: dict[str, Any] = {"processing_kwargs": {"common": {"return_tensors": None}}} if plain else {}

    def tokenize(texts: list[str], task: str) -> dict[str, torch.Tensor]:
        features = model.preprocess(texts, prompt=model.prompts.get(task), task=task, **options)
        return {key: torch.from_numpy(np.asarray(features[key], np.int64)) for key in ("input_ids", "attention_mask")}

    return tokenize
