"""A run's JSON records → one HTML page and one Markdown file: the answer first, then what it rests on.

Nothing is measured here: the same records give the same bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError
from colbert_zero.records import atomic_file, read_json

MEASURE = "nDCG@10"
SIGNIFICANT = 0.05
TOP_SOURCES = 15
SYSTEM_KEYS = ("kind", "pipeline", "after", "representation", "phases", "device_seconds", "scores")
Record = dict[str, Any]


class Best(str):
    """A table's cell that holds the best score of its column."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the columns at these positions are words, the others figures."""

    title: str
    columns: list[str]
    groups: list[tuple[str, list[list[str]]]]
    words: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Plot:
    """A drawing twice over: SVG that follows the page's colours, and PNG for the Markdown file."""

    name: str
    title: str
    shows: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    terms: list[tuple[str, str]] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def _read(path: Path, keys: tuple[str, ...], optional: bool = False) -> Record:
    """A JSON record with at least these keys; {} for an optional one that was not written."""
    if optional and not path.is_file():
        return {}
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ColbertZeroError(
            f"{path} is not readable JSON ({error}): restore it, or delete it and run the recipe again."
        ) from error
    missing = [key for key in keys if key not in record]
    if missing or not isinstance(record, dict):
        lacks = f"lacks {', '.join(missing)}" if missing else "is no JSON object"
        raise ColbertZeroError(f"{path} {lacks}: restore it, or delete it and run the recipe again.")
    return record


class Study:
    """The records of one folder, read and checked."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "results.json").is_file():
            raise ColbertZeroError(
                f"{folder} holds no results.json, so there is nothing to report: "
                f"run `colbert-zero run RECIPE --out {folder}` first."
            )
        results = _read(folder / "results.json", ("recipe", "collections", "systems", "comparisons"))
        for name, system in results["systems"].items():
            missing = [key for key in SYSTEM_KEYS if key not in system]
            if missing:
                raise ColbertZeroError(f"{folder / 'results.json'}: {name} lacks {', '.join(missing)}.")
        self.recipe: str = results["recipe"]
        self.collections: dict[str, Record] = results["collections"]
        self.systems: dict[str, Record] = results["systems"]
        self.comparisons: list[Record] = results["comparisons"]
        needed = {phase["id"] for system in self.systems.values() for phase in system["phases"]}
        read = [_read(path, ("id", "name", "chain", "losses")) for path in folder.glob("phases/*/phase.json")]
        self.phases: dict[str, Record] = {
            phase["id"]: phase
            for phase in sorted(read, key=lambda phase: (len(phase["chain"]), phase["chain"], phase["id"]))
            if phase["id"] in needed
        }
        self.teachers = _read(folder / "teachers.json", (), optional=True)
        self.data = _read(folder / "data.json", (), optional=True)
        self.environment = _read(folder / "environment.json", (), optional=True)
        means = {name: self.mean(system["scores"]) for name, system in self.systems.items()}
        self.means: dict[str, float] = {name: mean for name, mean in means.items() if mean is not None}

    def mean(self, scores: Record, measure: str = MEASURE) -> float | None:
        """Mean of a measure over all collections; None if one of them has no score."""
        values = [scores.get(collection, {}).get(measure) for collection in self.collections]
        if not values or None in values:
            return None
        return math.fsum(values) / len(values)

    def pipelines(self) -> list[str]:
        """Finished pipelines that have all their scores, the best first."""
        names = [n for n, s in self.systems.items() if s["kind"] == "pipeline" and s["after"] is None]
        return sorted((n for n in names if n in self.means), key=lambda n: (-self.means[n], self.cost(n), n))

    def baselines(self, representation: str) -> list[str]:
        """Baselines of one representation that have all their scores, the best first."""
        names = [
            n for n, s in self.systems.items() if s["kind"] == "baseline" and s["representation"] == representation
        ]
        return sorted((n for n in names if n in self.means), key=lambda n: (-self.means[n], n))

    def cost(self, system: str) -> float:
        """Device-seconds of a system's phases, from zero."""
        return float(self.systems[system]["device_seconds"])

    def pre_training(self, pipeline: str) -> int:
        """How many of a pipeline's phases are contrastive and multi-vector: the title's *pre-training*."""
        phases = [self.phases.get(phase["id"], {}) for phase in self.systems[pipeline]["phases"]]
        return sum(p.get("objective") == "contrastive" and p.get("representation") == "multi-vector" for p in phases)

    def checkpoints(self, pipeline: str) -> list[str]:
        """The systems a pipeline passes through, itself last: dense ones and shared ones too."""
        phases = [phase["id"] for phase in self.systems[pipeline]["phases"]]
        by_id = {s["phases"][-1]["id"]: name for name, s in self.systems.items() if s["phases"]}
        path = [by_id.get(phase) for phase in phases[:-1]]
        return [name for name in path if name in self.means] + [pipeline]


# Numbers in words


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would choose: `3.1 min`."""
    unit, name = _unit(seconds)
    return f"{_short(seconds / unit)} {name}"


def _unit(seconds: float) -> tuple[float, str]:
    for unit, name, limit in ((1, "s", 90), (60, "min", 90 * 60), (3600, "h", 48 * 3600)):
        if seconds < limit:
            return unit, name
    return 86400, "days"


def _short(value: float) -> str:
    return f"{value:.1f}" if 0 < abs(value) < 9.95 else f"{value:,.0f}"


def quantity(value: float | None) -> str:
    """A count in thousands, millions, …: `1.70 M`; an en dash where there is none."""
    if value is None:
        return "–"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:,.0f}"


def points(score: float | None, signed: bool = False) -> str:
    """A score between 0 and 1, times 100, two decimals."""
    if score is None:
        return "–"
    return f"{100 * score:{'+' if signed else ''}.2f}".replace("-", "−")


def _probability(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def fraction(ratio: float) -> str:
    """A share in words: `a tenth`, `about a third`, `42 %`."""
    words = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth", 20: "a twentieth"}
    nearest = round(1 / ratio) if ratio > 0 else 0
    if nearest in words and abs(ratio * nearest - 1) < 0.06:
        return ("" if abs(ratio * nearest - 1) < 0.01 else "about ") + words[nearest]
    return f"{100 * ratio:.2g} %" if ratio < 1 else f"{ratio:.3g} times"


def _price(cost: float, whole: float) -> str:
    """`a tenth of the compute (3.1 of 31 device-minutes)`."""
    unit, name = _unit(whole)
    words = {"s": "seconds", "min": "minutes", "h": "hours", "days": "days"}
    share = fraction(cost / whole) if whole > 0 else "all"
    return f"{share} of the compute ({_short(cost / unit)} of {_short(whole / unit)} device-{words[name]})"


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# The answer


def tests(study: Study, a: str, b: str) -> list[Record]:
    """The recorded tests of two systems on the report's measure, turned so that differences are a − b."""
    found = []
    for test in study.comparisons:
        if test["measure"] != MEASURE or {test["a"], test["b"]} != {a, b}:
            continue
        low, high = test["interval"]
        turned = {"difference": -test["difference"], "interval": [-high, -low]} if test["a"] == b else {}
        found.append(test | turned)
    return found


def _interval(test: Record) -> str:
    return " to ".join(points(bound, signed=True) for bound in test["interval"])


def _is_significant(test: Record) -> bool:
    return bool(test["p_value_holm"] < SIGNIFICANT)


def compare(study: Study, a: str, b: str) -> tuple[bool, str]:
    """Whether a, whose mean is higher, is shown to be better than b; and the evidence in words.

    The test on the mean over collections (`collection` null) decides, or the one on the only collection; tests on
    single ones of several are detail.
    """
    found = tests(study, a, b)
    whole = [test for test in found if test["collection"] is None or len(study.collections) == 1]
    if not whole:
        return False, "not tested"
    shown = _is_significant(whole[0]) and whole[0]["difference"] > 0
    p, verdict = _probability(whole[0]["p_value_holm"]), "significant" if shown else "not significant"
    text = f"95 % interval {_interval(whole[0])}, Holm-corrected {p}: {verdict}"
    single = [test for test in found if test["collection"] is not None and _is_significant(test)]
    parts = [
        f"{word} on {len(some)} ({_examples(some)})"
        for word, sign in (("better", 1), ("worse", -1))
        if (some := [test for test in single if sign * test["difference"] > 0])
    ]
    if len(study.collections) > 1 and parts:
        text += f"; of {len(study.collections)} collections by themselves {', '.join(parts)}"
    return shown, text


def _examples(found: list[Record]) -> str:
    """Up to three differences, the largest first, with their intervals and the largest p of all."""
    ordered = sorted(found, key=lambda test: -abs(test["difference"]))
    shown = [
        f"{test['collection']} {points(test['difference'], signed=True)}, 95 % interval {_interval(test)}"
        for test in ordered[:3]
    ]
    p = max(test["p_value_holm"] for test in found)
    limit = f"p ≤ {p:.3f}" if p >= 0.001 else "p < 0.001"
    return "; ".join([*shown, *(["…"] if len(found) > 3 else []), f"Holm-corrected {limit}"])


def choice(study: Study, pipelines: list[str]) -> str:
    """The cheapest pipeline (they come best first) above BM25 that is not shown to be worse than the best."""
    best = pipelines[0]
    floor = max((study.means[name] for name in study.baselines("lexical")), default=0.0)
    equal = [p for p in pipelines[1:] if study.means[p] > floor and not compare(study, best, p)[0]]
    return min([best, *equal], key=lambda p: (study.cost(p), pipelines.index(p)))


def _verdict(study: Study, pipelines: list[str]) -> str:
    """The title's question, for this data: how much multi-vector pre-training the chosen pipeline has."""
    amounts = {p: study.pre_training(p) for p in pipelines}
    taken = amounts[choice(study, pipelines)]
    if min(amounts.values()) == max(amounts.values()):
        return "The answer"
    if taken == max(amounts.values()):
        return "To pre-train"
    return "Not to pre-train" if taken == min(amounts.values()) else "To pre-train in part"


def headline(study: Study) -> str:
    """The answer in one sentence."""
    pipelines = study.pipelines()
    if not pipelines:
        return "No pipeline is finished yet: there is nothing to compare."
    best = pipelines[0]
    if not _beats_bm25(study, best):
        return (
            f"None of these: BM25, which needs no training, scores "
            f"{points(study.means[study.baselines('lexical')[0]])}; the best pipeline, {best}, only "
            f"{points(study.means[best])}."
        )
    if len(pipelines) == 1:
        return f"Only one pipeline was run, {best}: this study cannot say whether more pre-training pays."
    taken, verdict = choice(study, pipelines), _verdict(study, pipelines)
    beaten = [p for p in pipelines[1:] if compare(study, best, p)[0]]
    if len(beaten) == len(pipelines) - 1:
        others = "every other pipeline" if len(beaten) > 1 else beaten[0]
        return f"{verdict}: {best} is better than {others}."
    if not beaten:
        cheapest = "the cheapest" if taken == min(pipelines, key=study.cost) else "the cheapest above BM25"
        return f"{verdict}: no pipeline is shown to be better; take {cheapest}: {taken}."
    if taken == best:
        return f"{verdict}: take {best}; it scores highest, and no cheaper pipeline keeps up."
    return f"{verdict}: take {taken}; {best} scores highest but is not shown to be better, and costs more."


def _beats_bm25(study: Study, pipeline: str) -> bool:
    return all(study.means[pipeline] > study.means[name] for name in study.baselines("lexical"))


def findings(study: Study) -> list[tuple[str, str]]:
    """The answer's reasons: (what it is about, the finding)."""
    pipelines = study.pipelines()
    if not pipelines:
        return []
    best, found = pipelines[0], []
    over = "" if len(study.collections) == 1 else f" over {len(study.collections)} collections"
    measure = MEASURE if not over else f"mean {MEASURE}"
    reach = f"{best} reaches {measure} {points(study.means[best])}{over} for {_device(study, best)}"
    if len(pipelines) == 1:
        found.append(("Score", f"{reach}. Add a second pipeline to the recipe, and the two are compared."))
    else:
        found.append(("Best score", f"{reach}: {_gap(study, best, pipelines[1])}."))
        cheaper = [p for p in pipelines[1:] if study.cost(p) < study.cost(best)]
        found += [("For less", _for_less(study, best, p, p != pipelines[1])) for p in cheaper]
        if _beats_bm25(study, best):
            found.append(("By budget", _by_budget(study, pipelines)))
    worse = _made_worse(study, pipelines)
    found += worse
    peak = max(study.checkpoints(best), key=lambda name: study.means[name])
    if peak != best and not any(peak in text and best in text for _, text in worse):
        found.append(("Stop earlier?", _peak(study, best, peak)))
    for label, representation in (("Against BM25", "lexical"), ("Against dense", "dense")):
        for baseline in study.baselines(representation)[:1]:
            found.append((label, _against(study, best, baseline)))
    found += [("Teacher", _against_teacher(study, name)) for name in study.teachers]
    return found


def _device(study: Study, system: str) -> str:
    return f"{duration(study.cost(system))} of device time"


def _gap(study: Study, best: str, other: str) -> str:
    gap = points(study.means[best] - study.means[other])
    return f"{gap} points more than {other}, {compare(study, best, other)[1]}"


def _for_less(study: Study, best: str, other: str, with_gap: bool) -> str:
    share = 100 * study.means[other] / study.means[best] if study.means[best] else 100.0
    text = f"{other} reaches {share:.1f} % of {best} for {_price(study.cost(other), study.cost(best))}"
    return f"{text}; {best} scores {_gap(study, best, other)}." if with_gap else f"{text}."


def _by_budget(study: Study, pipelines: list[str]) -> str:
    """The choice at each budget that buys one more pipeline."""
    steps: list[tuple[str, str]] = []
    for cost in sorted({study.cost(p) for p in pipelines}):
        taken = choice(study, [p for p in pipelines if study.cost(p) <= cost])
        if not steps or steps[-1][0] != taken:
            steps.append((taken, duration(cost)))
    later = [f"; from {cost} {name}" for name, cost in steps[1:]]
    text = f"With {steps[0][1]} of device time take {steps[0][0]}{''.join(later)}."
    dearer = [p for p in pipelines if study.cost(p) > study.cost(steps[-1][0])]
    if dearer:
        text += f" What {_list(dearer)} would cost on top is not shown to buy anything."
    return text


def _peak(study: Study, best: str, peak: str) -> str:
    gap = points(study.means[peak] - study.means[best])
    text = f"{peak}, on the way to {best}, scores {points(study.means[peak])}: {gap} points more than its end"
    return f"{text}, for {duration(study.cost(peak))}; {compare(study, peak, best)[1]}."


def _made_worse(study: Study, pipelines: list[str]) -> list[tuple[str, str]]:
    """Pipelines whose later phases took away what their own checkpoint was shown to have: a fault to understand."""
    found = []
    for pipeline in pipelines:
        for before in study.checkpoints(pipeline)[:-1]:
            shown, evidence = compare(study, before, pipeline)
            if study.means[before] > study.means[pipeline] and shown:
                lost = points(study.means[before] - study.means[pipeline])
                text = f"{pipeline} ends {lost} points below its own checkpoint {before}, {evidence}"
                mend = "a fault until understood. Stop there, or change the phases after it."
                found.append(("Made worse", f"{text}: {mend}"))
    return found


def _against(study: Study, best: str, baseline: str) -> str:
    gap = study.means[best] - study.means[baseline]
    where = "above" if gap > 0 else "below" if gap < 0 else "level with"
    text = (
        f"{best}, the best pipeline ({points(study.means[best])}), is "
        f"{points(abs(gap)) + ' points ' if gap else ''}{where} {baseline} ({points(study.means[baseline])}), "
        f"{compare(study, *(best, baseline) if gap >= 0 else (baseline, best))[1]}"
    )
    if study.systems[baseline]["representation"] == "lexical":
        if gap <= 0:
            return f"{text}. Use {baseline} until more data or longer training changes this."
        below = [p for p in study.pipelines() if not _beats_bm25(study, p)]
        return f"{text}; {_list(below)} not." if below else f"{text}."
    cost = f"{duration(study.cost(baseline))} against {duration(study.cost(best))}"
    return f"{text}, the best single-vector model ({cost} of device time)."


def _against_teacher(study: Study, name: str) -> str:
    """What a teacher could still teach: the students at or above it are the ones it pulls down."""
    mean = study.mean(study.teachers[name].get("scores", {}))
    if mean is None:
        return f"How good {name} is was not measured on these collections."
    text = f"{name} scores {points(mean)}"
    weaker = [
        (before, p)
        for p in study.pipelines()
        for before in study.checkpoints(p)[-2:-1]
        if study.systems[before]["representation"] == "multi-vector" and study.means[before] > mean
    ]
    for before, after in weaker:
        change = study.means[after] - study.means[before]
        text += (
            f", weaker than its student {before} already was ({points(study.means[before])}), which "
            f"{'gained' if change > 0 else 'lost'} {points(abs(change))} points in the last phase of {after}"
        )
    if weaker:
        lost = any(study.means[after] < study.means[before] for before, after in weaker)
        pull = "A teacher weaker than its student pulls it down" if lost else "It had little left to teach"
        return f"{text}. {pull}: try a better one."
    above = [p for p in study.pipelines() if study.means[p] > mean]
    if above:
        return f"{text}; {_list(above)} ended above it. A stronger teacher may help."
    return f"{text}: above every pipeline, so it still had something to teach."


# Tables


def _glance(study: Study) -> Table:
    best = study.pipelines()[0]
    score, cost = study.means[best] or 1.0, study.cost(best) or 1.0
    rows = []
    for name in sorted(study.pipelines(), key=study.cost):
        shown = "–" if name == best else "yes" if compare(study, best, name)[0] else "no"
        mean = _mark(points(study.means[name]), name == best)
        shares = [f"{100 * study.means[name] / score:.1f} %", f"{100 * study.cost(name) / cost:.1f} %"]
        rows.append([name, mean, shares[0], duration(study.cost(name)), shares[1], shown])
    columns = [
        "pipeline",
        f"{MEASURE} × 100",
        "share of best",
        "device time",
        "share of its time",
        "best shown better",
    ]
    return Table("Pipelines, the cheapest first", columns, [("", rows)])


def _mark(text: str, best: bool) -> str:
    return Best(text) if best else text


def _groups(study: Study) -> list[tuple[str, list[str]]]:
    """Systems under headings: the baselines, then each pipeline's checkpoints, the finished one last."""
    groups: dict[str, list[str]] = {"baselines": []}
    for name, system in study.systems.items():
        key = "baselines" if system["kind"] == "baseline" else f"pipeline {system['pipeline']}"
        groups.setdefault(key, []).append(name)
    return [
        (heading, sorted(names, key=lambda n: len(study.systems[n]["phases"])))
        for heading, names in groups.items()
        if names
    ]


def _row_label(study: Study, name: str) -> str:
    system = study.systems[name]
    if system["kind"] == "baseline" or not system["phases"]:
        return name
    finished = "" if system["after"] else f" = {name}"
    return f"after {system['after'] or system['phases'][-1]['name']}{finished}"


def _scores(study: Study, measure: str) -> Table:
    """The paper's table: systems by pipeline and phase, the mean and every collection."""
    names, with_cost = list(study.collections), measure == MEASURE
    table = {
        system: [study.mean(record["scores"], measure)]
        + [record["scores"].get(collection, {}).get(measure) for collection in names]
        for system, record in study.systems.items()
    }
    tops = [max((s for s in column if s is not None), default=None) for column in zip(*table.values(), strict=True)]
    groups = []
    for heading, systems in _groups(study):
        rows = []
        for system in systems:
            cells = [
                _mark(points(s), s is not None and points(s) == points(top))
                for s, top in zip(table[system], tops, strict=True)
            ]
            phases = study.systems[system]["phases"]
            cost = [duration(study.cost(system)) if phases else "–"]
            cost += [quantity(sum(p[key] for p in phases)) if phases else "–" for key in ("texts", "tokens")]
            rows.append([_row_label(study, system), *cells, *(cost if with_cost else [])])
        groups.append((heading, rows))
    columns = ["system", "mean", *names, *(["device time", "texts", "tokens"] if with_cost else [])]
    return Table(f"{measure} × 100", columns, groups)


def _comparisons(study: Study) -> Table:
    measures = sorted({test["measure"] for test in study.comparisons}, key=lambda m: (m != MEASURE, m))
    groups = []
    families = dict.fromkeys(test.get("family", "pipelines") for test in study.comparisons)
    for measure, family in product(measures, families):
        rows = []
        chosen = (measure, family)
        for test in (t for t in study.comparisons if (t["measure"], t.get("family", "pipelines")) == chosen):
            better = test["a"] if test["difference"] > 0 else test["b"]
            rows.append(
                [
                    f"{test['a']} − {test['b']}",
                    "mean of all" if test["collection"] is None else test["collection"],
                    f"{better} is better" if _is_significant(test) else "not shown",
                    points(test["difference"], signed=True),
                    _interval(test),
                    f"{test['p_value']:.4f}",
                    f"{test['p_value_holm']:.4f}",
                ]
            )
        if rows:
            groups.append((f"{measure}, {family}", rows))
    columns = ["difference", "collection", "verdict", "points", "95 % interval", "p", "p (Holm)"]
    return Table("Differences and their tests", columns, groups, words=(0, 1, 2))


def _chain(phase: Record) -> str:
    return " → ".join(phase["chain"])


def _phase_table(
    study: Study, title: str, columns: dict[str, Callable[[Record], str]], words: tuple[int, ...] = (0,)
) -> Table:
    rows = [[_chain(phase), *(show(phase) for show in columns.values())] for phase in study.phases.values()]
    return Table(title, ["phase", *columns], [("", rows)], words)


def _get(key: str, show: Callable[[Any], str] = _number) -> Callable[[Record], str]:
    return lambda phase: show(phase.get(key))


def _side(key: str, side: str) -> Callable[[Record], str]:
    # A prompt ends in a space: one that does not break shows it.
    return lambda phase: f"“{phase[key][side]}”".replace(" ", "\u00a0") if phase.get(key, {}).get(side) else "none"


def _phase_tables(study: Study) -> list[Table]:
    settings = {
        "trains": lambda p: f"{p.get('representation', '–')}, {p.get('objective', '–')}",
        "learning rate": _get("learning_rate"),
        "batch": _get("global_batch_size"),
        "steps": _get("steps"),
        "temperature": _get("temperature"),
        "negatives": _get("negatives"),
        "mini-batch tokens": _get("mini_batch_tokens"),
        "seed": _get("seed"),
        "last loss": lambda p: "–" if p.get("final_loss") is None else f"{p['final_loss']:.4f}",
    }
    prompts = {
        "query prompt": _side("prompts", "query"),
        "document prompt": _side("prompts", "document"),
        "query marker": _side("markers", "query"),
        "document marker": _side("markers", "document"),
        "query tokens": _get("query_tokens"),
        "document tokens": _get("document_tokens"),
    }
    cost = {
        "device time": lambda p: duration(p.get("device_seconds", 0)),
        "texts": _get("texts", quantity),
        "tokens": _get("tokens", quantity),
        "tokens per second": lambda p: (
            quantity(p["tokens"] / p["device_seconds"]) if p.get("device_seconds") and p.get("tokens") else "–"
        ),
        "floating-point operations": _get("flops", quantity),
        "peak memory": lambda p: f"{quantity(p.get('peak_memory_bytes'))}B".replace("–B", "–"),
        "parameters": _get("parameters", quantity),
        "sources": lambda p: _number(len(p.get("sources", {}))),
        "rows": lambda p: quantity(sum(s.get("rows", 0) for s in p.get("sources", {}).values())),
    }
    return [
        _phase_table(study, "Settings", settings, words=(0, 1)),
        _phase_table(study, "Prompts, markers and lengths", prompts, words=(0, 1, 2, 3, 4)),
        _phase_table(study, "Cost of each phase alone", cost),
    ]


def _sources(study: Study) -> Table:
    sources = study.data["sources"]
    ordered = sorted(sources.items(), key=lambda item: (-item[1].get("rows", 0), item[0]))
    rows = []
    for name, source in ordered[:TOP_SOURCES]:
        parts = ", ".join(f"{part} {count:,}" for part, count in source.get("parts", {}).items())
        left_out = ", ".join(f"{why} {count:,}" for why, count in source.get("dropped", {}).items() if count)
        counts = [_number(source.get(key, 0)) for key in ("rows", "held_out")]
        rows.append([name, source.get("kind", "–"), parts or "–", left_out or "–", *counts])
    others = [source for _, source in ordered[TOP_SOURCES:]]
    if others:
        left_out = _number(sum(sum(source.get("dropped", {}).values()) for source in others))
        counts = [_number(sum(source.get(key, 0) for source in others)) for key in ("rows", "held_out")]
        rows.append([f"{len(others)} others", "–", "–", left_out, *counts])
    columns = ["source", "kind", "parts", "left out", "rows", "held out"]
    return Table("Training sources", columns, [("", rows)], words=(0, 1, 2, 3))


def _collections(study: Study) -> Table:
    rows = []
    for name, sizes in study.collections.items():
        known = sizes | study.data.get("collections", {}).get(name, {})
        counts = [_number(known.get(key)) for key in ("documents", "queries", "judgements")]
        rows.append([name, str(known.get("from", "–")), *counts])
    columns = ["collection", "from", "documents", "queries", "judgements"]
    return Table("Collections to test on", columns, [("", rows)], words=(0, 1))


def _teachers(study: Study) -> Table:
    names = list(study.collections)
    rows = []
    for name, teacher in study.teachers.items():
        scores = teacher.get("scores", {})
        parts = " + ".join(f"{_number(p.get('weight'))} × {p.get('name')}" for p in teacher.get("parts", []))
        rows.append(
            [
                name,
                str(teacher.get("description", "–")),
                parts or "–",
                points(study.mean(scores)),
                *(points(scores.get(collection, {}).get(MEASURE)) for collection in names),
                _number(teacher.get("queries")),
                _number(teacher.get("n_ways")),
                duration(teacher.get("device_seconds", 0)),
            ]
        )
    columns = ["teacher", "what it is", "parts", "mean", *names, "queries", "candidates", "device time"]
    return Table(f"Teachers, {MEASURE} × 100, and the cost of their scores", columns, [("", rows)], words=(0, 1, 2))


def _environment(study: Study) -> Table:
    rows = []
    for key, value in study.environment.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else _number(value)
        rows.append([key.replace("_", " "), text])
    return Table("Environment", ["what", "value"], [("", rows)], words=(0, 1))


# Plots

# Okabe and Ito's palette: told apart with any kind of colour vision, on white and on black.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]
INK, MUTED, RULE = "#1b1e23", "#5c636d", "#d8dbe0"


def make_plot(name: str, title: str, shows: str, size: tuple[float, float], draw: Callable[[Any], None]) -> Plot:
    """Let `draw` fill a figure of this size in inches, and keep it as SVG and PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.fonttype": "none",  # the page's own font, text that can be selected
        "svg.hashsalt": name,  # without a fixed salt, each drawing has other ids
        "text.parse_math": False,  # a name with dollar signs is a name
        "font.size": 10,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The PNG's font lacks some scripts: boxes there, while the SVG and the tables show the names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Plot(name, title, shows, _inline(svg.getvalue(), name), png.getvalue())


def _inline(svg: str, name: str) -> str:
    """SVG fit to stand in a page: no prologue, ids of its own, and the page's colours for ink and rules."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, css in ((INK, "currentColor"), (MUTED, "var(--muted)"), (RULE, "var(--rule)")):
        svg = svg.replace(colour, css)
    return svg


def _annotate(axes: Any, label: tuple[float, float, str, str, bool], dx: float, dy: float) -> Any:
    x, y, words, colour, strong = label
    return axes.annotate(
        words,
        (x, y),
        (dx, dy),
        textcoords="offset points",
        ha="center" if dx == 0 else "left" if dx > 0 else "right",
        va="center" if dy == 0 else "bottom" if dy > 0 else "top",
        color=colour,
        fontsize=10 if strong else 8.5,
        fontweight="bold" if strong else "normal",
    )


def _place(figure: Any, axes: Any, labels: list[tuple[float, float, str, str, bool]]) -> None:
    """Write each (x, y, words, colour, strong) beside its point where it covers nothing.

    A weak label without such a place is left out, a strong one stands to the right of its point all the same.
    """
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    taken = [text.get_window_extent(renderer) for text in axes.texts]
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        dots = [a + step / 40 * (b - a) for a, b in pairwise(corners) for step in range(41)]
        taken += [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in [*corners, *dots]]
    spots = [(9, 0), (0, 9), (0, -9), (-9, 0), (7, 7), (7, -7), (-7, 7), (-7, -7), (0, 18), (0, -18)]
    for label in sorted(labels, key=lambda label: not label[4]):
        for dx, dy in spots:
            text = _annotate(axes, label, dx, dy)
            box = text.get_window_extent(renderer)
            inside = axes.bbox.x0 < box.x0 and axes.bbox.y0 < box.y0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            if label[4]:
                box = _annotate(axes, label, *spots[0]).get_window_extent(renderer)
        taken.append(box)


def _clip(name: str, length: int = 34) -> str:
    """A name on one line, cut in its middle if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def _quality_plot(study: Study) -> Plot | None:
    """nDCG@10 against device time: a line a pipeline, through the checkpoints it passes."""
    pipelines = study.pipelines()
    if not pipelines:
        return None
    unit, unit_name = _unit(max(study.cost(p) for p in pipelines))
    # In the order of the records, so that a pipeline keeps its colour whoever wins.
    paths = {p: study.checkpoints(p) for p in study.systems if p in pipelines}
    costs = [study.cost(name) / unit for path in paths.values() for name in path]
    logarithmic = min(costs) > 0 and max(costs) > 15 * min(costs)

    def draw(figure: Any) -> None:
        axes, labels = figure.subplots(), []
        named: set[str] = set()
        for i, (pipeline, path) in enumerate(paths.items()):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            xs, ys = [study.cost(n) / unit for n in path], [100 * study.means[n] for n in path]
            axes.plot(xs, ys, color=colour, linewidth=2, zorder=2)
            for x, y, name in zip(xs, ys, path, strict=True):
                dense = study.systems[name]["representation"] == "dense"
                axes.plot([x], [y], marker, ms=7, mec=colour, mfc="none" if dense else colour, mew=1.8, zorder=3)
                if name != pipeline and name not in named:
                    labels.append((x, y, _clip(study.systems[name]["phases"][-1]["name"]), MUTED, False))
                named.add(name)
            labels.append((xs[-1], ys[-1], _clip(pipeline), colour, True))
        axes.set_xlabel(f"device time from zero, {unit_name}{' (log scale)' if logarithmic else ''}")
        axes.set_ylabel(f"{MEASURE} × 100" + (", mean" if len(study.collections) > 1 else ""))
        if logarithmic:
            log_axis(axes)
        axes.margins(x=0.12, y=0.12)
        for name in study.baselines("lexical"):
            level = 100 * study.means[name]
            axes.axhline(level, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
            axes.annotate(
                _clip(name),
                (1, level),
                (-4, 4),
                ("axes fraction", "data"),
                "offset points",
                ha="right",
                color=MUTED,
            )
        _place(figure, axes, labels)

    ends = [f"{p} {points(study.means[p])} at {duration(study.cost(p))}" for p in pipelines]
    shows = (
        f"Each line is a pipeline, from its first checkpoint to its end: {'; '.join(ends)}. "
        "Hollow marks are dense checkpoints, filled ones multi-vector."
    )
    if study.baselines("lexical"):
        shows += " The dashed line needs no training."
    return make_plot("quality", "Quality against cost", shows, (8.6, 4.7), draw)


def log_axis(axes: Any) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _cost_plot(study: Study) -> Plot | None:
    """Device time of each pipeline, phase by phase."""
    pipelines = sorted(study.pipelines(), key=study.cost, reverse=True)
    if not pipelines:
        return None
    unit, unit_name = _unit(study.cost(pipelines[0]))
    steps = list(dict.fromkeys(ph["name"] for p in reversed(pipelines) for ph in study.systems[p]["phases"]))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, pipeline in enumerate(pipelines):
            left = 0.0
            for phase in study.systems[pipeline]["phases"]:
                width = phase["device_seconds"] / unit
                colour = COLOURS[steps.index(phase["name"]) % len(COLOURS)]
                axes.barh(row, width, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.8)
                left += width
            total = duration(study.cost(pipeline))
            axes.annotate(total, (left, row), (6, 0), textcoords="offset points", va="center", fontweight="bold")
        axes.set_yticks(range(len(pipelines)), [_clip(p, 26) for p in pipelines], color=INK)
        axes.set_xlabel(f"device time, {unit_name}")
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        handles = [axes.barh(0, 0, color=COLOURS[i % len(COLOURS)]) for i in range(len(steps))]
        names = [_clip(step) for step in steps]
        figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, handlelength=1)

    parts = [
        f"{p} {duration(study.cost(p))} ("
        + ", ".join(f"{ph['name']} {duration(ph['device_seconds'])}" for ph in study.systems[p]["phases"])
        + ")"
        for p in reversed(pipelines)
    ]
    rows = len(pipelines) + (len(steps) + 3) // 4
    shows = "Device time of each pipeline from zero, by phase: " + "; ".join(parts) + "."
    return make_plot("cost", "Where the device time goes", shows, (8.6, 0.9 + 0.46 * rows), draw)


def _smooth(values: list[float]) -> list[float]:
    """Mean over a window of a twentieth of the curve, narrower at its ends."""
    reach = max(1, len(values) // 40)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _draw_validation(axes: Any, curve: list[Record]) -> None:
    """Mean scores on the small collections, on an axis of their own."""
    right = axes.twinx()
    steps, means = [point["step"] for point in curve], [100 * point["mean"] for point in curve]
    right.plot(steps, means, "o-", color=COLOURS[1], markersize=3.5, linewidth=1.2)
    right.tick_params(labelsize=8.5, labelcolor=COLOURS[1], length=0)
    right.locator_params(axis="y", nbins=4)
    right.grid(visible=False)


def _loss_plot(study: Study) -> Plot | None:
    """A small curve a phase: every loss faint, their moving mean on top."""
    phases = [phase for phase in study.phases.values() if phase["losses"]]
    if not phases:
        return None
    columns, rows = min(3, len(phases)), math.ceil(len(phases) / 3)

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(phases) :]:
            axes.set_visible(False)
        for axes, phase in zip(grid.flat, phases, strict=False):
            steps = [point["step"] for point in phase["losses"]]
            losses = [point["loss"] for point in phase["losses"]]
            thin = math.ceil(len(steps) / 500)
            axes.plot(steps[::thin], losses[::thin], color=COLOURS[0], alpha=0.35, linewidth=0.8)
            axes.plot(steps[::thin], _smooth(losses)[::thin], color=COLOURS[0], linewidth=1.8)
            before = _clip(" → ".join(phase["chain"][:-1]), 30)
            axes.set_title(_clip(phase["name"], 30), loc="left", fontweight="bold", fontsize=10, pad=18)
            axes.annotate(
                f"after {before}" if before else "from the start",
                (0, 1),
                (0, 6),
                "axes fraction",
                "offset points",
                color=MUTED,
                fontsize=8.5,
                in_layout=False,
            )
            axes.tick_params(labelsize=8.5)
            axes.locator_params(nbins=4)
            if phase.get("validation"):
                _draw_validation(axes, phase["validation"])
        figure.supxlabel("step", fontsize=9, color=MUTED)
        figure.supylabel("loss", fontsize=9, color=MUTED)

    first_last = {
        _chain(phase): (phase["losses"][0]["loss"], _smooth([point["loss"] for point in phase["losses"]])[-1])
        for phase in phases
    }
    ends = [f"{chain}: {first:.3g} to {last:.3g}" for chain, (first, last) in first_last.items()]
    shows = f"Training loss by step, every value faint and their moving mean on top: {'; '.join(ends)}."
    judged = {_chain(phase): phase["validation"] for phase in phases if phase.get("validation")}
    if judged:
        scores = [
            f"{chain}: {points(curve[0]['mean'])} to {points(curve[-1]['mean'])}, "
            f"at best {points(max(point['mean'] for point in curve))}"
            for chain, curve in judged.items()
        ]
        shows += f" Dots, right: mean {MEASURE} × 100 on the validation collections: {'; '.join(scores)}."
    return make_plot("losses", "Loss of each phase", shows, (8.6, 0.5 + 2.1 * rows), draw)


# The page


def _sections(study: Study) -> list[Section]:
    """The report's body in reading order; a section without records is left out."""
    quality, cost, losses = _quality_plot(study), _cost_plot(study), _loss_plot(study)
    measures = {m for s in study.systems.values() for scores in s["scores"].values() for m in scores}
    others = sorted(measures - {MEASURE})
    first = Section(
        "The answer",
        terms=findings(study),
        plots=[quality] if quality else [],
        tables=[_glance(study)] if study.pipelines() else [],
    )
    data = [*([_sources(study)] if study.data.get("sources") else []), _collections(study)]
    again = ["colbert-zero run recipe.json --out AGAIN", "colbert-zero report AGAIN"]
    sections = [
        first,
        Section("Scores by phase and collection", tables=[_scores(study, m) for m in (MEASURE, *others)]),
        Section("Comparisons", tables=[_comparisons(study)] if study.comparisons else []),
        Section("Cost", plots=[cost] if cost else []),
        Section("Training", plots=[losses] if losses else [], tables=_phase_tables(study) if study.phases else []),
        Section("Teachers", tables=[_teachers(study)] if study.teachers else []),
        Section("Data", tables=data),
        Section("How to run this again", tables=[_environment(study)] if study.environment else [], commands=again),
    ]
    return [s for s in sections if s.terms or s.plots or s.tables or s.commands]


def _markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, inside a table's cell too."""
    return re.sub(r"([\\`*|\[\]<>])", r"\\\1", " ".join(value.split())) if isinstance(value, str) else value


def write_report(folder: Path) -> Path:
    """Write report.html, report.md and plots/*.png from the JSON records of a run's folder.

    Args:
        folder: What `colbert-zero run` wrote; see docs/records.md. Only results.json is needed.

    Returns:
        The path of report.html, one file that loads nothing else.

    Raises:
        ColbertZeroError: There is no results.json, or a record is damaged; names the file.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    study = Study(folder)
    sections = _sections(study)
    for plot in (plot for section in sections for plot in section.plots):
        with atomic_file(folder / "plots" / f"{plot.name}.png", "wb") as file:
            file.write(plot.png)
    for suffix, settings in (("html", {"autoescape": True}), ("md", {"finalize": _markdown})):
        environment = Environment(  # noqa: S701 (Markdown has its own escape)
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            **settings,
        )
        environment.tests["best"] = lambda cell: isinstance(cell, Best)
        page = environment.get_template(f"report.{suffix}.j2").render(
            recipe=study.recipe, headline=headline(study), sections=sections
        )
        with atomic_file(folder / f"report.{suffix}") as file:
            file.write(page)
    return folder / "report.html"
