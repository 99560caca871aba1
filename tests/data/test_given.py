import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from colbert_zero.data.given import find_source, is_of_recipe
from colbert_zero.errors import ColbertZeroError


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "jsonl"), ("a.jsonl.gz", "jsonl"), ("a.parquet", "parquet"), ("a.tsv", "tsv"), ("a.tsv.gz", "tsv")],
)
def test_a_file_is_a_source_of_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    given = find_source(str(tmp_path / name), "--pairs", print, "skip")
    entry = given.recipe.sources[given.name]
    assert (given.name, entry.kind, entry.on_bad_rows) == ("a", kind, "skip")  # type: ignore[union-attr]
    of_glob = find_source(str(tmp_path / f"*{name[1:]}"), "--pairs", print)
    assert of_glob.recipe.sources[of_glob.name].kind == kind


def test_a_folder_and_a_name_on_the_hub_are_data_sets(tmp_path: Path) -> None:
    for word in (str(tmp_path), "sentence-transformers/gooaq"):
        given = find_source(word, "--pairs", print)
        assert (given.name, given.recipe.sources[given.name].kind) == (Path(word).name, "hub")


def test_a_data_sets_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows.jsonl").write_text(json.dumps({"query": "q", "document": "d"}) + "\n")
    source = find_source(str(tmp_path / "set"), "--pairs", print).load(tmp_path / "data", lambda title: nullcontext())
    [part] = source.parts.values()
    assert part.read([0]) == {"query": ["q"], "document": ["d"], "negatives": [[]]}


@pytest.mark.parametrize("word", ["rows", "./nothing", "a/b/c", "/nowhere"])
def test_what_is_none_of_these_is_refused_with_all_that_can_be_named(word: str) -> None:
    with pytest.raises(ColbertZeroError, match=rf"--pairs {word}: a file or glob of .*OWNER/NAME .*RECIPE:NAME"):
        find_source(word, "--pairs", print)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a:b.jsonl").touch()
    (tmp_path / "a:b").mkdir()
    assert not is_of_recipe(str(tmp_path / "a:b.jsonl"))
    assert not is_of_recipe(str(tmp_path / "a:b"))
    assert is_of_recipe("quickstart:hard")
