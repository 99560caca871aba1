from pathlib import Path

import pytest

from colbert_zero.data.by_file import source_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "jsonl"), ("a.jsonl.gz", "jsonl"), ("a.parquet", "parquet"), ("a.tsv", "tsv"), ("a.tsv.gz", "tsv")],
)
def test_a_file_is_a_source_of_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    entry = source_of(str(tmp_path / name), "skip", "--pairs")
    assert (entry.kind, entry.on_bad_rows) == (kind, "skip")  # type: ignore[union-attr]
    assert source_of(str(tmp_path / f"*{name[1:]}"), "skip", "--pairs").kind == kind


def test_a_folder_and_a_name_on_the_hub_are_data_sets(tmp_path: Path) -> None:
    for name in (str(tmp_path), "sentence-transformers/gooaq"):
        assert source_of(name, "error", "--pairs").kind == "hub"
