"""What training cost: operations, which are counted, and time, compared only where the processors were busy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colbert_zero.report.words import duration, fraction, operations, operations_unit, percent, rounded, unit_of

BUSY = 0.9
"""CPU time by wall-clock time × threads, from which times are compared."""


@dataclass(frozen=True)
class Currency:
    """What costs are counted in.

    Attributes:
        name: In the report's words.
        key: In the records, of a phase and of a system.
        words: An amount in the unit a reader would choose.
        unit_of: That unit: its size and its name.
    """

    name: str
    key: str
    words: Callable[[float], str]
    unit_of: Callable[[float], tuple[float, str]]

    def price(self, cost: float, whole: float) -> str:
        """`a tenth of the compute (3.1 of 31 PFLOP)`."""
        share = cost / whole if whole > 0 else 1.0
        if share < 1:
            unit, name = self.unit_of(whole)
            # An amount that would read 0.0 has a unit of its own.
            amount = rounded(cost / unit) if cost >= unit / 10 else self.words(cost)
            return f"{fraction(share)} of the {self.name} ({amount} of {rounded(whole / unit)} {name})"
        times = "the same" if f"{share:.3g}" == "1" else f"{fraction(share)} the"
        return f"{times} {self.name} ({self.words(cost)} against {self.words(whole)})"


COMPUTE = Currency("compute", "flops", operations, operations_unit)
"""Floating-point operations, those of padding and of second passes with them."""
TIME = Currency("device time", "device_seconds", duration, unit_of)
"""Wall-clock time × processes."""


def is_counted(system: dict[str, Any]) -> bool:
    """Whether a system's operations are counted. Without `cpu_seconds` a record is old, and its `flops` an estimate."""
    counted = ("flops", "padding_flops", "second_pass_flops", "wall_seconds", "cpu_seconds", "threads")
    values = [system.get("flops"), *(phase.get(key) for phase in system["phases"] for key in counted)]
    return None not in values


def busy_share(phase: dict[str, Any]) -> float | None:
    """CPU time by wall-clock time × threads of a phase; None where the record does not say."""
    if phase.get("cpu_seconds") is None:
        return None
    could = phase["wall_seconds"] * phase["threads"]
    return float(phase["cpu_seconds"] / could) if could else 1.0


def is_busy(phase: dict[str, Any]) -> bool:
    """Whether a phase kept its threads busy: its time is the training's, not another program's.

    One that is not trained mostly reads and writes files: nothing is read off that.
    """
    if "kind" in phase and phase["kind"] != "train":
        return True
    share = busy_share(phase)
    return share is not None and share >= BUSY


def idle_phases(system: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a system's phases for which its time is not compared with another's."""
    return [phase for phase in system["phases"] if not is_busy(phase)]


def busy_in_words(phases: list[dict[str, Any]]) -> str:
    """`dense 58 %, distillation 71.2 %`."""
    return ", ".join(f"{phase['name']} {percent(busy_share(phase) or 0)}" for phase in phases)
