"""The only training path: one phase, dense or multi-vector, contrastive or distillation."""

import logging
import math
import resource
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import (
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from colbert_zero import recipe as recipes
from colbert_zero.batches import Batches, Prefetched
from colbert_zero.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    load_optimizer,
    load_random_states,
    save_checkpoint,
)
from colbert_zero.errors import ColbertZeroError, Diverged
from colbert_zero.losses import ContrastiveLoss, DistillationLoss
from colbert_zero.model import Alignment, Model, assemble, save_model
from colbert_zero.order import Order
from colbert_zero.records import atomic_folder, write_json
from colbert_zero.sources import Part

Progress = Callable[[dict[str, Any]], None]
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class PhaseRun:
    """All that one training run of a phase is made of.

    Attributes:
        name: The phase.
        id: Fingerprint of everything below and of what made the start.
        chain: The phases before it and itself.
        parent: Id of the run it starts from.
        start: Folder or Hub id of its start.
        spec: The phase's recipe entry.
        alignment: Prompts, markers, lengths.
        seed: Order of the data, random weights of a projection.
        steps: Optimiser steps.
        dim: Width of a token vector.
        options: `attn_implementation`; `revision` and `trust_remote_code` of a Hub start.
        reporters: Names of the trainer's reporters; not in the fingerprint.
    """

    name: str
    id: str
    chain: tuple[str, ...]
    parent: str | None
    start: str
    spec: recipes.Phase
    alignment: Alignment
    seed: int
    steps: int
    dim: int
    options: dict[str, Any]
    reporters: tuple[str, ...] = ()


def order_of(spec: recipes.Phase, parts: dict[str, Part], seed: int, name: str) -> Order:
    """The order of a phase's data.

    Raises:
        ColbertZeroError: No source has as many rows as a batch, or too few negatives or unequal candidates.
    """
    rows = {part: len(table) for part, table in parts.items()}
    order = Order(rows, spec.global_batch_size, seed, spec.alpha)
    if not order.names:
        raise too_large(name, spec, rows)
    return order


def too_large(name: str, spec: recipes.Phase, rows: dict[str, int]) -> ColbertZeroError:
    """What to say when no source fills a batch."""
    largest = max(rows, key=lambda part: rows[part])
    return ColbertZeroError(
        f"phases.{name}.global_batch_size: {spec.global_batch_size}, but every batch comes from one source and the "
        f"largest, {largest}, has {rows[largest]} rows; lower it to at most that"
    )


def steps_of(spec: recipes.Phase, order: Order) -> int:
    """Optimiser steps of a phase."""
    return spec.steps or max(1, round((spec.epochs or 1) * order.batches_per_epoch))


def train_phase(
    run: PhaseRun,
    parts: dict[str, Part],
    folder: Path,
    progress: Progress | None = None,
    validate: Callable[[Model], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train one phase and keep its checkpoint and record in `folder`.

    `validate` gives nDCG@10 by collection, every `evaluate_every` steps.

    A run that was killed goes on from its newest whole checkpoint; a finished folder appears only whole.

    Raises:
        ColbertZeroError: The start or the data do not fit, or the loss stopped being finite.
    """
    work = folder.with_name(folder.name + ".unfinished")
    spec = run.spec
    model = assemble(
        run.start,
        spec.representation,
        run.alignment,
        run.dim,
        run.seed,
        run.name,
        spec.allow_prompt_mismatch,
        **run.options,
    )
    order = order_of(spec, parts, run.seed, run.name)
    batches = Batches(parts, order, model, run.steps, spec.negatives)
    with _quiet():
        trainer = _trainer(run, model, batches, work, progress)
        trainer.validate = validate
        checkpoint, damaged = last_checkpoint(work)
        for path in damaged:
            shutil.rmtree(path)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    with atomic_folder(folder) as temporary:
        save_model(model, temporary / "model", run.alignment)
        record = _record(run, model, order, trainer.state.log_history)
        write_json(temporary / "phase.json", record)
    shutil.rmtree(work, ignore_errors=True)
    return record


class _PhaseTrainer:
    """What our phases change in sentence-transformers' trainers: the data, the checkpoints, the log."""

    batches: Batches
    run: PhaseRun
    work: Path
    log_progress: Progress | None
    validate: Callable[[Model], dict[str, float]] | None
    started: float
    before: dict[str, float]
    loader: Prefetched
    counted: Counter[str]

    def get_train_dataloader(self: Any) -> Any:
        """Batches from the step at which training stands."""
        self.loader = Prefetched(self.batches, lambda: self.state.global_step)
        return self.loader

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss, refused when it is not finite; texts and tokens are counted on the way."""
        for key, value in inputs.items():
            if key.endswith("_attention_mask"):
                self.counted["texts"] += len(value)
                self.counted["tokens"] += int(value.sum())
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            good, _ = last_checkpoint(self.work)
            source, _ = self.batches.order.source(self.state.global_step)
            raise Diverged(
                f"phases.{self.run.name}: the loss is {loss.item()} at step {self.state.global_step + 1} of "
                f"{self.run.steps}, in a batch of {source}. The last good checkpoint is {good or self.run.start}; "
                "lower the learning rate or raise the temperature"
            )
        return loss

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a step's log: its source, temperature, and what was spent so far."""
        if "loss" in logs:
            step = self.state.global_step
            logs |= {
                "source": self.batches.order.source(step - 1)[0],
                "temperature": float(self.loss.temperature.detach()),
                "elapsed_seconds": self.before["elapsed_seconds"] + time.monotonic() - self.started,
                "waited_seconds": self.before["waited_seconds"] + self.loader.waited_seconds,
                "texts": int(self.before["texts"]) + self.counted["texts"],
                "tokens": int(self.before["tokens"]) + self.counted["tokens"],
            }
            if self.validate and self.run.spec.evaluate_every and step % self.run.spec.evaluate_every == 0:
                before = time.monotonic()
                logs |= {f"eval_{name}": score for name, score in self.validate(self.model).items()}
                self.started += time.monotonic() - before  # evaluation is no training time
        super().log(logs)  # type: ignore[misc]
        if "loss" in logs and self.log_progress:
            self.log_progress({"step": self.state.global_step, "steps": self.run.steps, **logs})

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        path = self.work / f"step-{self.state.global_step}"
        save_checkpoint(path, self.loss, self.optimizer, self.lr_scheduler, self.state)
        kept = sorted(self.work.glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
        for old in kept[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def _load_from_checkpoint(self: Any, checkpoint: str, model: Any = None) -> None:
        load_checkpoint(Path(checkpoint), self.loss)

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            last = self.state.log_history[-1]
            self.before = {key: last[key] for key in self.before}

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_states(Path(checkpoint))


class _MultiVectorTrainer(_PhaseTrainer, MultiVectorEncoderTrainer):
    pass


class _DenseTrainer(_PhaseTrainer, SentenceTransformerTrainer):
    pass


class _Timer(TrainerCallback):
    """Start the clock when the first step is about to run, not while things are loaded."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.started = time.monotonic()


def _trainer(run: PhaseRun, model: Model, batches: Batches, work: Path, progress: Progress | None) -> Any:
    spec = run.spec
    multi_vector = spec.representation == "multi-vector"
    arguments_class = MultiVectorEncoderTrainingArguments if multi_vector else SentenceTransformerTrainingArguments
    arguments = arguments_class(
        output_dir=str(work),
        max_steps=run.steps,
        per_device_train_batch_size=spec.global_batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(spec.schedule, spec.schedule),
        warmup_steps=math.ceil(spec.warmup * run.steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_gradient_norm,
        bf16=spec.precision == "bfloat16",
        seed=run.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        ignore_data_skip=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=list(run.reporters),
    )
    temperature, learnable = (
        (spec.temperature.initial, spec.temperature.learnable)
        if isinstance(spec.temperature, recipes.Temperature)
        else (spec.temperature, False)
    )
    loss_class = ContrastiveLoss if spec.objective == "contrastive" else DistillationLoss
    loss = loss_class(
        model, temperature, learnable, spec.mini_batch_tokens, spec.length_normalised, spec.teacher_temperature
    )
    trainer = (_MultiVectorTrainer if multi_vector else _DenseTrainer)(model=model, args=arguments, loss=loss)  # type: ignore[arg-type]
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback") or "ModelCard" in type(callback).__name__:
            trainer.remove_callback(callback)
    trainer.add_callback(_Timer(trainer))
    trainer.batches, trainer.run, trainer.work, trainer.log_progress = batches, run, work, progress
    trainer.before, trainer.counted = (
        dict.fromkeys(("elapsed_seconds", "waited_seconds", "texts", "tokens"), 0),
        Counter(),
    )
    return trainer


@contextmanager
def _quiet() -> Iterator[None]:
    """Only warnings a user can act on."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            yield
    finally:
        transformers_logging.set_verbosity(level)


def _record(run: PhaseRun, model: Model, order: Order, log: list[dict[str, Any]]) -> dict[str, Any]:
    """phase.json: what was trained, on what, at what cost (docs/records.md)."""
    spec, steps = run.spec, [entry for entry in log if "loss" in entry]
    embeddings: Any = model[0].get_submodule("model")
    embedded = embeddings.get_input_embeddings().weight.numel()
    parameters = sum(p.numel() for p in model.parameters())
    last = steps[-1]
    batches = Counter(entry["source"] for entry in steps)
    cached = _is_cached(spec, last)
    rates = 8 if cached else 6
    alignment, multi_vector = run.alignment, spec.representation == "multi-vector"
    validation = [
        {"step": entry["step"], "scores": s, "mean": sum(s.values()) / len(s)}
        for entry in steps
        if (s := _scores(entry))
    ]
    curve = ("step", "loss", "source", "learning_rate", "temperature", "elapsed_seconds")
    copied = ("representation", "objective", "global_batch_size", "mini_batch_tokens", "learning_rate", "schedule",
              "length_normalised", "teacher_temperature", "negatives", "alpha", "precision")  # fmt: skip
    return {
        "schema": 1,
        "name": run.name,
        "id": run.id,
        "parent": run.parent,
        "chain": list(run.chain),
        **{key: getattr(spec, key) for key in copied},
        "prompts": {"query": alignment.query_prompt, "document": alignment.document_prompt},
        "markers": {
            "query": alignment.query_marker if multi_vector else "",
            "document": alignment.document_marker if multi_vector else "",
        },
        "query_tokens": alignment.query_tokens,
        "document_tokens": alignment.document_tokens,
        "steps": run.steps,
        "temperature": last["temperature"],
        "seed": run.seed,
        "sources": {
            name: {"rows": rows, "batches": batches[name], "dropped_rows": order.dropped[name]}
            for name, rows in order.rows.items()
        },
        "device": str(model.device),
        "device_seconds": round(last["elapsed_seconds"], 3),
        "waited_seconds": round(last["waited_seconds"], 3),
        "texts": last["texts"],
        "tokens": last["tokens"],
        "flops": rates * (parameters - embedded) * last["tokens"],
        "peak_memory_bytes": _peak_memory(model.device),
        "parameters": parameters,
        "losses": [{key: entry.get(key) for key in curve} for entry in steps],
        "validation": validation,
        "best_step": max(validation, key=lambda point: point["mean"])["step"] if validation else None,
        "final_loss": last["loss"],
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _scores(entry: dict[str, Any]) -> dict[str, float]:
    return {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}


def _is_cached(spec: recipes.Phase, last: dict[str, Any]) -> bool:
    """Whether the mean batch exceeds one chunk, so that GradCache adds a second forward pass."""
    return last["tokens"] / last["step"] > spec.mini_batch_tokens


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
