"""Fill pages' tables from the fields' own docstrings, and reckon the shipped recipes' device-hours: `make docs`.

A block from `<!-- keys of CLASS -->` to `<!-- end -->` is made here; everything around it is written by hand. A test
compares, so that no page is behind the program.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from colbert_zero.planning.shipped import h100_hours
from colbert_zero.recipe import data, schema, untrained
from colbert_zero.recipe.entry import Entry
from colbert_zero.recipe.reading import DEVICE_HOURS as HOURS
from colbert_zero.recipe.reading import load_recipe, shipped_recipes
from colbert_zero.study import record as untrained_record
from colbert_zero.training import record

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"<!-- keys of (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Write the pages anew."""
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    HOURS.write_text(hours(), encoding="utf-8")


def hours() -> str:
    """Device-hours of the shipped recipes, as JSON, a line each; null where nothing is published of what they read."""
    found = {name: h100_hours(load_recipe(name)) for name in shipped_recipes()}
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()) + "\n}\n"


def pages() -> list[Path]:
    """Pages with blocks."""
    return [path for path in sorted(FOLDER.glob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


def filled(page: str) -> str:
    """A page with its blocks made anew."""
    return BLOCK.sub(lambda block: f"<!-- keys of {block[1]} -->\n{table(class_of(block[1]))}<!-- end -->", page)


def class_of(name: str) -> type[BaseModel]:
    """The recipe's or record's class of that name."""
    modules = (schema, untrained, data, record, untrained_record)
    found: type[BaseModel] = next(vars(module)[name] for module in modules if name in vars(module))
    return found


def table(entry: type[BaseModel]) -> str:
    """A class's docstring and a row a field; a recipe's keys with their defaults."""
    keys = issubclass(entry, Entry)
    head = "| key | default | what it is |\n|---|---|---|\n" if keys else "| key | what it is |\n|---|---|\n"
    rows = []
    for name, field in entry.model_fields.items():
        cells = [f"`{field.alias or name}`", *([default_of(field)] if keys else []), one_line(field.description)]
        rows.append(f"| {' | '.join(cells)} |\n")
    return f"{one_line(entry.__doc__)}\n\n{head}{''.join(rows)}"


def default_of(field: FieldInfo) -> str:
    """`required`, nothing where there is none to write in a word, else the value as YAML has it."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value == {} or value == "" or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def one_line(text: str | None) -> str:
    """A docstring without its line breaks."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    main()
