"""Two models or one: ensembles beside their members, with what each takes to answer, and how members were chosen."""

from colbert_zero.report.answer import sentence_about
from colbert_zero.report.records import MEASURE, Record, Records
from colbert_zero.report.tables import Table, taken, takes_columns
from colbert_zero.report.words import number, points


def ensembles_of(records: Records) -> list[str]:
    """Names of a study's ensembles, the best first."""
    names = [name for name, system in records.systems.items() if system["kind"] == "ensemble" and name in records.means]
    return sorted(names, key=lambda name: -records.means[name])


def parts_in_words(members: dict[str, float]) -> str:
    """`1 × bm25 + 0.5 × full`."""
    return " + ".join(f"{number(weight)} × {name}" for name, weight in members.items())


def ensemble_findings(records: Records) -> list[tuple[str, str]]:
    """Of each ensemble whether it is shown to be better than the best of its members."""
    found = []
    for name in ensembles_of(records):
        members = records.systems[name]["members"]
        text = f"{name} ({parts_in_words(members)}) scores {points(records.means[name])}"
        if len(members) < 2:
            found.append(("Two or one?", f"{text}: nothing that was added to {next(iter(members))} helped."))
            continue
        best = max(members, key=records.means.__getitem__)
        gap = records.means[name] - records.means[best]
        a, b = (name, best) if gap >= 0 else (best, name)
        where = f"{points(abs(gap))} points {'more' if gap >= 0 else 'less'} than {best}, the best of its members"
        found.append(("Two or one?", f"{text}, {where}; {sentence_about(records, a, b)[1]}."))
    return found


def ensemble_tables(records: Records) -> list[Table]:
    """Each ensemble with its members; of those that were chosen, how. None where there are no ensembles."""
    names = ensembles_of(records)
    if not names:
        return []
    groups = []
    for name in names:
        system = records.systems[name]
        rows = [[name, "", points(records.means[name]), *taken(system)]]
        for member, weight in system["members"].items():
            mean = points(records.means.get(member))
            rows.append([f"of it {member}", number(weight), mean, *taken(records.systems[member])])
        groups.append((parts_in_words(system["members"]), rows))
    columns = ["system", "weight", f"{MEASURE} × 100", *takes_columns()]
    tables = [Table("Ensembles and their members", columns, groups)]
    chosen = [(name, records.systems[name]["choice"]) for name in names if records.systems[name].get("choice")]
    return [*tables, *(_choice_table(name, choice) for name, choice in chosen)]


def _choice_table(name: str, choice: Record) -> Table:
    """A greedy choice: each member by itself, then round by round."""
    alone = [
        [member, f"{of_one['loss']:.4f}", points(of_one["score"])]
        for member, of_one in sorted(choice["members"].items(), key=lambda item: item[1]["loss"])
    ]
    path = [
        [f"{round_}. {'+ ' if round_ > 1 else ''}{step['member']}", f"{step['loss']:.4f}", points(step["score"])]
        for round_, step in enumerate(choice["path"], 1)
    ]
    counts = [f"{number(choice['queries'])} queries of {choice['on']}, for choosing"]
    counts += [f"{number(choice[key])} {key} left out" for key in ("shared", "unanswered") if choice[key]]
    title = f"How {name} was chosen ({', '.join(counts)}; temperature {choice['temperature']:g})"
    return Table(title, ["member", "loss, nats", f"{MEASURE} × 100"], [("by itself", alone), ("round by round", path)])
