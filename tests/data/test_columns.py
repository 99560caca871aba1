"""Rows in the layouts that other tools write: the same rows in every layout give the same prepared rows."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data.columns import Reading, find_columns, peculiarities
from colbert_zero.data.prepared import open_source
from colbert_zero.data.rows import check_row
from colbert_zero.data.sources import prepare_source
from colbert_zero.data.streams import UNUSED
from colbert_zero.errors import BadRow
from colbert_zero.recipe.data import Columns
from example_sources import hub_folder, jsonl, parquet, prepare, read, recipe, refusal
from helpers import ROOT

Row = tuple[str, str, list[str]]

ROWS: list[Row] = [(f"question {n}", f"answer {n}", [f"wrong {n}", f"worse {n}"]) for n in range(6)]

PREPARED = [{"query": q, "document": d, "negatives": n} for q, d, n in ROWS]


def passage(text: str) -> dict[str, Any]:
    return {"docid": f"id of {text}", "title": None, "text": text}


LAYOUTS: dict[str, tuple[Callable[[Row], dict[str, Any]], dict[str, Any]]] = {
    "ours": (lambda r: {"query": r[0], "document": r[1], "negative": r[2]}, {}),
    "ours, plural": (lambda r: {"query": r[0], "document": r[1], "negatives": r[2]}, {}),
    "FlagEmbedding": (lambda r: {"query": r[0], "pos": [r[1]], "neg": r[2], "prompt": "find"}, {}),
    "FlagEmbedding with scores": (
        lambda r: {"query": r[0], "pos": [r[1]], "neg": r[2], "pos_scores": [1.5], "neg_scores": [0.5, 0.25]},
        {},
    ),
    "FlagEmbedding, columns named": (
        lambda r: {"query": r[0], "pos": [r[1]], "neg": r[2]},
        {"document": "pos", "negative": "neg"},
    ),
    "sentence-transformers, n-tuple": (
        lambda r: {"anchor": r[0], "positive": r[1]} | {f"negative_{n}": text for n, text in enumerate(r[2], 1)},
        {},
    ),
    "sentence-transformers, n-tuple of ten": (
        lambda r: {"query": r[0], "positive": r[1], "negative_10": r[2][1], "negative_9": r[2][0]},
        {},
    ),
    "sentence-transformers, columns named": (
        lambda r: {"sentence": r[0], "positive": r[1], "bad": r[2][0], "worse": r[2][1]},
        {"query": "sentence", "negative": ["bad", "worse"]},
    ),
    "question and answer": (lambda r: {"question": r[0], "answer": r[1], "hard_negatives": r[2]}, {}),
    "Tevatron": (
        lambda r: {
            "query_id": 1,
            "query": r[0],
            "positive_passages": [passage(r[1])],
            "negative_passages": [passage(text) for text in r[2]],
            "answers": ["short"],
        },
        {},
    ),
    "mteb, reranking": (lambda r: {"query": r[0], "positive": [r[1]], "negative": r[2]}, {}),
}


@pytest.mark.parametrize(("kind", "write"), [("jsonl", jsonl), ("parquet", parquet)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_rows_in_every_layout_are_prepared_alike(
    tmp_path: Path, layout: str, kind: str, write: Callable[..., str]
) -> None:
    row, columns = LAYOUTS[layout]
    path = write(tmp_path / "rows.x", list(map(row, ROWS)))
    assert read(prepare(tmp_path, {"kind": kind, "path": path, "columns": columns}))["s/rows"] == PREPARED


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("layout", ["FlagEmbedding", "sentence-transformers, n-tuple", "Tevatron"])
def test_rows_of_a_hub_data_set_in_other_layouts_are_prepared_alike(tmp_path: Path, layout: str) -> None:
    rows = list(map(LAYOUTS[layout][0], ROWS))
    assert (
        read(prepare(tmp_path, {"kind": "hub", "path": hub_folder(tmp_path / "hub", {"c": rows})}))["s/c"] == PREPARED
    )


def test_passages_that_the_library_turned_into_columns_are_read(tmp_path: Path) -> None:
    row, _ = LAYOUTS["Tevatron"]
    rows = [
        {
            key: {k: [p[k] for p in value] for k in value[0]} if isinstance(value[0], dict) else value
            for key, value in row(r).items()
            if key != "query_id"
        }
        for r in ROWS
    ]
    assert isinstance(rows[0]["negative_passages"]["text"], list)
    parquet(tmp_path / "rows.x", rows)
    assert read(prepare(tmp_path, {"kind": "parquet", "path": str(tmp_path / "rows.x")}))["s/rows"] == PREPARED


TSV = ["\t".join([q, d, *n]) for q, d, n in ROWS]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
@pytest.mark.parametrize(
    ("lines", "columns"),
    [
        (TSV, {}),
        (["query\tpositive\tnegative_1\tnegative_2", *TSV], {}),
        (["\ufeffquery\tdocument\tneg_0\tneg_1", *TSV, ""], {}),
        (["q\td\tn\tm", *TSV], {"query": "q", "document": "d", "negative": ["n", "m"]}),
        ([f"{n}\t{line}" for n, line in enumerate(TSV)], {"query": "2", "document": "3", "negative": ["4", "5"]}),
        ([f"{n}\t{line}" for n, line in enumerate(TSV)], {"query": "2", "document": "3"}),
    ],
    ids=["no header", "header", "byte order mark", "columns named", "an id first", "an id first, no negatives named"],
)
def test_triples_with_tabs_between_them_are_prepared_alike(
    tmp_path: Path, name: str, lines: list[str], columns: dict[str, Any]
) -> None:
    content = "\r\n".join([*lines, ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = prepare(tmp_path, {"kind": "tsv", "path": str(tmp_path / name), "columns": columns})
    assert read(source)["s/rows"] == PREPARED


def test_a_pair_of_texts_and_a_tab_is_a_pair_and_quotes_are_text(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text('what is "it"?\t"it" is\n')
    source = prepare(tmp_path, {"kind": "tsv", "path": str(tmp_path / "r.tsv")})
    assert read(source)["s/r"] == [{"query": 'what is "it"?', "document": '"it" is', "negatives": []}]
    assert peculiarities(source.record) == ["columns: query from 1; document from 2"]


@pytest.mark.parametrize(
    ("columns", "used"),
    [
        ({"query": "2", "document": "3"}, {"query": ("2",), "document": ("3",), "negative": ("4", "10")}),
        ({"query": "1", "document": "3"}, {"query": ("1",), "document": ("3",), "negative": ("4", "10")}),
        ({"query": "3", "document": "2"}, {"query": ("3",), "document": ("2",), "negative": ("4", "10")}),
        ({"query": "4", "document": "10"}, {"query": ("4",), "document": ("10",)}),
        ({}, {"query": ("1",), "document": ("2",), "negative": ("3", "4", "10")}),
        ({"negative": "3"}, {"query": ("1",), "document": ("2",), "negative": ("3",)}),
    ],
)
def test_only_numbered_columns_after_the_document_are_hard_negatives(columns: Any, used: Any) -> None:
    assert find_columns(("10", "1", "2", "3", "4"), Columns(**columns)).used() == used


def test_a_number_beside_named_columns_is_no_hard_negative() -> None:
    assert find_columns(("query", "document", "7"), Columns()).unread == ("7",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"121352\t234\t657\n", "r.tsv, line 1: ids, not texts: 121352 234 657; put the texts in their place"),
        (b"a\tb\tc\na\tb\n", "r.tsv, line 2: not 3 columns as in the first line: found 2. Mend the row, or set"),
        (b"a b\n", "r.tsv, line 1: no `document`: the row has 1. Mend the row"),
        (b"a\tb\n\xff\tb\n", "r.tsv, line 2: invalid UTF-8: write the texts as UTF-8. Mend the row"),
    ],
)
def test_a_wrong_line_of_triples_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.tsv").write_bytes(content)
    assert refusal(tmp_path, {"kind": "tsv", "path": str(tmp_path / "r.tsv")}).startswith(message)


# ---- What is told


def test_what_was_recognised_and_what_was_not_read_is_told_and_recorded(tmp_path: Path) -> None:
    row = {"id": 7, "anchor": "q", "positive": "d", **{f"negative_{n}": f"n {n}" for n in range(1, 9)}}
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", [row])})
    negatives = [f"negative_{n}" for n in range(1, 9)]
    assert source.record["columns"] == {"query": ["anchor"], "document": ["positive"], "negative": negatives}
    assert peculiarities(source.record) == [
        "columns: query from anchor; document from positive; negative from negative_1, negative_2, …, negative_8",
        "columns not read: id",
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"query": "q", "document": "d", "negativs": "n"}, "if negativs holds hard negatives: `columns: {negative: ne"),
        ({"query": "q", "pos": ["d"], "pos_scores": [1], "neg_scores": []}, "for distillation: `columns: {scores: ["),
    ],
)
def test_a_column_that_may_have_been_meant_is_pointed_at(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", [row])})
    assert told in " ".join(peculiarities(source.record))


def test_usual_rows_have_nothing_to_tell(tmp_path: Path) -> None:
    rows = [{"query": q, "document": d, "negative": n} for q, d, n in ROWS]
    assert not peculiarities(prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", rows)}).record)


def test_of_several_positives_the_first_is_used_and_the_others_are_counted(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "pos": [f"a {n}", f"b {n}", f"c {n}"], "neg": []} for n in range(4)]
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", rows)})
    assert [row["document"] for row in read(source)["s/r"]] == ["a 0", "a 1", "a 2", "a 3"]
    assert source.record["unused_positives"] == 8
    assert "8 positives after the row's first are not used; to use all, write a row for each" in peculiarities(
        source.record
    )


def test_streamed_rows_have_layouts_too_and_count_their_positives(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "pos": [f"a {n}", f"b {n}"], "neg": ["x"]} for n in range(8)]
    spec = {"kind": "parquet", "path": parquet(tmp_path / "r.parquet", rows), "streaming": True}
    made = recipe(spec)
    source = open_source("s", prepare_source("s", made, tmp_path / "data", tmp_path, None), made.sources["s"])
    part = source.parts["s/r"]
    assert part.read(range(8))["document"] == [f"a {n}" for n in range(8)]
    assert part.dropped == {UNUSED: 8}  # type: ignore[attr-defined]
    assert any("positives of its parts' first rows" in told for told in peculiarities(source.record))


def test_scores_of_positives_and_negatives_make_candidates_where_asked_for(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "pos_scores": [3, 2], "neg_scores": [1, 0]},
        {"query": "r", "pos": ["a"], "neg": ["c", "d"], "pos_scores": [3], "neg_scores": [1, 0]},
    ]
    path = jsonl(tmp_path / "r.jsonl", rows)
    columns = {"scores": ["pos_scores", "neg_scores"]}
    scored = read(prepare(tmp_path, {"kind": "jsonl", "path": path, "columns": columns}))["s/r"]
    assert scored == [{"query": q, "documents": ["a", "c", "d"], "scores": [3, 1, 0]} for q in "qr"]
    short = jsonl(tmp_path / "short.jsonl", [rows[0] | {"neg_scores": [1]}])
    assert "`neg_scores` is not one number a document: 2 documents, found 1" in refusal(
        tmp_path / "other", {"kind": "jsonl", "path": short, "columns": columns}
    )


# ---- What is refused


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"query": "q", "passage": "p", "answer": "a"}, {}, "no `document` but answer, passage: say which is meant"),
        ({"anchor": "q", "question": "q", "document": "a"}, {}, "no `query` but anchor, question: say which is meant"),
        (
            {"query": "q", "document": "d", "neg": ["n"], "negative_1": "n"},
            {},
            "no `negative` but neg, negative_1: say which are meant, as in `columns: {negative: [neg]}`",
        ),
        ({"Query": "q", "document": "d"}, {}, "no `query`: the row has Query, document; if Query is meant, `colum"),
        ({"query": "q", "positives": "d"}, {}, "no `document`: the row has query, positives; if positives is meant"),
        ({"query": "q", "postive": "d"}, {"document": "positive"}, "no `positive`: the row has query, postive; if"),
        (
            {"query": "q", "document": "d"},
            {"scores": ["pos_scores", "neg_scores"]},
            "no `pos_scores`: the row has query, document",
        ),
    ],
)  # fmt: skip
def test_a_row_of_which_it_cannot_be_told_is_refused_with_what_may_be_meant(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, Any], message: str
) -> None:
    told = refusal(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", [row]), "columns": columns})
    assert told.startswith(f"r.jsonl, line 1: {message}")


@pytest.mark.parametrize("named", ["bad", ["n", "bad"]])
def test_hard_negatives_that_the_recipe_names_and_no_row_has_are_refused(tmp_path: Path, named: Any) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"query": "q", "document": "d", "n": "n", "bed": "n"}])
    told = refusal(tmp_path, {"kind": "jsonl", "path": path, "columns": {"negative": named}})
    assert told.startswith("sources.s.columns.negative: no row has a column 'bad'")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_hard_negatives_that_the_recipe_names_and_no_streamed_row_has_are_refused(tmp_path: Path, kind: str) -> None:
    rows = [{"query": "q", "document": "d", "wrong": "n"}]
    path = parquet(tmp_path / "r.parquet", rows) if kind == "parquet" else hub_folder(tmp_path / "hub", {"c": rows})
    spec = {"kind": kind, "path": path, "streaming": True, "limit": 1, "columns": {"negative": "wrnog"}}
    told = refusal(tmp_path, spec)
    assert told == "sources.s.columns.negative: no part's first row has a column 'wrnog'; is it wrong?"


def test_keys_of_a_strangers_rows_fill_no_memory() -> None:
    reading = Reading()
    for n in range(3000):
        check_row({"query": "q", "document": "d", f"negative_{n}": "n", f"key {n}": n}, Columns(), reading)
    record = reading.record()
    assert (len(record["columns"]["negative"]), len(record["unread"])) == (1000, 20)


KEYS = st.sampled_from(["query", "anchor", "document", "positive", "pos", "neg", "negative", "negative_1", "scores",
                        "documents", "1", "2", "3", "id"])  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(KEYS, unique=True, max_size=8))
def test_every_column_has_at_most_one_use_and_none_is_forgotten(keys: list[str]) -> None:
    try:
        found = find_columns(tuple(keys), Columns())
    except BadRow:
        return
    used = [column for columns in found.used().values() for column in columns]
    assert sorted([*used, *found.unread]) == sorted(keys)


def test_the_rows_of_the_page_on_data_are_one_and_the_same(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (tmp_path / "r.jsonl").write_text(page.split("```jsonl\n")[1].split("```")[0])
    rows = read(prepare(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "r.jsonl")}))["s/r"]
    assert len(rows) == 6
    assert all(row == rows[0] for row in rows)
    assert rows[0]["negatives"] == ["He slept.", "It rained."]
