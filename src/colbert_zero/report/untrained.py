"""Phases that were not trained: cut, merged, adapted; in words and as a table."""

from colbert_zero.report.records import Record, Records, chain_of
from colbert_zero.report.words import duration, listed, number, percent, points, quantity, size

DONE = {"compress": "cut", "merge": "merged", "adapt": "adapted"}


def is_untrained(phase: Record) -> bool:
    """Whether a phase trained nothing."""
    return bool(phase.get("kind", "train") != "train")


def done_in_words(phase: Record) -> str:
    """What was done with the start: `cut: layers 0, 2 of 4; half of the numbers in them 0`."""
    made, kind = phase["made"], phase["kind"]
    if kind == "compress":
        said = []
        if len(made["layers_kept"]) < made["layers_before"]:
            kept = ", ".join(map(str, made["layers_kept"]))
            said.append(f"layer{'s' if len(made['layers_kept']) > 1 else ''} {kept} of {made['layers_before']}")
        if made["asked"]["neurons"] < 1:
            said.append(f"{percent(made['asked']['neurons'])} of neurons")
        if made["vocabulary"] != made["vocabulary_before"]:
            said.append(f"{made['vocabulary']:,} of {made['vocabulary_before']:,} tokens")
        if made["asked"]["zeros"]:
            said.append(f"{made['zeros']:,} of {made['zeros_of']:,} numbers in layers 0")
        if made["bits"]:
            said.append(f"on a grid of {made['bits']} bits")
        return f"cut to {'; '.join(said) or 'what it was'}"
    if kind == "merge":
        weights = " : ".join(number(round(weight, 4)) for weight in made["weights"])
        return f"merged with {listed(list(phase['merged']))}, {phase['asked']['method']}, {weights}"
    domains = listed([str(name) for name in made["domains"]])
    return f"adapted to {domains}" if made["helps"] else f"not adapted to {domains}: it {made['verdict']}"


def untrained_rows(records: Records) -> list[list[str]]:
    """A row a phase that was not trained: what was done, and how large its model is before and after."""
    rows = []
    for phase in (phase for phase in records.phases.values() if is_untrained(phase)):
        cosine = phase["made"].get("deviation", {}).get("cosine")
        rows.append([
            chain_of(phase), done_in_words(phase), size(phase["bytes_before"]), size(phase["model_bytes"]),
            quantity(phase["parameters_before"]), quantity(phase["parameters"]),
            "–" if cosine is None else f"{cosine:.4f}", duration(phase["wall_seconds"]),
        ])  # fmt: skip
    return rows


def domain_rows(records: Records) -> list[list[str]]:
    """A row a domain of each adapter: pairs, and nDCG@10 on those that were held out, before and after."""
    rows = []
    for phase in (phase for phase in records.phases.values() if phase.get("kind") == "adapt"):
        for name, about in phase["made"]["domains"].items():
            gained = points(about["after"] - about["before"], signed=True)
            pairs = [number(about[key]) for key in ("fitted", "held_out", "left_out")]
            rows.append([chain_of(phase), name, *pairs, points(about["before"]), points(about["after"]), gained])
    return rows


DOMAINS = ["phase", "domain", "pairs fitted", "held out", "left out", "before", "after", "difference"]

COLUMNS = ["phase", "what was done", "bytes before", "after", "parameters before", "after", "cosine of vectors", "time"]


def cut_before(records: Records, pipeline: str) -> Record | None:
    """The first record of a cut on a pipeline's own way; None where nothing was cut."""
    return next((phase for phase in records.way(pipeline) if phase.get("kind") == "compress"), None)


def some_cut(records: Records) -> bool:
    """Whether a finished pipeline has a cut model."""
    return any(cut_before(records, name) for name in records.pipelines())


def last_phase(records: Records, system: str) -> Record:
    """The record of a system's last phase, empty where there is none."""
    phases = records.systems[system]["phases"]
    return records.phases.get(phases[-1]["id"], {}) if phases else {}


def uncut(records: Records, pipeline: str) -> str | None:
    """The system that a pipeline's first cut started from, if it was scored; of several names a pipeline's own."""
    cut = cut_before(records, pipeline)
    named = {s["phases"][-1]["id"]: n for n, s in records.systems.items() if s["phases"] and s["kind"] != "ensemble"}
    return named.get(cut["parent"]) if cut else None


def smaller(records: Records, pipeline: str) -> tuple[bool, str]:
    """Whether a pipeline's model takes fewer bytes than before its first cut, and what it takes in words."""
    cut, after = cut_before(records, pipeline), last_phase(records, pipeline)
    assert cut
    before, now = cut["bytes_before"], after.get("model_bytes") or cut["model_bytes"]
    text = f"{pipeline} takes {size(now)}"
    if now < before:
        text += f" of {size(before)} before it was cut, {percent(now / before)}"
    text += f"; {quantity(after.get('parameters'))} parameters of {quantity(cut['parameters_before'])}"
    if zeros := after.get("zeros"):
        text += f"; {zeros['zeros']:,} of {zeros['zeros_of']:,} numbers in its layers are 0"
    return now < before, text


def fitted(phase: Record) -> str:
    """What an adapter did on its own held-out pairs."""
    return f"{chain_of(phase)}: {phase['made']['verdict']}" + (
        "" if phase["made"]["helps"] else "; the model is its start's"
    )
