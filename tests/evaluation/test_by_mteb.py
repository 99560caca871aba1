"""A checkpoint handed to mteb (the extra `mteb`, else skipped), on a task whose data lie in a folder."""

import importlib.util
import json

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.by_mteb import find_task
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import measure
from helpers import DOCUMENTS, QRELS, QUERIES

INSTALLED = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb is not installed: the extra mteb")


@pytest.fixture
def task(tmp_path, monkeypatch, offline):
    """SciFact of mteb's, whose data set is a folder here laid out as on the Hub."""
    import mteb

    tables = {
        "corpus": [{"_id": k, "title": "", "text": v} for k, v in DOCUMENTS.items()],
        "queries": [{"_id": k, "text": v} for k, v in QUERIES.items()],
        "default": [{"query-id": q, "corpus-id": d, "score": s} for q, g in QRELS.items() for d, s in g.items()],
    }
    configs = []
    for name, rows in tables.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        split = "test" if name == "default" else name
        configs.append(f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}.jsonl\n")
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    monkeypatch.setitem(mteb.get_task("SciFact").metadata.dataset, "path", str(tmp_path))


@INSTALLED
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["multi-vector", "dense"])
def test_mteb_gives_a_checkpoint_the_scores_that_we_give_it(
    kind, task, command, collection, tiny_multi_vector, tiny_dense, tmp_path
):
    model = tiny_multi_vector if kind == "multi-vector" else tiny_dense
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    words = ("--collection", "mteb:SciFact", "--json", tmp_path / "s.json")
    code, out, err = command("evaluate", tmp_path / "model", *words)
    assert code == 0, err
    found = json.loads((tmp_path / "s.json").read_text())
    ours, _ = measure(rank(model, collection), collection.qrels)
    assert found["scores"] == pytest.approx(ours, abs=1e-4)
    assert f"nDCG@10  {found['scores']['nDCG@10']:.4f}" in out
    assert (found["collection"], "mteb" in found) == ("mteb:SciFact", True)


@INSTALLED
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mteb:SciFct", "mteb:SciFct: .*Did you mean: 'SciFact'"),
        ("mteb:Banking77Classification", "a task of Classification; only retrieval"),
    ],
)
def test_what_is_no_task_of_retrieval_is_told(word, message):
    with pytest.raises(ColbertZeroError, match=message):
        find_task(word)


@INSTALLED
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_data_that_mteb_cannot_load_are_told_before_anything_is_evaluated(command, offline, tiny_dense, tmp_path):
    tiny_dense.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    code, _, error = command("evaluate", tmp_path / "model", "--collection", "mteb:NFCorpus")
    assert (code, "mteb:NFCorpus: mteb cannot load its data" in error, "Traceback" in error) == (2, True, False), error


def test_without_mteb_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("colbert_zero.evaluation.by_mteb.find_spec", lambda name: None)
    with pytest.raises(
        ColbertZeroError, match=r"mteb:SciFact: mteb is not installed; pip install 'colbert-zero\[mteb\]"
    ):
        find_task("mteb:SciFact")
