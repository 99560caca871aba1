"""The only training path: one phase, dense or multi-vector, contrastive or distillation."""

import resource
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Part
from colbert_zero.errors import ColbertZeroError, Stopped
from colbert_zero.files import atomic_folder, write_json
from colbert_zero.models.encoders import Model, assemble, save_model
from colbert_zero.processes import agree, is_main, share, wait, world_size
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.batches import Batches
from colbert_zero.training.checkpoint import checkpoint_path, last_checkpoint, load_checkpoint
from colbert_zero.training.trainer import Progress, Training, Validate, best_validation, make_trainer, quiet
from colbert_zero.watch import finishing_its_step


def order_of(spec: Phase, parts: dict[str, Part], seed: int, name: str) -> Order:
    """The order of a phase's data.

    Raises:
        ColbertZeroError: No source has as many rows as a batch, or too few negatives or unequal candidates.
    """
    rows = {part: len(table) for part, table in parts.items()}
    blocks = {part: table.block for part, table in parts.items() if table.block}
    order = Order(rows, spec.global_batch_size, seed, spec.alpha, blocks)
    if not order.names:
        raise too_large(name, spec, rows)
    return order


def too_large(name: str, spec: Phase, rows: dict[str, int]) -> ColbertZeroError:
    """What to say when no source fills a batch."""
    largest = max(rows, key=lambda part: rows[part])
    return ColbertZeroError(
        f"phases.{name}.global_batch_size: {spec.global_batch_size}, but every batch comes from one source and the "
        f"largest, {largest}, has {rows[largest]} rows; lower it to at most that"
    )


def steps_of(spec: Phase, order: Order) -> int:
    """Optimiser steps of a phase."""
    return spec.steps or max(1, round((spec.epochs or 1) * order.batches_per_epoch))


def train_phase(
    run: Training,
    parts: dict[str, Part],
    folder: Path,
    progress: Progress | None = None,
    validate: Validate | None = None,
    say: Callable[[str], None] = print,
    reporters: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Train one phase and keep its checkpoint and record in `folder`.

    A run that was killed goes on from its newest whole checkpoint; a finished folder appears only whole. All
    processes train; the main one writes.

    Args:
        run: What to train.
        parts: The parts of its sources.
        folder: Where it is kept.
        progress: Takes every step's log.
        validate: Scores the model on small collections, nDCG@10 by name, every `evaluate_every` steps.
        say: Tells the user what happens to checkpoints.
        reporters: Names of the trainer's own reporters, such as `tensorboard`.

    Raises:
        ColbertZeroError: The start or the data do not fit, the loss stopped being finite, or the disk is full.
        Stopped: SIGTERM came; the step it came in is finished and saved.
    """
    work, spec = folder.with_name(folder.name + ".unfinished"), run.spec
    share(spec.global_batch_size, f"phases.{run.name}.global_batch_size")
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
    resumed = _resumed_step(work, run, say)
    with quiet(), finishing_its_step():
        trainer = make_trainer(run, model, batches, work, progress, validate, reporters)
        trainer.train(resume_from_checkpoint=str(checkpoint_path(work, resumed)) if resumed else None)
    state = trainer.state
    if state.global_step < run.steps:
        raise Stopped(
            f"phases.{run.name}: stopped by SIGTERM after step {state.global_step:,} of {run.steps:,}, which is saved "
            f"in {work}. The same command goes on from there"
        )
    best = best_validation(state.log_history)
    if spec.select == "best" and best and best["step"] < run.steps:
        wait()
        load_checkpoint(checkpoint_path(work, best["step"]), trainer.loss)
    record = _record(run, model, batches, state.log_history)
    if is_main():
        with atomic_folder(folder) as temporary:
            save_model(model, temporary / "model", run.alignment)
            write_json(temporary / "phase.json", record)
        shutil.rmtree(work, ignore_errors=True)
    wait()
    return record


def _resumed_step(work: Path, run: Training, say: Callable[[str], None]) -> int:
    """Step of the newest whole checkpoint, 0 where there is none; damaged ones are told and put aside."""
    step = 0
    if is_main():
        for leftover in work.glob(".*.tmp"):
            shutil.rmtree(leftover)
        checkpoint, damaged = last_checkpoint(work, run.id)
        step = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
        for path, wrong in damaged.items():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            say(
                f"phases.{run.name}: the checkpoint {path.name} is damaged ({wrong}); going on from "
                f"{checkpoint.name if checkpoint else 'the beginning'}, and what is left of it is in {aside}"
            )
    return agree(step)


def _record(run: Training, model: Model, batches: Batches, log: list[dict[str, Any]]) -> dict[str, Any]:
    """phase.json: what was trained, on what, at what cost (docs/records.md)."""
    spec, steps = run.spec, [entry for entry in log if "loss" in entry]
    embeddings: Any = model[0].get_submodule("model")
    embedded = embeddings.get_input_embeddings().weight.numel()
    parameters = sum(p.numel() for p in model.parameters())
    last, best = steps[-1], best_validation(log)
    drawn, left_out = batches.order.drawn(run.steps), batches.dropped()
    cached = _is_cached(spec, last)
    rates = 8 if cached else 6
    alignment, multi_vector = run.alignment, spec.representation == "multi-vector"
    curve = ("step", "loss", "source", "learning_rate", "temperature", "elapsed_seconds")
    copied = ("representation", "objective", "global_batch_size", "mini_batch_tokens", "learning_rate", "schedule",
              "student_scores", "length_normalised", "teacher_temperature", "negatives", "alpha",
              "precision")  # fmt: skip
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
            name: {
                "rows": rows,
                "batches": drawn[name],
                "dropped_rows": batches.order.dropped[name],
                "left_out": left_out.get(name, {}),
            }
            for name, rows in batches.order.rows.items()
        },
        "device": str(model.device),
        "processes": world_size(),
        "device_seconds": round(last["elapsed_seconds"] * world_size(), 3),
        "waited_seconds": round(last["waited_seconds"], 3),
        "texts": last["texts"],
        "tokens": last["tokens"],
        "flops": rates * (parameters - embedded) * last["tokens"],
        "peak_memory_bytes": _peak_memory(model.device),
        "parameters": parameters,
        "losses": [{key: entry.get(key) for key in curve} for entry in steps],
        "final_loss": last["loss"],
        "validation": [
            {
                "step": entry["step"],
                "mean": entry["validation"],
                "scores": {k.removeprefix("validation/"): v for k, v in entry.items() if k.startswith("validation/")},
            }
            for entry in log
            if "validation" in entry
        ],
        "best_step": best["step"] if best else None,
        "selected_step": best["step"] if best and spec.select == "best" else run.steps,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _is_cached(spec: Phase, last: dict[str, Any]) -> bool:
    """Whether the mean batch exceeds one chunk, so that GradCache adds a second forward pass."""
    return last["tokens"] / last["step"] > spec.mini_batch_tokens


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
