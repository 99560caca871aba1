"""`index` and `search` with `--backend qdrant` as a user types them."""

import json

import pytest

from colbert_zero.data.layouts import write_beir
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import read_run
from helpers import DOCUMENTS

THERE = ("--backend", "qdrant", "--path", "kept")


@pytest.fixture
def folder(tiny_multi_vector, collection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("QDRANT_URL", raising=False)
    tiny_multi_vector.save_pretrained("model", create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    return tmp_path


def test_a_collection_is_indexed_searched_changed_and_checked(command, folder, collection, tiny_multi_vector):
    make = ("index", "model", "--corpus", "tiny", "--out", "notes", "--store", "float32", *THERE)
    code, out, err = command(*make)
    assert (code, "qdrant+file:kept/notes: 20 documents added" in out) == (0, True), err
    code, out, _ = command(
        "search", "notes", "--queries", "tiny/queries.jsonl", "--run", "r.trec", "-k", 20, *THERE, "--exact"
    )
    assert (code, "r.trec: 100 documents of 5 queries" in out) == (0, True)
    wanted = rank(tiny_multi_vector, collection)
    assert {q: [d for d, _ in found] for q, found in read_run("r.trec").items()} == {
        q: [d for d, _ in found] for q, found in wanted.items()
    }
    code, out, _ = command(
        "search", "notes", "lift of a wing", "--json", "--explain", "-k", 2, "--candidates", 5, *THERE
    )
    answer = json.loads(out)
    assert (code, len(answer["hits"])) == (0, 2)
    assert answer["notes"][0].startswith("only 5 candidates")
    for hit in answer["hits"]:
        assert sum(part["score"] for part in hit["explanation"]["parts"]) == pytest.approx(hit["score"], abs=1e-3)
    code, out, _ = command("search", "qdrant+file:kept/notes", "lift of a wing")
    assert (code, "lift" in out) == (0, True)
    code, out, _ = command("index", "delete", "notes", "heat", *THERE)
    assert (code, "1 deleted" in out) == (0, True)
    (folder / "more.jsonl").write_text(json.dumps({"_id": "heat", "text": DOCUMENTS["heat"], "year": 1958}) + "\n")
    code, out, _ = command("index", "add", "notes", "--corpus", "more.jsonl", *THERE)
    assert (code, "1 documents added" in out) == (0, True)
    code, out, _ = command("search", "notes", "wing", "--where", "year=1958", "--json", *THERE)
    assert [hit["id"] for hit in json.loads(out)["hits"]] == ["heat"]
    code, out, _ = command("index", "compact", "notes", *THERE)
    assert (code, "there is nothing to do" in out) == (0, True)
    code, out, _ = command("index", "check", "notes", *THERE)
    assert (code, "20 documents, 20 points" in out, "all texts and metadata are as they were" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "notes", "a", "--backend", "qdrant"), "say where it is: --url http://localhost:6333, the variable"),
        (("search", "notes", "a", "--url", "http://a:6333"), "--url: is for --backend qdrant"),
        (("search", "notes", "a", "--path", "kept"), "--path: is for --backend qdrant"),
        (("search", "notes", "a", "--candidates", "5"), "--candidates: is for --backend qdrant"),
        (("search", "notes", "a", *THERE, "--url", "http://a:6333"), "leave one of them out"),
        (("search", "qdrant+http://a:6333/notes", "a", "--path", "kept"), "the address of the index says"),
        (("search", "notes", "a", "--backend", "qdrant", "--url", "localhost:6333"), "write http://HOST:6333"),
        (("search", "notes", "a", *THERE), "there is no such folder of Qdrant's local mode"),
        (("search", "notes", "a", *THERE, "--exact", "--candidates", "5"), "not with --exact, which ranks everything"),
        (("index", "check", "notes", *THERE), "there is no such folder of Qdrant's local mode"),
        (("index", "model", "--corpus", "tiny", "--out", "i", "--quantization", "binary"), "is for --backend qdrant"),
        (("index", "model", "--corpus", "tiny", "--out", "i", "--store", "int8", *THERE), "Qdrant keeps float16 or"),
        (("index", "model", "--corpus", "tiny", "--out", "i", "--segment-documents", "5", *THERE), "its own segments"),
        (("index", "model", "--corpus", "tiny", "--out", "a/b", *THERE), "is no name of a collection"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_with_its_mend(command, folder, words, message):
    code, _, err = command(*words)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
