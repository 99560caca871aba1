"""A teacher's scores as tables: of every kind of teacher, from every kind of candidates, and killed on the way."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import load_dataset
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from colbert_zero.cli import app
from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import load_beir, write_beir
from colbert_zero.data.prepared import open_source
from colbert_zero.data.sources import prepare_source
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.bm25 import Bm25
from colbert_zero.recipe.data import Hub
from colbert_zero.recipe.schema import Recipe
from colbert_zero.teaching.candidates import from_rows, from_run
from colbert_zero.teaching.teach import UNIT, report, teach
from helpers import DOCUMENTS, QRELS, QUERIES, data, environment, launch, rows, study, succeed, wait_for

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({w for text in DOCUMENTS.values() for w in text.lower().split()})]


def write_candidates(path, queries=10, ways=4):
    texts = list(DOCUMENTS.values())
    found = [
        {"query": f"{row['query']} {n}", "documents": [texts[(n + k) % len(texts)] for k in range(ways + n % 2)]}
        for n, row in enumerate(rows(queries))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A cross-encoder and a dense model, tiny, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, model in (("cross", BertForSequenceClassification(config)), ("dense", BertModel(config))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    config.num_labels = 3
    BertForSequenceClassification(config).save_pretrained(folder / "classes")
    tokenizer.save_pretrained(folder / "classes")
    return folder


def invoke(*words):
    done = CliRunner().invoke(app, ["teach", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def tables(folder):
    return {
        name: pq.read_table(folder / name / "0.parquet").to_pylist()
        for name in ("train", "train_unnormalized", "queries", "documents")
    }


def scores(folder, table="train_unnormalized"):
    return np.array([row["scores"] for row in tables(folder)[table]])


def test_a_cross_encoders_logits_are_the_scores_of_each_pair(models, tmp_path):
    asked = write_candidates(tmp_path / "c.jsonl")
    invoke("--candidates", tmp_path / "c.jsonl", "--teacher", models / "cross", "--out", tmp_path / "out")
    found = tables(tmp_path / "out")
    texts = {row["document_id"]: row["text"] for row in found["documents"]}
    pairs = [(row["query"], text) for row in asked for text in row["documents"][:4]]
    expected = CrossEncoder(str(models / "cross"), activation_fn=torch.nn.Identity()).predict(pairs).reshape(-1, 4)
    assert [[texts[d] for d in row["document_ids"]] for row in found["train"]] == [r["documents"][:4] for r in asked]
    assert [row["text"] for row in found["queries"]] == [row["query"] for row in asked]
    np.testing.assert_allclose(scores(tmp_path / "out"), expected, atol=1e-5)


@pytest.mark.parametrize("teacher", ["cross", "dense"])
def test_scores_in_bfloat16_are_nearly_those_in_float32_and_are_not_taken_for_them(models, tmp_path, teacher):
    write_candidates(tmp_path / "c.jsonl")
    words = ("--candidates", tmp_path / "c.jsonl", "--teacher", models / teacher)
    invoke(*words, "--out", tmp_path / "whole")
    assert "encodes in bfloat16" in invoke(*words, "--out", tmp_path / "half", "--precision", "bfloat16")
    np.testing.assert_allclose(scores(tmp_path / "half"), scores(tmp_path / "whole"), rtol=0.05, atol=0.02)
    assert (scores(tmp_path / "half") != scores(tmp_path / "whole")).any()
    record = read_json(tmp_path / "half" / "teach.json")
    assert record["teacher"][str(models / teacher)].endswith(" in bfloat16")
    assert record["maxsim"] == (None if teacher == "cross" else "torch")
    with pytest.raises(ColbertZeroError, match="other"):
        invoke(*words, "--out", tmp_path / "whole", "--precision", "bfloat16")


def test_scores_are_normalised_over_a_querys_candidates(models, tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    invoke("--candidates", tmp_path / "c.jsonl", "--teacher", models / "cross", "--out", tmp_path / "out")
    raw = scores(tmp_path / "out")
    low, high = raw.min(1, keepdims=True), raw.max(1, keepdims=True)
    np.testing.assert_allclose(scores(tmp_path / "out", "train"), (raw - low) / (high - low), atol=1e-9)


def test_a_mix_is_the_weighted_sum_of_its_members_normalised_scores(models, tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    names = {"cross": models / "cross", "dense": models / "dense", "bm25": "bm25"}
    for name, teacher in names.items():
        invoke("--candidates", tmp_path / "c.jsonl", "--teacher", teacher, "--out", tmp_path / name)
    mix = f"{names['cross']}:2,{names['dense']}:1,bm25:0.5"
    said = invoke("--candidates", tmp_path / "c.jsonl", "--teacher", mix, "--out", tmp_path / "mix")
    own = {name: scores(tmp_path / name, "train") for name in names}
    expected = 2 * own["cross"] + own["dense"] + 0.5 * own["bm25"]
    np.testing.assert_allclose(scores(tmp_path / "mix"), expected, atol=1e-5)
    assert said.count("Kendall's tau") == 3


def test_bm25_scores_on_the_distinct_candidates(tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    found = from_rows([str(tmp_path / "c.jsonl")], None)
    invoke("--candidates", tmp_path / "c.jsonl", "--teacher", "bm25", "--out", tmp_path / "out")
    expected = Bm25(found.documents).score_pairs(found.queries, np.array(found.ranked))
    np.testing.assert_allclose(scores(tmp_path / "out"), expected)


def test_the_tables_load_as_a_data_set_and_as_a_source(models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    write_candidates(tmp_path / "c.jsonl")
    invoke("--candidates", tmp_path / "c.jsonl", "--teacher", "bm25", "--out", tmp_path / "scored")
    for name, columns in {"train": ["query_id", "document_ids", "scores"], "queries": ["query_id", "text"]}.items():
        assert load_dataset(str(tmp_path / "scored"), name, split="train").column_names == columns
    recipe = data(tmp_path)
    recipe["sources"] = {
        "scored": {"kind": "hub", "path": str(tmp_path / "scored"), "train": "train", "queries": "queries",
                   "documents": "documents"},
    }  # fmt: skip
    write_beir(Collection.from_memory("c", DOCUMENTS, QUERIES, QRELS), tmp_path / "beir")
    recipe["collections"] = {"c": {"kind": "beir", "path": str(tmp_path / "beir")}}
    recipe["phases"] = {"distillation": {**recipe["phases"]["distillation"], "global_batch_size": 4, "steps": 1}}
    recipe["pipelines"] = {"kd": ["distillation"]}
    del recipe["teachers"]
    one = study(tmp_path, recipe)
    one.prepare([("distillation",)])
    assert len(one.sources["scored"].parts["scored/train"]) == 10
    assert one.sources["scored"].parts["scored/train"].lengths() == [4]


def test_pairs_with_hard_negatives_are_candidates_with_the_answer_first(tmp_path):
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        for n, row in enumerate(rows(6)):
            file.write(json.dumps({**row, "negative": [f"one {n}", f"two {n}", f"one {n}"]}) + "\n")
    found = from_rows([str(tmp_path / "pairs.jsonl.gz")], None)
    assert found.ways == 3
    assert found.answered
    assert found.documents[:3] == [next(rows(1))["document"], "one 0", "two 0"]


def test_a_runs_best_are_candidates(tmp_path):
    write_beir(Collection.from_memory("c", DOCUMENTS, QUERIES, QRELS), tmp_path / "beir")
    ids = list(DOCUMENTS)
    lines = [f"{query} Q0 {ids[n + k]} {k + 1} {9 - k} x" for n, query in enumerate(QUERIES) for k in range(5 + n)]
    (tmp_path / "best.trec").write_text("\n".join(lines))
    found = from_run(tmp_path / "best.trec", load_beir(tmp_path / "beir"), None)
    assert (found.queries, found.ways, found.answered) == (list(QUERIES.values()), 5, False)
    assert [found.documents[n] for n in found.ranked[1]] == [DOCUMENTS[d] for d in ids[1:6]]
    said = invoke("--candidates", tmp_path / "best.trec", "--collection", tmp_path / "beir", "--teacher", "bm25",
                  "--out", tmp_path / "out")  # fmt: skip
    assert "5 queries, 5 candidates each" in said
    assert "teacher's first" not in said
    assert "go by its id" not in said


def test_a_runs_ids_are_those_of_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    documents = {"a-copy": DOCUMENTS["drag"], **DOCUMENTS}
    write_beir(Collection.from_memory("c", documents, QUERIES, QRELS), tmp_path / "beir")
    ranked = {"q2": ["library", "index", "stem"], "q1": ["lift", "drag", "a-copy"], "q3": ["lung", "drag", "heart"]}
    lines = [f"{query} Q0 {one} {n + 1} {9 - n} x" for query, ids in ranked.items() for n, one in enumerate(ids)]
    (tmp_path / "best.trec").write_text("\n".join(lines))
    said = invoke("--candidates", tmp_path / "best.trec", "--collection", tmp_path / "beir", "--teacher", "bm25",
                  "--n-ways", 3, "--out", tmp_path / "out")  # fmt: skip
    assert "1 left out: fewer than 3 candidates" in said
    assert "1 of the run's documents have the text of another, and go by its id" in said
    found = {name: load_dataset(str(tmp_path / "out"), name, split="train") for name in ("train", "queries")}
    assert found["train"]["query_id"][:] == found["queries"]["query_id"][:] == ["q2", "q3"]
    assert found["train"]["document_ids"][:] == [["library", "index", "stem"], ["lung", "a-copy", "heart"]]
    read = Hub.model_validate(
        {"kind": "hub", "path": str(tmp_path / "out"), "train": "train", "queries": "queries", "documents": "documents"}
    )
    recipe = Recipe.model_construct(sources={"scored": read}, collections={}, seed=1)
    source = open_source("scored", prepare_source("scored", recipe, tmp_path / "data", tmp_path, None))
    [part] = source.parts.values()
    assert part.read([1])["query"] == [QUERIES["q3"]]
    assert part.read([1])["documents"] == [[DOCUMENTS[name] for name in ("lung", "drag", "heart")]]


IN_PYLATE = """
import json, sys
from datasets import load_dataset
from pylate.utils import KDProcessing
names = ("train", "queries", "documents")
train, queries, documents = (load_dataset(sys.argv[1], name, split="train") for name in names)
train.set_transform(KDProcessing(queries=queries, documents=documents).transform)
print(json.dumps([[row["query"], row["documents"], row["scores"]] for row in train]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("PYLATE_PYTHON"), reason="PYLATE_PYTHON names no environment with PyLate")
@pytest.mark.parametrize("of_run", [True, False], ids=["a run's ids", "numbers"])
def test_pylate_reads_the_tables(tmp_path, of_run):
    asked = write_candidates(tmp_path / "c.jsonl")
    words = ["--candidates", tmp_path / "c.jsonl"]
    if of_run:
        write_beir(Collection.from_memory("c", DOCUMENTS, QUERIES, QRELS), tmp_path / "beir")
        lines = [f"{query} Q0 {one} {n + 1} {9 - n} x" for query in QUERIES for n, one in enumerate(DOCUMENTS)]
        (tmp_path / "best.trec").write_text("\n".join(lines))
        words = ["--candidates", tmp_path / "best.trec", "--collection", tmp_path / "beir"]
        asked = [{"query": query, "documents": list(DOCUMENTS.values())} for query in QUERIES.values()]
    invoke(*words, "--teacher", "bm25", "--n-ways", 4, "--out", tmp_path / "out")
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    known |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    printed = subprocess.run(
        [os.environ["PYLATE_PYTHON"], "-c", IN_PYLATE, str(tmp_path / "out")],
        check=True, env=known, timeout=250, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    found = json.loads(printed.splitlines()[-1])
    assert [row[:2] for row in found] == [[row["query"], row["documents"][:4]] for row in asked]
    np.testing.assert_allclose([row[2] for row in found], scores(tmp_path / "out", "train"))


def test_a_recipes_source_is_scored_without_its_held_out_pairs(tmp_path):
    with open(tmp_path / "pairs.jsonl", "w") as file:
        for n, row in enumerate(rows(60)):
            file.write(json.dumps({"anchor": row["query"], "pos": row["document"], "neg": [f"one {n}", "two"]}) + "\n")
    recipe = data(tmp_path)
    recipe["sources"] |= {"hard": {"kind": "mined", "of": "pairs", "negatives": 2}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    words = ("--teacher", "bm25", "--out", tmp_path / "out")
    said = invoke("--candidates", f"{tmp_path / 'my.yaml'}:pairs", *words)
    assert "30 queries, 3 candidates each" in said
    assert "30 left out: held out of pairs" in said
    found = tables(tmp_path / "out")
    texts = {row["document_id"]: row["text"] for row in found["documents"]}
    known = {row["document"]: n for n, row in enumerate(rows(60))}
    for row in found["train"]:
        answer, *negatives = (texts[number] for number in row["document_ids"])
        assert negatives == [f"one {known[answer]}", "two"]
    with pytest.raises(ColbertZeroError, match=r"my.yaml:hard: is made of pairs.*mines into a file"):
        invoke("--candidates", f"{tmp_path / 'my.yaml'}:hard", "--teacher", "bm25", "--out", tmp_path / "other")


def test_rows_of_too_few_candidates_are_left_out_and_told(tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    said = invoke("--candidates", tmp_path / "c.jsonl", "--teacher", "bm25", "--n-ways", 5, "--out", tmp_path / "out")
    assert "5 queries, 5 candidates each" in said
    assert "5 left out: fewer than 5 candidates" in said


def test_finished_scores_are_not_made_again_and_others_are_refused(tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    words = ("--candidates", tmp_path / "c.jsonl", "--out", tmp_path / "out", "--teacher")
    invoke(*words, "bm25")
    before = (tmp_path / "out" / "train" / "0.parquet").stat().st_mtime_ns
    invoke(*words, "bm25")
    assert (tmp_path / "out" / "train" / "0.parquet").stat().st_mtime_ns == before
    with pytest.raises(ColbertZeroError, match="has another teacher's scores"):
        invoke(*words, "bm25", "--n-ways", 2)


def test_what_was_scored_before_an_interruption_is_not_scored_again(tmp_path):
    write_candidates(tmp_path / "c.jsonl", 3 * UNIT)
    found, asked = from_rows([str(tmp_path / "c.jsonl")], None), []

    class Failing:
        def __init__(self, after):
            self.after = after

        def scores(self, queries, candidates, documents):
            if len(asked) == self.after:
                raise KeyboardInterrupt
            asked.append(queries[0])
            return candidates.astype(np.float32)

    with pytest.raises(KeyboardInterrupt):
        teach(found, {"x": 1.0}, {"x": "x"}, lambda _: Failing(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ColbertZeroError, match="was begun with other candidates or another teacher"):
        teach(found, {"x": 1.0}, {"x": "y"}, lambda _: Failing(9), tmp_path / "out")
    teach(found, {"x": 1.0}, {"x": "x"}, lambda _: Failing(9), tmp_path / "out")
    assert asked == found.queries[::UNIT]
    assert not (tmp_path / "out.unfinished").exists()
    assert len(scores(tmp_path / "out")) == 3 * UNIT


class Constant:
    """Scores of its own for each candidate."""

    def __init__(self, value):
        self.value = value

    def scores(self, queries, candidates, documents):
        return np.tile(np.asarray(self.value, np.float32), (len(queries), 1))


def test_a_mix_that_goes_on_in_another_order_has_each_members_own_scores(tmp_path):
    write_candidates(tmp_path / "c.jsonl", 2 * UNIT, ways=3)
    found, asked = from_rows([str(tmp_path / "c.jsonl")], 3), []
    scorers = {"a": Constant([0, 1, 2]), "b": Constant([5, 0, 0])}

    def once(name):
        asked.append(name)
        return scorers[name]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(found, {"a": 3.0, "b": 1.0}, {"a": "a", "b": "b"}, once, tmp_path / "out", stop)
    teach(found, {"b": 1.0, "a": 3.0}, {"b": "b", "a": "a"}, once, tmp_path / "out")
    assert (scores(tmp_path / "out") == [1.0, 1.5, 3.0]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(tmp_path, value):
    write_candidates(tmp_path / "c.jsonl", ways=3)
    found = from_rows([str(tmp_path / "c.jsonl")], 3)
    with pytest.raises(ColbertZeroError, match="--teacher x: a score that is no finite number"):
        teach(found, {"x": 1.0}, {"x": "x"}, lambda _: Constant([0, value, 1]), tmp_path / "out")


def test_two_at_once_are_refused(tmp_path):
    write_candidates(tmp_path / "c.jsonl", ways=3)
    found, errors = from_rows([str(tmp_path / "c.jsonl")], 3), []

    class Second:
        def scores(self, queries, candidates, documents):
            try:
                teach(found, {"x": 1.0}, {"x": "x"}, lambda _: Constant([0, 1, 2]), tmp_path / "out")
            except ColbertZeroError as error:
                errors.append(str(error))
            return candidates.astype(np.float32)

    teach(found, {"x": 1.0}, {"x": "x"}, lambda _: Second(), tmp_path / "out")
    assert len(errors) == 1


def test_a_cross_encoder_of_pickled_weights_is_refused(models, tmp_path):
    shutil.copytree(models / "cross", tmp_path / "cross")
    (tmp_path / "cross" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "cross" / "pytorch_model.bin")
    write_candidates(tmp_path / "c.jsonl")
    with pytest.raises(ColbertZeroError):
        invoke("--candidates", tmp_path / "c.jsonl", "--teacher", tmp_path / "cross", "--out", tmp_path / "out")


def test_pairs_that_a_cross_encoder_cuts_are_told(models, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"query": "wing", "documents": ["lift " * 600, "drag"]}) + "\n")
    said = invoke("--candidates", tmp_path / "c.jsonl", "--teacher", models / "cross", "--out", tmp_path / "out")
    assert "it reads 512 tokens, to which long pairs are cut: 1 of 2" in said.replace("\n", " ")


@pytest.mark.parametrize("content", ["{", "[]", '{"asked": 1}'])
def test_a_damaged_record_is_told(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teach.json").write_text(content)
    with pytest.raises(ColbertZeroError, match=r"teach.json: damaged \(.*; delete"):
        invoke("--report", "--out", tmp_path / "out")


@pytest.mark.parametrize("place", ["file", "full", "file/below"])
def test_a_place_for_no_tables_is_refused_before_anything_is_read(tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(ColbertZeroError, match=r"--out .*name a(nother| new) folder"):
        invoke("--candidates", tmp_path / "none.jsonl", "--teacher", "bm25", "--out", tmp_path / place)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_processes_go_on_to_the_same_tables(models, tmp_path, world):
    write_candidates(tmp_path / "c.jsonl", 20 * UNIT)
    words = ["-m", "colbert_zero", "teach", "--candidates", "c.jsonl", "--teacher", f"{models / 'cross'}:1,bm25:1"]
    succeed([sys.executable, *words, "--out", "whole"], tmp_path)
    killed = subprocess.Popen(
        launch(world, *words, "--out", "out"), cwd=tmp_path, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: len(list(tmp_path.glob("out.unfinished/*.npy"))) > 3)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    left = len(list(tmp_path.glob("out.unfinished/*.npy")))
    assert left > 3
    succeed(launch(world, *words, "--out", "out"), tmp_path)
    for name in ("train", "train_unnormalized", "queries", "documents"):
        assert (tmp_path / "out" / name / "0.parquet").read_bytes() == (
            tmp_path / "whole" / name / "0.parquet"
        ).read_bytes()


def test_the_report_counts_what_it_says():
    raw = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    found = report(raw, {"a": raw[:3], "b": -raw[:3]}, answered=True)
    assert found["answer_not_first"] == 0.25
    assert sum(found["histogram"]) == raw.size
    assert found["histogram"][9] == 3
    assert found["agreement"] == {"a, b": -1.0}
    assert found["softmax"]["0.1"]["one-hot"] == 0.75
    assert found["softmax"]["0.1"]["flat"] == 0.25
    assert report(raw, {"a": raw}, answered=False)["answer_not_first"] is None


def test_a_report_is_shown_again_without_scoring(tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    said = invoke("--candidates", tmp_path / "c.jsonl", "--teacher", "bm25", "--out", tmp_path / "out")
    again = invoke("--report", "--out", tmp_path / "out")
    assert again.splitlines() == said.splitlines()[-len(again.splitlines()) :]
    assert read_json(tmp_path / "out" / "teach.json")["report"]["histogram"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--teacher", "bm25"], "--candidates and --teacher are needed"),
        (["--candidates", "c.jsonl"], "--candidates and --teacher are needed"),
        (["--candidates", "c.jsonl", "--teacher", "nowhere/at/all"], "no such folder; name one, a Hub id, or bm25"),
        (["--candidates", "none.jsonl", "--teacher", "bm25"], "no such file"),
        (["--candidates", "c.jsonl", "--teacher", "bm25:0"], "weights are above 0"),
        (["--candidates", "c.jsonl", "--teacher", "bm25:1,bm25:2"], "stands twice"),
        (["--candidates", "c.jsonl", "--teacher", "bm25", "--n-ways", "9"], "no query has 9 different candidates"),
        (["--candidates", "c.jsonl", "--teacher", "bm25", "--collection", "x"], "one run (.trec, .run, .txt) with"),
        (["--candidates", "best.trec", "--teacher", "bm25"], "one run (.trec, .run, .txt) with"),
        (["--candidates", "c.jsonl", "--candidates", "quickstart:docstrings", "--teacher", "bm25"], "not both"),
        (["--candidates", "quickstart:x", "--teacher", "bm25"], "--candidates quickstart:x: quickstart has no source"),
        (["--candidates", "c.jsonl", "--teacher", "bm25", "--precision", "auto"], "--precision: bm25 encodes nothing"),
        (["--report", "--precision", "auto"], "leave out the other options"),
        (["--report"], "holds no teacher's scores"),
        (["--report", "--teacher", "bm25"], "leave out the other options"),
    ],
)
def test_mistakes_are_told_with_their_mend(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_candidates(tmp_path / "c.jsonl")
    with pytest.raises(ColbertZeroError) as error:
        invoke(*words, "--out", "out")
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_no_teacher(models, tmp_path):
    write_candidates(tmp_path / "c.jsonl")
    with pytest.raises(ColbertZeroError, match="a classifier, which gives 3 numbers a pair"):
        invoke("--candidates", tmp_path / "c.jsonl", "--teacher", models / "classes", "--out", tmp_path / "out")


def test_a_bad_row_is_named(tmp_path):
    (tmp_path / "c.jsonl").write_text(
        '{"query": "q", "documents": ["a", "b"]}\n{"query": "", "documents": ["a", "b"]}\n'
    )
    with pytest.raises(ColbertZeroError, match=r"c.jsonl, line 2: `query` is empty"):
        from_rows([str(tmp_path / "c.jsonl")], 2)
