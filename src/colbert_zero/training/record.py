"""phase.json: what was trained, on what, by which machine, at what cost. docs/records.md is made from this."""

import resource
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict

from colbert_zero.models.bases import is_hub_id
from colbert_zero.models.checkpoints import Encoder, Trainable
from colbert_zero.models.pooling import pooling_of
from colbert_zero.models.scored_tokens import scored_in_words
from colbert_zero.processes import world_size
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.batches import Batches
from colbert_zero.training.log import Log
from colbert_zero.training.training import Training

_CURVE = ("step", "loss", "source", "learning_rate", "temperature", "elapsed_seconds")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Machine(_Record):
    """What the machine did that the recipe does not say.

    A resumed training keeps `precision`, and `maxsim` and `attention` where its host can, and tells what else differs.
    """

    device: str
    host: str
    torch: str
    threads: int
    """Of each process."""
    maxsim: str
    """What computed MaxSim: torch, triton, late-interaction-kernels, plain."""
    maxsim_refused: dict[str, str] = {}
    """What would have computed it, and what was wrong with it on a small case on this device."""
    attention: str
    """What computed attention: sdpa, eager, flash_attention_2, …"""
    precision: str | None = None
    """What the encoder computed in: float32, bfloat16; `auto` of the recipe, decided. Older records lack it."""
    tf32: dict[str, str] = {}
    """What asked for TF32 in place of float32 in CUDA's products, with its value: variables of the environment, torch's
    own flag; 0 forbids it. Older records lack it."""


class SourceRecord(_Record):
    """What a part of a source gave."""

    rows: int
    """That it has."""
    batches: int
    """Drawn from it."""
    negatives: int | None
    """Hard negatives that each of its queries got; null where rows have candidates."""
    dropped_rows: int
    """Do not fill a batch."""
    left_out: dict[str, int]
    """Rows of a streamed source that cannot be used, by reason; and positives after their row's first."""


class LayersRecord(_Record):
    """What the encoder's layers add: mean nDCG@10 on samples of the recipe's collections, each with the same weight."""

    queries: int
    """Of all the collections' samples."""
    documents: int
    """Likewise."""
    score: float
    """Of the model as it is."""
    without: float
    """With every layer passing on what comes in, nothing trained anew."""
    difference: float
    interval: list[float]
    """95 % of the difference, from a bootstrap of queries within collections."""
    seconds: float
    """That both scores took; not in the phase's times."""


class PhaseRecord(_Record):
    """phase.json.

    Times are of training alone, checkpoints with it; data preparation, validation and evaluation are not in them.
    """

    schema_version: int = 1
    """Written as `schema`."""
    kind: str = "train"
    """Of the recipe. Older records lack it."""
    name: str
    id: str
    """Fingerprint of all that was asked for: recipe values, contents of data and base, its parent's."""
    parent: str | None
    """Id of the phase it starts from."""
    chain: list[str]
    """The phases before it and itself."""
    base: str | None = None
    """Hub id of the base that it starts from; null of a folder, of random weights and after another phase. Older
    records lack it."""
    base_commit: str | None
    """Commit of the Hub base that it starts from."""
    representation: str
    objective: str
    student_scores: str | None
    distillation_loss: str
    contrastive_temperature: float | None
    contrastive_weight: float
    mask_duplicates: bool
    length_normalised: bool
    teacher_temperature: float | None
    negatives: int | str
    max_relative: float | None
    alpha: float
    precision: str
    """As the recipe has it; `machine` has what `auto` came to."""
    global_batch_size: int
    mini_batch_tokens: int
    low_rank: dict[str, Any] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    learning_rate: float
    optimiser: str
    betas: tuple[float, float]
    schedule: str
    decay: float
    warmup: float
    horizon: int | None
    weight_decay: float
    max_gradient_norm: float
    prompts: dict[str, str]
    markers: dict[str, str]
    query_tokens: int
    document_tokens: int
    lengths: str
    """What these hold: `text`, or `all` with markers and prompts."""
    skip_list: list[str]
    """Words whose tokens are left out of documents."""
    query_expansion: str
    """Whether queries are filled up, and attend to that: `false`, `attend`, `ignore`."""
    pool: float = 1.0
    """Tokens of a document that become one, about, in the model that the phase ends with; 1 pools none."""
    steps: int
    temperature: float
    """At the last step, where it is learned."""
    seed: int
    sources: dict[str, SourceRecord]
    """By part: PACKAGE or file of a source, SOURCE/PART."""
    machine: Machine
    processes: int
    """That ended the training."""
    wall_seconds: float
    """Of the training, all its attempts together."""
    cpu_seconds: float
    """Of all threads of all processes. Where it is less than nine tenths of `wall_seconds` × `threads`, the machine had
    other work or the threads waited, and the time is not compared with another phase's."""
    threads: float
    """That could have computed, of all processes; with CUDA one a process, which feeds the device. A mean over time
    where a training went on with another number of processes."""
    device_seconds: float
    """Wall-clock seconds of all processes together."""
    waited_seconds: float
    """How long one process waited for batches."""
    texts: int
    """Queries and documents, or a cross-encoder's pairs, each as often as it was read."""
    tokens: int
    """Real ones, each counted as often as it was read for training; the second pass of GradCache does not count."""
    padding_tokens: int
    """Encoded beside them, since a chunk is as wide as its longest text."""
    second_pass_tokens: int
    """Encoded a second time by GradCache, padding included: 0 where the batches' activations fitted in memory."""
    flops: float
    """From the tokens that each step counted, over all processes and resumes, by the usual estimate: encoder parameters
    (token embeddings left out) × 6 for each real token and each padding, × 2 for each encoded twice; of frozen
    ones × 4 in place of × 6. Attention's products and MaxSim are not in it."""
    padding_flops: float
    """The part that was padding's."""
    second_pass_flops: float
    """The part of the second passes."""
    recomputed_flops: float = 0
    """The part of `gradient_checkpointing`: × 2 for each token and padding."""
    peak_memory_bytes: int
    """Of the main process: with CUDA the device's in this phase, since it was begun or resumed; on a CPU since the
    process began."""
    parameters: int
    """All of the model's, token embeddings too."""
    model_bytes: int | None
    """Of its checkpoint's files; null in older records."""
    trained_parameters: int | None = None
    """Of these; with `low_rank` the adapters', which are merged into the others, and the heads'. Older records lack
    it."""
    zeros: dict[str, int] | None = None
    """Of a start that `compress` gave zeros: how many there are after training (`zeros`), of how many numbers in the
    layers' matrices (`zeros_of`). Null where none are kept; older records lack it."""
    losses: list[dict[str, Any]]
    """Of every step: step, loss, source, learning_rate, temperature, elapsed_seconds. Where a phase has more than
    10,000 steps, of every n-th, with the mean loss since the entry before."""
    final_loss: float
    """Of the last step, in nats."""
    validation: list[dict[str, Any]]
    """nDCG@10 on the small collections every `evaluate_every` steps and at the end: step, mean, scores of each."""
    best_step: int | None
    """First step of the highest mean."""
    selected_step: int
    """The one whose weights the phase ends with: `best_step` with `select: best`, else the last."""
    sampled: dict[str, dict[str, int]]
    """Of `query` and `document` texts of a sample of rows, or a cross-encoder's `pair`s, as this phase cuts them: how
    many `texts`, how many of them are `cut`, their `tokens` before that and how many are `lost`; how many are
    `different`, and `different_cut`."""
    near: dict[str, dict[str, int]] = {}
    """Of a sample of each part's rows, what `max_relative` leaves out: how many `rows`, their `candidates` beside the
    answers, how many of these are `left_out`; rows with `fewer` negatives than asked for, and `without_shares`, whose
    answer scores 0 or less. Empty without the key."""
    told: list[str]
    """Of what may keep the phase from learning, and of what could not be measured."""
    layers: LayersRecord | None
    """Null where they cannot be taken out or measured, or `validation.layers` is false."""
    finished_at: str
    """UTC, ISO 8601."""


class Flops(NamedTuple):
    """Floating-point operations of encoding, all processes together."""

    tokens: float
    """Of real ones."""
    padding: float
    """Of what is encoded beside them."""
    second_pass: float
    """Of GradCache's."""
    recomputed: float
    """Of `gradient_checkpointing`."""


def flops_of(spec: Phase, computing: int, trained: int, tokens: float, padding: float, repeated: float) -> Flops:
    """Operations by the usual estimate.

    Args:
        spec: The phase.
        computing: Parameters without token embeddings.
        trained: Those that move, which with `low_rank` are the adapters' and the heads'.
        tokens: Real ones.
        padding: Beside them.
        repeated: Encoded a second time.
    """
    # Forward, gradients of what comes in, gradients of the weights that are trained: × 2 each.
    step = 4 * computing + 2 * (trained if spec.low_rank else computing)
    recomputed = 2 * computing * (tokens + padding) if spec.gradient_checkpointing else 0
    return Flops(step * tokens, step * padding, 2 * computing * repeated, recomputed)


def phase_record(
    training: Training,
    model: Trainable,
    batches: Batches,
    log: Log,
    machine: dict[str, Any],
    trained_parameters: int,
    sampled: dict[str, dict[str, int]],
    near: dict[str, dict[str, int]],
    layers: dict[str, Any] | None,
    model_bytes: int,
    zeros: dict[str, int] | None = None,
) -> dict[str, Any]:
    """phase.json's content, after a training's last step."""
    spec, alignment, spent = training.spec, training.alignment, log.spent
    steps, best = [entry for entry in log.entries if "loss" in entry], log.best()
    embeddings: Any = model[0].get_submodule("model")
    parameters = sum(p.numel() for p in model.parameters())
    computing = parameters - embeddings.get_input_embeddings().weight.numel()
    flops = flops_of(spec, computing, trained_parameters, spent["tokens"], spent["padding"], spent["repeated"])
    drawn, left_out, order = batches.order.drawn(training.steps), batches.dropped(), batches.order
    markers = (alignment.query_marker, alignment.document_marker) if spec.representation == "multi-vector" else ("", "")
    asked = {key: getattr(spec, key) for key in PhaseRecord.model_fields if key in type(spec).model_fields}
    skipped, filled = scored_in_words(cast(Encoder, model)) if spec.representation == "multi-vector" else ([], "false")
    record = PhaseRecord(
        **{key: value for key, value in asked.items() if key not in _FOUND},
        name=training.name,
        id=training.id,
        parent=training.parent,
        chain=list(training.chain),
        base=training.start if training.parent is None and is_hub_id(training.start) else None,
        base_commit=training.options.get("revision"),
        prompts={"query": alignment.query_prompt, "document": alignment.document_prompt},
        markers=dict(zip(("query", "document"), markers, strict=True)),
        query_tokens=alignment.query_tokens,
        document_tokens=alignment.document_tokens,
        lengths="all" if alignment.whole else "text",
        skip_list=skipped,
        query_expansion=filled,
        pool=pooling_of(model),
        steps=training.steps,
        temperature=steps[-1]["temperature"],
        seed=training.seed,
        sources={
            name: SourceRecord(
                rows=rows,
                batches=drawn[name],
                negatives=batches.taken(name),
                dropped_rows=order.dropped[name],
                left_out=left_out.get(name, {}),
            )
            for name, rows in order.rows.items()
        },
        machine=Machine(**machine),
        processes=world_size(),
        wall_seconds=round(spent["elapsed_seconds"], 3),
        cpu_seconds=round(spent["cpu_seconds"], 3),
        threads=round(spent["thread_seconds"] / max(spent["elapsed_seconds"], 1e-9), 2),
        device_seconds=round(spent["device_seconds"], 3),
        waited_seconds=round(spent["waited_seconds"], 3),
        texts=spent["texts"],
        tokens=spent["tokens"],
        padding_tokens=spent["padding"],
        second_pass_tokens=spent["repeated"],
        flops=sum(flops),
        padding_flops=flops.padding,
        second_pass_flops=flops.second_pass,
        recomputed_flops=flops.recomputed,
        peak_memory_bytes=_peak_memory(model.device),
        parameters=parameters,
        model_bytes=model_bytes,
        zeros=zeros,
        trained_parameters=trained_parameters,
        low_rank=spec.low_rank.model_dump() if spec.low_rank else None,
        losses=[{key: entry.get(key) for key in _CURVE} for entry in steps],
        final_loss=steps[-1]["loss"],
        validation=[
            {
                "step": entry["step"],
                "mean": entry["validation"],
                "scores": {k.removeprefix("validation/"): v for k, v in entry.items() if k.startswith("validation/")},
            }
            for entry in log.entries
            if "validation" in entry
        ],
        best_step=best["step"] if best else None,
        selected_step=best["step"] if best and spec.select == "best" else training.steps,
        sampled=sampled,
        near=near,
        told=log.told,
        layers=LayersRecord(**layers) if layers else None,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    ).model_dump()
    return {"schema": record.pop("schema_version"), **record}


_FOUND = ("low_rank", "prompts", "query_tokens", "document_tokens", "steps", "temperature", "seed", "sources")
"""Keys of a recipe's entry whose values here are the resolved ones."""


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
