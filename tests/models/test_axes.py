"""Where each dimension of an encoder's arrays lies, in every model type that is known."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.axes import TABLES, built, join, pick, pick_layers, size, split, table_of

SIZES = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 36,
    "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
TYPES = {
    "bert": SIZES,
    "modernbert": SIZES | {"cls_token_id": 2, "sep_token_id": 3, "mlp_bias": True, "norm_bias": True},
    "distilbert": {"vocab_size": 40, "dim": 24, "n_layers": 4, "n_heads": 2, "hidden_dim": 36,
                   "max_position_embeddings": 20},
    "electra": SIZES | {"embedding_size": 16},
}  # fmt: skip
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


def encoder(kind, **changes):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**TYPES[kind], **changes})).eval()
    for parameter in model.parameters():  # norms and biases too say something
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def states(model):
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def test_the_table_has_the_model_types_that_it_says():
    assert list(TABLES) == ["bert", "modernbert", "distilbert", "electra"]


@pytest.mark.parametrize("kind", TYPES)
def test_every_array_of_a_type_has_its_axes_and_no_other_type_is_taken_for_it(kind):
    model = encoder(kind)
    table = table_of(model, "mine")
    for name, tensor in model.state_dict().items():
        array = table.array(name)
        assert len(array.axes) == tensor.dim()
        for part in split(tensor, array):
            assert list(part.shape) == [size(table, model.config, axis) for axis in array.axes]
    assert table.array("encoder.layer.0.crossattention.self.query.weight") is None


def test_an_electra_of_one_width_has_one_axis_for_token_vectors_and_states():
    model = encoder("electra", embedding_size=24)
    table = table_of(model, "mine")
    assert {axis for name in model.state_dict() for axis in table.array(name).axes} == {
        "vocabulary", "positions", "types", "hidden", "heads", "neurons",
    }  # fmt: skip


def test_a_type_that_is_not_known_is_refused_with_those_that_are():
    model = AutoModel.from_config(AutoConfig.for_model("roberta", **SIZES))
    message = "^mine: the arrays of a 'roberta' are not known here; known are bert, modernbert, distilbert, electra$"
    with pytest.raises(ColbertZeroError, match=message):
        table_of(model, "mine")


def test_an_encoder_with_arrays_of_its_own_is_refused_with_their_name():
    model = encoder("bert")
    model.encoder.layer[1].adapter = torch.nn.Linear(24, 24)
    message = r"^mine: its array encoder.layer.1.adapter.weight is not known here; it is no plain bert$"
    with pytest.raises(ColbertZeroError, match=message):
        table_of(model, "mine")
    model = encoder("bert")
    model.encoder.layer[1].output.dense = torch.nn.Linear(30, 24)
    message = r"^mine: its array encoder.layer.1.output.dense.weight is \(24, 30\), and \(24, 36\) was expected; it is"
    with pytest.raises(ColbertZeroError, match=message):
        table_of(model, "mine")


def test_fused_matrices_of_modernbert_split_and_join_to_the_bit():
    model = encoder("modernbert")
    table, state = table_of(model, "mine"), model.state_dict()
    fused = {name: tensor for name, tensor in state.items() if table.array(name).parts}
    assert {name.split(".", 2)[2] for name in fused} == {"attn.Wqkv.weight", "mlp.Wi.weight", "mlp.Wi.bias"}
    for name, tensor in fused.items():
        parts = split(tensor, table.array(name))
        assert len(parts) == (3 if "Wqkv" in name else 2)
        assert torch.equal(join(parts), tensor)
    # The halves of Wi are what transformers takes them for: its own feed-forward, by these parts.
    mlp, values = model.layers[1].mlp, torch.randn(5, 24)
    inner, gate = (values @ w.T + b for w, b in zip(*(split(state[f"layers.1.mlp.Wi.{kind}"], table.array(
        f"layers.1.mlp.Wi.{kind}")) for kind in ("weight", "bias")), strict=True))  # fmt: skip
    assert torch.allclose(mlp(values), mlp.Wo(mlp.act(inner) * gate), atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_choosing_all_changes_nothing_to_the_bit(kind):
    model = encoder(kind)
    table, state = table_of(model, "mine"), model.state_dict()
    for axis, count in (("neurons", 36), ("vocabulary", 40), ("hidden", 24)):
        state = pick(state, table, axis, torch.arange(count))
    state = pick_layers(state, table, range(4))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    again = built(model, state, {}, "mine")
    assert torch.equal(states(again), states(model))
    assert again.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kind", TYPES)
def test_a_neuron_that_is_chosen_twice_and_halved_leaves_the_function(kind):
    """What growing will do: the same table, entries repeated."""
    model = encoder(kind)
    table = table_of(model, "mine")
    twice = torch.arange(36).repeat(2)
    state = pick(model.state_dict(), table, "neurons", twice)
    for name in state:
        if table.layer_of(name)[1] == f"{table.out_of}.weight":
            state[name] = state[name] / 2
    wider = built(model, state, {table.keys["neurons"]: 72}, "mine")
    assert torch.allclose(states(wider), states(model), atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_tokens_in_another_order_are_the_same_tokens_by_their_new_numbers(kind):
    model = encoder(kind)
    table = table_of(model, "mine")
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(39, generator=torch.Generator().manual_seed(1))])
    other = built(model, pick(model.state_dict(), table, "vocabulary", order), {}, "mine")
    with torch.no_grad():
        found = other(input_ids=order.argsort()[IDS]).last_hidden_state
    assert torch.equal(found, states(model))


def test_layer_types_and_weights_of_modernbert_are_those_of_the_chosen_layers():
    model = encoder("modernbert")
    table = table_of(model, "mine")
    assert table.per_layer == ("layer_types",)
    state = pick_layers(model.state_dict(), table, [0, 3])
    assert torch.equal(state["layers.1.attn_norm.weight"], model.layers[3].attn_norm.weight)
    assert not any(name.startswith("layers.2") for name in state)


def test_arrays_that_do_not_fit_are_refused():
    model = encoder("bert")
    with pytest.raises(ColbertZeroError, match=r"^mine: the arrays that are left make no BertModel: Error"):
        built(model, model.state_dict(), {"intermediate_size": 12}, "mine")
