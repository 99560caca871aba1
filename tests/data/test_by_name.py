"""Public collections by name: from folders in BEIR_HOME, in the archives' layout and in the Hub's."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colbert_zero.data.by_name import load_all, load_named
from colbert_zero.data.collection import Collection, Rules
from colbert_zero.data.layouts import write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.validation import NANOBEIR_SETS
from colbert_zero.recipe.named import GROUPS, NAMED, counted_as, members
from colbert_zero.report.published import published_on
from helpers import DOCUMENTS, QRELS, QUERIES, ROOT

# The columns of the paper's table.
PAPER = {
    *("fiqa", "nfcorpus", "trec-covid", "webis-touche2020", "arguana", "quora", "scidocs", "scifact", "nq"),
    *("climate-fever", "hotpotqa", "dbpedia-entity", "cqadupstack", "fever", "msmarco"),
}


@pytest.fixture
def home(tmp_path, monkeypatch, collection):
    """A folder that BEIR_HOME names, with the small collection in the place of these."""

    def fill(*names):
        for name in names:
            write_beir(collection, tmp_path / "home" / NAMED[name].folder, NAMED[name].qrels)
        monkeypatch.setenv("BEIR_HOME", str(tmp_path / "home"))
        return tmp_path / "home"

    return fill


def test_the_groups_are_the_papers_fifteen_nanobeirs_thirteen_and_eight_decontaminated():
    assert {named.whole for named in GROUPS["beir"]} == {f"beir/{name}" for name in PAPER}
    assert len(GROUPS["beir/cqadupstack"]) == 12
    assert [named.split for named in GROUPS["nanobeir"]] == list(NANOBEIR_SETS)
    assert len(GROUPS["decontaminated"]) == 8
    assert NAMED["beir/msmarco"].split == NAMED["beir/msmarco"].qrels == "dev"
    assert all(re.fullmatch("[0-9a-f]{40}", named.revision) for named in NAMED.values() if named.split == "test")
    assert members("beir/scifct") == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("beir/scifact", "scifact"),
        ("beir/msmarco", "msmarco"),
        ("beir/cqadupstack/tex", "cqadupstack/tex"),
        ("nanobeir/nq", "nanobeir/nq"),
        ("decontaminated/quora", "decontaminated/quora"),
    ],
)
def test_a_name_is_its_folder_in_beir_home(home, collection, offline, name, place):
    folder = home(name)
    [loaded] = load_all([name])
    assert (loaded.name, loaded.fingerprint) == (name, collection.fingerprint)
    assert loaded.peculiarities()[0] == f"from {folder / place}"


def test_a_folder_of_the_hubs_layout_serves_as_well(tmp_path, monkeypatch, collection, offline):
    folder = tmp_path / "scifact"
    tables = {
        "corpus/corpus-00000-of-00001": [{"_id": k, "title": "", "text": v} for k, v in DOCUMENTS.items()],
        "queries/queries-00000-of-00001": [{"_id": k, "text": v} for k, v in QUERIES.items()],
        "default/test-00000-of-00001": [
            {"query-id": q, "corpus-id": d, "score": float(grade)} for q, g in QRELS.items() for d, grade in g.items()
        ],
    }
    for name, rows in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    monkeypatch.setenv("BEIR_HOME", str(tmp_path))
    assert load_named(NAMED["beir/scifact"]).fingerprint == collection.fingerprint


@pytest.mark.parametrize("name", ["beir/scifact", "beir/msmarco", "nanobeir/scifact"])
def test_what_is_neither_there_nor_on_the_hub_is_told_with_the_folder_to_make(tmp_path, monkeypatch, offline, name):
    named = NAMED[name]
    monkeypatch.delenv("BEIR_HOME", raising=False)
    with pytest.raises(ColbertZeroError) as unset:
        load_all([name])
    told = f"or let BEIR_HOME name a folder that has {named.folder}/ with corpus.jsonl, queries.jsonl and qrels/"
    assert str(unset.value).startswith(f"{name}: cannot read the data set {named.dataset}")
    assert f"{told}{named.qrels}.tsv" in str(unset.value)
    monkeypatch.setenv("BEIR_HOME", str(tmp_path))
    with pytest.raises(ColbertZeroError, match=re.escape(f"({tmp_path / named.folder} does not exist)")):
        load_all([name])


def test_the_hub_is_asked_for_the_commit_and_the_judgements_of_the_name(monkeypatch, collection):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return collection

    monkeypatch.delenv("BEIR_HOME", raising=False)
    monkeypatch.setattr("colbert_zero.data.by_name.load_hub", load)
    rules = Rules(exclude_self=True)
    assert load_named(NAMED["beir/msmarco"], rules).place == "mteb/msmarco at c5a29a1, on the Hub"
    assert load_named(NAMED["nanobeir/nq"]).place == "sentence-transformers/NanoBEIR-en, split NanoNQ, on the Hub"
    assert asked[0] == ("mteb/msmarco", "dev", NAMED["beir/msmarco"].revision, rules)
    assert asked[1][:3] == ("sentence-transformers/NanoBEIR-en", "NanoNQ", None)


def test_several_are_loaded_once_each_groups_in_their_order(home, collection, tmp_path, offline):
    home(*(named.name for named in GROUPS["beir"]))
    write_beir(collection, tmp_path / "mine")
    loaded = load_all(["beir/nq", str(tmp_path / "mine"), "beir", "beir/nq"])
    assert [one.name for one in loaded[:3]] == ["beir/nq", "mine", "beir/arguana"]
    assert len(loaded) == 1 + 26


@pytest.mark.parametrize(
    ("words", "split", "message"),
    [
        (["beir/scifct"], None, "beir/scifct: no such folder, no public collection of that name, did you mean beir/s"),
        (["nanobeir/of-the-moon"], None, r"no public collection of that name \(docs/data.md lists beir/…, nanobeir/…"),
        (["beir/msmarco"], "test", "--split: beir/msmarco is evaluated on dev; leave it out"),
        (["{0}/a/same", "{0}/b/same"], None, "another collection is called same too; rename a folder"),
    ],
)
def test_a_wrong_name_is_one_message(tmp_path, collection, offline, words, split, message):
    for folder in ("a", "b"):
        write_beir(collection, tmp_path / folder / "same")
    with pytest.raises(ColbertZeroError, match=message):
        load_all([word.format(tmp_path) for word in words], split)


def test_a_folder_is_meant_before_a_name(tmp_path, monkeypatch, collection, offline):
    other = Collection.from_memory("x", DOCUMENTS, {"q1": "wing"}, {"q1": {"lift": 1}})
    write_beir(other, tmp_path / "beir" / "scifact")
    monkeypatch.chdir(tmp_path)
    [loaded] = load_all(["beir/scifact"])
    assert (loaded.name, loaded.fingerprint) == ("scifact", other.fingerprint)


def test_a_part_counts_as_the_whole_only_beside_all_others():
    parts = [named.name for named in GROUPS["beir/cqadupstack"]]
    assert {counted_as(name, [*parts, "beir/nq"]) for name in parts} == {"beir/cqadupstack"}
    assert counted_as(parts[0], parts[:11]) == parts[0]
    assert counted_as("beir/nq", parts) == "beir/nq"
    assert counted_as("mine", parts) == "mine"


def test_published_figures_are_of_known_collections_have_sources_and_add_up():
    rows = json.loads((ROOT / "src/colbert_zero/report/published.json").read_text())
    for benchmark, entry in rows.items():
        assert {f"{benchmark}/{name}" for name in entry["collections"]} == {n.whole for n in GROUPS[benchmark]}
        for row in entry["models"]:
            assert row["source"]
            scores = row.get("scores")
            assert scores is None or len(scores) == len(entry["collections"])
            assert scores is None or sum(scores) / len(scores) == pytest.approx(row["mean"], abs=0.006), row["model"]


def test_a_published_mean_is_shown_only_beside_the_whole_benchmark():
    nano = [named.name for named in GROUPS["nanobeir"]]
    means = {figures.model: figures.mean for figures in published_on(nano)}
    assert means["lightonai/ColBERT-Zero"] == 0.6824
    assert published_on(nano[1:]) == published_on(["mine"]) == []
    [zero] = [f for f in published_on(["beir/scifact", "beir/nq"]) if f.model.startswith("ColBERT-Zero")]
    assert (zero.mean, zero.scores) == (None, {"beir/scifact": 0.765, "beir/nq": 0.6166})


def test_the_documentation_lists_every_name():
    page = (ROOT / "docs" / "data.md").read_text()
    for named in NAMED.values():
        assert f"`{named.whole if named.part else named.name}`" in page, named.name
        assert named.dataset in page, named.dataset


def test_a_folder_that_hides_public_collections_and_is_none_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beir").mkdir()
    with pytest.raises(ColbertZeroError, match="the folder beir here is meant before the public collections"):
        load_all(["beir"])
