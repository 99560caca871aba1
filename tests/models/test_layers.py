"""A model without the layers of its encoder, in every family; and what the layers are found to add."""

import shutil

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import AutoConfig, AutoModel, AutoTokenizer

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.layers import layers_add
from colbert_zero.models.encoding import encode
from colbert_zero.models.layers import without_layers

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
RELATIVE = SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
FAMILIES = {
    "bert": SIZES,
    "roberta": SIZES,
    "mpnet": SIZES,
    "modernbert": SIZES | {"cls_token_id": 2, "sep_token_id": 3},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 64},
    "electra": SIZES | {"embedding_size": 16},
    "deberta": RELATIVE,
    "deberta-v2": RELATIVE,
    "albert": SIZES | {"embedding_size": 16},
    "t5": T5,
    "llama": SIZES,
}
WITHOUT_POSITIONS = {"modernbert", "deberta", "deberta-v2", "t5", "llama"}


def dense(backbone, folder, family, sizes):
    """A tiny random dense model of a family, with the backbone's tokenizer."""
    shutil.copytree(backbone, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(AutoTokenizer.from_pretrained(backbone)), **sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


@pytest.mark.parametrize(("family", "sizes"), FAMILIES.items(), ids=FAMILIES)
def test_without_layers_a_token_knows_no_other_and_the_model_stays_as_it_was(backbone, tmp_path, family, sizes):
    model = dense(backbone, tmp_path / family, family, sizes).train()
    texts = ["lift and drag of a wing", "drag and lift of a wing"]
    before = encode(model, texts, "query").values
    bare = without_layers(model, family)
    alone = encode(bare, texts, "query").values
    assert not torch.allclose(alone, before, atol=1e-3)
    # The mean of the same tokens, in another order, is the same where there are no positions left.
    assert torch.allclose(alone[0], alone[1], atol=1e-5) == (family in WITHOUT_POSITIONS)
    assert torch.equal(encode(model, texts, "query").values, before)
    assert model.training
    assert all(a is b for a, b in list(zip(model, bare, strict=True))[1:])


UNKNOWN = {
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0,
             "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3},
    "fnet": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64},
    "deberta-v2": RELATIVE | {"conv_kernel_size": 3, "conv_act": "gelu"},
}  # fmt: skip


@pytest.mark.parametrize(("family", "sizes"), UNKNOWN.items(), ids=["decoder", "no attention", "convolution"])
def test_a_family_whose_layers_cannot_be_taken_out_is_said_plainly(backbone, tmp_path, collection, family, sizes):
    model, said = dense(backbone, tmp_path / family, family, sizes), []
    with pytest.raises(ColbertZeroError, match=r"mine: the layers of its \w+Model cannot be taken out .*not scored"):
        without_layers(model, "mine")
    assert layers_add(model, [collection], "mine", said.append) is None
    assert len(said) == 1


def test_a_model_whose_trial_pass_fails_stays_as_it_was(backbone, tmp_path):
    model = dense(backbone, tmp_path / "bert", "bert", SIZES)
    model[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ColbertZeroError, match="cannot be taken out"):
        without_layers(model, "mine")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_of_embeddings_alone_has_no_layers_to_take_out(backbone):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    with pytest.raises(ColbertZeroError, match="StaticEmbedding cannot be taken out"):
        without_layers(model, "mine")


@pytest.mark.parametrize("kind", ["tiny_multi_vector", "tiny_dense"])
def test_what_layers_add_is_the_difference_of_two_evaluations(kind, request, collection):
    model = request.getfixturevalue(kind)
    found = layers_add(model, [collection, collection], kind, print)
    low, high = found["interval"]
    assert found["difference"] == pytest.approx(found["score"] - found["without"])
    assert low <= found["difference"] <= high
    assert (found["queries"], found["documents"]) == (10, 40)
    again = layers_add(without_layers(model, kind), [collection], kind, print)
    assert again["difference"] == 0
    assert again["score"] == pytest.approx(found["without"])
