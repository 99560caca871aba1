"""An index from elsewhere runs nothing, reads nothing beside itself, and says what is wrong with it."""

import json
import sqlite3
from contextlib import closing

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving.index.building import build
from colbert_zero.serving.index.changing import delete
from colbert_zero.serving.index.manifest import read_manifest
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS


@pytest.fixture
def index(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in DOCUMENTS.items()))
    build(str(tmp_path / "model"), documents_of([str(path)], "corpus"), tmp_path / "i", tell=lambda _: None)
    return tmp_path / "i"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("segments", 0, "name"), "../../elsewhere"),
        (("segments", 0, "name"), "/etc"),
        (("segments", 0, "deletions"), {"name": "../x", "documents": 1, "checksum": "0" * 32}),
        (("segments", 0, "documents"), -1),
        (("segments", 0, "documents"), 0),
        (("segments", 0, "tokens"), 2**60),
        (("segments", 0, "tokens"), "many"),
        (("storage",), "pickle"),
        (("model", "commit"), "main; rm -rf"),
        (("pool",), float("nan")),
        (("__reduce__",), "os.system"),
        (("format",), 2),
    ],
)
def test_a_manifest_that_names_what_it_must_not_is_refused(index, keys, value):
    path = index / "manifest.json"
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ColbertZeroError, match=r"manifest.json: "):
        read_manifest(index)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\0"])
def test_what_is_no_manifest_is_refused(index, content):
    (index / "manifest.json").write_text(content)
    with pytest.raises(ColbertZeroError, match=r"manifest.json: "):
        Index.open(index)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM documents; END",
        "CREATE VIEW v AS SELECT load_extension('evil')",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "ALTER TABLE documents ADD COLUMN more TEXT",
        "CREATE INDEX i ON documents (abs(number))",
    ],
)
def test_a_database_with_more_than_its_tables_is_not_queried(index, statement):
    path = index / "segments" / "000001" / "texts"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    content = json.loads((index / "manifest.json").read_text())
    content["segments"][0]["texts_bytes"] = path.stat().st_size
    (index / "manifest.json").write_text(json.dumps(content))
    with Index.open(index) as opened:
        assert list(opened.damaged.values()) == ["not the tables of an index"]
        assert len(opened) == 0


@pytest.mark.parametrize("number", [-1, 20, 2**31 - 1])
def test_a_list_of_deleted_documents_that_names_others_is_damage(index, number):
    delete(index, ["lift"], lambda _: None)
    [path] = (index / "deleted").iterdir()
    path.write_bytes(number.to_bytes(4, "little", signed=True))
    with Index.open(index) as opened:
        assert "names others than its own" in opened.damaged["000001"]


@pytest.mark.parametrize("part", [2, 3])
def test_passages_that_do_not_fit_together_are_damage_not_a_crash(index, part):
    """Lengths and owners that lead beyond the vectors."""
    manifest = read_manifest(index)
    with Index.open(index) as opened:
        place = opened._segments["000001"]._places[("vectors", "scales", "lengths", "documents")[part]]
    tokens = index / "segments" / "000001" / "tokens"
    content = bytearray(tokens.read_bytes())
    content[place.offset : place.offset + 4] = (2**31 - 1).to_bytes(4, "little")
    tokens.write_bytes(content)
    with Index.open(index, tell=lambda _: None) as opened:
        answer = opened.search("wing")
    assert (len(answer), manifest.documents) == (0, 20)
    assert "its passages do not fit together" in answer.notes[0]
