"""A model's card, the README.md of its folder: a page made of records alone, as the report is.

It is written when a model is saved, from its phases' records, and once more when its study has scored it. It is no part
of the model: whoever fingerprints a model's folder leaves it out (`is_card`).
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_file
from colbert_zero.report.answer import sentence_about, tests
from colbert_zero.report.page import environment, markdown
from colbert_zero.report.records import MEASURE, SEEN, Record, Records, read_record
from colbert_zero.report.tables import Table, mean_label
from colbert_zero.report.untrained import done_in_words, is_untrained
from colbert_zero.report.words import duration, number, operations, points, quantity

CARD = "README.md"
HERE = "path/to/this/folder"
"""Stands in the card's examples for where the model is; `publish` puts a repository's name in its place."""
MARK = "<!-- Written by colbert-zero from its records, and anew with them. To keep a text of your own, delete this. -->"
_MARK_WITHIN = 1 << 18
_CLASS = {"multi-vector": "MultiVectorEncoder", "dense": "SentenceTransformer", "cross-encoder": "CrossEncoder"}
_TAGS = {
    "multi-vector": ["multi-vector", "ColBERT", "late-interaction"],
    "dense": ["dense"],
    "cross-encoder": ["cross-encoder", "reranker"],
}
_TASK = {"multi-vector": "feature-extraction", "dense": "sentence-similarity", "cross-encoder": "text-ranking"}
_BY_SENTENCE_TRANSFORMERS = 6
"""Major version of the one that writes our checkpoints."""


@dataclass(frozen=True)
class Scored:
    """A model as a system of its study.

    Attributes:
        records: The study's.
        system: Its name there.
        recipe: recipe.json, {} where there is none.
    """

    records: Records
    system: str
    recipe: Record


def is_card(file: Path) -> bool:
    """Whether a file is a card that this program wrote, and so no part of the model beside it."""
    if file.name != CARD:
        return False
    with suppress(OSError), open(file, "rb") as opened:
        return MARK.encode() in opened.read(_MARK_WITHIN)
    return False


def write_card(phase: Path) -> None:
    """Write the card of a model that was just saved, without scores.

    Args:
        phase: Its phase's folder, with phase.json and model/; beside it are those of the phases before.
    """
    _write(phase / "model", _card_of_phase(phase))


def write_cards(study: Path) -> list[str]:
    """Write the cards of all models that a study has scored.

    Args:
        study: Its folder.

    Returns:
        What to tell: cards that were left as they are, since somebody else wrote them.

    Raises:
        ColbertZeroError: There is no results.json, or a record is damaged; names the file.
    """
    records = Records(study)
    told = []
    for identity, system in _systems(records).items():
        model = next(study.glob(f"phases/*-{identity}/model"), None)
        if model is not None and not _write(model, _card_of_system(study, records, system)):
            told.append(f"{model / CARD} is not this program's and is left as it is")
    return told


def card_of(model: Path) -> str | None:
    """The card of a model from the records beside it: its study's, else its phases'; None where there are none.

    Raises:
        ColbertZeroError: A record is damaged; names the file.
    """
    phase, study = model.parent, model.parent.parent.parent
    if not (phase / "phase.json").is_file():
        return None
    if (study / "results.json").is_file():
        records = Records(study)
        if system := system_of(records, phase.name):
            return _card_of_system(study, records, system)
    return _card_of_phase(phase)


def system_of(records: Records, phase: str) -> str | None:
    """The system that the model in a phase's folder is, by the folder's name."""
    found = _systems(records).items()
    return next((system for identity, system in found if phase.endswith(f"-{identity}")), None)


def _systems(records: Records) -> dict[str, str]:
    """Of each scored model the name it goes by: of several the last one, a pipeline's own."""
    single = {name: s for name, s in records.systems.items() if s["phases"] and s["kind"] != "ensemble"}
    scored = {name: system["phases"][-1]["id"] for name, system in single.items()}
    return {identity: name for name, identity in scored.items() if identity in records.phases}


def name_of(records: Records, system: str) -> str:
    """What a system's model is called outside of its study."""
    return f"{records.recipe}-{system}".replace("@", "-").replace("+", "-")


def _card_of_system(study: Path, records: Records, system: str) -> str:
    recipe = read_record(study / "recipe.json", (), optional=True)
    return card(name_of(records, system), records.way(system), Scored(records, system, recipe))


def _card_of_phase(phase: Path) -> str:
    chain = [read_record(phase / "phase.json", ("id", "name", "chain"))]
    while parent := chain[0].get("parent"):
        before = next(phase.parent.glob(f"*-{parent}/phase.json"), None)
        if before is None:  # it was trained elsewhere
            break
        chain.insert(0, read_record(before, ("id", "name", "chain")))
    return card(chain[-1]["name"], chain, None)


def _write(model: Path, text: str) -> bool:
    """Write a card, unless somebody else's is there."""
    if (model / CARD).exists() and not is_card(model / CARD):
        return False
    with atomic_file(model / CARD) as file:
        file.write(text)
    return True


def card(name: str, phases: list[Record], scored: Scored | None) -> str:
    """A model's card: what the Hub reads of it as YAML, then the page.

    Args:
        name: Of the model.
        phases: Records of its phases in their order, its own last.
        scored: What its study found; None where it has not been evaluated.
    """
    own = phases[-1]
    return _page(
        name,
        own["representation"],
        _yaml(name, phases, scored),
        facts=_facts(own, phases[0], scored),
        prompted=any(own["prompts"].values()),
        base=phases[0].get("base"),
        phases=[phase["name"] for phase in phases],
        whole=len(phases) >= len(own["chain"]),  # more where others are merged into it
        scores=_scores(scored) if scored else None,
        seen=bool(scored and scored.records.seen),
        compared=_compared(scored) if scored else [],
        training=_training(phases),
        data=_data(phases, scored),
        told=[line for phase in phases for line in phase.get("told", [])],
    )


def bare_card(name: str, kind: str) -> str:
    """The card of a model without records: what it is, and how to load it.

    Args:
        name: Of the model.
        kind: multi-vector, dense or cross-encoder.
    """
    return _page(
        name, kind, _hub_data(kind).to_yaml(), facts=[], prompted=False, base=None, phases=[], whole=True,
        scores=None, seen=False, compared=[], training=None, data=None, told=[],
    )  # fmt: skip


def _page(name: str, kind: str, yaml: str, **parts: Any) -> str:
    template = environment({"finalize": markdown}).get_template("card.md.j2")
    body = template.render(
        name=name, kind=kind, class_name=_CLASS[kind], here=HERE, mark=SEEN, version=_BY_SENTENCE_TRANSFORMERS, **parts
    )
    return f"---\n{yaml}\n---\n{MARK}\n\n{body.rstrip()}\n"


def with_licence(text: str, licence: str) -> str:
    """A card with this licence, in place of any other.

    Raises:
        ColbertZeroError: What stands before the text is no YAML.
    """
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(text)
    except Exception as error:
        raise ColbertZeroError(f"{CARD}: the lines between --- and --- are no YAML ({error}); mend them") from None
    read.data["license"] = licence
    return str(read.content)


def licence_of(text: str) -> str | None:
    """The licence that a card names."""
    from huggingface_hub import ModelCard

    with suppress(Exception):  # of a card that somebody else wrote, in any way
        named = ModelCard(text, ignore_metadata_errors=True).data.get("license")
        return str(named) if named else None
    return None


def _hub_data(kind: str, **more: Any) -> Any:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag=_TASK[kind],
        tags=["sentence-transformers", *_TAGS[kind], "information-retrieval", "colbert-zero"],
        **more,
    )


def _yaml(name: str, phases: list[Record], scored: Scored | None) -> str:
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type="information-retrieval", task_name="Information Retrieval",
            dataset_type=scored.records.collections[collection].get("name", collection), dataset_name=collection,
            metric_type=measure.lower().replace("@", "_at_"), metric_name=measure, metric_value=round(value, 6),
        )
        for collection, measures in scored.records.systems[scored.system]["scores"].items()
        for measure, value in measures.items()
    ] if scored else None  # fmt: skip
    hub = {spec["path"] for spec in _specs(phases, scored).values() if spec["kind"] == "hub" and _on_hub(spec["path"])}
    data = _hub_data(
        phases[-1]["representation"], base_model=phases[0].get("base"), datasets=sorted(hub) or None,
        model_name=name if results else None, eval_results=results,
    )  # fmt: skip
    return str(data.to_yaml())


def _facts(own: Record, first: Record, scored: Scored | None) -> list[tuple[str, str]]:
    """What a user of the model has to know of it."""
    facts = [("parameters", quantity(own.get("parameters")))]
    base = _base_in_words(first, scored)
    facts += [("trained from", base)] if base else []
    if scored and own["representation"] == "multi-vector" and (dim := scored.recipe.get("model", {}).get("dim")):
        facts.append(("numbers a token", str(dim)))
    without = "of the text alone" if own.get("lengths") == "text" else "with all that is put around the text"
    if own["query_tokens"] and own["document_tokens"]:  # a base that says nothing of them may have been cut
        facts.append(
            ("longest", f"queries {own['query_tokens']} tokens, documents {own['document_tokens']}, {without}; what is "
             "longer is cut off")
        )  # fmt: skip
    for role, prompt in own["prompts"].items():
        marker = own.get("markers", {}).get(role, "")
        begins = f"{marker} {prompt}" if marker and not prompt.startswith(marker) else prompt
        facts.append((f"before a {role}", json.dumps(begins, ensure_ascii=False) if begins else "nothing"))
    if own["representation"] == "multi-vector":
        facts += [("skipped in documents", " ".join(own["skip_list"]))] if own.get("skip_list") else []
        filled = {"attend": "yes, and attended to", "ignore": "yes, not attended to"}.get(
            own.get("query_expansion", "")
        )
        facts += [("queries filled up", filled)] if filled else []
        facts += [("documents' tokens pooled", f"{own['pool']:g} into one")] if own.get("pool", 1) > 1 else []
    return facts


def _base_in_words(first: Record, scored: Scored | None) -> str | None:
    """What the first phase began from; a folder by its last name, since where it lay is nobody's business."""
    if base := first.get("base"):
        return f"{base} at commit {first['base_commit']}" if first.get("base_commit") else str(base)
    model = scored.recipe.get("model", {}) if scored else {}
    if model.get("architecture"):
        return f"random weights, architecture {model['architecture'].get('model_type')}"
    return f"the folder {os.path.basename(str(model['base']).rstrip('/'))}" if model.get("base") else None


def _scores(scored: Scored) -> Table:
    """The model's scores beside those of the baselines."""
    records, system = scored.records, scored.system
    beside = [name for name in [*records.baselines("lexical"), *records.baselines("dense")[:1]] if name != system]
    own = records.systems[system]["scores"]
    measures = sorted({m for scores in own.values() for m in scores}, key=lambda m: (m != MEASURE, m))
    rows = [
        [records.label(name),
         *(points(own[name].get(measure)) for measure in measures),
         *(points(records.systems[other]["scores"].get(name, {}).get(MEASURE)) for other in beside),
         number(records.collections[name].get("queries"))]
        for name in records.collections
    ]  # fmt: skip
    if len(rows) > 1:
        means = [records.mean(own, measure) for measure in measures]
        rows.append([mean_label(records), *map(points, means), *(points(records.means[name]) for name in beside), ""])
    columns = ["collection", *measures, *(f"{name}: {MEASURE}" for name in beside), "queries"]
    return Table("Scores × 100", columns, [("", rows)])


def _compared(scored: Scored) -> list[str]:
    """What the study's tests say of this model and the others."""
    records, system = scored.records, scored.system
    lines = []
    for other in sorted(records.means, key=lambda name: -records.means[name]):
        if other == system or system not in records.means or not tests(records, system, other):
            continue
        gap = records.means[system] - records.means[other]
        high, low = (system, other) if gap >= 0 else (other, system)
        where = f"{points(abs(gap))} points {'above' if gap >= 0 else 'below'} {other}"
        lines.append(f"{where}: {sentence_about(records, high, low)[1]}")
    return lines


def _training(phases: list[Record]) -> Table:
    rows = []
    for phase in phases:
        sources = {part.partition("/")[0] for part in phase["sources"]}
        if is_untrained(phase):
            rows.append([
                phase["name"], done_in_words(phase), ", ".join(sorted(sources)) or "–", "–", "–",
                quantity(phase["texts"]), quantity(phase["tokens"]), operations(phase["flops"]),
                duration(phase["device_seconds"]), phase["machine"]["device"],
            ])  # fmt: skip
            continue
        steps = f"{phase['steps']:,} × {phase['global_batch_size']:,}"
        device = phase.get("machine", {}).get("device", "–")
        counted = phase.get("cpu_seconds") is not None
        rows.append([
            phase["name"], f"{phase['representation']}, {phase['objective']}", ", ".join(sorted(sources)), steps,
            f"{phase['learning_rate']:g}", quantity(phase["texts"]), quantity(phase["tokens"]),
            operations(phase["flops"]) if counted else "–", duration(phase["device_seconds"]), device,
        ])  # fmt: skip
    columns = ["phase", "objective", "sources", "steps × queries", "learning rate", "texts", "tokens", "compute",
               "device time", "device"]  # fmt: skip
    return Table("", columns, [("", rows)], words=(0, 1, 2, 9))


def _specs(phases: list[Record], scored: Scored | None) -> dict[str, Record]:
    """The recipe's entries of the sources that the phases read, and of those that these are made of."""
    entries = scored.recipe.get("sources", {}) if scored else {}
    names = [part.partition("/")[0] for phase in phases for part in phase["sources"]]
    for name in names:  # grows
        if (of := entries.get(name, {}).get("of")) and of not in names:
            names.append(of)
    return {name: entries[name] for name in dict.fromkeys(names) if name in entries}


def _data(phases: list[Record], scored: Scored | None) -> Table:
    """What it was trained on: as the study's records have it, or each phase's own where it has not ended."""
    known = scored.records.data.get("sources", {}) if scored else {}
    rows = []
    for name, spec in _specs(phases, scored).items():
        count = known.get(name, {}).get("rows")
        rows.append([name, spec["kind"], _origin(spec), number(count), _licence(spec)])
    if not rows:
        counts: dict[str, int] = {}
        for phase in phases:
            for part, of in phase["sources"].items():
                counts[part] = max(counts.get(part, 0), of["rows"])
        totals: dict[str, int] = {}
        for part, count in counts.items():
            source = part.partition("/")[0]
            totals[source] = totals.get(source, 0) + count
        rows = [[name, "–", "–", number(count), "–"] for name, count in totals.items()]
    return Table("", ["source", "kind", "from", "rows", "licence"], [("", rows)], words=(0, 1, 2, 4))


def _origin(spec: Record) -> str:
    """Where a source's rows are from; of files their names alone."""
    if spec["kind"] == "docstrings":
        packages = spec.get("packages")
        return f"docstrings of {', '.join(packages)}" if packages else "docstrings of all installed packages"
    if spec["kind"] == "mined":
        return f"hard negatives for {spec['of']}"
    if spec["kind"] == "scored":
        return f"scores of the teacher {spec['teacher']} for {spec['of']}"
    paths: Any = spec.get("path") or [path for key in ("queries", "documents") if (path := spec.get(key))]
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    if spec["kind"] == "hub" and _on_hub(paths[0]):
        return f"{paths[0]} at {spec['revision']}" if spec.get("revision") else str(paths[0])
    return ", ".join(os.path.basename(path.rstrip("/")) for path in paths)


def _on_hub(path: str) -> bool:
    return not path.startswith((".", "/", "~")) and path.count("/") < 2 and not os.path.isdir(path)


def _licence(spec: Record) -> str:
    """Where a source's licence is to be read: no record has one."""
    if spec["kind"] in ("mined", "scored"):
        return f"as {spec['of']}"
    if spec["kind"] == "docstrings":
        return "each package's own"
    return "on its page" if spec["kind"] == "hub" and _on_hub(str(spec["path"])) else "not recorded"
