"""Models that are alike are averaged, number by number; others are told apart in words."""

import copy

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Router
from transformers import AutoModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.merging import check_alike, check_mergekit, merged
from helpers import QUERIES


def other(model, seed):
    """The same architecture with other weights."""
    own = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in own.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return own


@pytest.fixture(scope="module")
def two(tiny_multi_vector):
    return {"its start": other(tiny_multi_vector, 1), "b": other(tiny_multi_vector, 2)}


def mean(models, weights):
    """A plain loop over all numbers, in float64."""
    states = [model.state_dict() for model in models]
    return {
        name: sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True))
        for name in states[0]
        if states[0][name].is_floating_point()
    }


@pytest.mark.parametrize(("weights", "shares"), [(None, (0.5, 0.5)), ([3, 1], (0.75, 0.25))])
def test_a_linear_merge_is_the_arithmetic_mean_and_leaves_what_it_is_made_of(two, weights, shares):
    pytest.importorskip("mergekit")
    before = copy.deepcopy(two)
    made = merged(two, weights, "linear", "phases.soup.with")
    expected, found = mean(two.values(), shares), made.state_dict()
    assert expected.keys() == {name for name, tensor in found.items() if tensor.is_floating_point()}
    for name, values in expected.items():
        assert float((found[name].double() - values).abs().max()) < 1e-6, name
    for name, model in two.items():
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before[name].parameters(), strict=True))


@pytest.mark.parametrize("method", ["slerp", "multislerp", "karcher"])
def test_a_merge_on_the_sphere_of_one_model_with_itself_is_that_model(two, method):
    pytest.importorskip("mergekit")
    one = two["its start"]
    made = merged({"its start": one, "b": copy.deepcopy(one)}, None, method, "phases.soup.with")
    for a, b in zip(made.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_slerp_takes_the_shares_of_its_weights(two):
    pytest.importorskip("mergekit")
    made = merged(two, [1000, 1], "slerp", "phases.soup.with")
    near, far = (
        sum(float((a - b).detach().abs().sum()) for a, b in zip(made.parameters(), model.parameters(), strict=True))
        for model in two.values()
    )
    assert near < far / 100


def test_a_merged_model_keeps_prompts_and_loads_anywhere(two, tmp_path):
    pytest.importorskip("mergekit")
    made = merged(two, None, "linear", "phases.soup.with")
    made.save_pretrained(str(tmp_path), create_model_card=False)
    stock = MultiVectorEncoder(str(tmp_path), device="cpu")
    assert stock.prompts == two["its start"].prompts
    for one, same in zip(
        stock.encode_query(list(QUERIES.values())), made.encode_query(list(QUERIES.values())), strict=True
    ):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(same), atol=1e-6)
    assert AutoModel.from_pretrained(tmp_path).config.num_hidden_layers == 2
    assert isinstance(load_model(tmp_path, device="cpu"), MultiVectorEncoder)


def wrong(one, another):
    with pytest.raises(ColbertZeroError) as caught:
        check_alike({"its start": one, "b": another}, "phases.soup.with")
    return str(caught.value)


END = "; only models that are alike in everything but their weights are merged"


def test_models_that_are_not_alike_are_told_apart(two, tiny_dense):
    one = two["its start"]
    routed = MultiVectorEncoder(modules=[*one, Router.for_query_document([Normalize("token_embeddings")], [])])
    assert wrong(one, routed) == (
        "phases.soup.with: b is adapted, with modules for queries alone; merge what it was made of"
    )
    assert wrong(one, tiny_dense) == (
        'phases.soup.with: b has the modules "Transformer → Pooling → Normalize", and its start "Transformer → Dense → '
        f'MultiVectorMask → Normalize"{END}'
    )
    prompted = copy.deepcopy(one)
    prompted.prompts["query"] = "[Q] ask: "
    assert wrong(one, prompted) == (
        f'phases.soup.with: b has the query prompt "[Q] ask: ", and its start "[Q] search_query: "{END}'
    )
    shorter = copy.deepcopy(one)
    shorter[0].query_length = 7
    assert wrong(one, shorter) == f"phases.soup.with: b has query_length 7, and its start null{END}"
    layered = copy.deepcopy(one)
    layered[0].model.config.num_hidden_layers = 1
    assert wrong(one, layered) == f"phases.soup.with: b has num_hidden_layers 1, and its start 2{END}"
    words = copy.deepcopy(one)
    words[0].tokenizer.add_tokens(["aerofoil"])
    size = len(one[0].tokenizer.get_vocab())
    assert wrong(one, words) == (
        f"phases.soup.with: b has a vocabulary of so many tokens: {size + 1}, and its start {size}{END}"
    )


def test_without_mergekit_the_mend_is_named(monkeypatch):
    monkeypatch.setattr("colbert_zero.models.merging.find_spec", lambda name: None)
    with pytest.raises(ColbertZeroError, match=r"^phases.soup: mergekit is not installed; pip install"):
        check_mergekit("phases.soup")
