"""Collections' texts in training sources: what is found, where, and what is left when they are taken out."""

import gzip
import json

import numpy as np
import pytest

from colbert_zero.data.collection import Collection
from colbert_zero.data.given import load_sources
from colbert_zero.errors import ColbertZeroError
from colbert_zero.teaching import leaks
from colbert_zero.teaching.leaks import find_leaks, write_clean
from example_sources import DOCUMENTS as TABLE
from example_sources import QUERIES as ASKED
from example_sources import TRAIN, jsonl, parquet, prepare

LONG = (
    "The boundary layer of a flat plate in a supersonic stream grows with the square root of the distance from its "
    "leading edge, as long as the flow in it stays laminar and the wall is neither heated nor cooled."
)
QUERY = "how thick is the boundary layer of a plate"

ROWS = [
    {"query": "a question of its own", "document": "an answer that nobody else gives to anything"},
    {"query": "what grows along a plate", "document": LONG.upper().replace("SUPERSONIC", "hypersonic")},
    {"query": "How thick is the boundary layer of a PLATE?", "document": "It depends on the stream."},
    {"query": "another one", "document": "fine", "negative": ["not this", LONG]},
]


def collection(name="plates"):
    other = "Library catalogues list what the shelves of a library hold."
    return Collection.from_memory(
        name, {"d1": LONG, "d2": other}, {"q1": QUERY, "q2": "cats"}, {"q1": {"d1": 1}, "q2": {"d2": 1}}
    )


def pairs(tmp_path, rows=ROWS):
    return prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "pairs.jsonl", rows)})


def test_queries_and_documents_are_found_with_their_rows_and_told_by_example(tmp_path):
    found = find_leaks([pairs(tmp_path)], [collection()])
    record = found.record["collections"]["plates"]
    assert record["verdict"] == "queries seen"
    assert (record["queries_seen"], record["queries_equal"], record["documents_seen"]) == (1, 1, 1)
    assert record["by_source"] == {"s": {"queries": 1, "documents": 1}}
    of = {example["of"]: example for example in record["examples"]}
    assert (of["queries"]["id"], of["queries"]["row"], of["queries"]["share"]) == ("q1", 2, 1)
    assert (of["documents"]["id"], of["documents"]["row"]) == ("d1", 3)  # the equal one, a negative, counts most
    assert of["documents"]["training_text"].startswith("The boundary layer")
    assert found.rows["any"]["s"].tolist() == [False, True, True, True]
    assert found.rows["queries"]["s"].tolist() == [False, False, True, False]
    assert found.record["sources"]["s"]["overlapping_any"] == 3


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [([0], "clean"), ([0, 1], "documents seen"), ([0, 1, 2], "queries seen"), ([2], "queries seen")],
)
def test_the_verdict_is_of_the_worst(tmp_path, rows, verdict):
    found = find_leaks([pairs(tmp_path, [ROWS[row] for row in rows])], [collection()])
    assert found.record["collections"]["plates"]["verdict"] == verdict


def test_scored_candidates_and_tables_of_documents_are_looked_at_too(tmp_path):
    scored = [
        {"query": "q", "documents": ["other", LONG], "scores": [1, 2]},
        {"query": "p", "documents": ["a", "b"], "scores": [1, 2]},
    ]
    source = prepare(tmp_path / "a", {"kind": "jsonl", "path": jsonl(tmp_path / "a.jsonl", scored)})
    assert find_leaks([source], [collection()]).rows["any"]["s"].tolist() == [True, False]
    table = [*TABLE[:2], {"document_id": "d2", "text": LONG}, *TABLE[3:]]
    names = {"train": TRAIN, "queries": ASKED, "documents": table}
    files = {name: parquet(tmp_path / f"{name}.parquet", rows) for name, rows in names.items()}
    source = prepare(tmp_path / "b", {"kind": "parquet", **files})
    assert find_leaks([source], [collection()]).rows["any"]["s"].tolist() == [True, False, False, False]


def test_what_repeats_inside_and_between_sources_is_counted(tmp_path):
    more = [{"query": f"question {n}", "document": LONG if n < 3 else f"answer {n}"} for n in range(5)]
    one = jsonl(tmp_path / "one.jsonl", more)
    two = jsonl(tmp_path / "two.jsonl", [*ROWS, {"query": "question 4", "document": "fine"}])
    sources = load_sources([one, two], "--train", tmp_path / "data", print, shown)
    record = find_leaks(sources, []).record
    assert record["sources"]["one"] | {"near": 0} == {
        "rows": 5,
        "texts": 10,
        "queries_repeated": 0,
        "documents_repeated": 2,
        "near": 0,
    }
    assert record["sources"]["two"]["documents_repeated"] == 1
    assert record["sources"]["two"]["near"] == 2  # the plate in capitals, and as a negative
    assert record["between"] == {"two and one": {"equal": 2, "near": 1}}
    assert record["collections"] == {}


def test_slices_of_collections_and_batches_of_rows_change_nothing(tmp_path, monkeypatch):
    source = pairs(tmp_path, [*ROWS, *({"query": f"q {n}", "document": f"a text {n}"} for n in range(30))])
    names = [collection("a"), collection("b")]
    whole = find_leaks([source], names)
    monkeypatch.setattr(leaks, "_BATCH", 3)
    sliced = leaks.indexes
    monkeypatch.setattr(leaks, "indexes", lambda texts: sliced(texts, 1))
    monkeypatch.setattr("colbert_zero.data.overlap._BLOCK", 20)
    again = find_leaks([source], names)
    assert again.record == whole.record
    assert np.array_equal(again.rows["any"]["s"], whole.rows["any"]["s"])


def test_a_part_of_rows_and_documents_is_looked_at_and_told(tmp_path):
    record = find_leaks([pairs(tmp_path)], [collection()], False, 2, 1).record
    assert (record["rows"], record["whole"]) == (2, False)
    assert record["collections"]["plates"]["documents_compared"] == 1
    assert find_leaks([pairs(tmp_path)], [collection()], False, 2).rows == {}


def test_clean_sources_are_read_again_as_they_were_but_for_the_rows_that_overlap(tmp_path):
    source = pairs(tmp_path)
    found = find_leaks([source], [collection()])
    assert write_clean([source], found, tmp_path / "clean") == {"s": 1}
    assert write_clean([source], found, tmp_path / "queries", "queries") == {"s": 3}
    again = prepare(tmp_path / "again", {"kind": "jsonl", "path": str(tmp_path / "queries" / "s.jsonl")})
    (part,) = again.parts.values()
    assert part.read([0, 1, 2]) == next(iter(source.parts.values())).read([0, 1, 3])
    assert find_leaks([again], [collection()]).record["collections"]["plates"]["verdict"] == "documents seen"


# ---- The command


def shown(title):
    from contextlib import nullcontext

    return nullcontext()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from colbert_zero.data.layouts import write_beir

    write_beir(collection(), tmp_path / "plates")
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_tells_where_and_writes_clean_sources(command, folder):
    arguments = ("leaks", "--train", "pairs.jsonl.gz", "--collection", "plates", "--json", "found.json")
    code, out, error = command(*arguments, "--write-clean", "clean", "--drop", "queries")
    assert (code, error) == (0, "")
    assert "plates        1 of 2          1 of 2  queries seen" in out
    assert "plates: 1 queries and 1 documents in pairs" in out
    assert f"  queries, q1: {QUERY}" in out
    assert "inside pairs: of 10 texts" in out
    assert "pairs: 3 of 4 rows written to clean" in out
    assert len((folder / "clean" / "pairs.jsonl").read_text().splitlines()) == 3
    assert json.loads((folder / "found.json").read_text())["collections"]["plates"]["verdict"] == "queries seen"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--train", "none.jsonl"], "--train none.jsonl: no such file"),
        (["--train", "rows"], "--train rows: a file or glob of .jsonl"),
        (["--train", "quickstart:nothing"], "--train quickstart:nothing: quickstart has no source 'nothing'"),
        (["--train", "none:x"], "none"),
        (["--train", "pairs.jsonl.gz", "--write-clean", "x"], "--write-clean: of what?"),
        (["--train", "pairs.jsonl.gz", "--collection", "plates", "--write-clean", "plates"], "is there already"),
        (["--train", "pairs.jsonl.gz", "--collection", "nowhere/x/y"], "nowhere/x/y"),
        (["--train", "pairs.jsonl.gz", "--train", "more/pairs.jsonl"], "pairs.jsonl.gz is called pairs too"),
        (["--train", "bad.jsonl"], "name it --train RECIPE:bad"),
        (["--train", "pairs.jsonl.gz", "--drop", "all"], "--drop"),
    ],
)
def test_a_mistake_is_told_with_its_mend(command, folder, arguments, told):
    (folder / "more").mkdir()
    (folder / "more" / "pairs.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (folder / "bad.jsonl").write_text('{"q": "a", "d": "b"}\n')
    code, _, error = command("leaks", *arguments)
    assert code == 2
    assert told in " ".join(error.split())
    assert "Traceback" not in error


def test_a_recipes_source_is_named_by_recipe_and_name(command, folder):
    from helpers import write_recipe

    write_recipe(folder)
    code, out, error = command("leaks", "--train", "recipe.yaml:hard", "--collection", "plates")
    assert (code, error) == (0, "")
    assert "recipe.yaml:hard: its texts are those of pairs, of which it is made" in out
    assert "inside pairs: of 260 texts" in out  # without the pairs that the recipe holds out


def test_more_sources_than_bits_are_refused(tmp_path):
    with pytest.raises(ColbertZeroError, match="at most 64"):
        find_leaks([pairs(tmp_path)] * 65, [])
