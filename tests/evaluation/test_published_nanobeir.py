"""The published NanoBEIR means, from the Hub: `pytest -m hub`, skipped where it cannot be reached."""

import json

import pytest
from huggingface_hub import HfApi

from colbert_zero.recipe.named import GROUPS, NANOBEIR
from colbert_zero.report.published import published_on

PUBLISHED = {figures.model: figures.mean for figures in published_on(named.name for named in GROUPS["nanobeir"])}
MEANS = {
    "lightonai/ColBERT-Zero": 0.6824,
    "lightonai/LateOn": 0.6868,
    "lightonai/GTE-ModernColBERT-v1": 0.6720,
    "colbert-ir/colbertv2.0": 0.6053,
}


def test_the_means_are_those_of_the_data_file():
    assert {model: PUBLISHED[model] for model in MEANS} == MEANS


@pytest.fixture(scope="module")
def hub_answers():
    try:
        HfApi().dataset_info(NANOBEIR, timeout=5)
    except Exception as error:  # the client lets through the errors of its HTTP library
        pytest.skip(f"the Hugging Face Hub cannot be reached: {type(error).__name__}")


@pytest.mark.hub
@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", MEANS)
def test_evaluate_gives_the_published_mean(model, hub_answers, command, tmp_path, monkeypatch):
    monkeypatch.delenv("BEIR_HOME", raising=False)
    code, _, error = command("evaluate", model, "--collection", "nanobeir", "--json", tmp_path / "s.json")
    assert code == 0, error
    assert json.loads((tmp_path / "s.json").read_text())["mean"]["nDCG@10"] == pytest.approx(MEANS[model], abs=0.002)
