"""The only training path: one phase, whatever it trains and by whatever objective."""

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import get_device_name
from torch import nn
from torch.nn.utils import clip_grad_norm_

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Part
from colbert_zero.errors import ColbertZeroError, Diverged, Stopped, reason
from colbert_zero.files import atomic_folder, write_json
from colbert_zero.maxsim.backends import scoring_with, tell_refused
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.cross_encoders import assemble_cross_encoder, pair_tokeniser
from colbert_zero.models.encoders import assemble, save_model, tokeniser
from colbert_zero.models.kept_zeros import cut_record, fold_zeros, hold_zeros, keeps_zeros, write_kept
from colbert_zero.models.precision import Arithmetic, attend_fast, why
from colbert_zero.models.scored_tokens import unknown_words
from colbert_zero.processes import agree, average_gradients, from_main, is_main, share, sums, wait, world_size
from colbert_zero.recipe.schema import Phase
from colbert_zero.report.card import write_card
from colbert_zero.training.batches import Batches, Prefetched
from colbert_zero.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    damage,
    delete_checkpoint,
    last_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    seed_process,
)
from colbert_zero.training.execution import as_trained, autocast_of
from colbert_zero.training.first_steps import FirstSteps
from colbert_zero.training.gradcache import Work, grad_cache
from colbert_zero.training.heads import fit_head
from colbert_zero.training.log import Entry, Log
from colbert_zero.training.low_rank import add_adapters, check_no_zeros, merge_adapters
from colbert_zero.training.machine import agreed_precision, going_on, machine_of, tell_tf32
from colbert_zero.training.near import check_near
from colbert_zero.training.objectives import objective_of
from colbert_zero.training.optimiser import optimiser_of
from colbert_zero.training.record import phase_record
from colbert_zero.training.saturation import tell_saturated
from colbert_zero.training.texts import check_pairs, check_texts
from colbert_zero.training.training import Training
from colbert_zero.watch import finishing_its_step, stop_requested

Validate = Callable[[Encoder], dict[str, float]]
LayersAdd = Callable[[Encoder], dict[str, Any] | None]


def train_phase(
    training: Training,
    parts: Mapping[str, Part],
    folder: Path,
    takers: tuple[Callable[[Entry], None], ...] = (),
    validate: Validate | None = None,
    say: Callable[[str], None] = print,
    layers_add: LayersAdd | None = None,
) -> dict[str, Any]:
    """Train one phase and keep its checkpoint and record in `folder`.

    A run that was killed goes on from its newest whole checkpoint; a finished folder appears only whole. All
    processes train; the main one writes.

    Args:
        training: What to train.
        parts: The parts of its sources.
        folder: Where it is kept.
        takers: Called with every entry of the log.
        validate: Scores the model on small collections, nDCG@10 by name, every `evaluate_every` steps.
        say: Tells the user what happens to checkpoints, and of what may keep the phase from learning.
        layers_add: Measures what the encoder's layers add to the model that the phase ends with. With one process an
            error of its is told, and ends nothing.

    Returns:
        phase.json's content (docs/records.md).

    Raises:
        ColbertZeroError: The start or the data do not fit, all queries or all documents are equal once cut, the loss
            stopped being finite, or the disk is full.
        Stopped: SIGTERM came; the step it came in is finished and saved.

    Example:
        >>> from colbert_zero import train_phase
        >>> from colbert_zero.data.prepared import ArrowPart
        >>> from colbert_zero.models.alignment import Alignment
        >>> from colbert_zero.recipe.schema import Phase
        >>> from colbert_zero.training.training import Training
        >>> from colbert_zero.training.phase import order_of_parts
        >>> pairs = [{"query": f"lift {x}", "document": f"drag {x}", "negatives": []} for x in "abcdefgh"]
        >>> parts = {"wings/all": ArrowPart("wings/all", Dataset.from_list(pairs), None)}
        >>> spec = Phase(
        ...     representation="multi-vector", objective="contrastive", sources=["wings"], global_batch_size=4,
        ...     learning_rate=1e-3,
        ... )
        >>> training = Training(
        ...     name="short", id="0", chain=("short",), parent=None, start=encoder, spec=spec, seed=1, dim=16, steps=2,
        ...     order=order_of_parts(spec, parts, 1, "short"),
        ...     alignment=Alignment("", "", "[Q]", "[D]", query_tokens=16, document_tokens=24),
        ... )
        >>> record = train_phase(training, parts, Path("short-0"))
        >>> record["steps"], sorted(path.name for path in Path("short-0").iterdir())
        (2, ['model', 'phase.json'])
    """
    spec, steps, work = training.spec, training.steps, folder.with_name(folder.name + ".unfinished")
    share(spec.global_batch_size, f"phases.{training.name}.global_batch_size")
    resumed = _resumed_step(work, training, say)
    precision = agreed_precision(spec.precision, torch.device(get_device_name()))
    model = _assembled(training, parts, None if resumed else precision)
    cut = cut_record(training.start)
    held = keeps_zeros(cut) and not spec.reads_pairs
    if held:
        hold_zeros(model, f"phases.{training.name}")
    if spec.low_rank:
        check_no_zeros(held, f"phases.{training.name}")
        add_adapters(model, spec.low_rank, training.seed)
    trained_parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    tokenise = pair_tokeniser(model) if spec.reads_pairs else tokeniser(model)
    batches = Batches(parts, training.order, tokenise, steps, spec.hard_negatives, pairs=spec.reads_pairs)
    objective = objective_of(spec).to(model.device)
    trained = nn.ModuleDict({"model": model, "objective": objective}).train()
    encoder = as_trained(model, spec)
    optimizer, schedule = optimiser_of(trained, spec, steps)
    if "attn_implementation" not in training.options:
        attend_fast(model, precision)
    machine = machine_of(model, precision)
    tell_refused(machine["maxsim_refused"], say)
    tell_tf32(machine, say)
    log = Log(steps, 1 if model.device.type == "cuda" else machine["threads"], takers, say)
    seed_process(training.seed)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    if resumed:
        state = load_checkpoint(checkpoint_path(work, resumed), trained, optimizer, schedule, training.seed)
        log.restore(state["log"])
        batches.restore_streams(state["streams"])
        machine = going_on(model, state["machine"], machine, lambda text: say(f"phases.{training.name}: {text}"))
    elif spec.precision == "auto":
        log.tell(f"phases.{training.name}.precision: auto, which is {why(precision, world_size())}")
    context = autocast_of(machine["precision"], model.device)
    if spec.representation == "multi-vector" and (unknown := unknown_words(model, training.scored)):
        log.tell(f"model.skip_list: no single tokens of this tokenizer, so not skipped: {' '.join(unknown)}")
    for lost in _not_kept(cut, held):
        log.tell(f"phases.{training.name}: {lost}")
    if spec.reads_pairs:
        sampled = check_pairs(training, model, parts, log)
    else:
        sampled = check_texts(training, model, parts, batches.tokenise, log)
    tell_saturated(training.name, spec, parts, log.tell)
    near = check_near(training.name, spec, parts, log.say, log.tell)
    first_steps = FirstSteps(training, model, objective, log.tell, log.step)
    prefetched = Prefetched(batches, log.step)
    log.start()
    with finishing_its_step(), scoring_with(machine["maxsim"]):
        for step, batch in enumerate(prefetched, log.step + 1):
            batch = batch.to(model.device)
            # 1. The loss of the global batch, and its gradient: in-batch negatives are those of all processes.
            loss_of = objective.of(*batch)
            own, counted = grad_cache(encoder, batch[:2], loss_of, spec.mini_batch_tokens, context)
            average_gradients(trained.parameters())
            loss, wall, cpu, stops, *counts = sums(own.item(), *log.clocks(), stop_requested(), *counted)
            # 2. One step of the optimiser. A learned temperature is not clipped along with the weights.
            norm = clip_grad_norm_(model.parameters(), spec.max_gradient_norm).item()
            for name, value in (("loss", loss), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise _diverged(training, step, name, value, work)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            first_steps.after(step, loss / world_size())
            # 3. What was found and spent; then how good the model is, and what to go on from.
            last, stopping = step == steps, stops > 0
            # The last step is saved where something is measured between it and the finished model.
            save = layers_add is not None if last else step % spec.checkpoint_every == 0 or stopping
            measure = bool(validate and spec.evaluate_every and (last or step % spec.evaluate_every == 0))
            log.add(
                loss / world_size(), Work(*map(int, counts)), (wall, cpu), prefetched.waited(), keep=save or measure,
                source=training.order.source(step - 1)[0], learning_rate=learning_rate,
                grad_norm=norm, temperature=objective.temperature.item(),
            )  # fmt: skip
            if measure and validate:
                save |= log.validated(validate(model))
            if save:
                state = {"id": training.id, "step": step, "log": log.state(), "machine": machine}
                state["streams"] = batches.stream_states(step)
                save_checkpoint(checkpoint_path(work, step), trained, optimizer, schedule, state)
                _delete_old(work, spec.keep_checkpoints, log)
            if stopping and save:
                raise Stopped(
                    f"phases.{training.name}: stopped by SIGTERM after step {step:,} of {steps:,}, which is saved in "
                    f"{work}. The same command goes on from there"
                )
        # 4. The model that the phase ends with, and its record.
        best = log.best()
        if spec.select == "best" and best and best["step"] < steps:
            _load_best(checkpoint_path(work, best["step"]), training, trained)
        if spec.low_rank:
            merge_adapters(model)
        if held:
            fold_zeros(model, f"phases.{training.name}")
        layers = _measured(layers_add, model, training, log) if layers_add else None
        written, zeros = 0, None
        with atomic_folder(folder) if is_main() else nullcontext() as temporary:
            if temporary:
                save_model(model, temporary / "model", training.alignment)
                if held and cut:
                    zeros = write_kept(temporary / "model", model, cut, training.name)
                written = sum(file.stat().st_size for file in (temporary / "model").rglob("*") if file.is_file())
            bytes_written, zeros = from_main((written, zeros))
            record = phase_record(
                training, model, batches, log, machine, trained_parameters, sampled, near, layers, bytes_written, zeros
            )
            if temporary:
                write_json(temporary / "phase.json", record)
                write_card(temporary)
        if is_main():
            shutil.rmtree(work, ignore_errors=True)
        wait()
    return record


def _not_kept(cut: dict[str, Any] | None, held: bool) -> list[str]:
    """What a start was cut to that training does not keep, in words."""
    lost = []
    if cut and keeps_zeros(cut) and not held:
        lost.append("its start has zeros, which a cross-encoder does not keep")
    if cut and (bits := cut.get("asked", {}).get("bits")) and "trained_by" not in cut:
        lost.append(f"its start lies on a grid of {bits} bits, which training leaves")
    return lost


def _assembled(training: Training, parts: Mapping[str, Part], fitted_in: Arithmetic | None) -> Any:
    """The model that the phase starts from; a new training may fit its head to the data, in this arithmetic."""
    spec = training.spec

    def fit(model: Encoder) -> None:
        fit_head(model, parts, training.order, autocast_of(fitted_in or "float32", model.device))

    if spec.reads_pairs:
        return assemble_cross_encoder(
            training.start, training.alignment, training.seed, training.name, **training.options
        )
    return assemble(
        training.start,
        spec.representation,
        training.alignment,
        training.dim,
        training.seed,
        training.name,
        spec.allow_prompt_mismatch,
        training.head,
        fit if fitted_in else None,
        training.scored,
        **training.options,
    )


def order_of_parts(spec: Phase, parts: Mapping[str, Part], seed: int, name: str) -> Order:
    """The order of a phase's data; raises as `order_of` does."""
    rows = {part: len(table) for part, table in parts.items()}
    return order_of(spec, rows, {part: table.block for part, table in parts.items() if table.block}, seed, name)


def order_of(spec: Phase, rows: dict[str, int], blocks: dict[str, int], seed: int, name: str) -> Order:
    """The order of a phase's data, from the rows that its parts have; those that are streamed have blocks.

    Raises:
        ColbertZeroError: No part has as many rows as a batch.
    """
    order = Order(rows, spec.global_batch_size, seed, spec.alpha, blocks)
    if not order.names:
        largest = max(rows, key=lambda part: rows[part])
        raise ColbertZeroError(
            f"phases.{name}.global_batch_size: {spec.global_batch_size}, but every batch comes from one source and the "
            f"largest, {largest}, has {rows[largest]} rows; lower it to at most that"
        )
    return order


def steps_of(spec: Phase, order: Order, name: str) -> int:
    """Optimiser steps of a phase.

    Raises:
        ColbertZeroError: They are more than its schedule has.
    """
    steps = spec.steps or max(1, round((spec.epochs or 1) * order.batches_per_epoch))
    if spec.horizon and spec.horizon < steps:
        raise ColbertZeroError(
            f"phases.{name}.horizon: {spec.horizon} steps, but the phase has {steps}; a schedule is at least as long "
            "as its phase"
        )
    return steps


def _resumed_step(work: Path, training: Training, say: Callable[[str], None]) -> int:
    """Step of the newest whole checkpoint, 0 where there is none; damaged ones are told and put aside."""
    step = 0
    if is_main():
        for leftover in work.glob(".*.tmp"):
            shutil.rmtree(leftover)
        checkpoint, damaged = last_checkpoint(work, training.id)
        step = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
        for path, wrong in damaged.items():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            say(
                f"phases.{training.name}: the checkpoint {path.name} is damaged ({wrong}); going on from "
                f"{checkpoint.name if checkpoint else 'the beginning'}, and what is left of it is in {aside}"
            )
    return agree(step)


def _load_best(checkpoint: Path, training: Training, trained: nn.Module) -> None:
    """Put the best weights back.

    Raises:
        ColbertZeroError: The checkpoint was damaged since it was written.
    """
    if wrong := from_main(damage(checkpoint, training.id) if is_main() else None):
        raise ColbertZeroError(
            f"phases.{training.name}: its best checkpoint, {checkpoint}, is damaged ({wrong}); delete "
            f"{checkpoint.parent} to train the phase again, or set `select: last`"
        )
    load_weights(checkpoint, trained)


def _measured(layers_add: LayersAdd, model: Encoder, training: Training, log: Log) -> dict[str, Any] | None:
    """What the layers add; None, and told, where it cannot be measured: the training is finished all the same."""
    try:
        return layers_add(model)
    except Exception as error:  # of an evaluation: memory, a disk, an encoder of any family
        if world_size() > 1:  # the others wait for what this one was to tell them
            raise
        log.tell(f"phases.{training.name}: what its encoder's layers add cannot be measured ({reason(error)})")
        return None


def _diverged(training: Training, step: int, name: str, value: float, work: Path) -> Diverged:
    good, _ = last_checkpoint(work, training.id)
    source, _ = training.order.source(step - 1)
    return Diverged(
        f"phases.{training.name}: the {name} is {value} at step {step} of {training.steps}, in a batch of {source}. "
        f"The last good checkpoint is {good or training.start}; lower the learning rate or raise the temperature, "
        "which trains the phase from its beginning"
    )


def _delete_old(work: Path, keep: int, log: Log) -> None:
    """Delete checkpoints but the newest few and the best."""
    if not is_main():
        return
    best = log.best()
    for old in checkpoints(work)[keep:]:
        if not best or old != checkpoint_path(work, best["step"]):
            delete_checkpoint(old)
