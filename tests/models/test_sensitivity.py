"""What each head and layer does: how far token vectors move without it."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel, AutoTokenizer

from colbert_zero.models.encoding import encode
from colbert_zero.models.sensitivity import sensitivity
from colbert_zero.models.shrinking import Cuts, cut, deviation
from helpers import DOCUMENTS
from oracles import attention_without_head

TEXTS = list(DOCUMENTS.values())[:4]


def dense(kind, backbone, folder, **sizes):
    """A dense model of a random encoder of a type, with the tests' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), pad_token_id=0, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(24, "mean")], device="cpu")


KINDS = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36},
    "modernbert": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36},
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 36},
}
JOINING = {
    "bert": "encoder.layer.{}.attention.output.dense",
    "modernbert": "layers.{}.attn.Wo",
    "distilbert": "transformer.layer.{}.attention.out_lin",
}
BY_NEURONS = {
    "bert": "encoder.layer.{}.output.dense",
    "modernbert": "layers.{}.mlp.Wo",
    "distilbert": "transformer.layer.{}.ffn.lin2",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_left_out_as_if_it_had_said_nothing(kind, backbone, tmp_path):
    """A hook that makes the head's share of what is joined 0, and no matrix another."""
    model = dense(kind, backbone, tmp_path, **KINDS[kind])
    found = sensitivity(model, TEXTS, "mine")
    assert [len(row) for row in found["heads"]] == [3, 3]
    for layer, head in ((0, 0), (1, 2)):
        with attention_without_head(model[0].model.get_submodule(JOINING[kind].format(layer)), head, size=8):
            without = [encode(model, TEXTS, task).values for task in ("query", "document")]
        whole = [encode(model, TEXTS, task).values for task in ("query", "document")]
        cosine = torch.cosine_similarity(torch.cat(whole), torch.cat(without), dim=1).mean()
        assert found["heads"][layer][head] == pytest.approx(1 - float(cosine), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_that_do_nothing_are_told_from_those_that_do(kind, backbone, tmp_path):
    model = dense(kind, backbone, tmp_path, **KINDS[kind])
    encoder = model[0].model
    with torch.no_grad():
        encoder.get_submodule(JOINING[kind].format(1)).weight[:, 8:16] = 0
        encoder.get_submodule(BY_NEURONS[kind].format(0)).weight.zero_()
    found = sensitivity(model, TEXTS, "mine")
    assert found["heads"][1][1] == pytest.approx(0, abs=1e-6)
    assert found["neurons"][0] == pytest.approx(0, abs=1e-6)
    assert min(found["heads"][1][0], found["heads"][1][2], found["neurons"][1], *found["attention"]) > 1e-4


def test_a_layer_is_left_out_as_compress_leaves_it_out_and_the_model_stays(backbone, tmp_path):
    model = dense("bert", backbone, tmp_path, **KINDS["bert"])
    before, steps = encode(model, TEXTS, "document").values, []
    found = sensitivity(model, TEXTS, "mine", lambda done, total: steps.append((done, total)))
    assert torch.equal(encode(model, TEXTS, "document").values, before)
    for layer in (0, 1):
        lost = deviation(model, cut(model, Cuts(layers=(1 - layer,)), "mine"), TEXTS)
        assert found["layers"][layer] == pytest.approx(1 - lost.cosine)
    assert steps == [(done, 12) for done in range(1, 13)]


def test_a_first_layer_that_must_stay_has_no_figure(backbone, tmp_path):
    model = dense("modernbert", backbone, tmp_path, **KINDS["modernbert"])
    found = sensitivity(model, TEXTS, "mine")
    assert found["layers"][0] is None
    assert found["layers"][1] > 0
    only = sensitivity(cut(model, Cuts(layers=(0,)), "mine"), TEXTS, "mine")
    assert only["layers"] == [None]
