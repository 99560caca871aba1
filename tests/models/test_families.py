"""Every family of text encoders trains, goes on, is evaluated and loads elsewhere, or is refused early."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import rank
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from helpers import DOCUMENTS, data, study, write_rows

BERT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 66,
}  # fmt: skip
LLAMA = BERT | {"num_key_value_heads": 2}
FAMILIES = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT | {"embedding_size": 24},
    "albert": BERT | {"embedding_size": 24},
    "mpnet": BERT,
    "deberta": BERT | {"pos_att_type": ["c2p", "p2c"], "relative_attention": True},
    "deberta-v2": BERT | {"pos_att_type": ["c2p", "p2c"], "relative_attention": True},
    "modernbert": BERT | {"num_hidden_layers": 3},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 66},
    "longformer": BERT | {"attention_window": 8},
    "big_bird": BERT | {"attention_type": "original_full"},
    "xlnet": {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 48},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2},
    "bart": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 66,
    },
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 66},
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 16},
    "gemma3_text": LLAMA | {"head_dim": 16},
}  # fmt: skip


def one_phase(folder, model, representation, steps=2):
    write_rows(folder / "pairs.jsonl", 60)
    recipe = data(folder, query_tokens=12, document_tokens=24)
    for key in ("prompts", "teachers"):
        del recipe[key]
    recipe["sources"] = {"pairs": recipe["sources"]["pairs"]}
    recipe["collections"]["held-out"] |= {"documents": 12, "queries": 6}
    recipe["phases"] = {
        "one": recipe["phases"]["dense"]
        | {"representation": representation, "steps": steps, "checkpoint_every": 1, "global_batch_size": 8}
    }
    recipe["pipelines"] = {"alone": ["one"]}
    recipe["model"] = model
    return study(folder, recipe)


class Broken(Exception):
    """As if the process had been killed."""


def trained(made, broken=False):
    """A study's model, in one go or broken off after its first step and gone on with."""
    if broken:
        made.show.bar = broken_off(made.show.bar)
        with pytest.raises(Broken):
            made.train(("one",))
        del made.show.bar
    made.train(("one",))
    return made.phase_folder(("one",)) / "model"


def broken_off(bar):
    @contextmanager
    def shown(name, total):
        with bar(name, total) as advance:

            def advance_once(done, values):
                advance(done, values)
                if done == 2:
                    raise Broken

            yield advance_once

    return shown


@pytest.mark.slow
@pytest.mark.parametrize("representation", ["dense", "multi-vector"])
@pytest.mark.parametrize("given", ["base", "architecture"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_goes_on_is_evaluated_and_loads_elsewhere(family, given, representation, backbone, tmp_path):
    model = {"architecture": {"model_type": family, **FAMILIES[family]}, "vocabulary": 500}
    if given == "base":
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        torch.manual_seed(3)
        config = AutoConfig.for_model(
            family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **FAMILIES[family]
        )
        AutoModel.from_config(config).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        model = {"base": str(tmp_path / "base")}
    folders = []
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        made = one_phase(tmp_path / name, model | {"dim": 16}, representation)
        made.prepare([("one",)])
        folders.append(trained(made, broken=name == "broken"))
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    ours = load_model(folders[1])
    [collection] = made.collections.values()
    assert len(rank(ours, collection, 10)) == 6
    texts = list(DOCUMENTS.values())
    found = encode(ours, texts, "document")
    if representation == "dense":
        theirs = SentenceTransformer(str(folders[1]), device="cpu").encode_document(texts, convert_to_tensor=True)
    else:
        theirs = torch.cat(MultiVectorEncoder(str(folders[1]), device="cpu").encode_document(texts))
    assert torch.allclose(found.values, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("vit", "reads no text"), ("clip", "not text alone"), ("whisper", "reads no text")],
)
def test_what_is_no_text_encoder_is_refused_before_data_is_read(model_type, message, tmp_path):
    made = one_phase(tmp_path, {"architecture": {"model_type": model_type}}, "dense")
    with pytest.raises(ColbertZeroError, match=message):
        made.prepare([("one",)])
    assert not made.data.exists()


def test_a_base_that_encodes_only_texts_of_some_lengths_is_refused_before_data_is_read(backbone, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    sizes = {"segment_means_seq_len": 64, "num_landmarks": 4}
    config = AutoConfig.for_model("nystromformer", vocab_size=len(tokenizer), **BERT, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    made = one_phase(tmp_path, {"base": str(tmp_path / "base")}, "dense")
    with pytest.raises(ColbertZeroError, match=r"base' does not encode texts: shape .* is invalid"):
        made.prepare([("one",)])
    assert not list(made.data.glob("pairs-*"))


def test_a_base_of_states_that_are_not_finite_is_refused(backbone, tmp_path):
    model = AutoModel.from_pretrained(backbone)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path / "base")
    with pytest.raises(ColbertZeroError, match="states that are not finite"):
        one_phase(tmp_path, {"base": str(tmp_path / "base")}, "dense").prepare([("one",)])
