"""`index` and `search` as a user types them."""

import json
import re

import pytest

from colbert_zero.data.layouts import write_beir
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import read_run
from helpers import DOCUMENTS, QUERIES


@pytest.fixture
def folder(tiny_multi_vector, collection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_multi_vector.save_pretrained("model", create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    return tmp_path


def test_a_collection_is_indexed_searched_and_ranked_as_evaluate_does(command, folder, collection, tiny_multi_vector):
    code, out, _ = command("index", "model", "--corpus", "tiny", "--out", "i", "--store", "float32")
    assert code == 0
    assert "i: 20 documents added" in out
    assert "i: 20 documents in 1 segments" in out
    code, out, _ = command("search", "i", QUERIES["q1"], "-k", 3)
    assert code == 0
    assert re.findall(r"^\d+", out, re.MULTILINE) == ["1", "2", "3"]
    code, out, _ = command("search", "i", "--queries", "tiny/queries.jsonl", "--run", "r.trec", "-k", 20)
    assert (code, "r.trec: 100 documents of 5 queries" in out) == (0, True)
    wanted = rank(tiny_multi_vector, collection)
    assert {q: [d for d, _ in found] for q, found in read_run("r.trec").items()} == {
        q: [d for d, _ in found] for q, found in wanted.items()
    }
    code, out, _ = command("index", "check", "i")
    assert (code, "every byte is as it was written" in out) == (0, True)
    code, out, _ = command("index", "model", "--corpus", "tiny", "--out", "i", "--store", "float32")
    assert (code, "i: it was finished before with this corpus, and nothing is changed" in out) == (0, True)


def test_an_answer_is_json_with_reasons_where_asked(command, folder):
    command("index", "model", "--corpus", "tiny", "--out", "i")
    code, out, _ = command("search", "i", "lift of a wing", "--json", "--explain", "-k", 2)
    answer = json.loads(out)
    assert (code, answer["query"], answer["notes"], len(answer["hits"])) == (0, "lift of a wing", [], 2)
    for hit in answer["hits"]:
        assert hit["text"] == DOCUMENTS[hit["id"]]
        assert sum(part["score"] for part in hit["explanation"]["parts"]) == pytest.approx(hit["score"], abs=1e-3)
    code, out, _ = command("search", "i", "lift of a wing", "--explain", "-k", 2)
    assert (code, "lift → " in out) == (0, True)


def test_an_index_is_changed_and_checked(command, folder):
    command("index", "model", "--corpus", "tiny", "--out", "i", "--segment-documents", 8)
    (folder / "ids").write_text("lift\ndrag\n")
    code, out, _ = command("index", "delete", "i", "heat", "--ids", "ids")
    assert (code, "i: 3 deleted" in out, "17 documents (3 deleted ones still on the disk)" in out) == (0, True, True)
    code, out, _ = command("index", "compact", "i")
    assert (code, "17 documents in 3 segments" in out) == (0, True)
    (folder / "more.jsonl").write_text(json.dumps({"_id": "new", "text": "A wing.", "year": 1958}) + "\n")
    code, out, _ = command("index", "add", "i", "--corpus", "more.jsonl")
    assert (code, "i: 1 documents added" in out) == (0, True)
    code, out, _ = command("search", "i", "wing", "--where", "year=1958", "--json")
    assert [hit["id"] for hit in json.loads(out)["hits"]] == ["new"]
    tokens = next((folder / "i" / "segments").glob("*/tokens"))
    tokens.write_bytes(tokens.read_bytes()[:-1])
    code, out, _ = command("index", "check", "i")
    assert (code, f"segment {tokens.parent.name} is damaged" in out) == (1, True)
    code, out, _ = command("search", "i", "wing")
    assert (code, "is damaged" in out) == (0, True)


def test_comparing_first_stages_of_an_index_without_documents_says_so(command, folder):
    command("index", "model", "--corpus", "tiny", "--out", "i")
    command("index", "delete", "i", *DOCUMENTS)
    code, out, _ = command("index", "check", "i", "--first", "bm25:10")
    assert (code, "no document is left, so there is nothing to compare" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "i"), "name a query, or a file of them"),
        (("search", "i", "a", "--queries", "q"), "name a query, or a file of them"),
        (("search", "i", " "), "the query is empty"),
        (("search", "i", "--queries", "q"), "--queries and --run go together"),
        (("search", "i", "a", "--run", "q"), "--queries and --run go together"),
        (("search", "i", "--queries", "q", "--run", "r", "--json"), "--json: is for one query"),
        (("search", "i", "a", "--where", "year"), "--where year: write KEY=VALUE"),
        (("search", "i", "a", "--where", "a=1", "--where", "a=2"), "--where a: asked for twice"),
        (("search", "i", "a", "--first", "pooled:5", "--exact"), "--exact and --first: every document, or a first"),
        (("search", "nowhere", "a"), "nowhere is no index: it has no manifest.json; make one"),
        (("search", "i", "--queries", "nowhere", "--run", "r"), "nowhere does not exist"),
        (("search", "i", "--queries", "bad.tsv", "--run", "r"), "bad.tsv:1: no tab; write id TAB text"),
        (("search", "i", "--queries", "tiny", "--run", "file/r"), "--run file/r: cannot be written"),
        (("index", "model", "--corpus", "nowhere", "--out", "i"), "--corpus: nowhere: no such file"),
        (("index", "model", "--corpus", "model", "--out", "i"), "--corpus: model has no corpus.jsonl and no file of"),
        (("index", "./nowhere", "--corpus", "tiny", "--out", "new"), "MODEL: no such folder './nowhere'"),
        (("index", "model", "--corpus", "tiny", "--out", "model"), "--out model is there and no index"),
        (("index", "model", "--corpus", "tiny", "--out", "i", "--store", "int8"),
         "--out i holds an index whose storage is float16, not int8"),
        (("index", "model", "--corpus", "one.jsonl", "--out", "i"), "--out i holds an index of another corpus (tiny"),
        (("index", "add", "nowhere", "--corpus", "tiny"), "nowhere is no index"),
        (("index", "add", "i", "--corpus", "no-ids.jsonl"), "line 1: the rows have no ids, and their numbers would"),
        (("index", "add", "i", "--corpus", "no-ids.jsonl", "--replace"), "give each row an `_id`"),
        (("index", "delete", "i", "\udcff"), "i has no document '\\udcff'"),
        (("index", "delete", "i"), "nothing to delete: name documents by their ids"),
        (("index", "delete", "i", "nobody"), "i has no document 'nobody'"),
        (("index", "check", "tiny"), "tiny is no index"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_with_its_mend(command, folder, words, message):
    (folder / "bad.tsv").write_text("no tab\n")
    (folder / "file").write_text("")
    (folder / "no-ids.jsonl").write_text(json.dumps({"text": "A wing."}) + "\n")
    (folder / "one.jsonl").write_text(json.dumps({"_id": "lift", "text": DOCUMENTS["lift"]}) + "\n")
    assert command("index", "model", "--corpus", "tiny", "--out", "i")[0] == 0
    before = sorted((path, path.read_bytes()) for path in (folder / "i").rglob("*") if path.is_file())
    code, _, error = command(*words)
    assert (code, message in error) == (2, True), error
    after = sorted((path, path.read_bytes()) for path in (folder / "i").rglob("*") if path.is_file())
    assert [pair for pair in after if pair[0].name != ".lock"] == [p for p in before if p[0].name != ".lock"]


@pytest.mark.parametrize("name", ["build", "add", "delete", "compact", "check"])
def test_every_command_of_an_index_teaches_by_example(command, name):
    assert "colbert-zero index" in command("index", name, "--help")[1]
    assert name in command("index", "--help")[1]
