"""The pages: what is on them, their safety, and that they are a function of the records alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from colbert_zero.files import read_json, write_json
from colbert_zero.report import write_report
from colbert_zero.report.records import Records
from colbert_zero.report.tables import sources_table
from example_records import ALL, COLLECTIONS, result_record, write_records


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and its tables' cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder with all records, reported once."""
    return write_report(write_records(tmp_path_factory.mktemp("study"), result_record(ALL))).parent


def test_every_system_collection_and_measure_is_in_both_files(reported):
    texts = [Page((reported / "report.html").read_text()).text, (reported / "report.md").read_text()]
    for text in texts:
        for words in (*COLLECTIONS, "bm25", "dense-unsupervised+dense-supervised", *ALL, "fused", "5 others"):
            assert words in text
        for label in ("after unsupervised", "after supervised", "after distillation = full"):
            assert label in text
        for score in ("76.50", "53.01", "R@100 × 100", "RR@10 × 100", "search_document:", "0.02"):
            assert score in text


def test_the_best_of_each_column_is_marked_and_nothing_else(reported):
    html = (reported / "report.html").read_text()
    table = html[html.index("<caption>nDCG@10 × 100") : html.index("<caption>R@100")]
    # The mean, scifact and fiqa are highest after the unsupervised phase, nfcorpus at the end.
    assert re.findall(r'<td class="best">([\d.]+)</td>', table) == ["53.01", "76.76", "45.38", "37.28"]


def test_the_page_loads_nothing_and_runs_nothing(reported):
    html = (reported / "report.html").read_text()
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "img", "object", "embed", "image"}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "onload"} & set(attributes)
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert target.startswith("#") or (tag == "a" and target == "recipe.json")
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*folder.glob("report.*"), *folder.glob("plots/*")]}


def test_the_same_records_give_the_same_bytes(reported, tmp_path):
    write_report(write_records(tmp_path, result_record(ALL)))
    names = {"report.html", "report.md", "quality.png", "quality-time.png", "cost.png", "losses.png"}
    assert set(files(tmp_path)) == names
    assert files(tmp_path) == files(reported)


def test_hostile_names_stay_text(tmp_path):
    hostile = "<script>alert('$x^2$')</script>| [a](http://b) | _名"
    results = result_record(["kd-only", "full"])
    results = json.loads(
        json.dumps(results).replace('"full"', json.dumps(hostile)).replace('"fiqa"', json.dumps(hostile))
    )
    results["recipe"] = hostile
    html = write_report(write_records(tmp_path, results)).read_text()
    assert "<script" not in html
    assert hostile in Page(html).text
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if "after distillation = " in line]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[:2]}) == 1
    assert "[a](" not in "".join(rows)


def test_published_figures_stand_in_a_table_of_their_own_with_their_sources(tmp_path):
    results = result_record(ALL)
    results["collections"]["scifact"]["name"] = "beir/scifact"
    page = Page(write_report(write_records(tmp_path, results)).read_text()).text
    table = page[page.index("Published figures, nDCG@10 × 100: not measured here") :]
    assert table.split().index("scifact") < table.split().index("gte-modernbert-base")
    assert "beir, published" in table
    assert "arXiv 2602.16609" in table
    assert "77.40" in table, "gte-modernbert-base on SciFact, which no system of this study is"
    assert "fiqa" not in table[: table.index("Comparisons")], "a folder that is called so is not the public one"
    assert "77.40" not in page[: page.index("Published figures")]


def test_what_models_encoded_in_stands_beside_the_sources_that_models_made(tmp_path):
    folder = write_records(tmp_path, result_record(ALL))
    assert "models encoded in" not in write_report(folder).read_text()
    known = read_json(folder / "data.json")
    by_bm25 = {"kind": "mined", "rows": 90_000, "precision": "float32"}
    known["sources"] |= {"by-bm25": by_bm25, "by-model": by_bm25 | {"precision": "bfloat16", "maxsim": "torch"}}
    write_json(folder / "data.json", known)
    assert "models encoded in" in write_report(folder).read_text()
    rows = {row[0]: row for row in sources_table(Records(folder)).groups[0][1]}
    assert [rows[name][-1] for name in ("by-bm25", "by-model", "source-00")] == ["–", "bfloat16", "–"]


def test_only_results_are_needed(tmp_path):
    results = result_record(ALL, collections=("scifact",)) | {"comparisons": []}
    write_json(tmp_path / "results.json", results)
    html = write_report(tmp_path).read_text()
    assert "<h2>Teachers</h2>" not in html
    assert "<h2>Comparisons</h2>" not in html
    for only_where in (
        "Two models or one",
        "Cut, merged, adapted",
        "domain by domain",
        "model's bytes",
        "Quality against bytes",
    ):
        assert only_where not in html
    assert "The answer: no pipeline is shown to be better" in html


def test_a_study_without_a_finished_pipeline_is_still_reported(tmp_path):
    results = result_record([])
    assert "No pipeline is finished yet" in write_report(write_records(tmp_path, results)).read_text()
