"""bfloat16 where a device is fast in it: what `auto` comes to, and a copy of a model that encodes in it."""

import pytest
import torch

from colbert_zero.data.documents import documents_of
from colbert_zero.evaluation.ranking import rank
from colbert_zero.models.encoding import encode
from colbert_zero.models.precision import decided, encoding_in, why
from colbert_zero.serving.index.building import Settings, add, build
from colbert_zero.serving.index.manifest import PYTORCH, PYTORCH_HALF, read_manifest
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS, processor_with


def quiet(_):
    pass


@pytest.mark.parametrize("units", [{"bfloat16": True}, {"amx": True}, {"bfloat16": True, "amx": True}, {}])
def test_auto_is_bfloat16_where_the_processor_has_units_for_it(monkeypatch, units):
    processor_with(monkeypatch, **units)
    cpu = torch.device("cpu")
    assert decided("auto", cpu) == ("bfloat16" if units else "float32")
    assert (decided("bfloat16", cpu), decided("float32", cpu)) == ("bfloat16", "float32")
    assert ("no units" in why(decided("auto", cpu))) is not bool(units)
    assert why("float32", 2) == "float32 here: not every process's device has units for bfloat16"


@pytest.mark.parametrize("kind", ["tiny_multi_vector", "tiny_dense"])
def test_a_copy_in_bfloat16_gives_nearly_the_same_float32_vectors_and_leaves_the_model_as_it_is(kind, request):
    model, texts = request.getfixturevalue(kind), list(DOCUMENTS.values())
    half = encoding_in(model, "bfloat16")
    wanted, found = encode(model, texts, "document"), encode(half, texts, "document")
    assert found.values.dtype == torch.float32
    assert torch.equal(wanted.lengths, found.lengths)
    assert not torch.equal(wanted.values, found.values)
    cosines = torch.cosine_similarity(wanted.values, found.values)
    assert cosines.min() > 0.999
    if kind == "tiny_multi_vector":
        torch.testing.assert_close(found.values.norm(dim=1), torch.ones(len(cosines)))
    again = encode(model, texts, "document")
    assert torch.equal(wanted.values, again.values)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_rankings_by_the_copy_share_nearly_all_of_the_first_ten(tiny_multi_vector, collection):
    own = rank(tiny_multi_vector, collection)
    half = rank(encoding_in(tiny_multi_vector, "bfloat16"), collection)
    shared = [len({i for i, _ in own[q][:10]} & {i for i, _ in half[q][:10]}) for q in own]
    assert sum(shared) >= 0.9 * sum(min(10, len(ranked)) for ranked in own.values())


def test_in_float32_a_model_is_itself(tiny_dense):
    assert encoding_in(tiny_dense, "float32") is tiny_dense


def test_an_index_in_bfloat16_says_so_and_adds_in_it(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    for name, text in (("first", "A wing."), ("more", "Drag.")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"_id": "{name}", "text": "{text}"}}\n')
    vectors = {}
    for precision in ("float32", "bfloat16"):
        index = tmp_path / precision
        first, more = (documents_of([str(tmp_path / f"{name}.jsonl")], "--corpus") for name in ("first", "more"))
        build(str(tmp_path / "model"), first, index, Settings(storage="float32", precision=precision), quiet)
        add(index, more, tell=quiet)
        with Index.open(index, tell=quiet) as opened:
            vectors[precision] = [torch.tensor(segment.vectors) for segment in opened.segments]
    assert read_manifest(tmp_path / "float32").encoded_by == PYTORCH
    assert read_manifest(tmp_path / "bfloat16").encoded_by == PYTORCH_HALF
    assert len(vectors["float32"]) == 2
    for own, half in zip(vectors["float32"], vectors["bfloat16"], strict=True):
        assert not torch.equal(own, half)
        torch.testing.assert_close(own, half, atol=0.05, rtol=0)


def test_evaluate_tells_its_arithmetic(tiny_multi_vector, command, collection, tmp_path, monkeypatch):
    from colbert_zero.data.layouts import write_beir

    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_beir(collection, tmp_path / "c")
    processor_with(monkeypatch, bfloat16=False)
    told, words = {}, ("evaluate", tmp_path / "model", "--collection", tmp_path / "c", "--precision")
    for precision in ("bfloat16", "auto"):
        code, out, err = command(*words, precision)
        assert code == 0, err
        told[precision] = " ".join(out.split())
    assert "encoded in bfloat16" in told["bfloat16"]
    code, _, err = command("evaluate", "bm25", "--collection", tmp_path / "c", "--precision", "auto")
    assert (code, "--precision: bm25 encodes nothing" in " ".join(err.split())) == (2, True), err
    assert "encoded in float32 here: the device has no units for bfloat16" in told["auto"]
