"""What a study says of collections that stand in its training data."""

import pytest

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import write_beir
from colbert_zero.report import write_report
from colbert_zero.report.records import Records
from colbert_zero.study import leaks
from colbert_zero.study.leaks import together
from colbert_zero.terminal import print_results
from example_records import ALL, result_record, write_records
from helpers import data, rows, study, write_rows

CHAIN = [("unsupervised",)]


@pytest.fixture
def recipe(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    row = next(rows(1))
    documents = {"d1": "something about nothing that is in no row", "d2": "and another one of this kind"}
    queries = {"q1": row["query"].upper(), "q2": "a query of its own"}
    collection = Collection.from_memory("seen", documents, queries, {"q1": {"d1": 1}, "q2": {"d2": 1}})
    write_beir(collection, tmp_path / "seen")
    clean = Collection.from_memory("clean", documents, {"q2": queries["q2"]}, {"q2": {"d2": 1}})
    write_beir(clean, tmp_path / "clean")
    return data(tmp_path, collections={n: {"kind": "beir", "path": str(tmp_path / n)} for n in ("seen", "clean")})


def said(one):
    lines = []
    one.show.say = lines.append
    one.prepare(CHAIN)
    return [line for line in lines if "training data" in line or line.startswith("leaks")]


def test_a_study_tells_before_it_trains_which_queries_are_in_its_sources(tmp_path, recipe, monkeypatch):
    one = study(tmp_path, recipe)
    (line,) = said(one)
    assert line.startswith(
        "collection seen: 1 of 2 queries and 0 of 2 documents are in the training data, equal or nearly"
    )
    verdicts = {name: found["verdict"] for name, found in one.leaks["collections"].items()}
    assert verdicts == {"seen": "queries seen", "clean": "clean"}
    monkeypatch.setattr(leaks, "find_leaks", lambda *_: pytest.fail("looked again"))
    again = study(tmp_path, recipe)
    assert said(again) == [line]
    assert again.leaks == one.leaks


def test_leaks_false_looks_for_nothing_and_no_phase_gets_another_id(tmp_path, recipe):
    on, off = study(tmp_path, recipe), study(tmp_path, recipe | {"leaks": False})
    assert said(off) == []
    assert off.leaks is None
    on.prepare(CHAIN)
    assert on.phase_id(CHAIN[0]) == off.phase_id(CHAIN[0])


def test_what_was_not_looked_at_is_told(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(leaks, "MOST", 3)
    lines = said(study(tmp_path, recipe))
    assert "leaks: 3 rows were looked at, not all; `colbert-zero leaks` looks at all" in lines
    assert any(line.startswith("leaks: not all documents of") for line in lines)


def test_a_collection_in_parts_has_the_worst_verdict_and_all_counts():
    parts = [
        {"verdict": v, "queries_seen": n, "documents_seen": 1} for v, n in (("documents seen", 0), ("queries seen", 2))
    ]
    assert together(parts) == {"verdict": "queries seen", "queries_seen": 2, "documents_seen": 2}
    assert together(parts[:1])["verdict"] == "documents seen"


def marked_results():
    results = result_record(ALL, p_value=0.001)
    first, second, *_ = results["collections"]
    results["collections"][first]["leaks"] = {"verdict": "queries seen", "queries_seen": 3, "documents_seen": 1}
    results["collections"][second]["leaks"] = {"verdict": "clean", "queries_seen": 0, "documents_seen": 0}
    return results, first, second


def test_scores_on_seen_queries_are_marked_wherever_the_report_has_them(tmp_path):
    results, first, second = marked_results()
    folder = write_records(tmp_path, results)
    write_report(folder)
    page = (folder / "report.md").read_text()
    lines = page.splitlines()
    for line in lines:
        if line.startswith("|") and f" {first} " in line and f"beir-{first}" not in line:
            assert f" {first} † " in line, line
    assert f"{second} †" not in page
    assert f"| {first} † |" in page
    assert "queries seen (3 queries, 1 documents)" in page
    assert "| clean |" in page
    assert "not looked for" in page  # the others: of a study that did not look
    assert "the training data have queries of" in page
    assert "mean †" in page
    assert Records(folder).seen == [first]


def test_scores_on_seen_queries_are_marked_on_the_terminal(capsys):
    results, first, second = marked_results()
    print_results(results)
    out = capsys.readouterr().out
    assert f"{first} †" in out
    assert f"{second} †" not in out
    assert "mean † nDCG@10" in out
    assert "† queries of it are in the training data" in out
    del results["collections"][first]["leaks"]
    print_results(results)
    assert "†" not in capsys.readouterr().out
