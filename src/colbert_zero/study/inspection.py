"""Which rows a step of a phase sees, found without training: the order of the data is a function of the recipe."""

from typing import Any

from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.files import writing
from colbert_zero.recipe.schema import Phase, Recipe
from colbert_zero.study.graph import chain_to
from colbert_zero.study.study import Study
from colbert_zero.training.batches import check_columns, least_negatives, with_taken_negatives
from colbert_zero.training.phase import order_of_parts, steps_of


def step_rows(study: Study, phase: str, step: int) -> dict[str, Any]:
    """The rows of one step, over all processes.

    Args:
        study: Its files, data sets and docstrings are prepared if need be; nothing is mined, scored or trained.
        phase: Name, or PIPELINE@PHASE.
        step: From 1, as in the losses of phase.json.

    Returns:
        phase, step, steps; source, part and epoch (which pass over the part, from 1); rows, their numbers in the part;
        texts, a mapping a row: query, document and the negatives in use, or query, documents and scores.

    Raises:
        ColbertZeroError: There is no such phase or step, or a source of it is not made yet.
    """
    name = _phase_name(study.recipe, phase)
    spec = study.recipe.phases[name]
    if not isinstance(spec, Phase):
        raise ColbertZeroError(f"--phase {phase}: of the kind {spec.kind}, which trains nothing, so it has no steps")
    _prepare(study, name, spec)
    parts = study.parts(spec)
    check_columns(name, spec, parts)
    order = order_of_parts(spec, parts, study.recipe.seed_of(spec), name)
    steps = steps_of(spec, order, name)
    if not 1 <= step <= steps:
        raise ColbertZeroError(f"--step {step}: {name} has steps 1 to {steps}")
    full_name, numbers = order.batch(step - 1)
    batches = order.rows[full_name] // order.global_batch_size
    columns = parts[full_name].read(numbers)
    least, all_rows = least_negatives(parts[full_name]), slice(0, len(numbers))
    columns = with_taken_negatives(columns, spec.hard_negatives, least, order, step - 1, all_rows)
    source, part = full_name.split("/", 1)
    return {
        "phase": name,
        "step": step,
        "steps": steps,
        "source": source,
        "part": part,
        "epoch": order.source(step - 1)[1] // batches + 1,
        "rows": numbers.tolist(),
        "texts": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }


def _phase_name(recipe: Recipe, phase: str) -> str:
    """A phase whose rows are asked for; they do not depend on the pipeline it stands in."""
    if "@" in phase:
        return chain_to(recipe, phase)[-1]
    if phase not in recipe.phases:
        raise ColbertZeroError(f"--phase {phase}: no such phase{near(phase, recipe.phases)}")
    return phase


def _prepare(study: Study, name: str, spec: Phase) -> None:
    """Prepare what is not yet; only then is the study's folder held, so that one can look while it is trained.

    Mining, and having a teacher trained, take long and are not what was asked for.
    """
    missing = {source for source in spec.sources if not study.is_made(source)}
    for source in missing:
        kind = study.recipe.sources[source].kind
        if kind in ("mined", "scored"):
            raise ColbertZeroError(
                f"sources.{source}: not {kind} yet in {study.data}; `colbert-zero run`, with the same recipe, --out "
                f"and --set, makes it on the way to {name}"
            )
    if missing:
        with writing(study.folder, study.show.say):
            study.prepare_sources(missing)
