"""What a study answers, in sentences that rest on its tests."""

from collections.abc import Callable

from colbert_zero.report.cost import BUSY, COMPUTE, TIME, busy_in_words, idle_phases
from colbert_zero.report.layers import add_little, added
from colbert_zero.report.records import MEASURE, SEEN, Record, Records
from colbert_zero.report.untrained import cut_before, fitted, smaller, uncut
from colbert_zero.report.words import listed, percent, points, probability

SIGNIFICANT = 0.05


def tests(records: Records, a: str, b: str) -> list[Record]:
    """The recorded tests of two systems on the report's measure, turned so that differences are a − b."""
    found = []
    for test in records.comparisons:
        if test["measure"] != MEASURE or {test["a"], test["b"]} != {a, b}:
            continue
        low, high = test["interval"]
        turned = {"difference": -test["difference"], "interval": [-high, -low]} if test["a"] == b else {}
        found.append(test | turned)
    return found


def interval(test: Record) -> str:
    """A test's interval in points: `+1.2 to +3.4`."""
    return " to ".join(points(bound, signed=True) for bound in test["interval"])


def is_significant(test: Record) -> bool:
    """Whether a test's corrected p-value is below the level."""
    return bool(test["p_value_holm"] < SIGNIFICANT)


def sentence_about(records: Records, a: str, b: str) -> tuple[bool, str]:
    """Whether a, whose mean is higher, is shown to be better than b; and the evidence in words.

    The test on the mean over collections (`collection` null) decides, or the one on the only collection; tests on
    single ones of several are detail.
    """
    found = tests(records, a, b)
    whole = [test for test in found if test["collection"] is None or len(records.collections) == 1]
    if not whole:
        return False, "not tested"
    shown = is_significant(whole[0]) and whole[0]["difference"] > 0
    p, verdict = probability(whole[0]["p_value_holm"]), "significant" if shown else "not significant"
    text = f"95 % interval {interval(whole[0])}, Holm-corrected {p}: {verdict}"
    single = [test for test in found if test["collection"] is not None and is_significant(test)]
    parts = [
        f"{word} on {len(some)} ({_examples(some, records.label)})"
        for word, sign in (("better", 1), ("worse", -1))
        if (some := [test for test in single if sign * test["difference"] > 0])
    ]
    if len(records.collections) > 1 and parts:
        text += f"; of {len(records.collections)} collections by themselves {', '.join(parts)}"
    return shown, text


def _examples(found: list[Record], label: Callable[[str], str]) -> str:
    """Up to three differences, the largest first, with their intervals and the largest p of all."""
    ordered = sorted(found, key=lambda test: -abs(test["difference"]))
    shown = [
        f"{label(test['collection'])} {points(test['difference'], signed=True)}, 95 % interval {interval(test)}"
        for test in ordered[:3]
    ]
    p = max(test["p_value_holm"] for test in found)
    limit = f"p ≤ {p:.3f}" if p >= 0.001 else "p < 0.001"
    return "; ".join([*shown, *(["…"] if len(found) > 3 else []), f"Holm-corrected {limit}"])


def choice(records: Records, pipelines: list[str]) -> str:
    """The cheapest pipeline (they come best first) above BM25 that is not shown to be worse than the best."""
    best = pipelines[0]
    floor = max((records.means[name] for name in records.baselines("lexical")), default=0.0)
    equal = [p for p in pipelines[1:] if records.means[p] > floor and not sentence_about(records, best, p)[0]]
    return min([best, *equal], key=lambda p: (records.cost(p), pipelines.index(p)))


def _verdict(records: Records, pipelines: list[str]) -> str:
    """The title's question, for this data: how much multi-vector pre-training the chosen pipeline has."""
    amounts = {p: records.pre_training(p) for p in pipelines}
    taken = amounts[choice(records, pipelines)]
    if min(amounts.values()) == max(amounts.values()):
        return "The answer"
    if taken == max(amounts.values()):
        return "To pre-train"
    return "Not to pre-train" if taken == min(amounts.values()) else "To pre-train in part"


def headline(records: Records) -> str:
    """The answer in one sentence."""
    pipelines = records.pipelines()
    if not pipelines:
        return "No pipeline is finished yet: there is nothing to compare."
    best = pipelines[0]
    if not beats_bm25(records, best):
        lexical = max(records.means[name] for name in records.baselines("lexical"))
        scored = "no more" if lexical == records.means[best] else f"only {points(records.means[best])}"
        told = f"None of these: BM25, which needs no training, scores {points(lexical)}"
        return f"{told}; the best pipeline, {best}, {scored}."
    if len(pipelines) == 1:
        return f"Only one pipeline was run, {best}: this study cannot say whether more pre-training pays."
    taken, verdict = choice(records, pipelines), _verdict(records, pipelines)
    beaten = [p for p in pipelines[1:] if sentence_about(records, best, p)[0]]
    if len(beaten) == len(pipelines) - 1:
        others = "every other pipeline" if len(beaten) > 1 else beaten[0]
        return f"{verdict}: {best} is better than {others}."
    if not beaten:
        cheapest = "the cheapest" if taken == min(pipelines, key=records.cost) else "the cheapest above BM25"
        return f"{verdict}: no pipeline is shown to be better; take {cheapest}: {taken}."
    if taken == best:
        return f"{verdict}: take {best}; it scores highest, and no cheaper pipeline keeps up."
    return f"{verdict}: take {taken}; {best} scores highest but is not shown to be better, and costs more."


def beats_bm25(records: Records, pipeline: str) -> bool:
    """Whether a pipeline's mean is above that of every lexical baseline."""
    return all(records.means[pipeline] > records.means[name] for name in records.baselines("lexical"))


def findings(records: Records) -> list[tuple[str, str]]:
    """The answer's reasons: (what it is about, the finding)."""
    pipelines = records.pipelines()
    if not pipelines:
        return []
    best, found = pipelines[0], []
    over = "" if len(records.collections) == 1 else f" over {len(records.collections)} collections"
    measure = MEASURE if not over else f"mean {MEASURE}"
    over += f" {SEEN}" if records.seen else ""
    reach = f"{best} reaches {measure} {points(records.means[best])}{over} for {_spent(records, best)}"
    if len(pipelines) == 1:
        found.append(("Score", f"{reach}. Add a second pipeline to the recipe, and the two are compared."))
    else:
        found.append(("Best score", f"{reach}: {_gap(records, best, pipelines[1])}."))
        cheaper = [p for p in pipelines[1:] if records.cost(p) < records.cost(best)]
        found += [("For less", _for_less(records, best, p, p != pipelines[1])) for p in cheaper]
        if beats_bm25(records, best):
            found.append(("By budget", _by_budget(records, pipelines)))
    found += _untrained(records, pipelines)
    found += _layers(records, list(dict.fromkeys([best, choice(records, pipelines)])))
    if doubt := doubt_about_times(records):
        found.append(("Time", doubt))
    worse = _made_worse(records, pipelines)
    found += worse
    peak = max(records.checkpoints(best), key=lambda name: records.means[name])
    if peak != best and not any(peak in text and best in text for _, text in worse):
        found.append(("Stop earlier?", _peak(records, best, peak)))
    for label, representation in (("Against BM25", "lexical"), ("Against dense", "dense")):
        for baseline in records.baselines(representation)[:1]:
            found.append((label, _against(records, best, baseline)))
    found += [("Teacher", _against_teacher(records, name)) for name in records.teachers]
    return found + _leaks(records) + _told(records)


def _layers(records: Records, pipelines: list[str]) -> list[tuple[str, str]]:
    """What the layers of these pipelines' encoders add; a warning where that is not shown to be a point."""
    found = []
    for name in pipelines:
        # An older phase was not asked; one of a family without a known list of layers has no answer.
        if layers := records.phases.get(records.systems[name]["phases"][-1]["id"], {}).get("layers"):
            text, little = f"{name}: {added(layers)}", add_little(layers)
            if little:
                text += (
                    ". They are not shown to add a point: token embeddings by themselves may give this "
                    "score, and the study then says little of encoders. Train longer, on more data, or from a "
                    "pre-trained encoder, to learn about those"
                )
            found.append(("Embeddings alone" if little else "Layers", f"{text}."))
    return found


def _untrained(records: Records, pipelines: list[str]) -> list[tuple[str, str]]:
    """How small cut models are and how they score beside the uncut; what adapters did on their own held-out pairs."""
    found = []
    for name in pipelines:
        if cut_before(records, name):
            whole, tested = uncut(records, name), ""
            if whole and whole != name and whole in records.means:
                high, low = (whole, name) if records.means[whole] >= records.means[name] else (name, whole)
                gap = records.means[high] - records.means[low]
                tested = f". {high} scores {points(gap, signed=True)} points beside {low}"
                tested += f": {sentence_about(records, high, low)[1]}"
            is_smaller, text = smaller(records, name)
            found.append(("Smaller" if is_smaller else "Cut", f"{text}{tested}."))
    adapted = [phase for phase in records.phases.values() if phase.get("kind") == "adapt"]
    return found + [("Adapted" if phase["made"]["helps"] else "Not adapted", f"{fitted(phase)}.") for phase in adapted]


def _leaks(records: Records) -> list[tuple[str, str]]:
    """That scores are of queries which models may have been trained on."""
    if not records.seen:
        return []
    which = [f"{name} ({records.collections[name]['leaks']['queries_seen']})" for name in records.seen]
    text = (
        f"the training data have queries of {listed(which)}, equal or nearly. Scores there, and means over them, are "
        f"marked {SEEN}: they may be too high. colbert-zero leaks shows them, and writes the sources without them."
    )
    return [("Seen in training", text)]


def _told(records: Records) -> list[tuple[str, str]]:
    """What phases were told of that may have kept them from learning; of those not trained it stands elsewhere."""
    trained = [phase for phase in records.phases.values() if phase.get("kind", "train") == "train"]
    return [("Told in training", f"{text}.") for phase in trained for text in phase.get("told", [])]


def _cost(records: Records, system: str) -> str:
    """`3.1 PFLOP`, or `31 min of device time` of older records."""
    amount = records.currency.words(records.cost(system))
    return f"{amount} of {TIME.name}" if records.currency is TIME else amount


def _spent(records: Records, system: str) -> str:
    """A system's cost, and its time beside it."""
    beside = f" in {TIME.words(records.cost(system, TIME))} of {TIME.name}" if records.currency is COMPUTE else ""
    return _cost(records, system) + beside


def doubt_about_times(records: Records) -> str:
    """Why times are not compared, or not to be trusted; empty where they may be."""
    if records.currency is TIME:
        return (
            "These records are older and count no floating-point operations: cost is device time here, and they do "
            "not say whether other work on the machine made it longer."
        )
    idle = {name: idle_phases(records.systems[name]) for name in records.pipelines()}
    named = {phase["id"] for phases in idle.values() for phase in phases}
    for name, system in records.systems.items():
        # A checkpoint or baseline is named only for a phase that nothing before it has.
        if name not in idle and (more := {phase["id"] for phase in idle_phases(system)} - named):
            idle[name] = idle_phases(system)
            named |= more
    words = [f"{name} ({busy_in_words(phases)})" for name, phases in idle.items() if phases]
    if not words:
        return ""
    return (
        f"Times not comparable: the processors were busy for less than {percent(BUSY)} of wall-clock time × threads in "
        f"{listed(words)}. Other work on the machine, or waiting, may "
        "have made these times longer; go by the compute."
    )


def _gap(records: Records, best: str, other: str) -> str:
    gap = points(records.means[best] - records.means[other])
    return f"{gap} points more than {other}, {sentence_about(records, best, other)[1]}"


def _for_less(records: Records, best: str, other: str, with_gap: bool) -> str:
    share = 100 * records.means[other] / records.means[best] if records.means[best] else 100.0
    text = (
        f"{other} reaches {share:.1f} % of {best} for {records.currency.price(records.cost(other), records.cost(best))}"
    )
    if records.currency is COMPUTE and records.comparable(best, other):
        text += f" and {TIME.price(records.cost(other, TIME), records.cost(best, TIME))}"
    return f"{text}; {best} scores {_gap(records, best, other)}." if with_gap else f"{text}."


def _by_budget(records: Records, pipelines: list[str]) -> str:
    """The choice at each budget that buys one more pipeline."""
    steps: list[tuple[str, str]] = []
    for cost in sorted({records.cost(p) for p in pipelines}):
        taken = choice(records, [p for p in pipelines if records.cost(p) <= cost])
        if not steps or steps[-1][0] != taken:
            steps.append((taken, records.currency.words(cost)))
    later = [f"; from {cost} {name}" for name, cost in steps[1:]]
    what = f" of {TIME.name}" if records.currency is TIME else ""
    text = f"With {steps[0][1]}{what} take {steps[0][0]}{''.join(later)}."
    dearer = [p for p in pipelines if records.cost(p) > records.cost(steps[-1][0])]
    if dearer:
        text += f" What {listed(dearer)} would cost on top is not shown to buy anything."
    return text


def _peak(records: Records, best: str, peak: str) -> str:
    gap = points(records.means[peak] - records.means[best])
    text = f"{peak}, on the way to {best}, scores {points(records.means[peak])}: {gap} points more than its end"
    return f"{text}, for {_cost(records, peak)}; {sentence_about(records, peak, best)[1]}."


def _made_worse(records: Records, pipelines: list[str]) -> list[tuple[str, str]]:
    """Pipelines whose later phases took away what their own checkpoint was shown to have: a fault to understand."""
    found = []
    for pipeline in pipelines:
        for before in records.checkpoints(pipeline)[:-1]:
            shown, evidence = sentence_about(records, before, pipeline)
            if records.means[before] > records.means[pipeline] and shown:
                lost = points(records.means[before] - records.means[pipeline])
                text = f"{pipeline} ends {lost} points below its own checkpoint {before}, {evidence}"
                mend = "a fault until understood. Stop there, or change the phases after it."
                found.append(("Made worse", f"{text}: {mend}"))
    return found


def _against(records: Records, best: str, baseline: str) -> str:
    gap = records.means[best] - records.means[baseline]
    where = "above" if gap > 0 else "below" if gap < 0 else "level with"
    lexical = records.systems[baseline]["representation"] == "lexical"
    what = "" if lexical else ", the best single-vector model"
    text = (
        f"{best}, the best pipeline ({points(records.means[best])}), is "
        f"{points(abs(gap)) + ' points ' if gap else ''}{where} {baseline}{what} ({points(records.means[baseline])}), "
        f"{sentence_about(records, *(best, baseline) if gap >= 0 else (baseline, best))[1]}"
    )
    if lexical:
        if gap <= 0:
            return f"{text}. Use {baseline} until more data or longer training changes this."
        below = [p for p in records.pipelines() if not beats_bm25(records, p)]
        return f"{text}; {listed(below)} not." if below else f"{text}."
    cost = f"{records.currency.words(records.cost(baseline))} against {_cost(records, best)}"
    return f"{text} ({cost})."


def _against_teacher(records: Records, name: str) -> str:
    """What a teacher could still teach: the students at or above it are the ones it pulls down."""
    mean = records.mean(records.teachers[name].get("scores", {}))
    if mean is None:
        return f"How good {name} is was not measured on these collections."
    text = f"{name} scores {points(mean)}"
    weaker = [
        (before, p)
        for p in records.pipelines()
        for before in records.checkpoints(p)[-2:-1]
        if records.systems[before]["representation"] == "multi-vector" and records.means[before] > mean
    ]
    for before, after in weaker:
        change = records.means[after] - records.means[before]
        text += (
            f", weaker than its student {before} already was ({points(records.means[before])}), which "
            f"{'gained' if change > 0 else 'lost'} {points(abs(change))} points in the last phase of {after}"
        )
    if weaker:
        lost = any(records.means[after] < records.means[before] for before, after in weaker)
        pull = "A teacher weaker than its student pulls it down" if lost else "It had little left to teach"
        return f"{text}. {pull}: try a better one."
    above = [p for p in records.pipelines() if records.means[p] > mean]
    if above:
        return f"{text}; {listed(above)} ended above it. A stronger teacher may help."
    best = max((records.means[p] for p in records.pipelines()), default=0.0)
    if best >= mean:
        return f"{text}: no more than the best pipeline, which had nothing left to learn from it."
    return f"{text}: above every pipeline, so it still had something to teach."
