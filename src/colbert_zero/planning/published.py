"""What is published of data sets, bases, devices and costs, for what is not at hand: published.yaml."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.recipe.data import Hub


@cache
def published() -> dict[str, Any]:
    """All of it."""
    text = files("colbert_zero.planning").joinpath("published.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def rows_of(name: str, spec: Hub) -> dict[str, int]:
    """Rows of a Hub data set's parts.

    Parts whose size is not published share evenly what is left of the whole.

    Raises:
        ColbertZeroError: Nothing is published of it.
    """
    known = published()["data"].get(spec.path)
    if known is None:
        raise ColbertZeroError(
            f"sources.{name}.path: {spec.path} cannot be read here, and how many rows it has is not known "
            f"(known: {', '.join(published()['data'])}); plan where the Hub can be reached, or with a local folder"
        )
    unsized = known.get("unsized", [])
    left = known["rows"] - sum(known["parts"].values())
    sizes = {**known["parts"], **{part: left // len(unsized) for part in unsized}}
    wanted = spec.splits or spec.configs or ([spec.train] if spec.train else list(sizes))
    for part in wanted:
        if part not in sizes:
            raise ColbertZeroError(f"sources.{name}: {spec.path} has no {part!r}{near(part, sizes)}")
    return {part: min(sizes[part], spec.limit or sizes[part]) for part in wanted}


def device_named(name: str) -> dict[str, Any]:
    """A device of the table.

    Raises:
        ColbertZeroError: There is none of that name.
    """
    table: dict[str, dict[str, Any]] = published()["devices"]
    for known, device in table.items():
        if known.lower() == name.lower():
            return {"name": known, **device}
    raise ColbertZeroError(f"--devices {name}: not in the table{near(name, table)} (there are: {', '.join(table)})")
