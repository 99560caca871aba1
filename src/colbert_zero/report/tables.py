"""The report's tables: rows of text under headings."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from colbert_zero.report.answer import interval, is_significant, sentence_about
from colbert_zero.report.cost import COMPUTE, TIME, busy_share
from colbert_zero.report.published import published_on
from colbert_zero.report.records import MEASURE, SEEN, Record, Records, chain_of
from colbert_zero.report.untrained import (
    COLUMNS,
    DOMAINS,
    domain_rows,
    is_untrained,
    last_phase,
    some_cut,
    untrained_rows,
)
from colbert_zero.report.words import duration, number, operations, percent, points, quantity, size

TOP_SOURCES = 15
LAYERS = f"What the encoder's layers add, {MEASURE} × 100 on a sample"
CUT = "What cutting takes, in a sample of the rows"


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


def glance(records: Records) -> Table:
    """Finished pipelines, the cheapest first: score, cost, and their shares of the best one's."""
    best = records.pipelines()[0]
    score, cost = records.means[best] or 1.0, records.cost(best) or 1.0
    rows, sizes = [], some_cut(records)
    for name in sorted(records.pipelines(), key=records.cost):
        shown = "–" if name == best else "yes" if sentence_about(records, best, name)[0] else "no"
        mean = _mark(points(records.means[name]), name == best)
        shares = [f"{100 * records.means[name] / score:.1f} %", f"{100 * records.cost(name) / cost:.1f} %"]
        amount, *beside = _costs(records, name)
        last = last_phase(records, name)
        bytes_ = [size(last.get("model_bytes")), quantity(last.get("parameters"))] if sizes else []
        rows.append([name, mean, shares[0], amount, shares[1], *beside, *bytes_, shown])
    amount, *beside = _cost_columns(records)
    share = f"share of its {'compute' if records.currency is COMPUTE else 'time'}"
    columns = [
        "pipeline",
        f"{MEASURE} × 100{f' {SEEN}' if records.seen else ''}",
        "share of best",
        amount,
        share,
        *beside,
        *(["model", "parameters"] if sizes else []),
        "best shown better",
    ]
    return Table("Pipelines, the cheapest first", columns, [("", rows)])


def _cost_columns(records: Records) -> list[str]:
    """The cost, then what stands beside it; an older study has its device time alone."""
    return [COMPUTE.name, TIME.name, "CPU time"] if records.currency is COMPUTE else [TIME.name]


def _costs(records: Records, system: str) -> list[str]:
    if records.currency is TIME:
        return [duration(records.cost(system))]
    amounts = [operations(records.cost(system)), duration(records.cost(system, TIME))]
    return [*amounts, duration(sum(phase["cpu_seconds"] for phase in records.systems[system]["phases"]))]


def _mark(text: str, best: bool) -> str:
    return Best(text) if best else text


def _groups(records: Records) -> list[tuple[str, list[str]]]:
    """Systems under headings: the baselines, each pipeline's checkpoints, the finished one last, then ensembles."""
    groups: dict[str, list[str]] = {"baselines": []}
    for name, system in records.systems.items():
        key = {"baseline": "baselines", "ensemble": "ensembles"}.get(system["kind"], f"pipeline {system['pipeline']}")
        groups.setdefault(key, []).append(name)
    return [
        (heading, sorted(names, key=lambda n: len(records.systems[n]["phases"])))
        for heading, names in groups.items()
        if names
    ]


def _row_label(records: Records, name: str) -> str:
    system = records.systems[name]
    if system["kind"] in ("baseline", "ensemble") or not system["phases"]:
        return name
    finished = "" if system["after"] else f" = {name}"
    return f"after {system['after'] or system['phases'][-1]['name']}{finished}"


def scores_table(records: Records, measure: str) -> Table:
    """The paper's table: systems by pipeline and phase, the mean and every collection."""
    names, with_cost = list(records.collections), measure == MEASURE
    with_taken = with_cost and any("query_flops" in record for record in records.systems.values())
    table = {
        system: [records.mean(record["scores"], measure)]
        + [record["scores"].get(collection, {}).get(measure) for collection in names]
        for system, record in records.systems.items()
    }
    tops = [max((s for s in column if s is not None), default=None) for column in zip(*table.values(), strict=True)]
    groups = []
    for heading, systems in _groups(records):
        rows = []
        for system in systems:
            cells = [
                _mark(points(s), s is not None and points(s) == points(top))
                for s, top in zip(table[system], tops, strict=True)
            ]
            phases = records.systems[system]["phases"]
            cost = _costs(records, system) if phases else ["–"] * len(_cost_columns(records))
            cost += [quantity(sum(p[key] for p in phases)) if phases else "–" for key in ("texts", "tokens")]
            beside = taken(records.systems[system]) if with_taken else []
            rows.append([_row_label(records, system), *cells, *(cost if with_cost else []), *beside])
        groups.append((heading, rows))
    columns = [
        "system",
        mean_label(records),
        *map(records.label, names),
        *([*_cost_columns(records), "texts", "tokens"] if with_cost else []),
        *(takes_columns() if with_taken else []),
    ]
    return Table(f"{measure} × 100", columns, groups)


def takes_columns() -> list[str]:
    """Headings of `taken`."""
    return ["model's bytes", "encoding a query"]


def taken(system: Record) -> list[str]:
    """Bytes of a system's models, and operations of encoding a query of mean length; nothing of BM25."""
    if "query_flops" not in system:  # an older record
        return ["–", "–"]
    flops = system["query_flops"]  # null where the model was there no more
    return [size(system["model_bytes"]), "–" if flops is None else operations(flops)]


def comparisons_table(records: Records) -> Table:
    """Every test, by measure and family."""
    measures = sorted({test["measure"] for test in records.comparisons}, key=lambda m: (m != MEASURE, m))
    groups = []
    families = dict.fromkeys(test.get("family", "pipelines") for test in records.comparisons)
    for measure, family in product(measures, families):
        rows = []
        chosen = (measure, family)
        for test in (t for t in records.comparisons if (t["measure"], t.get("family", "pipelines")) == chosen):
            better = test["a"] if test["difference"] > 0 else test["b"]
            rows.append(
                [
                    f"{test['a']} − {test['b']}",
                    _tested_on(records, test["collection"]),
                    f"{better} is better" if is_significant(test) else "not shown",
                    points(test["difference"], signed=True),
                    interval(test),
                    points(test["equal_within"]) if "equal_within" in test else "–",
                    f"{test['p_value']:.4f}",
                    f"{test['p_value_holm']:.4f}",
                ]
            )
        if rows:
            groups.append((f"{measure}, {family}", rows))
    columns = ["difference", "collection", "verdict", "points", "95 % interval", "equal within", "p", "p (Holm)"]
    return Table("Differences and their tests", columns, groups, words=(0, 1, 2))


def mean_label(records: Records) -> str:
    """The heading of means, marked where a collection in them is."""
    return f"mean {SEEN}" if records.seen else "mean"


def _tested_on(records: Records, collection: str | None) -> str:
    if collection is None:
        return mean_label(records) + " of all"
    return records.label(collection) if collection in records.collections else collection


def _phase_table(
    records: Records,
    title: str,
    columns: dict[str, Callable[[Record], str]],
    words: tuple[int, ...] = (0,),
    every: bool = False,
) -> Table:
    """A row a phase that was trained; `every` phase where the others have something to say too."""
    phases = [phase for phase in records.phases.values() if every or not is_untrained(phase)]
    rows = [[chain_of(phase), *(show(phase) for show in columns.values())] for phase in phases]
    return Table(title, ["phase", *columns], [("", rows)], words)


def _get(key: str, show: Callable[[Any], str] = number) -> Callable[[Record], str]:
    return lambda phase: "–" if phase.get(key) is None else show(phase[key])


def _counted(show: Callable[[Record], str]) -> Callable[[Record], str]:
    """For phases whose operations and CPU time were counted: not those of an older version."""
    return lambda phase: show(phase) if phase.get("flops") and phase.get("cpu_seconds") is not None else "–"


def _side(key: str, side: str) -> Callable[[Record], str]:
    # A prompt ends in a space: one that does not break shows it.
    return lambda phase: f"“{phase[key][side]}”".replace(" ", "\u00a0") if phase.get(key, {}).get(side) else "none"


def phase_tables(records: Records) -> list[Table]:
    """What each phase was asked for, and what it took."""
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
        "compute": _counted(lambda p: operations(p["flops"])),
        "of it padding": _counted(lambda p: percent(p["padding_flops"] / p["flops"])),
        "of it second pass": _counted(lambda p: percent(p["second_pass_flops"] / p["flops"])),
        "wall-clock": lambda p: duration(p.get("wall_seconds", p.get("device_seconds", 0) / p.get("processes", 1))),
        "processes": _get("processes"),
        "CPU time": _get("cpu_seconds", duration),
        "threads": _get("threads"),
        "busy": _counted(lambda p: percent(busy_share(p) or 0)),
    }
    computed = {
        "device": _of_machine("device"),
        "host": _of_machine("host"),
        "torch": _of_machine("torch"),
        "arithmetic": _of_machine("precision"),
        "asked": _get("precision"),
        "attention": _of_machine("attention"),
        "MaxSim": _of_machine("maxsim"),
    }
    read = {
        "texts": _get("texts", quantity),
        "tokens": _get("tokens", quantity),
        "tokens per second": lambda p: (
            quantity(p["tokens"] / p["device_seconds"]) if p.get("device_seconds") and p.get("tokens") else "–"
        ),
        "peak memory": _get("peak_memory_bytes", size),
        "parameters": _get("parameters", quantity),
        "sources": lambda p: number(len(p.get("sources", {}))),
        "rows": lambda p: quantity(sum(s.get("rows", 0) for s in p.get("sources", {}).values())),
    }
    cut = {
        "queries cut": _of_sample("query", "cut", "texts"),
        "query tokens lost": _of_sample("query", "lost", "tokens"),
        "documents cut": _of_sample("document", "cut", "texts"),
        "document tokens lost": _of_sample("document", "lost", "tokens"),
    }
    layers = {
        "with them": _of_layers(lambda found: points(found["score"])),
        "without": _of_layers(lambda found: points(found["without"])),
        "they add": _of_layers(lambda found: points(found["difference"], signed=True)),
        "95 % interval": _of_layers(lambda found: interval(found)),
        "queries": _of_layers(lambda found: number(found["queries"])),
    }
    untrained, domains = untrained_rows(records), domain_rows(records)
    adapted = f"Adapted, domain by domain: {MEASURE} × 100 on held-out pairs"
    return [
        _phase_table(records, "Settings", settings, words=(0, 1)),
        *([Table("Cut, merged, adapted", COLUMNS, [("", untrained)], words=(0, 1))] if untrained else []),
        *([Table(adapted, DOMAINS, [("", domains)], words=(0, 1))] if domains else []),
        # Older phases were not asked.
        *(
            [_phase_table(records, LAYERS, layers, every=True)]
            if any(p.get("layers") for p in records.phases.values())
            else []
        ),
        *([_phase_table(records, CUT, cut)] if any(p.get("sampled") for p in records.phases.values()) else []),
        _phase_table(records, "Prompts, markers and lengths", prompts, words=(0, 1, 2, 3, 4)),
        _phase_table(records, "What computed each phase", computed, words=tuple(range(8))),
        _phase_table(records, "Cost of each phase alone", cost, every=True),
        _phase_table(records, "What each phase read and held", read, every=True),
    ]


def _of_sample(task: str, part: str, whole: str) -> Callable[[Record], str]:
    return lambda phase: (
        percent(found[part] / found[whole]) if (found := (phase.get("sampled") or {}).get(task)) else "–"
    )


def _of_machine(key: str) -> Callable[[Record], str]:
    # Records of before a key was kept lack it.
    return lambda phase: phase.get("machine", {}).get(key) or "–"


def _of_layers(show: Callable[[Record], str]) -> Callable[[Record], str]:
    return lambda phase: show(phase["layers"]) if phase.get("layers") else "–"


def sources_table(records: Records) -> Table:
    """The largest sources: rows, and what was left out of them."""
    sources = records.data["sources"]
    ordered = sorted(sources.items(), key=lambda item: (-item[1].get("rows", 0), item[0]))
    # Where BM25 or a cross-encoder scored alone, nothing was encoded; older records do not say.
    by_models = {name for name, source in sources.items() if source.get("maxsim")}
    rows = []
    for name, source in ordered[:TOP_SOURCES]:
        parts = ", ".join(f"{part} {count:,}" for part, count in source.get("parts", {}).items())
        left_out = ", ".join(f"{why} {count:,}" for why, count in source.get("dropped", {}).items() if count)
        counts = [number(source.get(key, 0)) for key in ("rows", "held_out")]
        rows.append([name, source.get("kind", "–"), parts or "–", left_out or "–", *counts, _random(source)])
        rows[-1] += [source["precision"] if name in by_models else "–"] if by_models else []
    others = [source for _, source in ordered[TOP_SOURCES:]]
    if others:
        left_out = number(sum(sum(source.get("dropped", {}).values()) for source in others))
        counts = [number(sum(source.get(key, 0) for source in others)) for key in ("rows", "held_out")]
        rows.append([f"{len(others)} others", "–", "–", left_out, *counts, "–", *(["–"] if by_models else [])])
    columns = ["source", "kind", "parts", "left out", "rows", "held out", "random negatives"]
    columns += ["models encoded in"] if by_models else []
    return Table("Training sources", columns, [("", rows)], words=(0, 1, 2, 3))


def _random(source: Record) -> str:
    """The share of a mined source's hard negatives that are random; an older version did not count them."""
    if source.get("random") is None or not source.get("rows"):
        return "–"
    return f"{source['random']:,} = {percent(source['random'] / (source['rows'] * source['negatives']))}"


def collections_table(records: Records) -> Table:
    """What the models are compared on."""
    rows = []
    for name, sizes in records.collections.items():
        known = sizes | records.data.get("collections", {}).get(name, {})
        counts = [number(known.get(key)) for key in ("documents", "queries", "judgements")]
        rows.append([records.label(name), str(known.get("from", known.get("name", "–"))), *counts, _seen(sizes)])
    for name, known in records.data.get("collections", {}).items():
        if known.get("for_choosing"):
            counts = [number(known.get(key)) for key in ("documents", "queries", "judgements")]
            rows.append([f"{name}, for choosing", str(known.get("from", "–")), *counts, "–"])
    columns = ["collection", "from", "documents", "queries", "judgements", "in the training data"]
    return Table("Collections to test on", columns, [("", rows)], words=(0, 1, 5))


def _seen(sizes: Record) -> str:
    """What of a collection was seen in training; an older study, or one told not to, did not look."""
    if (found := sizes.get("leaks")) is None:
        return "not looked for"
    counts = [f"{number(found[f'{role}_seen'])} {role}" for role in ("queries", "documents") if found[f"{role}_seen"]]
    return f"{found['verdict']} ({', '.join(counts)})" if counts else found["verdict"]


def published_table(records: Records) -> Table | None:
    """What others published on the public collections that a study has; None where that is nothing."""
    names = {sizes["name"]: name for name, sizes in records.collections.items() if sizes.get("name")}
    found = published_on(names)
    columns = [name for name in names if any(name in figures.scores for figures in found)]
    groups: dict[str, list[list[str]]] = {}
    for figures in found:
        cells = [points(figures.mean), *(points(figures.scores.get(name)) for name in columns)]
        groups.setdefault(f"{figures.benchmark}, published", []).append([figures.model, *cells, figures.source])
    title = f"Published figures, {MEASURE} × 100: not measured here"
    headings = ["model", "mean of the benchmark", *(names[name] for name in columns), "source"]
    return Table(title, headings, list(groups.items()), words=(0, len(headings) - 1)) if found else None


def teachers_table(records: Records) -> Table:
    """What each teacher is made of, how good it is, what it cost."""
    names = list(records.collections)
    rows = []
    for name, teacher in records.teachers.items():
        scores = teacher.get("scores", {})
        parts = " + ".join(f"{number(p.get('weight'))} × {p.get('name')}" for p in teacher.get("parts", []))
        rows.append(
            [
                name,
                str(teacher.get("description", "–")),
                parts or "–",
                points(records.mean(scores)),
                *(points(scores.get(collection, {}).get(MEASURE)) for collection in names),
                number(teacher.get("queries")),
                number(teacher.get("n_ways")),
                _training(teacher),
                "–" if teacher.get("scoring_seconds") is None else duration(teacher["scoring_seconds"]),
            ]
        )
    columns = ["teacher", "what it is", "parts", mean_label(records), *map(records.label, names)]
    columns += ["queries", "candidates"]
    columns += ["training, from zero", "scoring"]
    return Table(f"Teachers, {MEASURE} × 100, and what they cost", columns, [("", rows)], words=(0, 1, 2))


def _training(teacher: Record) -> str:
    """What the training of a teacher's own phases cost; BM25 alone has none."""
    if not teacher.get("device_seconds"):
        return "none"
    time = duration(teacher["device_seconds"])
    return time if teacher.get("flops") is None else f"{operations(teacher['flops'])}, {time}"


def environment_table(records: Records) -> Table:
    """Versions, machine and devices."""
    rows = []
    for key, value in records.environment.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else number(value)
        rows.append([key.replace("_", " "), text])
    return Table("Environment", ["what", "value"], [("", rows)], words=(0, 1))
