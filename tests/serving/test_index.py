"""An index answers as brute force does, from whatever it was made."""

import gzip
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colbert_zero.data.collection import Collection
from colbert_zero.data.documents import documents_of
from colbert_zero.data.layouts import write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import embed, rank
from colbert_zero.serving.index.building import DEFAULTS, Settings, build
from colbert_zero.serving.index.opened import Index
from colbert_zero.serving.index.searching import best_documents
from helpers import DOCUMENTS, QRELS, QUERIES


@pytest.fixture
def made(tiny_multi_vector, tiny_dense, tmp_path):
    """Make an index of {id: text}, or of rows; returns its folder."""

    def make(documents, settings=DEFAULTS, model="multi-vector", name="index", told=None):
        folder = tmp_path / model
        if not folder.exists():
            encoder = tiny_dense if model == "dense" else tiny_multi_vector
            encoder.save_pretrained(str(folder), create_model_card=False)
        build(
            str(folder), corpus(tmp_path, documents), tmp_path / name, settings, (told or []).append,
        )  # fmt: skip
        return tmp_path / name

    return make


def corpus(folder, documents, name="corpus.jsonl"):
    if isinstance(documents, dict):
        documents = [{"_id": key, "text": text} for key, text in documents.items()]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in documents))
    return documents_of([str(path)], "--corpus")


def quiet(*_):
    pass


def opened(path, **options):
    return Index.open(path, tell=quiet, **options)


@pytest.mark.parametrize("model", ["multi-vector", "dense"])
@pytest.mark.parametrize("size", [3, 7, 100])
def test_it_ranks_as_evaluation_does_whatever_its_segments(
    made, collection, model, size, tiny_multi_vector, tiny_dense
):
    index = opened(made(DOCUMENTS, Settings("float32", segment_documents=size), model))
    wanted = rank(tiny_dense if model == "dense" else tiny_multi_vector, collection)
    found = index.run(QUERIES, 20)
    for query, ranking in wanted.items():
        assert [d for d, _ in found[query]] == [d for d, _ in ranking]
        assert [s for _, s in found[query]] == pytest.approx([s for _, s in ranking], abs=1e-5)


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
@pytest.mark.parametrize("block", [1, 40, 10**6])
@pytest.mark.parametrize("release", [False, True])
def test_scores_are_those_of_brute_force_over_what_is_stored(made, tiny_multi_vector, storage, block, release):
    index = opened(made(DOCUMENTS, Settings(storage, segment_documents=8)))
    queries = embed(tiny_multi_vector, list(QUERIES.values()), "query")
    segments = list(index._segments.values())
    found = best_documents(segments, queries, 5, release=release, block_tokens=block)
    scores = {}
    for segment in segments:
        stored = segment.tokens(0, segment.entry.tokens).double()
        for number, identifier in enumerate(row.id for row in segment.texts.rows()):
            document = stored[segment.starts[number] : segment.starts[number + 1]]
            scores[identifier] = [
                float((query.double() @ document.T).amax(1).sum())
                for query in queries.values.split(queries.lengths.tolist())
            ]
    for place, ranking in enumerate(found):
        wanted = sorted(scores, key=lambda identifier: (-scores[identifier][place], identifier))[:5]
        assert [hit.id for _, hit in ranking] == wanted
        assert [score for score, _ in ranking] == pytest.approx([scores[i][place] for i in wanted], abs=1e-4)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_what_storing_in_fewer_bits_changes_is_small(made, storage):
    exact = opened(made(DOCUMENTS, Settings("float32"))).run(QUERIES, 20)
    stored = opened(made(DOCUMENTS, Settings(storage), name="small")).run(QUERIES, 20)
    for query, ranking in exact.items():
        assert dict(stored[query]) == pytest.approx(dict(ranking), rel=0.02, abs=0.02)


def test_equal_scores_are_sorted_by_id_across_segments(made):
    names = ["m", "b", "z", "a", "k", "c"]
    index = opened(made(dict.fromkeys(names, "the lift of a wing"), Settings(segment_documents=2)))
    assert [hit.id for hit in index.search("wing", k=4)] == ["a", "b", "c", "k"]


def test_an_answer_can_be_printed_and_has_text_and_metadata(made):
    index = opened(made([{"_id": "w", "title": "Wings", "text": "Lift of a wing.", "year": 1958, "tags": ["a"]}]))
    answer = index.search("lift of a wing")
    [hit] = answer
    assert (hit.rank, hit.id, hit.text) == (1, "w", "Wings Lift of a wing.")
    assert hit.metadata == {"title": "Wings", "year": 1958, "tags": ["a"]}
    assert str(answer).startswith(f"lift of a wing\n  1. {hit.score:8.4f}  w\n")
    assert json.loads(json.dumps(answer.record()))["hits"][0]["id"] == "w"


def test_metadata_choose_what_may_be_found(made):
    rows = [
        {"_id": str(n), "text": f"wing number {n}", "even": n % 2 == 0, "part": n // 4, "the key": 'a "b"' * (n == 5)}
        for n in range(8)
    ]
    index = opened(made(rows, Settings(segment_documents=3)))

    def found(**where):
        return {hit.id for hit in index.search("wing", where=where)}

    assert found(even="true") == {"0", "2", "4", "6"}
    assert found(even="false", part="1") == {"5", "7"}
    assert found(**{"the key": 'a "b"'}) == {"5"}
    assert found(part="9") == set()
    with pytest.raises(ColbertZeroError, match=r"no document has metadata of that name, did you mean even\?"):
        found(evem="true")


def test_long_names_of_metadata_can_be_filtered_by_and_too_long_ones_are_told(made, tmp_path):
    name, too_long = "n" * 100, "m" * 5000
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"_id": "a", "text": "a wing", name: "yes", too_long: "no"}) + "\n")
    made({"b": "a book"})
    added = build(str(tmp_path / "multi-vector"), documents_of([str(path)], "--corpus"), tmp_path / "long", tell=quiet)
    assert added.left_out == {"a name of metadata that cannot be filtered by, too long or one too many": 1}
    assert [hit.id for hit in opened(tmp_path / "long").search("wing", where={name: "yes"})] == ["a"]


def test_a_document_without_a_scored_token_is_told_and_never_found(made, tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    texts = {"a": "wing", "b": "heat"}
    build(str(tmp_path / "m"), corpus(tmp_path, texts), tmp_path / "i", tell=quiet)
    index = opened(tmp_path / "i")
    [segment] = index._segments.values()
    segment.__dict__["found"] = np.array([True, False])
    assert [hit.id for hit in index.search("heat")] == ["a"]


@pytest.mark.parametrize("layout", ["jsonl", "jsonl.gz", "parquet", "beir", "glob"])
def test_documents_are_read_from_every_layout(layout, tmp_path):
    rows = [{"_id": key, "text": text, "n": number} for number, (key, text) in enumerate(DOCUMENTS.items())]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"c.{layout}"
    if layout == "jsonl":
        path.write_bytes(lines)
    elif layout == "jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif layout == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif layout == "glob":
        (tmp_path / "one.jsonl").write_bytes(lines)
        path = tmp_path / "*.jsonl"
    else:
        write_beir(Collection.from_memory("c", DOCUMENTS, QUERIES, QRELS), path)
    found = [document for _, document in documents_of([str(path)], "--corpus").read(Counter())]
    assert {document.id: document.text for document in found} == DOCUMENTS
    if layout != "beir":
        assert [document.metadata for document in found] == [{"n": number} for number in range(len(rows))]


def test_a_folder_of_texts_gives_its_files_by_their_paths(tmp_path):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("not of the folder")
    files = {"a.md": "# Wings", "deep/b.py": "def lift(): ...", "deep/c.txt": "heat", ".hidden.md": "no", "d.bin": "no"}
    for name, text in files.items():
        (tmp_path / "docs" / name).write_text(text)
    (tmp_path / "docs" / "empty.md").write_text(" \n")
    (tmp_path / "docs" / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "docs" / "link.txt").symlink_to(tmp_path / "secret.txt")
    left_out = Counter()
    found = [document for _, document in documents_of([str(tmp_path / "docs")], "--corpus").read(left_out)]
    assert [document.id for document in found] == ["a.md", "deep/b.py", "deep/c.txt"]
    assert left_out == {"without a text": 1, "a file not in UTF-8": 1}


def test_rows_without_ids_are_numbered_and_values_json_cannot_hold_become_text(tmp_path):
    rows = [
        {"text": "a", "when": pa.scalar(0, pa.timestamp("s")).as_py(), "x": float("nan"), "vector": None},
        {"text": None},
    ]
    pq.write_table(pa.Table.from_pylist([*rows, {"text": "b", "vector": [0.25] * 5000}]), tmp_path / "c.parquet")
    left_out = Counter()
    found = [document for _, document in documents_of([str(tmp_path / "c.parquet")], "--corpus").read(left_out)]
    assert [(d.id, d.text, d.metadata) for d in found] == [
        ("1", "a", {"when": "1970-01-01 00:00:00", "x": "nan"}),
        ("3", "b", {}),
    ]
    assert left_out == {"without a text": 1, "metadata longer than 4,096 characters, of vector": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"_id": "a", "text": "x"}, {"_id": "b", "text": "y"}, {"_id": "a", "text": "z"}],
         r"line 3: the id 'a' is there twice, first in .*line 1; make the ids unique"),
        ([{"_id": "a", "text": "x"}, {"text": "y"}], r"line 2: no '_id', which other rows have; mend the row, or pass"),
        ([{"_id": "a", "text": 3}], r"line 1: `text` is not text: found a number; mend the row"),
        ([{"_id": "", "text": "x"}], r"line 1: `_id` is no usable id: ''"),
        ([{"_id": "a", "text": " "}], r"--corpus: no document with a text in"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_corpus_is_told_before_anything_is_encoded(rows, message, tmp_path, monkeypatch):
    monkeypatch.setattr("colbert_zero.serving.index.building.load_identified", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(ColbertZeroError, match=message):
        build("nowhere", corpus(tmp_path, rows), tmp_path / "index", tell=quiet)
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_another_model_is_refused_and_a_model_that_moved_is_found_where_one_says(made, tiny_dense, tmp_path):
    path = made(DOCUMENTS)
    tiny_dense.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    with pytest.raises(ColbertZeroError, match=r"other is not the model that this index was made with: that was"):
        opened(path, model=str(tmp_path / "other")).search("wing")
    wanted = opened(path).search("wing").record()
    (tmp_path / "multi-vector").rename(tmp_path / "moved")
    with pytest.raises(ColbertZeroError, match=r"no such folder .*say where: --model PLACE"):
        opened(path).search("wing")
    assert opened(path, model=str(tmp_path / "moved")).search("wing").record() == wanted
    config = tmp_path / "moved" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ColbertZeroError, match="is not the model that this index was made with"):
        opened(path, model=str(tmp_path / "moved")).search("wing")
