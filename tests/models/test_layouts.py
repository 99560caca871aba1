"""A checkpoint keeps everything it has: a phase of learning rate 0 changes no score, whatever layout its base has."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import FROM_SCRATCH
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoders import tokeniser
from colbert_zero.models.encoding import encode, forward, reorder
from colbert_zero.study.show import Quiet
from colbert_zero.training.gradcache import TokenisedTexts
from example_bases import DENSE, MULTI_VECTOR, PLAIN, plain
from helpers import DOCUMENTS, QUERIES, data, study, write_rows

LAYOUTS = {name: (make, "dense") for name, make in DENSE.items()}
LAYOUTS |= {name: (make, "multi-vector") for name, make in MULTI_VECTOR.items()}

IN_PYLATE = ("PyLate", "PyLate without query expansion", "Stanford ColBERT")
"""Those that test_pylate.py tries."""


def one_phase(folder, base, representation, *, model=(), phase=(), **changes):
    """A study of one phase that changes no weight and says nothing of what its base has."""
    write_rows(folder / "pairs.jsonl")
    recipe = data(folder)
    for key in ("query_tokens", "document_tokens", "prompts", "teachers"):
        del recipe[key]
    recipe["sources"] = {"pairs": recipe["sources"]["pairs"]}
    frozen = {"learning_rate": 0, "steps": 1, "representation": representation}
    recipe["phases"] = {"one": recipe["phases"]["dense"] | frozen | dict(phase)}
    recipe["pipelines"] = {"alone": ["one"]}
    recipe["model"] = {"base": str(base), **dict(model)}
    return study(folder, recipe | changes)


def train(made):
    made.prepare([("one",)])
    made.train(("one",))
    return made.phase_folder(("one",)) / "model"


def vectors(model):
    """Each text's, queries then documents, as this program scores them."""
    packed = (encode(model, list(texts.values()), task) for task, texts in TEXTS.items())
    return [row for side in packed for row in side.values.split(side.lengths.tolist())]


def their_vectors(folder, representation):
    """The same by sentence-transformers alone."""
    texts = list(QUERIES.values()), list(DOCUMENTS.values())
    if representation == "multi-vector":
        model = MultiVectorEncoder(str(folder), device="cpu")
        return [*model.encode_query(texts[0]), *model.encode_document(texts[1])]
    dense = SentenceTransformer(str(folder), device="cpu")
    return [torch.from_numpy(v)[None] for v in (*dense.encode_query(texts[0]), *dense.encode_document(texts[1]))]


TEXTS = {"query": QUERIES, "document": DOCUMENTS}


def assert_same_vectors(found, expected, *, up_to_length=False):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if up_to_length:
            one, other = (torch.nn.functional.normalize(v, dim=-1) for v in (one, other))
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_phase_of_learning_rate_0_changes_no_score_whatever_its_bases_layout(name, backbone, tmp_path):
    make, representation = LAYOUTS[name]
    make(tmp_path / "base", backbone)
    expected = their_vectors(tmp_path / "base", representation)
    assert_same_vectors(vectors(load_model(tmp_path / "base")), expected)
    trained = train(one_phase(tmp_path, tmp_path / "base", representation))
    # A dense model that is scored by cosine is normalised by its phase, which changes no cosine.
    assert_same_vectors(vectors(load_model(trained)), expected, up_to_length=name == "sentence-transformers, mean")
    assert_same_vectors(vectors(load_model(trained)), their_vectors(trained, representation))


@pytest.mark.parametrize("name", [*DENSE, *PLAIN])
def test_a_multi_vector_phase_of_learning_rate_0_leaves_the_states_of_its_bases_encoder(name, backbone, tmp_path):
    (DENSE | PLAIN)[name](tmp_path / "base", backbone)
    trained = train(one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"dim": 16}))
    states = []
    for folder in (tmp_path / "base", trained):
        model = load_model(folder)
        transformer, tokenizer = model[0].model.eval(), model.tokenizer
        ids = tokenizer(list(DOCUMENTS.values()), padding=True, truncation=True, max_length=18, return_tensors="pt")
        with torch.no_grad():
            states.append(transformer(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])[0])
    assert torch.equal(*states)


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_scores_the_very_vectors_that_searching_scores(name, backbone, tmp_path):
    LAYOUTS[name][0](tmp_path / "base", backbone)
    model = load_model(tmp_path / "base").eval()
    for task, texts in TEXTS.items():
        tokenised = TokenisedTexts(task, **tokeniser(model)(list(texts.values()), task))
        [order] = tokenised.chunks(10**6)
        with torch.no_grad():
            found = forward(model, tokenised.features(order), task)
        expected = reorder(encode(model, list(texts.values()), task), torch.tensor(order))
        assert torch.equal(found.lengths, expected.lengths)
        assert torch.allclose(found.values, expected.values, atol=1e-5)


class Lines(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def told(made):
    made.show = Lines()
    made.prepare([("one",)])
    return "\n".join(made.show.lines)


def test_what_a_base_has_and_what_a_recipe_sets_instead_is_told(backbone, tmp_path):
    MULTI_VECTOR["PyLate"](tmp_path / "base", backbone)
    said = told(one_phase(tmp_path, tmp_path / "base", "multi-vector", document_tokens=9))
    assert "base is multi-vector: linear 32 → 16, 2 skipped tokens, normalised, query '[Q] ' + text" in said
    assert "query '[Q] ' + text of at most 14 tokens, filled up to 14" in said
    assert "document_tokens: 9 instead of its own 19" in said
    assert "query_tokens" not in said
    assert "leaves its head and its markers aside" in told(one_phase(tmp_path, tmp_path / "base", "dense"))
    plain(tmp_path / "plain", backbone)
    said = told(one_phase(tmp_path, tmp_path / "plain", "multi-vector"))
    assert "document_tokens: 63, as many as its positions leave" in said
    assert "markers [Q] and [D] get random vectors where its tokenizer does not know them" in said
    assert "markers" not in told(one_phase(tmp_path, tmp_path / "plain", "multi-vector", markers={}))
    DENSE["sentence-transformers, mean"](tmp_path / "dense", backbone)
    assert "new projection in place of its pooling" in told(one_phase(tmp_path, tmp_path / "dense", "multi-vector"))


@pytest.mark.parametrize("prompts", [{"query": "[Q] ", "document": "[D] "}, {"query": "[Q]", "document": "[D]"}])
def test_a_prompt_that_names_the_bases_marker_is_not_put_twice_and_query_tokens_hold(backbone, tmp_path, prompts):
    MULTI_VECTOR["PyLate"](tmp_path / "base", backbone)
    trained = train(one_phase(tmp_path, tmp_path / "base", "multi-vector", prompts=prompts, query_tokens=24))
    model = MultiVectorEncoder(str(trained), device="cpu")
    assert model.prompts["query"] == "[Q] "
    # The base fills queries up: to the 24 tokens asked for, and the marker on top of them.
    assert model.encode_query(["lift of a wing"])[0].shape == (25, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": {"query": "ask: ", "document": ""}}, r"query prompt '', this phase has 'ask: '"),
        ({"markers": {"query": "[X]", "document": "[D]"}}, r"query marker '\[Q\]', this phase has '\[X\]'"),
    ],
)
def test_prompts_and_markers_other_than_the_bases_are_refused_before_its_data_is_prepared(
    backbone, tmp_path, changes, message
):
    MULTI_VECTOR["PyLate"](tmp_path / "base", backbone)
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", **changes)
    with pytest.raises(ColbertZeroError, match=rf"phases.one: its start, .*base, was trained with the {message}"):
        made.prepare([("one",)])
    assert not made.data.exists() or not any(made.data.glob("pairs-*"))
    allowed = one_phase(tmp_path, tmp_path / "base", "multi-vector", phase={"allow_prompt_mismatch": True}, **changes)
    train(allowed)


def test_a_head_is_replaced_only_when_asked(backbone, tmp_path):
    MULTI_VECTOR["Stanford ColBERT"](tmp_path / "base", backbone)
    with pytest.raises(ColbertZeroError, match=r"model.dim: 8, but .*base' has token vectors of 16.*model.head: new"):
        train(one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"dim": 8}))
    new = train(one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"dim": 8, "head": "new"}))
    kept = train(one_phase(tmp_path, tmp_path / "base", "multi-vector"))
    assert [load_model(folder).get_embedding_dimension() for folder in (new, kept)] == [8, 16]
    assert new != kept
    DENSE["sentence-transformers, cls, dense head, dot product"](tmp_path / "dense", backbone)
    model = load_model(train(one_phase(tmp_path, tmp_path / "dense", "dense", model={"head": "new"})))
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert (model[1].pooling_mode, model.similarity_fn_name) == ("mean", "cosine")


def test_queries_shorter_than_their_base_fills_them_up_to_are_refused(backbone, tmp_path):
    MULTI_VECTOR["sentence-transformers, queries filled up at least, pooled tokens"](tmp_path / "base", backbone)
    with pytest.raises(ColbertZeroError, match=r"queries of 8 tokens .* fills them up to 10; raise query_tokens by 2"):
        one_phase(tmp_path, tmp_path / "base", "multi-vector", query_tokens=8).prepare([("one",)])


def test_lengths_leave_room_for_the_prompts_and_markers_that_a_recipe_sets(backbone, tmp_path):
    prompts = {"query": "ask for the lift of: ", "document": "a text: "}
    for name, make in {**DENSE, **PLAIN}.items():
        make(tmp_path / name, backbone)
    tokenizer = Transformer(str(backbone)).tokenizer
    taken = {task: len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for task, prompt in prompts.items()}
    for name, representation, marker in [
        ("transformers", "multi-vector", 1),
        ("sentence-transformers, mean", "dense", 0),
        ("sentence-transformers, mean", "multi-vector", 1),
    ]:
        made = one_phase(tmp_path, tmp_path / name, representation, prompts=prompts)
        train(made)
        alignment = made.alignment(made.recipe.phases["one"])
        query = 32 if name == "transformers" else 64 - marker - taken["query"]
        assert (alignment.query_tokens, alignment.document_tokens) == (query, 64 - marker - taken["document"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"document_tokens": 64}, r"phases.one: document texts of 65 tokens .* 64 positions; lower document_tokens"),
        ({"query_tokens": 100}, r"phases.one: query texts of 101 tokens .* 64 positions; lower query_tokens"),
    ],
)
def test_lengths_beyond_a_bases_positions_are_refused_before_its_data_is_prepared(backbone, tmp_path, changes, message):
    plain(tmp_path / "base", backbone)
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", **changes)
    with pytest.raises(ColbertZeroError, match=message):
        made.prepare([("one",)])
    assert not any(made.data.glob("pairs-*"))


def test_a_base_that_scores_by_distance_is_refused_by_a_dense_phase_before_its_data_is_prepared(backbone, tmp_path):
    model = SentenceTransformer(modules=[Transformer(str(backbone)), Pooling(32)], similarity_fn_name="euclidean")
    model.save_pretrained(str(tmp_path / "base"))
    made = one_phase(tmp_path, tmp_path / "base", "dense")
    with pytest.raises(ColbertZeroError, match="scores by euclidean; a dense phase trains cosine or dot product"):
        made.prepare([("one",)])
    assert not any(made.data.glob("pairs-*"))
    one_phase(tmp_path, tmp_path / "base", "dense", model={"head": "new"}).prepare([("one",)])


def test_prompts_are_put_before_texts_as_they_are_written(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    prompts = {"query": "query:", "document": "passage: "}
    trained = train(one_phase(tmp_path, tmp_path / "base", "dense", prompts=prompts))
    assert SentenceTransformer(str(trained), device="cpu").prompts == prompts


def test_a_finished_study_asks_for_its_base_no_more_and_another_in_its_place_is_read_anew(
    backbone, tmp_path, monkeypatch
):
    make = DENSE["sentence-transformers, mean"]
    make(tmp_path / "base", backbone)
    train(one_phase(tmp_path, tmp_path / "base", "dense"))
    read = []
    monkeypatch.setattr("colbert_zero.study.bases.read_own", lambda *_, **__: read.append(1) or FROM_SCRATCH)
    train(one_phase(tmp_path, tmp_path / "base", "dense"))
    assert not read
    known = tmp_path / "out" / "base.json"
    for damaged in ("", "[]", '{"of": 3}', known.read_text().replace("words", "wards")):
        known.write_text(damaged)
        assert one_phase(tmp_path, tmp_path / "base", "dense").own == FROM_SCRATCH
    assert len(read) == 4
    read.clear()
    config = tmp_path / "base" / "1_Pooling" / "config.json"
    config.write_text(config.read_text().replace("mean", "max"))
    assert one_phase(tmp_path, tmp_path / "base", "dense").own == FROM_SCRATCH
    assert read


def test_a_base_that_has_another_encoder_for_queries_is_refused(backbone, tmp_path):
    encoders = [Transformer(str(backbone)) for _ in "qd"]
    modules = [Router.for_query_document([encoders[0]], [encoders[1]]), Pooling(32, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "base"))
    with pytest.raises(ColbertZeroError, match=r"begins with a Router; only one encoder for queries and documents"):
        one_phase(tmp_path, tmp_path / "base", "dense").prepare([("one",)])


def test_the_page_on_models_has_the_layouts_that_are_tried():
    """To write the table anew, put what this prints in its place."""
    same = "same vectors"
    rows = [
        f"| {name} | {representation} | {same} | {same} | {same} | {same} | {same if name in IN_PYLATE else '–'} |"
        for name, (_, representation) in LAYOUTS.items()
    ]
    rows.append("| transformers | either, by a new head | same states | | same states | same vectors | – |")
    head = (
        "| layout | gives | as a base | `evaluate` | after a phase | … in sentence-transformers | the base in PyLate |"
    )
    table = "\n".join([head, "|---" * 7 + "|", *rows])
    print(table)
    assert table in (Path(__file__).parents[2] / "docs" / "models.md").read_text()
