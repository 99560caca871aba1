"""Checkpoints from elsewhere: what they have stays, and what cannot be used is told early."""

import json

import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel, MPNetConfig, RobertaConfig

from colbert_zero.errors import ColbertZeroError, Stopped
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.bases import check_base
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoders import assemble
from colbert_zero.models.scratch import check_architecture
from helpers import DOCUMENTS

PLAIN = Alignment("", "", "", "", 16, 24)
HEADS = {
    "cls": lambda: [Pooling(32, pooling_mode="cls"), Normalize()],
    "max, not normalised": lambda: [Pooling(32, pooling_mode="max")],
    "last token": lambda: [Pooling(32, pooling_mode="lasttoken"), Normalize()],
    "weighted mean": lambda: [Pooling(32, pooling_mode="weightedmean"), Normalize()],
    "a dense head": lambda: [Pooling(32, pooling_mode="mean"), Dense(32, 8, False, torch.nn.Tanh()), Normalize()],
}


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_dense_start_keeps_its_pooling_its_head_and_its_similarity(backbone, tmp_path, head, similarity):
    torch.manual_seed(0)
    theirs = SentenceTransformer(modules=[Transformer(str(backbone)), *head()], similarity_fn_name=similarity)
    theirs.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    ours = assemble(str(tmp_path / "base"), "dense", PLAIN, 8, seed=0, phase="test")
    texts = [text[:40] for text in DOCUMENTS.values()]
    mine, yours = (model.encode(texts, convert_to_tensor=True) for model in (ours, theirs))
    assert torch.allclose(ours.similarity(mine, mine), theirs.similarity(yours, yours), atol=1e-6)
    assert torch.allclose(mine @ mine.T, theirs.similarity(yours, yours), atol=1e-6), "what training scores by"
    assert ours.similarity_fn_name == similarity


def test_a_dense_start_whose_similarity_is_no_dot_product_is_refused(backbone, tmp_path):
    modules = [Transformer(str(backbone)), Pooling(32, pooling_mode="mean")]
    SentenceTransformer(modules=modules, similarity_fn_name="euclidean").save_pretrained(str(tmp_path / "base"))
    with pytest.raises(ColbertZeroError, match=r"scores by euclidean; a dense phase trains cosine or dot product"):
        assemble(str(tmp_path / "base"), "dense", PLAIN, 8, seed=0, phase="test")


def pylate(folder, backbone, named):
    """A folder as PyLate 1.x writes it, which does not name its class."""
    model = MultiVectorEncoder(modules=[Transformer(str(backbone)), projection()], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    config = {"__version__": {}, "prompts": {}, "similarity_fn_name": "MaxSim" if named else None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))


def projection():
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    return Dense(32, 16, False, torch.nn.Identity(), **names)


@pytest.mark.parametrize("named", [True, False], ids=["MaxSim", "a module of PyLate's"])
def test_a_multi_vector_checkpoint_is_known_by_its_signs_where_it_does_not_name_its_class(backbone, tmp_path, named):
    pylate(tmp_path / "base", backbone, named)
    assert isinstance(load_model(tmp_path / "base"), MultiVectorEncoder)


def test_the_end_token_pads_where_a_tokenizer_has_no_padding(backbone, tmp_path):
    transformer = Transformer(str(backbone))
    transformer.tokenizer.pad_token = None
    transformer.tokenizer.eos_token = "[SEP]"
    transformer.save(str(tmp_path / "base"))
    model = assemble(str(tmp_path / "base"), "dense", PLAIN, 8, seed=0, phase="test")
    vectors = model.encode(["wing", "the lift of a wing"], convert_to_tensor=True)
    assert torch.allclose(vectors[0], model.encode(["wing"], convert_to_tensor=True)[0], atol=1e-5)
    transformer.tokenizer.eos_token = None
    transformer.save(str(tmp_path / "without"))
    with pytest.raises(ColbertZeroError, match="has no padding token and no end token"):
        assemble(str(tmp_path / "without"), "dense", PLAIN, 8, seed=0, phase="test")


@pytest.mark.parametrize("kind", [RobertaConfig, MPNetConfig])
def test_positions_that_begin_after_the_paddings_number_are_counted(backbone, tmp_path, kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokenizer = Transformer(str(backbone)).tokenizer
    config = kind(vocab_size=len(tokenizer), max_position_embeddings=26, pad_token_id=1, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ColbertZeroError, match=r"texts of 26 tokens .* do not fit the encoder's 24 positions"):
        assemble(str(tmp_path), "dense", Alignment("", "", "", "", 16, 26), 8, seed=0, phase="test")
    model = load_model(tmp_path)
    assert model[0].max_seq_length == 24
    model.encode(["lift of a wing " * 30])


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("./not-there", "no such folder './not-there'"),
        ("~/not/there", "no such folder"),
        ("file", "is a file; name the folder"),
        ("empty", "has no config.json; name the folder of a checkpoint"),
    ],
)
def test_a_base_that_is_not_there_is_told_before_anything_is_prepared(tmp_path, monkeypatch, base, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ColbertZeroError, match=message):
        check_base(base)


BAD = {
    "sizes that do not go together": ({"hidden_size": 30, "num_attention_heads": 4}, "is not a multiple"),
    "an unknown activation": ({"hidden_act": "foo"}, "foo"),
    "no text": ({"model_type": "vit"}, "'vit' reads no text, or not text alone; bert and modernbert do"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_an_architecture_that_cannot_be_is_one_message(changes, message):
    sizes = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ColbertZeroError, match=f"model.architecture.*{message}"):
        check_architecture(sizes | changes)


def test_a_wish_to_stop_is_no_fault_of_an_architecture_or_a_start(backbone, monkeypatch):
    def stop(*_, **__):
        raise Stopped("asked to")

    monkeypatch.setattr("colbert_zero.models.scratch.AutoModel.from_config", stop)
    with pytest.raises(Stopped):
        check_architecture({"model_type": "bert"})
    monkeypatch.setattr("colbert_zero.models.encoders.Transformer", stop)
    with pytest.raises(Stopped):
        assemble(str(backbone), "dense", PLAIN, 8, seed=0, phase="test")
