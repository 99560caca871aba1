"""What of a text is scored: without a skip list, with what fills queries up, in lengths that hold all or the text."""

import string

import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from test_layouts import assert_same_vectors, one_phase, their_vectors, told, train, vectors

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from example_bases import MULTI_VECTOR, plain, projection

SENTENCES = {"query": "lift of a wing", "document": "lift , of a wing . in a flow ."}


def tokens(model, task):
    return len(encode(model, [SENTENCES[task]], task).values)


def trained(backbone, tmp_path, **model):
    plain(tmp_path / "base", backbone)
    folder = train(one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"dim": 8, **model}))
    assert_same_vectors(vectors(load_model(folder)), their_vectors(folder, "multi-vector"))
    return load_model(folder)


def test_a_skip_list_leaves_its_words_out_of_documents_and_not_of_queries(backbone, tmp_path):
    whole = trained(backbone, tmp_path / "whole")
    some = trained(backbone, tmp_path / "some", skip_list=["wing", "a"])
    assert tokens(some, "document") == tokens(whole, "document") - 3
    assert tokens(some, "query") == tokens(whole, "query")


def test_punctuation_is_the_ascii_marks_and_those_the_tokenizer_does_not_know_are_told(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"dim": 8, "skip_list": "punctuation"})
    model = load_model(train(made))
    [mask] = [module for module in model if hasattr(module, "skiplist_words")]
    assert mask.skiplist_words == list(string.punctuation)
    known = set(Transformer(str(backbone)).tokenizer.get_vocab())
    unknown = " ".join(mark for mark in string.punctuation if mark not in known)
    [record] = made.folder.glob("phases/*/phase.json")
    assert (
        f"model.skip_list: no single tokens of this tokenizer, so not skipped: {unknown}" in read_json(record)["told"]
    )


@pytest.mark.parametrize("expansion", ["attend", "ignore"])
def test_query_expansion_fills_queries_up_with_tokens_that_are_scored(backbone, tmp_path, expansion):
    model = trained(backbone, tmp_path, query_expansion=expansion)
    assert tokens(model, "query") == 32 + 1
    assert model[0].query_expansion["attend"] == (expansion == "attend")
    assert tokens(model, "document") < 20


def test_a_base_keeps_its_skip_list_and_its_expansion_unless_others_are_asked_for_which_is_told(backbone, tmp_path):
    MULTI_VECTOR["PyLate"](tmp_path / "base", backbone)
    kept = load_model(train(one_phase(tmp_path, tmp_path / "base", "multi-vector")))
    assert tokens(kept, "query") == 14
    changes = {"skip_list": ["wing"], "query_expansion": False}
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", model=changes)
    said = told(made)
    assert "skip_list: 1 words instead of its own 2" in said
    assert "query_expansion: false instead of its own ignore" in said
    other = load_model(train(made))
    assert tokens(other, "query") < 14
    assert tokens(other, "document") == tokens(kept, "document") + 3 - 1
    assert other[0].query_length == 14


def test_a_base_without_a_token_to_fill_queries_up_with_is_refused_before_its_data_is_prepared(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    transformer = Transformer(str(tmp_path / "base"))
    transformer.tokenizer.mask_token = None
    transformer.tokenizer.save_pretrained(tmp_path / "base")
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"query_expansion": "attend"})
    with pytest.raises(ColbertZeroError, match=r"model.query_expansion: attend, but .* no mask token"):
        made.prepare([("one",)])


def test_lengths_hold_the_text_or_all_with_marker_and_prompt(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    long = ["lift " * 60]
    for lengths, of_query, of_document in (("text", 9 + 1 + 2, 20 + 1), ("all", 9, 20)):
        made = one_phase(
            tmp_path, tmp_path / "base", "multi-vector", lengths=lengths, query_tokens=9, document_tokens=20,
            prompts={"query": "lift : ", "document": ""},
        )  # fmt: skip
        model = MultiVectorEncoder(str(train(made)), device="cpu")
        assert len(model.encode_query(long)[0]) == of_query
        assert len(model.encode_document(long)[0]) == of_document
    again = one_phase(
        tmp_path, made.phase_folder(("one",)) / "model", "multi-vector", lengths="all",
        prompts={"query": "lift : ", "document": ""},
    )  # fmt: skip
    assert again.alignment(again.recipe.phases["one"]) == made.alignment(made.recipe.phases["one"])


def test_lengths_that_marker_and_prompt_fill_are_refused_before_data_is_prepared(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    changes = {"lengths": "all", "query_tokens": 5, "prompts": {"query": "lift : ", "document": ""}}
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", **changes)
    with pytest.raises(ColbertZeroError, match=r"query_tokens: 5, of which marker and prompt take 3; raise it to 6"):
        made.prepare([("one",)])


def changed(backbone, tmp_path, expansion, **model):
    """A model whose base fills queries up in its own way, after a phase that asks for something else."""
    transformer = Transformer(str(backbone), query_expansion=expansion)
    modules = [transformer, projection(32, 8), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "base"), create_model_card=False)
    return load_model(train(one_phase(tmp_path, tmp_path / "base", "multi-vector", model=model)))


def test_a_base_without_a_length_of_its_own_fills_queries_up_to_its_longest(backbone, tmp_path):
    model = changed(backbone, tmp_path, None, query_expansion="attend")
    assert model[0].query_expansion | {"strategy": "fixed", "attend": True, "length": 64} == model[0].query_expansion


def test_what_a_base_fills_queries_up_with_and_how_stays_where_only_attention_is_asked_for(backbone, tmp_path):
    own = {"strategy": "min", "attend": False, "length": 12, "token": "wing"}
    model = changed(backbone, tmp_path, own, query_expansion="attend")
    assert {key: model[0].query_expansion[key] for key in own} == own | {"attend": True}


def test_queries_may_be_shorter_than_their_base_fills_them_up_to_where_filling_is_switched_off(backbone, tmp_path):
    MULTI_VECTOR["sentence-transformers, queries filled up at least, pooled tokens"](tmp_path / "base", backbone)
    off = {"query_expansion": False}
    model = load_model(train(one_phase(tmp_path, tmp_path / "base", "multi-vector", query_tokens=6, model=off)))
    assert tokens(model, "query") == 6


def test_a_skip_list_for_a_base_without_a_place_for_one_is_refused(backbone, tmp_path):
    modules = [Transformer(str(backbone)), projection(32, 8)]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "base"), create_model_card=False)
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"skip_list": ["wing"]})
    with pytest.raises(ColbertZeroError, match=r"model.skip_list: the base has no module that leaves tokens out"):
        train(made)


def test_keys_without_effect_are_told(backbone, tmp_path):
    MULTI_VECTOR["PyLate"](tmp_path / "base", backbone)
    said = told(one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"start": "pca"}))
    assert "model.start: has no effect, since the base's projection is kept" in said
    plain(tmp_path / "plain", backbone)
    model = {"skip_list": ["wing"], "head": [{"width": 8}]}
    prompts = {"query": "ask:", "document": "text: "}
    said = told(one_phase(tmp_path, tmp_path / "plain", "dense", model=model, prompts=prompts))
    assert "model.skip_list: has no effect, since no phase is multi-vector" in said
    assert "model.head: has no effect, since no phase is multi-vector" in said
    assert "prompts.query: 'ask:' has no blank at its end, so texts follow it at once" in said
    assert "prompts.document" not in said
