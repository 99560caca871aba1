"""Exports to ONNX, which rank as the checkpoint does (the extra `cpu`, else skipped)."""

import importlib.util
import json

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from colbert_zero.data.layouts import write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.exporting import differing, largest_difference
from colbert_zero.models import onnx
from helpers import PROMPTS

INSTALLED = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="the extra cpu is not installed",
)


def expanded(backbone):
    """A model that fills queries up, and has a bias in its projection."""
    transformer = Transformer(str(backbone))
    transformer.query_expansion = {"strategy": "fixed", "attend": False, "length": 16}
    head = Dense(32, 16, module_input_name="token_embeddings", module_output_name="token_embeddings")
    rest = [MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=[transformer, head, *rest], prompts=PROMPTS, device="cpu")


@INSTALLED
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("which", ["with a skip list", "queries filled up"])
def test_an_export_ranks_as_the_model_and_says_what_stands_around_the_graph(
    which, command, collection, tiny_multi_vector, backbone, tmp_path
):
    model = tiny_multi_vector if which == "with a skip list" else expanded(backbone)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_beir(collection, tmp_path / "collection")
    words = ("--collection", tmp_path / "collection", "--out", tmp_path / "out", "--int8", "--most-lost", 100)
    code, out, err = command("export", tmp_path / "model", "--to", "onnx", *words)
    assert code == 0, err
    assert "ranks 5 queries of collection as the model does" in out
    said = json.loads((tmp_path / "out" / "onnx.json").read_text())
    assert (said["dim"], said["output"], said["query"]["prompt"]) == (16, "token_embeddings", PROMPTS["query"])
    assert said["checked"]["largest_difference"] < 1e-4
    assert set(said["checked"]["nDCG@10"]) == {"torch", "model.onnx", "model_int8.onnx"}
    if which == "with a skip list":
        assert (said["skip_list"], said["skipped_in"]) == (["."], ["document"])
        assert said["skip_ids"] == [tiny_multi_vector.tokenizer.convert_tokens_to_ids(".")]
    assert {"model.onnx", "model_int8.onnx", "onnx.json", "tokenizer.json", "config.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


@INSTALLED
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_export_that_ranks_otherwise_is_not_kept(command, collection, tiny_multi_vector, tmp_path, monkeypatch):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_beir(collection, tmp_path / "collection")
    true = onnx._Graph.forward

    def wrong(self, input_ids, attention_mask, token_type_ids=None):
        return true(self, input_ids, attention_mask, token_type_ids) * torch.linspace(-1, 1, 16)

    monkeypatch.setattr(onnx._Graph, "forward", wrong)
    words = ("--collection", tmp_path / "collection", "--out", tmp_path / "out")
    code, _, err = command("export", tmp_path / "model", "--to", "onnx", *words)
    assert (code, "documents otherwise" in err, (tmp_path / "out").exists()) == (2, True, False), err


def test_what_cannot_be_exported_is_refused(tiny_dense, tmp_path):
    with pytest.raises(ColbertZeroError, match="export: for multi-vector models"):
        onnx.export_onnx(tiny_dense, tmp_path, False)


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ColbertZeroError, match=r"onnx is not installed; pip install 'colbert-zero\[cpu\]'"):
        onnx.check_installed()


@pytest.mark.parametrize(
    ("other", "moved"),
    [
        ([("a", 3.0), ("b", 2.0), ("c", 1.0)], False),
        ([("a", 3.0), ("c", 2.0), ("b", 1.0)], True),
        ([("a", 3.0), ("b", 2.0), ("d", 1.5)], True),
        ([("a", 3.0), ("b", 2.0), ("d", 1.0)], False),  # as near as c, which was cut off
        ([("a", 3.0), ("b", 2.0)], True),
    ],
)
def test_rankings_are_equal_when_every_place_is(other, moved):
    one = {"q": [("a", 3.0), ("b", 2.0), ("c", 1.0)]}
    assert differing(one, {"q": other}) == (["q"] if moved else [])
    assert largest_difference(one, {"q": [("b", 2.5), ("x", 9.0)]}) == 0.5
