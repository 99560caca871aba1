"""Adapters in place of the encoder's own weights: what is trained, what is saved, and that all else works as before."""

import copy
import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder

from colbert_zero.errors import ColbertZeroError, Stopped
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from colbert_zero.recipe.schema import LowRank
from colbert_zero.training.low_rank import add_adapters, merge_adapters
from helpers import DOCUMENTS, data, study, write_rows

TEXTS = list(DOCUMENTS.values())
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft, an extra, is not installed")


def one_phase(folder, name="unsupervised", low_rank=None, **phase):
    folder.mkdir(exist_ok=True)
    write_rows(folder / "pairs.jsonl")
    recipe = data(folder)
    recipe["phases"][name] |= {"steps": 4, "low_rank": {"rank": 4} if low_rank is None else low_rank, **phase}
    return study(folder, recipe)


def trained(made, name="unsupervised"):
    made.prepare([(name,)])
    return made.train((name,)), made.phase_folder((name,)) / "model"


@needs_peft
def test_adapters_begin_as_nothing_and_merged_they_are_the_product_of_their_factors(tiny_multi_vector):
    model = copy.deepcopy(tiny_multi_vector)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = encode(model, TEXTS, "document").values
    add_adapters(model, LowRank(rank=3, alpha=6, targets=["query", "value"]), seed=0)
    assert torch.equal(encode(model, TEXTS, "document").values, expected)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len([name for name in learning if "lora_" in name]) == 2 * 2 * 2
    assert all("lora_" in name or not name.startswith("0.") for name in learning)
    generator = torch.Generator().manual_seed(1)
    factors = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
                factors[name] = weight.clone()
    adapted = encode(model, TEXTS, "document").values
    merge_adapters(model)
    assert list(model.state_dict()) == list(before)
    torch.testing.assert_close(encode(model, TEXTS, "document").values, adapted, atol=1e-5, rtol=0)
    for name, weight in model.state_dict().items():
        of = name.removesuffix("weight")
        change = 0
        if f"{of}lora_A.default.weight" in factors:
            change = 6 / 3 * factors[f"{of}lora_B.default.weight"] @ factors[f"{of}lora_A.default.weight"]
        torch.testing.assert_close(weight, before[name] + change, atol=1e-5, rtol=0)


@needs_peft
@pytest.mark.parametrize("budget", [150, 100_000], ids=["cached", "at once"])
def test_a_phase_trains_adapters_and_its_head_and_keeps_an_ordinary_checkpoint(tmp_path, budget):
    made = one_phase(tmp_path, low_rank={"rank": 4, "dropout": 0.1}, mini_batch_tokens=budget)
    record, folder = trained(made)
    # Six linear layers: four of 32 to 32, one each way between 32 and 32; and the head of 16 x 32.
    assert record["trained_parameters"] == 6 * 4 * (32 + 32) + 16 * 32
    assert record["low_rank"] == {"rank": 4, "alpha": 32.0, "targets": None, "dropout": 0.1}
    assert record["parameters"] == sum(weight.numel() for weight in load_model(folder).parameters())
    files = {path.name for path in folder.rglob("*")}
    assert "adapter_config.json" not in files
    weights, start = load_file(folder / "model.safetensors"), load_file(made.start()[0] + "/model.safetensors")
    moved = {name for name, weight in weights.items() if not torch.equal(weight, start[name][: len(weight)])}
    layers = {name for name in weights if name.startswith("encoder.") and name.endswith("weight")}
    assert moved == {name for name in layers if weights[name].ndim == 2}
    theirs = MultiVectorEncoder(str(folder), device="cpu").encode_document(TEXTS)
    torch.testing.assert_close(
        torch.cat(list(theirs)), encode(load_model(folder), TEXTS, "document").values, atol=1e-5, rtol=0
    )


@needs_peft
def test_a_training_with_adapters_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    phase = {"low_rank": {"rank": 4, "dropout": 0.2}, "checkpoint_every": 2}
    _, expected = trained(one_phase(tmp_path / "whole", **phase))
    asked = iter([False, False, True])
    monkeypatch.setattr("colbert_zero.training.phase.stop_requested", lambda: next(asked, False))
    made = one_phase(tmp_path / "stopped", **phase)
    with pytest.raises(Stopped):
        trained(made)
    _, found = trained(one_phase(tmp_path / "stopped", **phase))
    for file in ("model.safetensors", "1_Dense/model.safetensors"):
        one, other = load_file(expected / file), load_file(found / file)
        assert all(torch.equal(one[name], other[name]) for name in one)


@needs_peft
def test_a_phase_after_one_with_adapters_trains_all_weights_again(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["dense"] |= {"steps": 2, "low_rank": {"rank": 2}}
    recipe["phases"]["unsupervised"] |= {"steps": 2}
    made = study(tmp_path, recipe)
    chain = ("dense", "unsupervised")
    made.prepare([chain])
    record = made.train(chain)
    assert record["trained_parameters"] == record["parameters"]


@pytest.mark.parametrize("start", ["base", "architecture"])
@pytest.mark.parametrize(
    ("low_rank", "installed", "message"),
    [
        ({"rank": 2}, False, r"unsupervised.low_rank: peft is not installed; pip install colbert-zero\[peft\]"),
        (
            {"targets": ["query", "valeu"]},
            True,
            "targets: the encoder has no linear layers 'valeu', did you mean value",
        ),
    ],
    ids=["without peft", "layers that there are not"],
)
def test_low_rank_that_cannot_be_is_refused_before_data_is_prepared(
    tmp_path, monkeypatch, backbone, start, low_rank, installed, message
):
    monkeypatch.setattr("colbert_zero.training.low_rank.find_spec", lambda name: installed or None)
    recipe = data(tmp_path)  # pairs.jsonl is not there
    recipe["phases"]["unsupervised"]["low_rank"] = low_rank
    if start == "base":
        recipe["model"] = {"base": str(backbone), "dim": 16}
    with pytest.raises(ColbertZeroError, match=message):
        study(tmp_path, recipe).prepare([("unsupervised",)])
