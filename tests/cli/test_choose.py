"""`choose-base` as a user types it."""

import json
import shutil

import pytest
import yaml
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from colbert_zero.evaluation.choosing import embed_sample, hits_of, sample_pairs
from colbert_zero.models.checkpoints import load_model
from helpers import BODIES, WINGS, data, triples

TEXTS = [*triples(WINGS, 60), *triples(BODIES, 60)]
PAIRS = [(" ".join(text.split()[::-1]), text) for text in TEXTS]
PAIRS += [(query, f"{document} text") for query, document in PAIRS[:8]]


@pytest.fixture(scope="module")
def made(backbone, tiny_multi_vector, tiny_dense, tiny_cross_encoder, tmp_path_factory):
    """A candidate of each kind, pairs, and recipes that begin with each kind of vectors."""
    folder = tmp_path_factory.mktemp("choose")
    shutil.copytree(backbone, folder / "plain")
    for name, model in {"multi": tiny_multi_vector, "dense": tiny_dense, "cross": tiny_cross_encoder}.items():
        model.save_pretrained(str(folder / name), create_model_card=False)
    shutil.copytree(backbone, folder / "adapter")
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    rows = [{"query": query, "document": document} for query, document in PAIRS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:30], *rows[-8:]]))
    (folder / "scored.jsonl").write_text(
        "".join(json.dumps({"query": q, "documents": [d, "x"], "scores": [1.0, 0.0]}) + "\n" for q, d in PAIRS)
    )
    recipe = data(folder)
    (folder / "my.yaml").write_text(yaml.safe_dump(recipe))
    recipe["pipelines"] = {"full": ["unsupervised", "supervised", "distillation"]}
    (folder / "multi.yaml").write_text(yaml.safe_dump(recipe))
    recipe["pipelines"] = {"dense": ["dense"]}
    (folder / "dense.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_every_kind_of_candidate_is_measured_as_a_multi_vector_phase_would_start_from_it(command, folder):
    words = (
        "choose-base",
        "multi.yaml",
        "--candidates",
        "plain,multi",
        "--candidates",
        "dense",
        "--json",
        "found.json",
    )
    code, out, err = command(*words)
    assert code == 0, err
    record = json.loads((folder / "found.json").read_text())
    assert (record["measure"], record["by"], record["seed"]) == ("recall@1", "multi-vector", 1)
    assert sum(record["drawn_from"].values()) == record["pairs"]
    assert record["left_out"] > 0
    assert f"{record['left_out']} more left out, since they share a query or a document with these" in out
    candidates = record["candidates"]
    assert candidates.keys() == {"plain", "multi", "dense"}
    scores = [about["score"] for about in candidates.values()]
    assert scores == sorted(scores, reverse=True)
    kinds = {name: (about["kind"], sorted(about["other"])) for name, about in candidates.items()}
    assert kinds == {"plain": ("encoder", ["dense"]), "multi": ("multi-vector", []), "dense": ("dense", ["dense"])}
    # MaxSim of an encoder's own states, as no projection of random weights stands on them.
    assert candidates["plain"]["parameters"] == candidates["dense"]["parameters"] < candidates["multi"]["parameters"]
    for about in candidates.values():
        assert about["score"] == pytest.approx(sum(about["hits"]) / record["pairs"])
        low, high = about["interval"]
        assert low <= about["score"] <= high
        assert 0 <= about["without_layers"] <= 1
        assert about["documents_per_second"] > 0
        assert about["seconds"] > 0
        assert about["bytes"] > 4 * about["parameters"]
    assert f"start from {record['best']}" in out
    assert "BM25" in out


def test_a_trained_candidate_scores_with_its_own_prompts_and_head_as_it_is_loaded(command, folder):
    code, out, err = command(
        "choose-base", "--pairs", "pairs.jsonl", "--candidates", "multi,plain", "--json", "x.json", "--seed", 5
    )
    assert code == 0, err
    record = json.loads((folder / "x.json").read_text())
    sample = sample_pairs([("pairs", *pair) for pair in PAIRS], 500, seed=5)
    hits = hits_of(embed_sample(load_model("multi", device="cpu"), sample), "multi")
    assert record["candidates"]["multi"]["hits"] == hits.tolist()
    assert "its own prompts count" not in out
    code, out, err = command("choose-base", "multi.yaml", "--candidates", "multi,plain")
    assert (code, "multi: its own prompts count" in " ".join(out.split())) == (0, True), err


def test_what_orders_them_is_what_the_pipelines_begin_with(command, folder):
    two = ("--candidates", "plain,dense", "--json", "x.json")
    for words, by, told in (
        (("dense.yaml",), "dense", False),
        (("dense.yaml", "--by", "multi-vector"), "multi-vector", False),
        (("my.yaml",), "multi-vector", True),
    ):
        code, out, err = command("choose-base", *words, *two)
        assert code == 0, err
        assert json.loads((folder / "x.json").read_text())["by"] == by
        assert ("begin with dense and with multi-vector phases: ordered by MaxSim" in out) == told


def test_dense_candidates_are_scored_by_their_own_pooling(command, folder):
    code, _, err = command("choose-base", "dense.yaml", "--candidates", "plain,dense", "--json", "x.json")
    assert code == 0, err
    record = json.loads((folder / "x.json").read_text())
    assert {name: list(about["other"]) for name, about in record["candidates"].items()} == {
        "plain": ["multi-vector"],
        "dense": [],
    }


def test_held_out_pairs_of_the_recipe_are_not_looked_at(command, folder):
    for words, rows in ((("multi.yaml",), None), (("--pairs", "pairs.jsonl"), len(PAIRS))):
        code, _, err = command("choose-base", *words, "--candidates", "plain,dense", "--json", "x.json")
        assert code == 0, err
        found = json.loads((folder / "x.json").read_text())["rows"]
        assert found == rows if rows else found < len(PAIRS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--candidates", "plain,dense"), "on which pairs? Name a recipe, or --pairs SOURCE; one of the two"),
        (("my.yaml", "--pairs", "pairs.jsonl", "--candidates", "plain,dense"), "one of the two"),
        (
            ("--pairs", "pairs.jsonl", "--source", "a", "--candidates", "plain,dense"),
            "--source: names a recipe's source",
        ),
        (("my.yaml", "--source", "pears", "--candidates", "plain,dense"), "has no source 'pears', did you mean pairs?"),
        (("my.yaml", "--candidates", "plain"), "--candidates: plain is one; name at least two models to choose from"),
        (("my.yaml", "--candidates", "plain,./plain/../plain"), "name at least two models"),
        (("my.yaml", "--candidates", "plain,./nowhere"), "--candidates: no such folder './nowhere'"),
        (("my.yaml", "--candidates", "plain,cross"), "--candidates: 'cross' is a cross-encoder, which scores a query"),
        (("my.yaml", "--candidates", "plain,adapter"), "--candidates: 'adapter' is an adapter, whose weights come on"),
        (("my.yaml", "--candidates", "plain,pairs.jsonl"), "--candidates: 'pairs.jsonl' is a file"),
        (("my.yaml", "--candidates", "plain,dense", "--json", "pairs.jsonl/x"), "cannot be written"),
        (("my.yaml", "--candidates", "plain,dense", "--json", "plain"), "--json plain: is a folder; name a file"),
        (("--pairs", "few.jsonl", "--candidates", "plain,dense"), "--pairs: "),
        (
            ("--pairs", "pairs.jsonl", "--pairs", "plain/../pairs.jsonl", "--candidates", "plain,dense"),
            "pairs.jsonl is called pairs too; rename a file",
        ),
        (
            ("--pairs", "scored.jsonl", "--candidates", "plain,dense"),
            "--pairs: scored has candidates with scores; name pairs of query and document",
        ),
        (
            ("my.yaml", "--candidates", "plain,dense", "--set", "document_tokens=90"),
            "do not fit the encoder's 64 positions",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_encoded(command, folder, monkeypatch, words, told):
    monkeypatch.setattr("colbert_zero.study.choosing.embed_sample", None)
    code, _, err = command("choose-base", *words)
    assert (code, told in " ".join(err.split())) == (2, True), err
    assert "Traceback" not in err


def test_too_few_pairs_are_counted_with_those_that_share_a_text(command, folder):
    code, _, err = command("choose-base", "--pairs", "few.jsonl", "--candidates", "plain,dense")
    told = " ".join(err.split())
    assert code == 2
    assert (
        "30 different pairs (8 more share their query or document with these); at least 50 are needed; add some" in told
    )


def test_a_sparse_encoder_is_refused_by_name(command, folder, backbone):
    if not (folder / "sparse").exists():
        AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(backbone)).save_pretrained(folder / "mlm")
        AutoTokenizer.from_pretrained(backbone).save_pretrained(folder / "mlm")
        first = Transformer(str(folder / "mlm"), transformer_task="fill-mask")
        SparseEncoder(modules=[first, SpladePooling()]).save_pretrained(str(folder / "sparse"), create_model_card=False)
    code, _, err = command("choose-base", "my.yaml", "--candidates", "plain,sparse")
    assert (code, "--candidates: 'sparse' is a sparse encoder (SPLADE and its kin)" in err) == (2, True), err
