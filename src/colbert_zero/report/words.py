"""Numbers in words."""

import math
from typing import Any


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would choose: `3.1 min`."""
    unit, name = unit_of(seconds)
    return f"{rounded(seconds / unit)} {name}"


def unit_of(seconds: float) -> tuple[float, str]:
    """Seconds of the unit a reader would choose for a time, and its name."""
    for unit, name, limit in ((1, "s", 90), (60, "min", 90 * 60), (3600, "h", 48 * 3600)):
        if seconds < limit:
            return unit, name
    return 86400, "days"


def operations(count: float) -> str:
    """Floating-point operations in the unit a reader would choose: `3.1 PFLOP`."""
    unit, name = operations_unit(count)
    return f"{rounded(count / unit)} {name}"


def operations_unit(count: float) -> tuple[float, str]:
    """The unit for a number of floating-point operations: its size and its name."""
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return size, f"{letter}FLOP"
    return 1, "FLOP"


def rounded(value: float) -> str:
    """Two digits, or all before the point: `3.1`, `31`."""
    return f"{value:.1f}" if 0 < abs(value) < 9.95 else f"{value:,.0f}"


def quantity(value: float | None) -> str:
    """A count in thousands, millions, …: `1.70 M`; an en dash where there is none."""
    if value is None:
        return "–"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:,.0f}"


def size(count: float | None) -> str:
    """Bytes in thousands, millions, …: `6.30 MB`; an en dash where there is none."""
    words = quantity(count)
    return words if count is None else f"{words}{'B' if words[-1].isalpha() else ' B'}"


def points(score: float | None, signed: bool = False) -> str:
    """A score between 0 and 1, times 100, two decimals."""
    if score is None:
        return "–"
    value = round(100 * score, 2) + 0.0  # never −0.00
    return f"{value:{'+' if signed else ''}.2f}".replace("-", "−")


def probability(p: float) -> str:
    """A p-value as one writes it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def number(value: Any) -> str:
    """Any value of a record as text; an en dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def fraction(ratio: float) -> str:
    """A share in words: `a tenth`, `about a third`, `42 %`."""
    words = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth", 20: "a twentieth"}
    nearest = round(1 / ratio) if ratio > 0 else 0
    if nearest in words and abs(ratio * nearest - 1) < 0.06:
        return ("" if abs(ratio * nearest - 1) < 0.01 else "about ") + words[nearest]
    if 0.995 <= ratio < 1:
        return "nearly all"
    return f"{100 * ratio:.2g} %" if ratio < 1 else f"{ratio:.3g} times"


def percent(ratio: float) -> str:
    """Rounded down to a tenth, so that what is below a border is seen to be."""
    return f"{math.floor(1000 * ratio + 1e-6) / 10:g} %"


def listed(names: list[str]) -> str:
    """Names as a sentence has them: `a, b and c`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
