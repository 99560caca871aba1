"""A plan in tables and sentences."""

from collections.abc import Iterable, Mapping

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from colbert_zero.planning.calibration import token_passes
from colbert_zero.planning.plan import Machine, PlannedPhase
from colbert_zero.planning.published import published
from colbert_zero.recipe.schema import Phase, Recipe
from colbert_zero.report.published import published_means
from colbert_zero.report.words import duration, operations, quantity, rounded
from colbert_zero.study.disk import Disk
from colbert_zero.study.graph import way_to

OWN = "your own study"

SPARE = ("texts", "second pass", "padding", "MaxSim", "memory")
"""Columns that a narrow terminal does without, the first ones first."""


def phases_table(phases: list[PlannedPhase], machine: Machine, width: int) -> Table:
    """A row a phase."""
    rows = [_row(phase, machine) for phase in phases]
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    for spare in SPARE:
        needed = sum(2 + max(len(title), *(len(row[title]) for row in rows)) for title in titles)
        if needed - 2 > width and spare in titles:
            titles.remove(spare)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="left" if title == "phase" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[title]) for title in titles))
    return table


def _row(phase: PlannedPhase, machine: Machine) -> dict[str, str]:
    if not phase.trains and not phase.done:
        row = dict.fromkeys(("steps", "texts", "tokens", "padding", "second pass", "encoding"), "–")
        return {"phase": " → ".join(phase.chain), **row, "MaxSim": "", "memory": "", "time": "", "": phase.spec.kind}
    about = {"whole": "", "sampled": "≈ ", "longest": "≤ "}[phase.counted]
    counted, memory = phase.operations, phase.memory
    return {
        "phase": " → ".join(phase.chain),
        "steps": f"{phase.steps:,}" if phase.trains else "–",
        "texts": quantity(phase.counts.texts),
        "tokens": about + quantity(phase.tokens),
        "padding": quantity(phase.counts.padding),
        "second pass": quantity(phase.counts.repeated) if phase.counts.repeated else "–",
        "encoding": operations(counted.recorded + counted.attention),
        "MaxSim": operations(counted.maxsim) if counted.maxsim else "",
        "memory": decimal(memory.total) if memory else "",
        "time": span(phase.hours) if phase.hours else "",
        "": "done" if phase.done else "",
    }


def span(hours: tuple[float, float], times: float = 1.0) -> str:
    """`3.1 to 6.2 h`, or one of them where both read alike."""
    seconds = 3600 * times * hours[1]
    name = next(name for size, name in ((5400, "h"), (90, "min"), (0, "s")) if seconds >= size)
    unit = {"h": 1.0, "min": 60.0, "s": 3600.0}[name]
    least, most = (rounded(times * value * unit) for value in hours)
    return f"{most} {name}" if least == most else f"{least} to {most} {name}"


def sums_table(
    recipe: Recipe,
    pipelines: Mapping[str, tuple[str, ...]],
    phases: list[PlannedPhase],
    count: int,
    price: float | None,
) -> Table:
    """What each pipeline takes from its base, and all of them together, each shared phase once."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = [
        "pipeline",
        "tokens",
        "operations",
        *(["device time"] if _timed(phases) else []),
        *(["money"] if price else []),
    ]
    for title in titles:
        table.add_column(title, justify="left" if title == "pipeline" else "right", overflow="fold")
    for name, members in (members_of(recipe, pipelines, phases) | {"all, each phase once": phases}).items():
        hours = hours_of(members)
        cells = [name, quantity(sum(phase.tokens for phase in members)), operations(sum(map(_operations, members)))]
        cells += [span(hours, count)] if hours else ["–"] if _timed(phases) else []
        cells += [_money(hours, count * price)] if price else []
        table.add_row(*map(Text, cells))
    return table


def members_of(
    recipe: Recipe, pipelines: Mapping[str, tuple[str, ...]], phases: Iterable[PlannedPhase]
) -> dict[str, list[PlannedPhase]]:
    """The phases of each pipeline, from its base, and of what is merged into it."""
    by_chain = {phase.chain: phase for phase in phases}
    return {name: [by_chain[one] for one in way_to(recipe, chain)] for name, chain in pipelines.items()}


def hours_of(phases: Iterable[PlannedPhase]) -> tuple[float, float] | None:
    """Hours of several phases, least and most; None where one of them has none."""
    known = [phase.hours for phase in phases if phase.trains and not phase.done]
    return None if None in known else (sum(h[0] for h in known if h), sum(h[1] for h in known if h))


def _operations(phase: PlannedPhase) -> float:
    return phase.operations.recorded + phase.operations.attention + phase.operations.maxsim


def _timed(phases: Iterable[PlannedPhase]) -> bool:
    return any(phase.hours for phase in phases)


def _money(hours: tuple[float, float] | None, price: float) -> str:
    if hours is None:
        return "–"
    least, most = (f"{price * value:,.2f}" for value in hours)
    return most if least == most else f"{least} to {most}"


def notes(phases: list[PlannedPhase], machine: Machine) -> list[str]:
    """What a reader of the tables must know."""
    said = []
    if any(phase.counted == "sampled" for phase in phases):
        said.append("≈ counted on a sample of each part's rows, or on one device's share of the batches")
    if any(phase.done for phase in phases):
        said.append("What is done is in no pipeline's device time or money any more")
    if any(phase.counted == "longest" for phase in phases):
        said.append("≤ no texts at hand: each counts as the longest allowed, with all its hard negatives")
    said.append(
        "Encoding counts padding, GradCache's second pass and attention's products; memory is rough. Preparing data, "
        "mining, a teacher's scores and evaluation are not in it"
    )
    if any(not phase.trains and not phase.done for phase in phases):
        said.append(
            "What is cut, merged or adapted trains nothing and is not in it, nor is what is encoded for it; "
            "what is trained after a cut counts as if nothing had been cut"
        )
    for phase in {phase.chain[-1]: phase for phase in phases if phase.memory}.values():
        memory = phase.memory
        if not isinstance(phase.spec, Phase):
            continue
        if memory and memory.largest_chunk is not None and memory.largest_chunk < phase.spec.mini_batch_tokens:
            said.append(
                f"phases.{phase.chain[-1]}: mini_batch_tokens {phase.spec.mini_batch_tokens:,} may not fit a device; "
                f"lower it to {memory.largest_chunk:,}"
            )
    if machine.device:
        said.append(
            f"{machine.device['name']}: 20 to 40 % of its peak in encoding, 12 to 33 % in MaxSim "
            f"({machine.device['source']}), and nothing for what devices exchange; --calibrate measures on the machine"
        )
    elif any(phase.pace for phase in phases):
        said.append("Time is of the training loop, from the fastest to the slowest of the steps measured")
    else:
        said.append("No time: --calibrate takes a minute of steps on this machine, --devices 8xH100 reckons for others")
    return said


def diagnostics(recipe: Recipe, phases: Iterable[PlannedPhase]) -> list[str]:
    """What is measured besides training and evaluation, of phases that are to be trained, and how long it will take.

    Seconds are those of encoding, at the pace that was measured of each phase; none without.
    """
    size, said = recipe.validation, list[str]()
    texts = len(recipe.collections) * (size.documents + size.queries)
    open_ = [p for p in phases if not p.done and not p.spec.reads_pairs and p.spec.kind != "adapt"]
    if size.layers and open_:
        said.append(
            f"After {_phases(len(open_))} what the encoder's layers add is measured, on at most {texts:,} texts"
            f"{_seconds(open_, texts, {})}; `validation.layers: false` leaves it out"
        )
    times = {p.chain: -(-p.steps // p.spec.evaluate_every) for p in open_ if p.spec.evaluate_every}
    if times:
        judged = [phase for phase in open_ if phase.chain in times]
        of_nanobeir = ", or on NanoBEIR's 57,000, if it can be had" if size.nanobeir else ""
        said.append(
            f"`evaluate_every` judges {sum(times.values())} times while training, on at most {texts:,} texts"
            f"{_seconds(judged, texts, times)}{of_nanobeir}"
        )
    if recipe.leaks and open_:
        said.append(
            "Before training, the collections are looked for in the sources: at most about two minutes on two cores; "
            "`leaks: false` leaves it out"
        )
    return said


def _phases(count: int) -> str:
    return "the phase" if count == 1 else f"each of {count} phases"


def _seconds(phases: list[PlannedPhase], texts: int, times: Mapping[tuple[str, ...], int]) -> str:
    """How long encoding so many texts takes after each phase, or so many times, in words; nothing if not known."""
    of_text = {
        phase.chain: phase.counts.tokens / phase.counts.texts / token_passes(phase.counts) * phase.pace.median
        for phase in phases
        if phase.pace
    }
    if not of_text or any(phase.trains and phase.chain not in of_text for phase in phases):
        return ""
    others = sum(of_text.values()) / len(of_text)  # of those that are not trained, which have no steps to measure
    taken = sum(times.get(phase.chain, 1) * of_text.get(phase.chain, others) for phase in phases)
    return f", about {duration(texts * taken)} in all"


def disk_words(phases: list[PlannedPhase], needed: Disk) -> str:
    """Bytes of what phases leave behind, and of what the study's folder needs while they are trained."""
    models = sum(phase.model_bytes or 0 for phase in phases if not phase.done)
    more = "" if needed.checkpoints is None else f"; {needed.words()}"
    return f"Disk: {decimal(models)} of finished models{more}"


def beside_published(name: str, groups: Mapping[str, tuple[float, float]], machine: Machine) -> list[str]:
    """What its authors spent on a recipe's pipelines, beside what is planned.

    Args:
        name: The recipe.
        groups: Device-hours by pipeline, or by pipeline and phase.
        machine: Planned for.
    """
    known = published()["hours"].get(name)
    if known is None or machine.device is None:
        return []
    said = []
    for what, hours in (known.get("phases", {}) | known.get("pipelines", {})).items():
        planned = f", here {span(groups[what])}" if what in groups else ""
        said.append(f"{what}: published {hours:g} {known['device']}-hours ({known['source']}){planned}")
    return [*said, *known.get("why", [])]


def published_scores(recipe: str) -> dict[str, tuple[float, str]]:
    """nDCG@10 on BEIR's fifteen of the paper's pipelines, with its source; of other recipes none is known."""
    if not recipe.startswith("paper-"):
        return {}
    means = published_means("beir")
    return {name: means[row] for name, row in published()["pipelines"].items()}


def within(
    budget: float, groups: Mapping[str, tuple[float, float]], scores: Mapping[str, tuple[float, str]]
) -> list[str]:
    """Which pipelines fit a budget, the best first, with the evidence.

    Args:
        budget: Device-hours.
        groups: Device-hours of each pipeline.
        scores: nDCG@10 of pipelines by name, and where it is from: an own study, or the paper for its own recipes.
    """
    fits = [name for name, hours in groups.items() if hours[1] <= budget]
    maybe = [name for name, hours in groups.items() if hours[0] <= budget < hours[1]]
    ranked = sorted((name for name in fits if name in scores), key=lambda name: -scores[name][0])
    said = []
    if ranked:
        score, source = scores[ranked[0]]
        said.append(f"within {budget:g} device-hours the best is {ranked[0]}: nDCG@10 {score:.4f} ({source})")
        said += [f"  also {name}: {scores[name][0]:.4f}" for name in ranked[1:]]
    said += [f"  {name} fits, of which no score is known" for name in fits if name not in scores]
    said += [f"  {name} may fit: {span(groups[name])}" for name in maybe]
    said += [f"  {name} does not fit: {span(groups[name])}" for name in groups if name not in (*fits, *maybe)]
    if not fits:
        said.insert(0, f"within {budget:g} device-hours no pipeline surely fits")
    own = any(source == OWN for _, source in scores.values())
    unknown = "whether it holds on other data and seeds" if own else "how they compare on your data"
    return [*said, f"  unknown: {unknown}"]
