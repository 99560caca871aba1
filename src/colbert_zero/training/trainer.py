"""What our phases change in sentence-transformers' trainers: the data, the processes, the checkpoints, the log."""

import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

from colbert_zero.errors import Diverged
from colbert_zero.models.encoders import Alignment, Model
from colbert_zero.processes import average_gradients, gather_rows, is_main, process_rank, sums, world_size
from colbert_zero.recipe.schema import Phase, Temperature
from colbert_zero.training.batches import Batches, Prefetched
from colbert_zero.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    delete_checkpoint,
    last_checkpoint,
    load_checkpoint,
    load_optimizer,
    load_random_states,
    load_run,
    random_states,
    save_checkpoint,
)
from colbert_zero.training.losses import ContrastiveLoss, DistillationLoss
from colbert_zero.watch import stop_requested

Progress = Callable[[dict[str, Any]], None]

Validate = Callable[[Model], dict[str, float]]

_SPENT = ("elapsed_seconds", "waited_seconds", "texts", "tokens")

LOG_ENTRIES = 10_000
"""Most entries of a phase's log: a checkpoint of a long phase would otherwise be mostly log, and slow to read."""


@dataclass(frozen=True)
class Training:
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
    """

    name: str
    id: str
    chain: tuple[str, ...]
    parent: str | None
    start: str
    spec: Phase
    alignment: Alignment
    seed: int
    steps: int
    dim: int
    options: dict[str, Any]


class _PhaseTrainer:
    """One phase's training in this process; the other processes do the same with their shares of each batch.

    Attributes:
        stopping: A process was asked to stop: this step is the last for now.
    """

    batches: Batches
    run: Training
    work: Path
    log_progress: Progress | None
    validate: Validate | None
    started: float
    before: dict[str, float]
    loader: Prefetched
    counted: Counter[str]
    stopping: bool

    def get_train_dataloader(self: Any) -> Any:
        """Batches from the step at which training stands."""
        self.loader = Prefetched(self.batches, lambda: self.state.global_step)
        return self.loader

    def _wrap_model(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Mixed precision as the trainer has it, but no DDP: gradients are averaged once a step, not once a chunk."""
        prepared = self.accelerator.prepare_model(model, evaluation_mode=True)
        prepared._is_accelerate_prepared = True
        return prepared

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Loss and gradients of the global batch; texts and tokens are counted on the way.

        Raises:
            Diverged: The loss is not finite.
        """
        masks = [value for key, value in inputs.items() if key.endswith("_attention_mask")]
        texts, tokens = sum(len(mask) for mask in masks), sum(int(mask.sum()) for mask in masks)
        own = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        average_gradients(self.loss.parameters())
        total, texts, tokens, stops = sums(own.item(), texts, tokens, stop_requested())  # type: ignore[assignment]
        self.counted.update(texts=int(texts), tokens=int(tokens))
        self.stopping = stops > 0
        if not math.isfinite(total):
            raise self._not_finite(total)
        return own if world_size() == 1 else own.new_tensor(total / world_size())

    def _not_finite(self: Any, loss: float) -> Diverged:
        good, _ = last_checkpoint(self.work, self.run.id)
        source, _ = self.batches.order.source(self.state.global_step)
        return Diverged(
            f"phases.{self.run.name}: the loss is {loss} at step {self.state.global_step + 1} of "
            f"{self.run.steps}, in a batch of {source}. The last good checkpoint is {good or self.run.start}; "
            "lower the learning rate or raise the temperature"
        )

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
        super().log(logs)  # type: ignore[misc]
        if "loss" in logs and self.log_progress:
            self.log_progress({"step": self.state.global_step, "steps": self.run.steps, **logs})

    def measure(self: Any) -> bool:
        """Score the model as it is on the validation collections; returns whether it is the best so far.

        The clock of training stands still meanwhile.
        """
        started = time.monotonic()
        scores = self.validate(self.model)
        mean = math.fsum(scores.values()) / len(scores)
        best = best_validation(self.state.log_history)
        self.log({"validation": mean, **{f"validation/{name}": score for name, score in scores.items()}})
        self.started += time.monotonic() - started
        return best is None or mean > best["validation"]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        random = {name: gather_rows(state[None])[0] for name, state in random_states().items()}
        if not is_main():
            return
        step = self.state.global_step
        run = {"id": self.run.id, "step": step, "streams": self.batches.stream_states(step)}
        path = checkpoint_path(self.work, step)
        save_checkpoint(path, self.loss, self.optimizer, self.lr_scheduler, self.state, random, run)
        best = best_validation(self.state.log_history)
        for old in checkpoints(self.work)[self.run.spec.keep_checkpoints :]:
            if not best or old != checkpoint_path(self.work, best["step"]):
                delete_checkpoint(old)

    def _load_from_checkpoint(self: Any, checkpoint: str, model: Any = None) -> None:
        load_checkpoint(Path(checkpoint), self.loss)
        self.batches.restore_streams(load_run(Path(checkpoint))["streams"])

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            last = next(entry for entry in reversed(self.state.log_history) if "loss" in entry)
            self.before = {key: last[key] for key in _SPENT}

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None and not load_random_states(Path(checkpoint)):
            # Another number of processes than before: new random states, still the same at every attempt.
            _seed_process(self.run.seed + self.state.global_step)


def best_validation(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry of the best score on the validation collections so far, the first of equals."""
    return max((entry for entry in log if "validation" in entry), key=lambda entry: entry["validation"], default=None)


def _seed_process(seed: int) -> None:
    """Random states that differ between processes, so that their dropout does; the first has the seed itself."""
    torch.manual_seed(seed + process_rank() * 0x9E3779B9)


class _MultiVectorTrainer(_PhaseTrainer, MultiVectorEncoderTrainer):
    pass


class _DenseTrainer(_PhaseTrainer, SentenceTransformerTrainer):
    pass


class _Hooks(TrainerCallback):
    """What happens around a step."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock when the first step is about to run, not while things are loaded."""
        if world_size() > 1:
            _seed_process(self.trainer.run.seed)
        self.trainer.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when it is time, keep what is best, and leave with a checkpoint when asked to."""
        every = self.trainer.run.spec.evaluate_every
        due = every and (state.global_step % every == 0 or state.global_step == self.trainer.run.steps)
        if due and self.trainer.validate:
            control.should_save |= self.trainer.measure()
            control.should_log = True  # what the measure's own log has switched off
        if self.trainer.stopping:
            control.should_save = control.should_training_stop = True
        # The last entry says what was spent until then, so a checkpoint needs one of its own step.
        control.should_log |= control.should_save or state.global_step == self.trainer.run.steps


def make_trainer(
    run: Training,
    model: Model,
    batches: Batches,
    work: Path,
    progress: Progress | None,
    validate: Validate | None,
    reporters: tuple[str, ...] = (),
) -> Any:
    """The trainer of a phase.

    Args:
        run: What to train.
        model: Its start.
        batches: Its data, this process's share.
        work: Where checkpoints go.
        progress: Takes every step's log.
        validate: Scores the model on the validation collections, nDCG@10 by name.
        reporters: Names of the trainer's own reporters, such as `tensorboard`.
    """
    spec = run.spec
    multi_vector = spec.representation == "multi-vector"
    arguments_class = MultiVectorEncoderTrainingArguments if multi_vector else SentenceTransformerTrainingArguments
    arguments = arguments_class(
        output_dir=str(work),
        max_steps=run.steps,
        per_device_train_batch_size=batches.share,
        learning_rate=spec.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(spec.schedule, spec.schedule),
        warmup_steps=math.ceil(spec.warmup * run.steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_gradient_norm,
        bf16=spec.precision == "bfloat16",
        seed=run.seed,
        logging_steps=math.ceil(run.steps / LOG_ENTRIES),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        ignore_data_skip=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=list(reporters) or "none",
    )
    # A process has one device: with several GPUs and no launcher the trainer would split batches among them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    temperature, learnable = (
        (spec.temperature.initial, spec.temperature.learnable)
        if isinstance(spec.temperature, Temperature)
        else (spec.temperature, False)
    )
    loss_class = ContrastiveLoss if spec.objective == "contrastive" else DistillationLoss
    loss = loss_class(
        model,
        temperature,
        learnable,
        spec.mini_batch_tokens,
        spec.length_normalised,
        spec.teacher_temperature,
        spec.student_scores or "raw",
    )
    trainer = (_MultiVectorTrainer if multi_vector else _DenseTrainer)(model=model, args=arguments, loss=loss)  # type: ignore[arg-type]
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback") or "ModelCard" in type(callback).__name__:
            trainer.remove_callback(callback)
    trainer.add_callback(_Hooks(trainer))
    trainer.batches, trainer.run, trainer.work = batches, run, work
    trainer.log_progress, trainer.validate, trainer.stopping = progress, validate, False
    trainer.before, trainer.counted = dict.fromkeys(_SPENT, 0), Counter()
    return trainer


@contextmanager
def quiet() -> Iterator[None]:
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
