"""What was planned of phases before they were trained, beside what they took."""

from colbert_zero.report.records import Record, Records, chain_of
from colbert_zero.report.tables import Table
from colbert_zero.report.words import duration, operations, quantity, size

_AMOUNTS = {"tokens": quantity, "flops": operations, "model_bytes": size}
_TITLES = {"tokens": "tokens", "flops": "compute", "model_bytes": "checkpoint"}


def planned_tables(records: Records) -> list[Table]:
    """The table, where `colbert-zero plan` was asked in the study's folder before; else none."""
    phases = [phase for identity, phase in records.phases.items() if identity in records.planned]
    if not phases:
        return []
    rows = []
    for phase in phases:
        planned, row = records.planned[phase["id"]], [chain_of(phase)]
        for key, words in _AMOUNTS.items():
            row += _beside(planned.get(key), phase.get(key), words)
        rows.append([*row, _planned_time(planned, phase), duration(phase["wall_seconds"])])
    columns = ["phase"]
    for title in _TITLES.values():
        columns += [f"{title}, planned", "taken", "difference"]
    return [Table("Planned and taken", [*columns, "time, planned", "taken"], [("", rows)])]


def _beside(planned: float | None, taken: float | None, words: object) -> list[str]:
    assert callable(words)
    if not planned or not taken:
        return ["–", "–" if taken is None else words(taken), "–"]
    return [words(planned), words(taken), f"{100 * (taken / planned - 1):+.1f} %".replace("-", "−")]


def _planned_time(planned: Record, phase: Record) -> str:
    """A range, where the plan measured the host and processes that the phase was trained by."""
    same = planned.get("host") == phase.get("machine", {}).get("host") and planned.get("processes") == phase.get(
        "processes"
    )
    if not planned.get("seconds") or not same:
        return "–"
    least, _, most = planned["seconds"]
    return f"{duration(least)} to {duration(most)}"
