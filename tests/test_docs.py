"""The pages say what the program does."""

import importlib.util

import pytest

from colbert_zero.recipe.schema import Recipe
from helpers import ROOT

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_a_generated_page_is_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert generate.filled(text) == text, "run `make docs`"


def test_the_shipped_recipes_hours_are_up_to_date():
    assert generate.HOURS.read_text(encoding="utf-8") == generate.hours(), "run `make docs`"


def test_every_key_of_a_recipe_has_its_place_in_the_reference():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in Recipe.model_json_schema()["$defs"]:
        assert f"<!-- keys of {name} -->" in page or name == "Parquet", name
