"""`adapt` as a user types it, and what an adapted model is good for afterwards."""

import json
import shutil

import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Router

from colbert_zero.data.layouts import write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.adapting import FOLDER, RECORD, SUMS, read_adaptation
from colbert_zero.models.bases import check_base
from helpers import BODIES, WINGS, triples

A, B = ([(text, text) for text in triples(words, 120)] for words in (WINGS, BODIES))


def write_pairs(path, pairs):
    path.write_text("".join(json.dumps({"query": query, "document": document}) + "\n" for query, document in pairs))


def message(err):
    """The last one of what was told, on one line."""
    return " ".join(err.split()).rpartition("colbert-zero: ")[2]


@pytest.fixture(scope="module")
def made(tiny_multi_vector, tiny_dense, collection, tmp_path_factory):
    """A model, one with a Router of another's, a dense one, and pairs of two domains."""
    folder = tmp_path_factory.mktemp("adapt")
    tiny_multi_vector.save_pretrained(str(folder / "model"), create_model_card=False)
    tiny_dense.save_pretrained(str(folder / "dense"), create_model_card=False)
    routed = [*tiny_multi_vector, Router.for_query_document([Normalize("token_embeddings")], [])]
    MultiVectorEncoder(modules=routed, device="cpu").save_pretrained(str(folder / "routed"), create_model_card=False)
    # Without prompts a query is its document, and nothing can be gained.
    alike = MultiVectorEncoder(modules=list(tiny_multi_vector), device="cpu")
    alike.save_pretrained(str(folder / "alike"), create_model_card=False)
    for name, pairs in {"a": A, "b": B, "few": A[:20]}.items():
        write_pairs(folder / f"{name}.jsonl", pairs)
    write_beir(collection, folder / "tiny")
    return folder


@pytest.fixture
def adapted(command, folder):
    """Adapted to the first domain, once."""
    if not (folder / "adapted").exists():
        code, out, err = command("adapt", "model", "--pairs", "a.jsonl", "--projection", 100, "--out", "adapted")
        assert (code, "Written: adapted" in out) == (0, True), out + err
        assert "a: " in out
        assert "nDCG@10" in out
    return folder / "adapted"


def test_an_adapted_model_says_what_was_asked_found_and_told(adapted, folder):
    said = read_adaptation(adapted)
    assert (said.way, said.features, said.seed, list(said.domains)) == ("projection", 100, 1, ["a"])
    assert said.found["of"] == "model"
    assert said.found["verdict"].startswith("gains ")
    about = said.found["domains"]["a"]
    assert about["fitted"] + about["held_out"] + about["left_out"] == 120
    assert about["after"] > about["before"]
    assert str(folder) not in (adapted / FOLDER / RECORD).read_text()


def test_the_index_of_the_old_model_answers_queries_of_the_adapted_one(command, folder, adapted):
    if not (folder / "i").exists():
        assert command("index", "model", "--corpus", "tiny", "--out", "i")[0] == 0
    code, out, err = command("search", "i", "lift of a wing", "--model", "adapted", "-k", 3)
    assert code == 0, err
    assert "adapted: the index's model, its queries adapted to a" in out + err
    scores = []
    for model in ("model", "adapted"):
        code, out, _ = command("search", "i", "lift of a wing", "--model", model, "--json", "-k", 20)
        assert code == 0
        found = json.loads(out[out.index("{") :])
        scores.append({hit["id"]: hit["score"] for hit in found["hits"]})
    assert scores[0] != scores[1]
    # What the index says of the adapted model is what its own index would say.
    assert command("index", "adapted", "--corpus", "tiny", "--out", "of-adapted")[0] == 0
    code, out, _ = command("search", "of-adapted", "lift of a wing", "--json", "-k", 20)
    own = {hit["id"]: hit["score"] for hit in json.loads(out)["hits"]}
    assert own == pytest.approx(scores[1], abs=1e-5)
    shutil.rmtree(folder / "of-adapted")


def test_an_index_takes_no_model_adapted_from_another_or_changed_since(command, folder, adapted, tiny_multi_vector):
    if not (folder / "i").exists():
        assert command("index", "model", "--corpus", "tiny", "--out", "i")[0] == 0
    shutil.copytree(adapted, folder / "changed")
    weights = next((folder / "changed").glob("*_Dense/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = command("search", "i", "lift", "--model", "changed")
    assert (code, "changed is not the model that this index was made with" in err) == (2, True)
    code, _, err = command("adapt", "changed", "--pairs", "b.jsonl", "--out", "x")
    assert (code, message(err)) == (
        2,
        "MODEL: changed was changed since it was adapted, so its sums are of another model; adapt the one it was made "
        "of",
    )
    shutil.rmtree(folder / "changed")


def test_an_adapted_model_goes_on_without_the_old_pairs(command, folder, adapted):
    code, out, err = command("adapt", "adapted", "--pairs", "b.jsonl", "--out", "twice")
    assert code == 0, err
    assert "adapted: goes on from a, whose pairs are not measured again" in out
    assert "Written: twice" in out
    said, before = read_adaptation(folder / "twice"), read_adaptation(adapted)
    assert (list(said.domains), said.features) == (["a", "b"], 100)
    assert said.base == [*before.base, before.contents]
    assert read_json(folder / "twice" / FOLDER / RECORD)["tokens"] > read_json(adapted / FOLDER / RECORD)["tokens"]
    code, _, err = command("adapt", "twice", "--pairs", "a.jsonl", "--out", "x")
    assert (code, message(err)) == (
        2,
        "--pairs: twice was adapted to the pairs of a before (as a); leave them out, or adapt the model it was made of",
    )
    otherwise = (
        "twice was adapted otherwise (projection, 100 features, seed 1), and sums of two kinds cannot be added; leave "
        "the option out, or adapt the model it was made of"
    )
    code, _, err = command("adapt", "twice", "--pairs", "b.jsonl", "--projection", 50, "--out", "x")
    assert (code, message(err)) == (2, f"--projection: {otherwise}")
    code, _, err = command("adapt", "twice", "--pairs", "b.jsonl", "--decorrelate", "--out", "x")
    assert (code, message(err)) == (2, f"--decorrelate or --projection: {otherwise}")
    shutil.rmtree(folder / "twice")


def test_where_nothing_helps_nothing_is_written_and_that_is_no_mistake(command, folder):
    code, out, _ = command("adapt", "alike", "--pairs", "a.jsonl", "--projection", 0, "--out", "x")
    assert code == 0
    assert "not adapted: would " in out
    assert "on its own held-out pairs" in out
    assert "nothing is written" in out
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("model", "--pairs", "none.jsonl", "--out", "tiny"),
            "--out tiny: is there already; name another, or delete it",
        ),
        (
            ("model", "--pairs", "none.jsonl", "--out", "x", "--decorrelate", "--projection", "5"),
            "--projection: --decorrelate has no random features; leave one out",
        ),
        (("dense", "--pairs", "none.jsonl", "--out", "x"), "--pairs none.jsonl: no such file (looked in {folder})"),
        (
            ("dense", "--pairs", "few.jsonl", "--out", "x"),
            "MODEL: dense is dense, with one vector a text; only multi-vector models are adapted: train one from it "
            "first, with `model.base` and a multi-vector phase",
        ),
        (
            ("routed", "--pairs", "few.jsonl", "--out", "x"),
            "MODEL: routed has a Router that `adapt` did not write, with modules for queries or documents alone; only "
            "a model whose queries and documents go one way is adapted, or a folder by `adapt`: adapt the model it was "
            "made of",
        ),
        (
            ("model", "--pairs", "few.jsonl", "--out", "x"),
            "--pairs: few has 20 different pairs; at least 100 are needed, since a fifth of them is held out; add some",
        ),
        (
            ("model", "--pairs", "a.jsonl", "--corpus", "no.jsonl", "--out", "x"),
            "--corpus: no.jsonl: no such file (looked in {folder})",
        ),
    ],
)
def test_mistakes_are_told_in_the_order_in_which_they_cost(command, folder, words, told):
    code, _, err = command("adapt", *words)
    assert (code, message(err)) == (2, told.replace("{folder}", str(folder)))
    assert not (folder / "x").exists()


def test_a_model_that_is_nowhere_is_told_with_what_to_do(command, folder):
    code, _, err = command("adapt", "nowhere", "--pairs", "few.jsonl", "--out", "x")
    assert code == 2
    assert message(err).startswith("MODEL: 'nowhere' is no folder here and not whole in the Hub's cache (")
    assert message(err).endswith("or name a folder")
    assert not (folder / "x").exists()


def test_an_adapted_model_is_evaluated_and_published_without_its_sums(command, adapted, folder):
    if not (folder / "i").exists():
        assert command("index", "model", "--corpus", "tiny", "--out", "i")[0] == 0
    code, out, err = command("evaluate", "adapted", "--collection", "tiny")
    assert (code, "nDCG@10" in out) == (0, True), err
    code, out, err = command("publish", "adapted", "--to", "./published", "--licence", "mit")
    assert code == 0, err
    assert f"left out, read by `adapt` alone: {FOLDER}/{SUMS}" in out
    assert not (folder / "published" / FOLDER / SUMS).exists()
    code, out, err = command("search", "i", "lift", "--model", "published")
    assert (code, "published: the index's model, its queries adapted to a" in out + err) == (0, True)
    shutil.rmtree(folder / "published")


def test_an_export_that_has_no_place_for_the_route_is_refused(command, adapted, folder):
    for words in (("pylate",), ("onnx", "--collection", "tiny")):
        code, _, err = command("export", "adapted", "--to", *words, "--out", "x")
        assert (code, "export the model that it was adapted from" in " ".join(err.split())) == (2, True), err


def test_an_adapted_model_is_no_base_of_training(adapted):
    check_base(str(adapted), trained=False)
    with pytest.raises(ColbertZeroError, match=r"model.base: .* has a Router, with modules for queries or documents"):
        check_base(str(adapted))


def test_the_same_pairs_twice_scores_and_a_corpus_without_texts_are_refused(command, folder):
    shutil.copy(folder / "a.jsonl", folder / "copy.jsonl")
    (folder / "empty.jsonl").write_text("")
    candidates = {"query": "q", "documents": ["d", "e"], "scores": [1.0, 0.5]}
    (folder / "scored.jsonl").write_text(json.dumps(candidates) + "\n")
    pairs = ("adapt", "model", "--pairs", "a.jsonl")
    for more, told in (
        (("--pairs", "copy.jsonl"), "--pairs: a and copy hold the same pairs; name them once"),
        (
            ("--corpus", "empty.jsonl", "--decorrelate"),
            "--corpus empty.jsonl: has no text; name documents, or leave it out",
        ),
        (("--pairs", "scored.jsonl"), "--pairs: scored has candidates with scores; name pairs of query and document"),
        (("--out", "model/in"), "--out model/in: lies in MODEL; name another folder"),
    ):
        code, _, err = command(*pairs, *(more if "--out" in more else (*more, "--out", "none")))
        assert (code, message(err)) == (2, told)
    assert not (folder / "none").exists()
