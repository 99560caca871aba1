import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data import prepared, sources
from colbert_zero.data import rows as rows_schemas
from colbert_zero.data.layouts import load_beir
from colbert_zero.data.prepared import MINED, Source, arrow_file, open_source
from colbert_zero.data.sources import prepare_source, source_id
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import check_recipe
from example_sources import (
    PAIRS,
    SCORED,
    THREE,
    TRAIN,
    as_pairs,
    hub_folder,
    jsonl,
    parquet,
    prepare,
    read,
    recipe,
    refusal,
)
from helpers import ROOT

# ---- What is read


@given(counts=st.lists(st.integers(0, 3), max_size=40), slice_rows=st.integers(1, 50))
def test_a_parts_different_lengths_are_found_however_many_rows_are_looked_at_at_once(counts, slice_rows):
    rows = [{"query": "q", "document": "d", "negatives": ["n"] * count} for count in counts]
    part = prepared.ArrowPart("s/p", Dataset(pa.Table.from_pylist(rows, schema=rows_schemas.PAIRS)), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_LENGTHS_ROWS", slice_rows)
        assert part.lengths() == list(dict.fromkeys(counts))


@pytest.mark.parametrize(
    ("kind", "name", "write"),
    [("jsonl", "rows.jsonl", jsonl), ("jsonl", "rows.jsonl.gz", jsonl), ("parquet", "rows.parquet", parquet)],
)
def test_pairs_are_read_as_they_stand(tmp_path: Path, kind: str, name: str, write: Callable[..., str]) -> None:
    source = prepare(tmp_path, {"kind": kind, "path": write(tmp_path / name, PAIRS)})
    assert read(source) == {"s/rows": as_pairs(PAIRS)}
    assert source.record["parts"] == {"rows": 30}
    assert (source.record["rows"], source.record["dropped"], source.record["held_out"]) == (30, {}, 0)
    assert source.parts["s/rows"].read([7, 3, 7])["query"] == ["question 7", "question 3", "question 7"]


@pytest.mark.parametrize(("kind", "write"), [("jsonl", jsonl), ("parquet", parquet)])
def test_scored_candidates_are_read(tmp_path: Path, kind: str, write: Callable[..., str]) -> None:
    source = prepare(tmp_path, {"kind": kind, "path": write(tmp_path / "rows.x", SCORED)})
    assert read(source) == {"s/rows": SCORED}


def test_columns_may_have_other_names_and_negatives_be_a_text_or_a_list(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "positive": "p", "bad": "n", "query": 5},
        {"question": "q", "positive": "p", "bad": ["n", "m"]},
        {"question": "q", "positive": "p", "bad": None},
        {"question": "q", "positive": "p"},
    ]
    columns = {"query": "question", "document": "positive", "negative": "bad"}
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", rows), "columns": columns})
    assert [row["negatives"] for row in read(source)["s/r"]] == [["n"], ["n", "m"], [], []]


def test_each_file_of_a_glob_is_a_part_read_once(tmp_path: Path) -> None:
    for name in ("a/one.jsonl", "a/two.jsonl.gz", "b/one.jsonl", "b/[x].jsonl"):
        jsonl(tmp_path / name, PAIRS[: len(name)])
    paths = [str(tmp_path / "**/*.jsonl*"), str(tmp_path / "a/one.jsonl"), str(tmp_path / "b/[x].jsonl")]
    source = prepare(tmp_path, {"kind": "jsonl", "path": paths})
    assert {name.removeprefix("s/").replace(str(tmp_path), ""): len(part) for name, part in source.parts.items()} == {
        "/a/one.jsonl": 11, "two": 14, "/b/one.jsonl": 11, "[x]": 11,
    }  # fmt: skip


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path: Path) -> None:
    rows = [b"\xef\xbb\xbf" + json.dumps(PAIRS[0]).encode(), b"", b"  \r", PAIRS[1]]
    assert len(read(prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", rows)}))["s/r"]) == 2


def test_a_limit_takes_the_first_usable_rows_of_each_part_and_reads_no_further(tmp_path: Path) -> None:
    rows = [PAIRS[0], {"query": "q"}, *PAIRS[1:9], b"broken"]
    paths = [jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "b.jsonl", PAIRS[:3])]
    source = prepare(tmp_path, {"kind": "jsonl", "path": paths, "limit": 5, "on_bad_rows": "skip"})
    assert source.record["parts"] == {"a": 5, "b": 3}
    assert source.record["dropped"] == {"no `document`": 1}
    assert read(source)["s/a"] == as_pairs(PAIRS[:5])


@pytest.mark.parametrize(("kind", "write"), [("jsonl", jsonl), ("parquet", parquet)])
def test_three_tables_are_joined_by_id(tmp_path: Path, kind: str, write: Callable[..., str]) -> None:
    files = {table: write(tmp_path / f"{table}.x", rows) for table, rows in THREE.items()}
    source = prepare(tmp_path, {"kind": kind, **files})
    assert read(source) == {
        "s/train": [
            {"query": f"question {n}", "documents": ["document 1", f"document {n + 2}"], "scores": [0.5, n]}
            for n in range(4)
        ]
    }
    assert source.documents is not None
    assert len(source.documents) == 6


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("write", [parquet, jsonl])
def test_each_configuration_of_a_hub_data_set_is_a_part(tmp_path: Path, write: Callable[..., str]) -> None:
    folder = hub_folder(tmp_path / "hub", {"first": PAIRS[:4], "second": PAIRS[4:9]}, write)
    both = prepare(tmp_path, {"kind": "hub", "path": folder})
    assert read(both) == {"s/first": as_pairs(PAIRS[:4]), "s/second": as_pairs(PAIRS[4:9])}
    one = prepare(tmp_path, {"kind": "hub", "path": folder, "configs": ["second"]})
    assert list(one.parts) == ["s/second"]


@pytest.mark.usefixtures("offline")
def test_splits_of_a_hub_data_set_are_parts_as_nomic_lays_its_sources_out(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, rows in {"paq": PAIRS[:4], "gooaq": PAIRS[4:9], "squad": PAIRS[:2]}.items():
        parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", rows)
    spec = {"kind": "hub", "path": str(tmp_path / "hub"), "splits": ["paq", "gooaq"]}
    assert read(prepare(tmp_path, spec)) == {"s/paq": as_pairs(PAIRS[:4]), "s/gooaq": as_pairs(PAIRS[4:9])}
    assert "squads" in refusal(tmp_path / "no", spec | {"splits": ["squads"]})


@pytest.mark.usefixtures("offline")
def test_of_scored_candidates_the_first_ones_are_kept(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{n}", "documents": ["a", "b", "c"][: 3 - n % 2], "scores": [3, 2, 1][: 3 - n % 2]}
        for n in range(4)
    ]
    spec = {"kind": "jsonl", "path": jsonl(tmp_path / "rows.jsonl", rows), "candidates": 2}
    found = read(prepare(tmp_path, spec))["s/rows"]
    assert found == [{"query": f"q{n}", "documents": ["a", "b"], "scores": [3, 2]} for n in range(4)]
    three = {"kind": "hub", "path": hub_folder(tmp_path / "hub", THREE), "candidates": 2}
    assert all(len(row["documents"]) == 2 for row in read(prepare(tmp_path, three | {t: t for t in THREE}))["s/train"])


@pytest.mark.usefixtures("offline")
def test_a_hub_data_set_may_have_three_tables(tmp_path: Path) -> None:
    spec = {"kind": "hub", "path": hub_folder(tmp_path / "hub", THREE)} | {table: table for table in THREE}
    rows = read(prepare(tmp_path, spec))["s/train"]
    assert rows[2] == {"query": "question 2", "documents": ["document 1", "document 4"], "scores": [0.5, 2.0]}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nobody/nothing"}, "sources.s.path: 'nobody/nothing' is no folder here and cannot be found on"),
        ({"configs": ["third"]}, "sources.s: cannot load 'hub': BuilderConfig 'third' not found"),
        ({"split": "tran"}, "sources.s: cannot load 'hub': Unknown split \"tran\""),
    ],
)
def test_a_hub_data_set_that_cannot_be_loaded_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = hub_folder(tmp_path / "hub", {"first": PAIRS[:4]})
    assert message in refusal(tmp_path, {"kind": "hub", "path": folder, **changes})


@pytest.mark.usefixtures("offline")
def test_a_damaged_file_of_a_hub_data_set_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", {"first": PAIRS[:4]})
    (tmp_path / "hub" / "first.parquet").write_bytes(b"PAR1 this is none PAR1")
    assert refusal(tmp_path, {"kind": "hub", "path": folder}).startswith("sources.s: cannot load 'hub': Parquet")


@pytest.mark.usefixtures("offline")
def test_a_bad_row_of_a_hub_data_set_is_named(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", {"first": [*PAIRS[:2], {"query": "q", "document": " "}]})
    assert refusal(tmp_path, {"kind": "hub", "path": folder}).startswith(
        "hub (first), row 3: `document` is empty. Mend"
    )


def test_docstrings_are_parts_by_package_and_small_packages_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {name: [(f"{name} {n}", f"does {n} of {name}") for n in range(count)] for name, count in
             {"big": 20, "small": 3, "tiny": 2}.items()}  # fmt: skip
    counts = type("Counts", (), {"dropped": {"too short": 4}, "passed_over": {"not UTF-8": 1}})
    monkeypatch.setattr(sources, "docstring_pairs", lambda *_: (dict(pairs), counts))
    monkeypatch.setattr(sources, "packages_fingerprint", lambda _: "x")
    source = prepare(tmp_path, {"kind": "docstrings", "min_rows": 5, "limit": 4})
    assert source.record["parts"] == {"big": 4, "others": 4}
    assert source.record["dropped"] == {"too short": 4, "file: not UTF-8": 1}


def test_a_mined_part_reads_texts_for_numbers(tmp_path: Path) -> None:
    with arrow_file(tmp_path / "documents.arrow", sources.DOCUMENTS) as write:
        for n in range(5):
            write({"text": f"text {n}"})
    with arrow_file(tmp_path / "0.arrow", MINED) as write:
        write({"query": "a", "document": 4, "negatives": [1, 0]})
        write({"query": "b", "document": 2, "negatives": []})
        write({"query": "c", "document": 0, "negatives": [3]})
    (tmp_path / "source.json").write_text('{"id": "x", "parts": {"only": 3}}')
    assert open_source("m", tmp_path).parts["m/only"].read([2, 0, 1]) == {
        "query": ["c", "a", "b"],
        "document": ["text 0", "text 4", "text 2"],
        "negatives": [["text 3"], ["text 1", "text 0"], []],
    }


# ---- What is refused

LONG = "x" * 50_000_000
BAD_ROWS: list[tuple[Any, str]] = [
    (b'{"query": ', "broken JSON: Expecting value, column 11; one object a line is expected. Mend the row, or set "),
    (b"[" * 100_000, "broken JSON: "),
    (b'{"query": ' + b"9" * 5000 + b"}", "broken JSON: Exceeds the limit"),
    ([1], "not an object with keys: found a list"),
    (b"null", "not an object with keys: found nothing (null)"),
    ({"query": "q", "documnet": "d"}, "no `document`: the row has query, documnet"),
    ({"query": 7, "document": "d"}, "`query` is not text: found a number"),
    ({"query": "q", "document": []}, "`document` is an empty list"),
    ({"query": "q", "document": [["d"]]}, "`document` is not text: found a list"),
    ({"query": "q", "document": [{"title": "t"}]}, "`document` is not text: found an object"),
    ({"query": "q", "document": None}, "`document` is not text: found nothing (null)"),
    ({"query": "", "document": "d"}, "`query` is empty"),
    ({"query": "q", "document": " \n"}, "`document` is empty"),
    ({"query": "q", "document": "d", "negative": ""}, "`negative` is empty"),
    ({"query": "q", "document": "d", "negative": ["n", 3]}, "`negative` is not text: found a number"),
    ({"query": "a\0b", "document": "d"}, "`query` has a NUL character"),
    ({"query": "\ud800", "document": "d"}, "`query` has half a surrogate pair"),
    (b'{"query": "a\0b"}', "a NUL byte: this is not JSON in UTF-8"),
    (b'{"query": "\xff"}', "invalid UTF-8: save the file as UTF-8"),
    ({"query": LONG, "document": "d"}, "`query` is too long: 50,000,000 characters, at most 1,000,000"),
    ({"query": "q", "documents": ["a", "b"]}, "no `scores`: the row has query, documents"),
    ({"query": "q", "documents": ["a"], "scores": [1]}, "`documents` is not a list of two or more: found 1"),
    ({"query": "q", "documents": "ab", "scores": [1, 2]}, "`documents` is not a list of two or more: found text"),
    ({**SCORED[0], "scores": [1]}, "`scores` is not one number a document: 2 documents, found 1"),
    ({**SCORED[0], "scores": [1, float("nan")]}, "`scores` has something that is no finite number: nan"),
    ({**SCORED[0], "scores": [1, float("inf")]}, "`scores` has something that is no finite number: inf"),
    ({**SCORED[0], "scores": [1, 1e39]}, "`scores` has something that is no finite number: 1e+39"),
    ({**SCORED[0], "scores": [1, 10**400]}, "`scores` has something that is no finite number: 1000"),
    ({**SCORED[0], "scores": [1, True]}, "`scores` has something that is no finite number: True"),
    ({**SCORED[0], "scores": [1, None]}, "`scores` has something that is no finite number: None"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_one_message_that_names_file_line_and_mend(tmp_path: Path, row: Any, message: str) -> None:
    path = jsonl(tmp_path / "r.jsonl", [PAIRS[0], b"", row, PAIRS[1]])
    told = refusal(tmp_path, {"kind": "jsonl", "path": path})
    assert told.startswith(f"r.jsonl, line 3: {message}")
    assert told.endswith("Mend the row, or set `sources.s.on_bad_rows: skip` to pass over such rows and count them")
    assert len(told) < 300


def test_bad_rows_may_be_passed_over_and_are_counted_by_reason(tmp_path: Path) -> None:
    bad = [row for row, _ in BAD_ROWS if row not in ({"query": LONG, "document": "d"},)]
    rows = [row for k, row in enumerate(bad) for row in (row, PAIRS[k])]
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", rows), "on_bad_rows": "skip"})
    assert read(source)["s/r"] == as_pairs(PAIRS[: len(bad)])
    dropped = source.record["dropped"]
    assert sum(dropped.values()) == len(bad)
    assert dropped["broken JSON"] == 3
    assert dropped["`scores` has something that is no finite number"] == 6


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = parquet(tmp_path / "r.parquet", [*PAIRS[:3], {"query": "q", "document": None}])
    assert refusal(tmp_path, {"kind": "parquet", "path": path}).startswith("r.parquet, row 4: `document` is not text")


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("train", {**TRAIN[0], "query_id": 9}, "`query_id` is not among the queries: 9"),
        ("train", {**TRAIN[0], "document_ids": ["d1", "x"]}, "`document_ids` are not all among the documents: x"),
        ("train", {**TRAIN[0], "document_ids": ["d1"]}, "`document_ids` is not a list of two or more: found 1"),
        ("train", {**TRAIN[0], "scores": [1]}, "`scores` is not one number a document: 2 documents, found 1"),
        ("train", {**TRAIN[0], "query_id": None}, "`query_id` is not an id: found nothing (null)"),
        ("queries", {"query_id": "2", "text": "again"}, "`query_id` stands twice: 2"),
        ("queries", {"query_id": 7, "text": ""}, "`text` is empty"),
        ("documents", {"document_id": "d1", "text": "again"}, "`document_id` stands twice: d1"),
        ("documents", {"id": "d9", "text": "x"}, "no `document_id`: the row has id, text"),
        ("documents", {"document_id": 1.5, "text": "x"}, "`document_id` is not an id: found a number"),
    ],
)  # fmt: skip
def test_a_bad_row_of_three_tables_is_named_and_may_be_passed_over(
    tmp_path: Path, table: str, row: dict[str, Any], message: str
) -> None:
    tables = THREE | {table: [*THREE[table], row]}
    spec = {"kind": "jsonl"} | {t: jsonl(tmp_path / f"{t}.jsonl", rows) for t, rows in tables.items()}
    assert refusal(tmp_path, spec).startswith(f"{table}.jsonl, line {len(tables[table])}: {message}")
    source = prepare(tmp_path, {**spec, "on_bad_rows": "skip"})
    reason = message.split(":")[0]
    assert source.record["dropped"] == {reason if table == "train" else f"{table}: {reason}": 1}
    assert len(source.parts["s/train"]) == 4


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "cut.jsonl.gz", PAIRS)
    whole = (tmp_path / "cut.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "bits.jsonl.gz").write_bytes(whole[:30] + bytes(40) + whole[70:])
    (tmp_path / "not.jsonl.gz").write_bytes(b'{"query": "q"}')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is none PAR1")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    parquet(tmp_path / "cut.parquet", PAIRS)
    content = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:20] + bytes(60) + content[80:])
    for name, message in {
        "cut.jsonl.gz": "cut.jsonl.gz: damaged gzip file",
        "bits.jsonl.gz": "bits.jsonl.gz: damaged gzip file",
        "not.jsonl.gz": "not.jsonl.gz: damaged gzip file",
        "bad.parquet": "bad.parquet: not a readable Parquet file",
        "cut.parquet": "cut.parquet: not a readable Parquet file",
        "empty.jsonl": "empty.jsonl has no usable row; mend it, or take it out of sources.s",
        "empty.parquet": "empty.parquet: not a readable Parquet file",
        "none.jsonl": "sources.s.path: none.jsonl: no such file (looked in ",
        "*.json": "sources.s.path: *.json: no such file (looked in ",
        "folder": "sources.s.path: folder is a folder; write folder/* for its files",
    }.items():
        kind = "parquet" if name.endswith("parquet") else "jsonl"
        assert refusal(tmp_path, {"kind": kind, "path": str(tmp_path / name)}).startswith(message), name


def test_a_file_without_lines_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_zero.files.LONGEST_LINE", 1 << 20)
    (tmp_path / "r.jsonl").write_bytes(b"x" * (1 << 21))
    told = refusal(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "r.jsonl"), "on_bad_rows": "skip"})
    assert told == "r.jsonl, line 1: longer than 1 MB; is this JSON lines, one object a line?"


def test_pairs_and_scored_candidates_do_not_mix(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", [PAIRS[0], SCORED[0]])
    assert refusal(tmp_path, {"kind": "jsonl", "path": path}).startswith(
        "r.jsonl, line 2: rows of one source must all be"
    )
    paths = [jsonl(tmp_path / "a.jsonl", PAIRS[:1]), jsonl(tmp_path / "b.jsonl", SCORED[:1])]
    assert refusal(tmp_path, {"kind": "jsonl", "path": paths}).startswith(
        "b.jsonl, line 1: rows of one source must all be"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["query", "document", "documents", "scores", "negative"]) | st.text(max_size=4), inner
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(JSON.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20), max_size=4), st.booleans())
def test_any_lines_are_rows_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], skip: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = jsonl(folder / "r.jsonl", rows)
    spec = {"kind": "jsonl", "path": path, "on_bad_rows": "skip" if skip else "error"}
    try:
        source = prepare(folder, spec)
    except ColbertZeroError as error:
        message = str(error)
        assert message.startswith(path)
        assert message.isprintable()
    else:
        assert read(source)["s/r"]


# ---- Held-out pairs


def held_out_texts(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    collection = load_beir(source.folder / "held-out-held")
    return collection.queries, dict(collection.documents())


def test_held_out_texts_never_come_in_training_and_the_counts_add_up(tmp_path: Path) -> None:
    # Every query stands twice, every document three times, and some documents are others' negatives.
    rows = [{"query": f"q {n // 2}", "document": f"d {n % 40}", "negative": [f"d {n * 7 % 40}"]} for n in range(120)]
    paths = [jsonl(tmp_path / "a.jsonl", rows[:70]), jsonl(tmp_path / "b.jsonl", rows[70:])]
    source = prepare(tmp_path, {"kind": "jsonl", "path": paths}, documents=10, queries=4)
    queries, documents = held_out_texts(source)
    assert (len(queries), len(documents)) == (4, 10)
    answers = {(row["query"], row["document"]) for row in rows}
    assert all((text, documents[key]) in answers for key, text in queries.items())
    left = [row for part in read(source).values() for row in part]
    for row in left:
        assert row["query"] not in queries.values()
        assert not {row["document"], *row["negatives"]} & set(documents.values())
    record = source.record
    assert record["held_out"] == 10
    assert set(record["dropped"]) == {"shares a text with a held-out pair"}
    assert len(left) == record["rows"] == 120 - 10 - sum(record["dropped"].values())
    assert record["parts"] == {name.removeprefix("s/"): len(part) for name, part in source.parts.items()}


def test_the_choice_depends_on_texts_and_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    def chosen(name: str, rows: list[Any], seed: int = 1) -> set[str]:
        made = recipe({"kind": "jsonl", "path": jsonl(tmp_path / name, rows)}, documents=12)
        made = check_recipe({**made.model_dump(), "seed": seed})
        made_of = prepare_source("s", made, tmp_path / "data", tmp_path, None)
        return set(held_out_texts(open_source("s", made_of))[0].values())

    first = chosen("a.jsonl", PAIRS)
    assert chosen("b.jsonl", PAIRS[::-1]) == first
    assert len(first & chosen("c.jsonl", PAIRS[:-3])) >= 9
    assert chosen("d.jsonl", PAIRS, seed=2) != first


def test_pairs_are_found_among_many_that_share_their_texts(tmp_path: Path) -> None:
    rows = [{"query": "the same", "document": f"d {n}"} for n in range(500)] + PAIRS[:12]
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", rows)}, documents=12)
    assert len(held_out_texts(source)[1]) == 12


def test_asking_for_more_pairs_than_there_are_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", [*PAIRS[:11], *PAIRS[:11]])
    told = refusal(tmp_path, {"kind": "jsonl", "path": path}, documents=12)
    assert told == (
        "collections.held.documents: 12 pairs to hold out, but the source has only 11 with texts of their own; "
        "lower the number"
    )
    told = refusal(tmp_path, {"kind": "jsonl", "path": path}, documents=11)
    assert told.startswith("sources.s: no usable row is left; left out: {'shares a text with a held-out pair': 11}")


def test_scored_candidates_cannot_be_held_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", SCORED)
    told = refusal(tmp_path, {"kind": "jsonl", "path": path}, documents=10)
    assert told == "collections.held.source: only pairs can be held out, not scored candidates"


def test_a_part_whose_rows_all_leave_is_left_out(tmp_path: Path) -> None:
    paths = [
        jsonl(tmp_path / "a.jsonl", PAIRS[:1]),
        jsonl(tmp_path / "b.jsonl", PAIRS),
        jsonl(tmp_path / "c.jsonl", PAIRS),
    ]
    source = prepare(tmp_path, {"kind": "jsonl", "path": paths}, documents=29)
    assert set(source.record["parts"]) <= {"a", "b", "c"}
    assert all(source.record["parts"].values())
    (left,) = {row["query"] for part in read(source).values() for row in part}
    assert left not in held_out_texts(source)[0].values()


# ---- Once prepared


def test_the_id_follows_content_and_entry_and_not_the_time(tmp_path: Path) -> None:
    path = Path(jsonl(tmp_path / "r.jsonl", PAIRS))

    def identity(**changes: Any) -> str:
        return source_id("s", recipe({"kind": "jsonl", "path": str(path), **changes}), tmp_path / "data")

    first = identity()
    os.utime(path, (1, 1))
    assert identity() == first
    assert identity(limit=3) != first
    path.write_bytes(path.read_bytes().replace(b"answer 7", b"answer X"))
    assert identity() != first
    held = [recipe({"kind": "jsonl", "path": str(path)}, documents=n) for n in (10, 11)]
    assert len({source_id("s", r, tmp_path / "data") for r in held} | {identity()}) == 3


def test_moved_data_keep_their_id(tmp_path: Path) -> None:
    identities = []
    for folder in ("here", "there"):
        files = {table: jsonl(tmp_path / folder / f"{table}.jsonl", rows) for table, rows in THREE.items()}
        made = [recipe({"kind": "jsonl", **files}), recipe({"kind": "jsonl", "path": files["queries"]})]
        identities.append([source_id("s", r, tmp_path / "data") for r in made])
    assert identities[0] == identities[1]
    assert len(set(identities[0])) == 2


@pytest.mark.usefixtures("offline")
def test_the_id_of_a_hub_folder_follows_its_files(tmp_path: Path) -> None:
    made = recipe({"kind": "hub", "path": hub_folder(tmp_path / "hub", {"first": PAIRS})})
    first = source_id("s", made, tmp_path / "data")
    (tmp_path / "hub" / ".git").mkdir()
    (tmp_path / "hub" / ".git" / "x").write_text("x")
    assert source_id("s", made, tmp_path / "data") == first
    other = recipe({"kind": "hub", "path": str(tmp_path / "hub"), "train": "x", "queries": "y", "documents": "z"})
    assert source_id("s", other, tmp_path / "data") != first
    parquet(tmp_path / "hub" / "first.parquet", PAIRS[:7])
    assert source_id("s", made, tmp_path / "data") != first


def test_a_file_is_fingerprinted_once_as_long_as_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe({"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", PAIRS)})
    first = source_id("s", made, tmp_path / "data")
    monkeypatch.setattr(sources, "file_fingerprint", lambda _: pytest.fail("read again"))
    assert source_id("s", made, tmp_path / "data") == first


def test_a_full_commit_hash_needs_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HfApi", lambda: pytest.fail("asked the Hub"))
    made = [recipe({"kind": "hub", "path": "a/b", "revision": digit * 40}) for digit in "ab"]
    assert len({source_id("s", r, tmp_path) for r in made}) == 2


def test_a_prepared_source_is_only_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", PAIRS)}
    first = read(prepare(tmp_path, spec))
    monkeypatch.setattr("colbert_zero.data.readers._jsonl_rows", lambda _: pytest.fail("read again"))
    assert read(prepare(tmp_path, spec)) == first


def test_a_kill_while_preparing_leaves_nothing_taken_for_finished(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    (tmp_path / "kill.py").write_text(
        "import json, os, signal\nfrom pathlib import Path\nfrom colbert_zero.data import sources\n"
        "from colbert_zero.recipe.reading import check_recipe\n"
        "sources.hold_out = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "made = check_recipe(json.loads(Path('recipe.json').read_text()))\n"
        "sources.prepare_source('s', made, Path('data'), Path('cache'), None)\n"
    )
    made = recipe({"kind": "jsonl", "path": path}, documents=10)
    (tmp_path / "recipe.json").write_text(made.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "kill.py"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("data/.s-*.tmp/0.arrow"))
    assert not list(tmp_path.glob("data/s-*"))
    assert prepare(tmp_path, {"kind": "jsonl", "path": path}, documents=10).record["rows"] == 20


def test_rows_stream_through_a_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def many(_: Path) -> Iterator[tuple[str, Any]]:
        for n in range(20_000):
            yield f"line {n}", {"query": f"question {n}", "document": f"{n} " * 500}

    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    monkeypatch.setattr("colbert_zero.data.readers._jsonl_rows", many)
    tracemalloc.start()
    source = prepare(tmp_path, {"kind": "jsonl", "path": path}, documents=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.record["rows"] == 19_950
    assert sum(f.stat().st_size for f in source.folder.glob("*.arrow")) > 50_000_000
    assert peak < 25_000_000


def test_a_batch_of_long_texts_is_written_early(tmp_path: Path) -> None:
    with arrow_file(tmp_path / "x.arrow", sources.DOCUMENTS) as write:
        for _ in range(40):
            write({"text": "x" * 900_000})
    with pa.memory_map(str(tmp_path / "x.arrow")) as file:
        assert max(len(batch) for batch in pa.ipc.open_stream(file)) < 20
