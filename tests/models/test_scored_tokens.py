"""What of a text is scored: without a skip list, with what fills queries up, in lengths that hold all or the text."""

import string

import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from test_layouts import assert_same_vectors, one_phase, their_vectors, told, train, vectors

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from example_bases import MULTI_VECTOR, plain

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
