"""The small collections: what is chosen, that it is kept, and that judging a model leaves it as it was."""

import inspect
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import nano_beir

from colbert_zero.data.collection import Collection, Rules
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation import validation
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import measure
from colbert_zero.evaluation.validation import NANOBEIR_SETS, choose, chosen, own_sample, sample, validate
from colbert_zero.files import read_json
from colbert_zero.recipe.reading import check_recipe
from helpers import data, study, write_rows


class Hub:
    """Stands for the Hub's client; `asked` counts how often it was asked."""

    asked = 0
    reachable = False

    def dataset_info(self, name, timeout):
        Hub.asked += 1
        assert name == "sentence-transformers/NanoBEIR-en"
        assert timeout <= 10
        if not Hub.reachable:
            raise ConnectionError("no route to host")
        return type("Info", (), {"sha": "a" * 40})


def collections_of(*what):
    return chosen(choose(*what))


@pytest.fixture
def hub(monkeypatch, collection):
    """A Hub with NanoBEIR, not reachable at first."""

    def load(name, split, revision):
        assert (name, revision) == ("sentence-transformers/NanoBEIR-en", "a" * 40)
        return Collection.from_memory(split, dict(collection.documents()), collection.queries, collection.qrels)

    monkeypatch.setattr(Hub, "asked", 0)
    monkeypatch.setattr(Hub, "reachable", False)
    monkeypatch.setattr(validation, "HfApi", Hub)
    monkeypatch.setattr(validation, "load_hub", load)
    return Hub


def recipe(tmp_path, **changes):
    return check_recipe(data(tmp_path) | {"validation": {"documents": 8, "queries": 2} | changes})


def contents(collections):
    return [(c.name, c.fingerprint) for c in collections]


# ---- The sample


@st.composite
def collections(draw):
    texts = draw(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.text("xyz ", max_size=9), min_size=1))
    queries = {f"q{i}": "text" for i in range(draw(st.integers(1, 6)))}
    grades = st.dictionaries(st.sampled_from(list(texts)), st.integers(-1, 2), min_size=1, max_size=4)
    return texts, queries, {query_id: draw(grades) for query_id in queries}


@settings(deadline=None, max_examples=60)
@given(collections(), st.integers(1, 30), st.integers(1, 8), st.randoms())
def test_a_sample_has_what_its_queries_need_and_is_the_same_in_any_order(parts, documents, queries, shuffler):
    texts, asked, qrels = parts
    order = list(texts)
    shuffler.shuffle(order)
    original = Collection.from_memory("c", texts, asked, qrels)
    shuffled = Collection.from_memory("c", {d: texts[d] for d in order}, asked, qrels)
    small, other = (sample("small", c, documents, queries) for c in (original, shuffled))
    kept = dict(small.documents())
    assert kept == dict(other.documents())
    assert list(kept) == [d for d in texts if d in kept]
    assert kept.items() <= texts.items()
    assert len(small.queries) == min(queries, len(asked))
    assert small.qrels == {q: qrels[q] for q in small.queries} == other.qrels
    judged = {d for grades in small.qrels.values() for d in grades}
    assert judged <= set(kept)
    assert len(kept) == max(len(judged), min(documents, len(texts)))


def test_a_sample_reads_the_corpus_once_and_holds_no_more_than_it_keeps():
    alive = most = 0

    class Text(str):
        def __new__(cls, *arguments):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, *arguments)

        def __del__(self):
            nonlocal alive
            alive -= 1

    passes = []

    def documents():
        passes.append(1)
        numbers = list(range(3000))
        random.Random(0).shuffle(numbers)
        return ((str(n), Text(f"text {n}")) for n in numbers)

    whole = Collection("c", documents, 3000, {"q": "x"}, {"q": {"7": 1}}, "f")
    small = sample("small", whole, 50, 1)
    assert passes == [1]
    assert small.documents_count == 50
    assert 50 <= most <= 60


# ---- The choice


def test_without_the_hub_a_sample_is_taken_kept_and_explained(hub, tmp_path, collection):
    told = []
    first = collections_of(recipe(tmp_path), {"tiny": collection}, tmp_path / "v", told.append)
    assert [(c.name, c.documents_count, len(c.qrels)) for c in first] == [("tiny", 8, 2)]
    [record] = [read_json(path) for path in (tmp_path / "v").glob("*/validation.json")]
    assert record["from"] == "sample"
    assert record["why"] == "NanoBEIR cannot be had from the Hub (no route to host)"
    assert record["collections"] == {"tiny": {"documents": 8, "queries": 2}}
    assert "a sample of tiny (8 documents, 2 queries), because NanoBEIR cannot be had" in told[-1]
    hub.reachable = True
    again = collections_of(recipe(tmp_path), {"tiny": collection}, tmp_path / "v", told.append)
    assert contents(again) == contents(first)
    assert hub.asked == 1


def test_a_changed_collection_means_a_new_sample(hub, tmp_path, collection):
    other = Collection.from_memory("tiny", dict(collection.documents()), {"q1": "x"}, {"q1": {"lift": 1}})
    chosen = [
        collections_of(recipe(tmp_path, nanobeir=False), {"tiny": c}, tmp_path / "v", lambda text: None)
        for c in (collection, other, collection)
    ]
    assert contents(chosen[0]) == contents(chosen[2]) != contents(chosen[1])
    assert len(list((tmp_path / "v").iterdir())) == 2
    assert hub.asked == 0


def test_nanobeir_is_fetched_once_and_used_without_a_network_afterwards(hub, tmp_path, collection):
    hub.reachable, told = True, []
    first = collections_of(recipe(tmp_path), {"tiny": collection}, tmp_path / "v", told.append)
    assert [c.name for c in first] == list(NANOBEIR_SETS)
    assert "NanoBEIR (13 sets, 260 documents, 65 queries; sentence-transformers/NanoBEIR-en at aaaaaaa)" in told[-1]
    hub.reachable = False
    again = collections_of(recipe(tmp_path), {"tiny": collection}, tmp_path / "v", told.append)
    assert contents(again) == contents(first)
    assert hub.asked == 1
    own = collections_of(recipe(tmp_path, nanobeir=False), {"tiny": collection}, tmp_path / "v", told.append)
    assert [c.name for c in own] == ["tiny"]


@pytest.mark.parametrize("reachable", [True, False])
def test_the_sample_that_layers_are_measured_on_is_never_chosen(hub, tmp_path, collection, reachable):
    what = recipe(tmp_path), {"tiny": collection}, tmp_path / "v"
    own_sample(*what)
    hub.reachable = reachable
    first = collections_of(*what, lambda text: None)
    assert hub.asked == 1
    assert [c.name for c in first] == (list(NANOBEIR_SETS) if reachable else ["tiny"])
    own_sample(*what)
    assert contents(collections_of(*what, lambda text: None)) == contents(first)


def test_a_finished_phase_that_ends_with_its_best_weights_is_found_again(hub, tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    hub.reachable, chain = True, ("dense",)
    entry = data(tmp_path)
    entry["phases"]["dense"] |= {"select": "best", "evaluate_every": 6}
    for done in (False, True):
        one = study(tmp_path, entry)
        one.prepare([chain])
        assert one.is_done(chain) == done
        one.train(chain)


def test_a_download_that_breaks_off_leaves_nothing_and_a_sample_is_taken(hub, tmp_path, collection, monkeypatch):
    def break_off(name, split, revision):
        if split == NANOBEIR_SETS[5]:
            raise ColbertZeroError("cannot read the data set: connection reset")
        return collection

    hub.reachable = True
    monkeypatch.setattr(validation, "load_hub", break_off)
    [only] = collections_of(recipe(tmp_path), {"tiny": collection}, tmp_path / "v", lambda text: None)
    assert only.name == "tiny"
    [kept] = (tmp_path / "v").iterdir()
    assert "connection reset" in read_json(kept / "validation.json")["why"]


def test_the_sets_are_those_of_sentence_transformers_evaluators():
    assert set(NANOBEIR_SETS) == {f"Nano{name}" for name in nano_beir.DATASET_NAME_TO_HUMAN_READABLE.values()}
    default = inspect.signature(nano_beir.NanoBEIREvaluator).parameters["dataset_id"].default
    assert default == validation.NANOBEIR


# ---- Judging a model


def test_validating_scores_as_an_evaluation_does_and_leaves_the_model_as_it_was(
    tiny_multi_vector, collection, monkeypatch
):
    real = validation.rank
    monkeypatch.setattr(validation, "rank", lambda *arguments: (torch.rand(1), real(*arguments))[1])
    model = tiny_multi_vector
    expected = measure(rank(model, collection), collection.qrels)[0]["nDCG@10"]
    model.train()
    model[1].eval()
    try:
        model.tokenizer(["cut to three tokens"], truncation=True, max_length=3)
        before = (
            [m.training for m in model.modules()],
            torch.get_rng_state(),
            model.tokenizer.backend_tokenizer.truncation,
        )
        done = []
        scores = validate(model, [collection, collection], done.append)
        after = (
            [m.training for m in model.modules()],
            torch.get_rng_state(),
            model.tokenizer.backend_tokenizer.truncation,
        )
    finally:
        model.eval()
    assert scores == {"tiny": expected}
    assert done == [20, 40]
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert before[2] == after[2]
    assert after[2]["max_length"] == 3


def test_a_phase_judged_while_training_ends_with_the_same_weights_and_id(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    chain, weights, records = ("unsupervised",), [], []
    for number, every in enumerate((None, 2)):
        entry = data(tmp_path, validation={"nanobeir": False, "documents": 20, "queries": 10})
        entry["phases"]["unsupervised"] |= {"evaluate_every": every, "steps": 5}
        one = study(tmp_path / str(number), entry)
        one.prepare([chain])
        records.append(one.train(chain))
        weights.append((one.phase_folder(chain) / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert records[0]["id"] == records[1]["id"]
    assert records[0]["validation"] == []
    assert [point["step"] for point in records[1]["validation"]] == [2, 4, 5]
    for point in records[1]["validation"]:
        assert list(point["scores"]) == ["held-out"]
        assert point["mean"] == point["scores"]["held-out"]
        assert 0 <= point["mean"] <= 1


def test_only_what_decides_about_the_weights_enters_a_phases_id(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")

    def identity(spec, **changes):
        changes = {"validation": {"nanobeir": False, "documents": 20, "queries": 10}} | changes
        entry = data(tmp_path, **changes)
        entry["phases"]["unsupervised"] |= spec
        one = study(tmp_path, entry)
        one.prepare([("unsupervised",)])
        return one.phase_id(("unsupervised",))

    best = {"select": "best", "evaluate_every": 2}
    plain = identity({})
    assert identity({"evaluate_every": 2, "keep_checkpoints": 5, "checkpoint_every": 3}) == plain
    assert identity({}, validation={"nanobeir": False, "queries": 5}) == plain
    assert identity(best) != plain
    assert identity(best | {"keep_checkpoints": 5}) == identity(best)
    assert identity(best | {"evaluate_every": 3}) != identity(best)
    assert identity(best, validation={"nanobeir": False, "documents": 20, "queries": 5}) != identity(best)
    # More documents than there are: asked for otherwise, but the same sample.
    assert identity(best, validation={"nanobeir": False, "documents": 900}) == identity(
        best, validation={"nanobeir": False}
    )


def test_a_sample_goes_by_the_rules_of_its_collection_and_may_have_more_missing_documents(tmp_path):
    documents = {f"d{n}": f"note {n}" for n in range(60)} | {"q0": "asked 0, as a document"}
    queries = {f"q{n}": f"asked {n}" for n in range(3)}
    qrels = {query: {f"d{n}": 1 for n in range(20)} for query in queries} | {"q1": {"gone": 1}}
    for exclude_self, own in ((None, {"q0"}), (False, set())):
        whole = Collection.from_memory("c", documents, queries, qrels, Rules(exclude_self))
        assert (whole.own, whole.missing) == (own, 1)
        recipe = SimpleNamespace(validation=SimpleNamespace(documents=61, queries=3))
        validation._write_sample(tmp_path / f"{exclude_self}", recipe, {"c": whole}, "why")
        [part] = validation.chosen(tmp_path / f"{exclude_self}")
        assert (part.own, part.missing) == (own, 1)
