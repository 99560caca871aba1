"""What an encoder's layers add, in words."""

from typing import Any

from colbert_zero.report.words import duration, points

WORTH = 0.01
"""A point: layers whose interval is not wholly above it are not shown to add anything worth their cost."""


def add_little(layers: dict[str, Any]) -> bool:
    """Whether an encoder's layers are not shown to add a point."""
    return bool(layers["interval"][0] <= WORTH)


def added(layers: dict[str, Any]) -> str:
    """`its encoder's layers add 1.28 points (95 % interval …)` and what was scored."""
    low, high = (points(bound, signed=True) for bound in layers["interval"])
    verb = "add" if layers["difference"] >= 0 else "take"
    return (
        f"its encoder's layers {verb} {points(abs(layers['difference']))} points (95 % interval {low} to {high}): with "
        f"them it scores {points(layers['score'])}, with its token embeddings alone {points(layers['without'])}, on a "
        f"sample of {layers['queries']:,} queries"
    )


def told(layers: dict[str, Any]) -> str:
    """The line at the end of a training."""
    little = ". They are not shown to add a point" if add_little(layers) else ""
    return f"{added(layers)} ({duration(layers['seconds'])}){little}"
