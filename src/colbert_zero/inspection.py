"""Which rows a step of a phase sees, found without training: the order of the data is a function of the recipe."""

from typing import Any

from colbert_zero import recipe as recipes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.mistakes import near
from colbert_zero.phase import order_of, steps_of
from colbert_zero.records import writing
from colbert_zero.study import Study, chain_to, check_columns

_SHOWN_ROWS, _SHOWN_TEXTS, _SHOWN_CHARACTERS = 20, 3, 150


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
    _prepare(study, name, spec)
    parts = study.parts(spec)
    check_columns(name, spec, parts)
    order = order_of(spec, parts, study.recipe.seed if spec.seed is None else spec.seed, name)
    steps = steps_of(spec, order)
    if not 1 <= step <= steps:
        raise ColbertZeroError(f"--step {step}: {name} has steps 1 to {steps}")
    full_name, numbers = order.batch(step - 1)
    batches = order.rows[full_name] // order.global_batch_size
    columns = parts[full_name].read(numbers)
    if "negatives" in columns:
        columns["negatives"] = [negatives[: spec.negatives] for negatives in columns["negatives"]]
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


def describe(seen: dict[str, Any]) -> str:
    """The rows of a step in words: what they are of, the first numbers, a few texts."""
    rows, source = seen["rows"], seen["source"] + (f", part {seen['part']}" if seen["part"] != seen["source"] else "")
    more = f", … ({len(rows):,} in all)" if len(rows) > _SHOWN_ROWS else ""
    lines = [
        f"{seen['phase']}, step {seen['step']:,} of {seen['steps']:,}: {len(rows):,} rows of {source}, "
        f"in pass {seen['epoch']:,} over it",
        f"rows {', '.join(map(str, rows[:_SHOWN_ROWS]))}{more}",
    ]
    for row, texts in list(zip(rows, seen["texts"], strict=True))[:_SHOWN_TEXTS]:
        lines += ["", f"row {row}", *(f"  {label:9} {_short(text)}" for label, text in _labelled(texts))]
    return "\n".join(lines)


def _phase_name(recipe: recipes.Recipe, phase: str) -> str:
    """A phase whose rows are asked for; they do not depend on the pipeline it stands in."""
    if "@" in phase:
        return chain_to(recipe, phase)[-1]
    if phase not in recipe.phases:
        raise ColbertZeroError(f"--phase {phase}: no such phase{near(phase, recipe.phases)}")
    return phase


def _prepare(study: Study, name: str, spec: recipes.Phase) -> None:
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
        with writing(study.folder):
            study.prepare_sources(missing)


def _labelled(texts: dict[str, Any]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = [(key, texts[key]) for key in ("query", "document") if key in texts]
    lines += [("negative", text) for text in texts.get("negatives", ())]
    return lines + [
        (f"{s:9.4f}", text) for s, text in zip(texts.get("scores", ()), texts.get("documents", ()), strict=True)
    ]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
