"""How a phase runs its encoder changes nothing of what it learns."""

import pytest
import torch
from safetensors.torch import load_file

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.encoding import encode
from colbert_zero.training.execution import compiled, recompute
from helpers import DOCUMENTS, data, study, write_rows


def weights_after(folder, name="unsupervised", dropout=0.1, attention=None, **phase):
    """Weights and record after a few steps, in chunks."""
    folder.mkdir()
    write_rows(folder / "pairs.jsonl")
    recipe = data(folder)
    recipe["model"]["architecture"] |= {"hidden_dropout_prob": dropout, "num_hidden_layers": 2}
    recipe["model"] |= {"attention": attention} if attention else {}
    recipe["phases"][name] |= {"steps": 3, **phase}
    made = study(folder, recipe)
    made.prepare([(name,)])
    record = made.train((name,))
    return load_file(made.phase_folder((name,)) / "model" / "model.safetensors"), record


@pytest.mark.parametrize("budget", [150, 100_000], ids=["cached", "at once"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_that_are_computed_again_give_the_same_weights_and_the_same_phase(tmp_path, budget, precision):
    phase = {"mini_batch_tokens": budget, "precision": precision}
    expected, plain = weights_after(tmp_path / "plain", **phase)
    found, record = weights_after(tmp_path / "again", **phase, gradient_checkpointing=True)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0)
    assert record["id"] == plain["id"]
    assert record["gradient_checkpointing"]
    assert (record["recomputed_flops"] > 0, plain["recomputed_flops"]) == (True, 0)
    assert record["flops"] == plain["flops"] + record["recomputed_flops"]


def test_layers_that_are_computed_again_keep_fewer_activations(backbone):
    from transformers import BertModel

    kept = []
    for again in (False, True):
        encoder = BertModel.from_pretrained(backbone, add_pooling_layer=False).train()
        if again:
            recompute(encoder)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            encoder(input_ids=torch.randint(5, (4, 16))).last_hidden_state.sum().backward()
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("start", ["base", "architecture"])
def test_an_encoder_whose_layers_cannot_be_computed_again_is_refused_before_data_is_prepared(
    tmp_path, monkeypatch, backbone, start
):
    monkeypatch.setattr("transformers.BertModel.supports_gradient_checkpointing", False)
    recipe = data(tmp_path)  # pairs.jsonl is not there
    recipe["phases"]["unsupervised"]["gradient_checkpointing"] = True
    if start == "base":
        recipe["model"] = {"base": str(backbone), "dim": 16}
    with pytest.raises(ColbertZeroError, match=r"unsupervised.gradient_checkpointing: transformers cannot"):
        study(tmp_path, recipe).prepare([("unsupervised",)])


def test_a_compiled_encoder_shares_the_weights_and_leaves_the_model_as_it_is(tiny_multi_vector):
    names = list(tiny_multi_vector.state_dict())
    made = compiled(tiny_multi_vector, backend="eager", options=None)
    assert list(made.state_dict()) == names
    assert all(one is other for one, other in zip(made.parameters(), tiny_multi_vector.parameters(), strict=True))
    encoders = [model[0].get_submodule("model")._compiled_call_impl for model in (made, tiny_multi_vector)]
    assert [impl is None for impl in encoders] == [False, True]
    found, expected = (encode(model, list(DOCUMENTS.values()), "document") for model in (made, tiny_multi_vector))
    assert torch.equal(found.values, expected.values)


def test_a_host_without_a_compiler_is_refused_before_data_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/c++",))
    recipe = data(tmp_path)  # pairs.jsonl is not there
    recipe["phases"]["unsupervised"]["compile"] = True
    with pytest.raises(ColbertZeroError, match=r"unsupervised.compile: cannot be done on this host \(No working C"):
        study(tmp_path, recipe).prepare([("unsupervised",)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}], ids=["alone", "layers computed again"])
def test_a_compiled_encoder_learns_the_same(tmp_path, more):
    expected, plain = weights_after(tmp_path / "plain", mini_batch_tokens=150)
    found, record = weights_after(tmp_path / "compiled", mini_batch_tokens=150, compile=True, **more)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=0)
    assert (record["compile"], record["id"]) == (True, plain["id"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", ["bfloat16", "compiled", "flash attention"])
def test_on_cuda_a_phase_learns_nearly_the_same_however_it_is_computed(tmp_path, how):
    """Flash attention takes texts without padding; all of the same chunks, without dropout."""
    other = {"bfloat16": {"precision": "bfloat16"}, "compiled": {"compile": True}}.get(how, {"precision": "bfloat16"})
    if how == "flash attention":
        pytest.importorskip("flash_attn")
        other["attention"] = "flash_attention_2"
    _, plain = weights_after(tmp_path / "plain", dropout=0.0, mini_batch_tokens=150, precision="float32")
    _, record = weights_after(
        tmp_path / "other", dropout=0.0, mini_batch_tokens=150, **{"precision": "float32"} | other
    )
    assert record["machine"]["device"].startswith("cuda")
    assert record["machine"]["attention"] == other.get("attention", "sdpa")
    assert record["final_loss"] == pytest.approx(plain["final_loss"], rel=0.02)
