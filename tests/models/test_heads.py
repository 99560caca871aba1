"""New heads: their layers as others load them, and what their weights start with."""

import json

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from test_layouts import one_phase, train

from colbert_zero.models.alignment import Alignment
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoders import assemble, save_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.heads import Head, last_layer, principal_directions
from colbert_zero.recipe.schema import HeadLayer
from example_bases import plain
from helpers import DOCUMENTS

ALIGNMENT = Alignment("", "", "[Q]", "[D]", 10, 20)
TEXTS = list(DOCUMENTS.values())
LAYERS = {
    "LateOn": [HeadLayer(width=64, residual=True), HeadLayer(width=32, residual=True)],
    "wider, not linear": [HeadLayer(width=48, residual=True, activation="gelu", bias=True)],
    "narrower": [HeadLayer(width=24, activation="tanh"), HeadLayer(width=24, residual=True, activation="silu")],
}


def make(backbone, dim=8, **head):
    return assemble(str(backbone), "multi-vector", ALIGNMENT, dim, 1, "p", head=Head(**head))


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_a_head_of_several_layers_is_what_it_says_and_loads_in_sentence_transformers(backbone, tmp_path, layers):
    model = make(backbone, layers=tuple(layers))
    seen = []
    model[1].register_forward_pre_hook(lambda _, features: seen.append(features[0]["token_embeddings"]))
    found = encode(model, TEXTS[:1], "document").values
    [expected] = seen
    with torch.no_grad():
        for module, layer in zip(list(model)[1:], layers, strict=False):
            linear = module.linear(expected)
            activated = {
                "identity": linear, "gelu": torch.nn.functional.gelu(linear), "tanh": linear.tanh(),
                "silu": torch.nn.functional.silu(linear),
            }[layer.activation]  # fmt: skip
            same_width = expected.shape[-1] == layer.width
            through = expected if same_width else expected @ module.residual.weight.T if layer.residual else 0
            assert (module.linear.bias is not None) == layer.bias
            expected = activated + through if layer.residual else activated
        expected = torch.nn.functional.normalize(expected @ last_layer(model).linear.weight.T, dim=-1)
    torch.testing.assert_close(found, expected[0], atol=1e-6, rtol=0)
    save_model(model, tmp_path / "m", ALIGNMENT)
    theirs = MultiVectorEncoder(str(tmp_path / "m"), device="cpu").encode_document(TEXTS)
    ours = encode(model, TEXTS, "document")
    torch.testing.assert_close(torch.cat(list(theirs)), ours.values, atol=1e-5, rtol=0)
    again = assemble(str(tmp_path / "m"), "multi-vector", ALIGNMENT, 8, 99, "p")
    assert torch.equal(encode(again, TEXTS, "document").values, ours.values)


def test_an_orthogonal_projection_of_the_encoders_width_keeps_its_maxsim(backbone):
    model = make(backbone, dim=32, start="orthogonal")
    projected = encode(model, TEXTS, "document").values
    with torch.no_grad():
        last_layer(model).linear.weight.copy_(torch.eye(32))
    own = encode(model, TEXTS, "document").values
    assert not torch.allclose(projected, own, atol=1e-3)
    torch.testing.assert_close(projected @ projected.T, own @ own.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [8, 40])
def test_an_orthogonal_projection_has_orthonormal_rows_or_columns(backbone, dim):
    weight = last_layer(make(backbone, dim=dim, start="orthogonal")).linear.weight.detach()
    gram = weight @ weight.T if dim < 32 else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(min(dim, 32)), atol=1e-5, rtol=0)
    assert not torch.allclose(weight, last_layer(make(backbone, dim=dim)).linear.weight)


@pytest.mark.parametrize("layers", [(), (HeadLayer(width=48, residual=True),)], ids=["one layer", "two"])
def test_principal_directions_are_those_of_the_tokens_that_come_in(backbone, layers):
    model = make(backbone, layers=layers)
    width = last_layer(model).in_features
    seen = []
    last_layer(model).register_forward_pre_hook(
        lambda _, features: seen.append(features[0]["token_embeddings"][features[0]["attention_mask"].bool()])
    )
    encode(model, TEXTS, "document")
    tokens = torch.nn.functional.normalize(torch.cat(seen).double(), dim=1)
    oracle = torch.linalg.svd(tokens, full_matrices=False).Vh[:8]
    found = principal_directions(model, [TEXTS[:3], TEXTS[3:]], 10**6).double()
    assert found.shape == (8, width)
    torch.testing.assert_close((found @ oracle.T).abs(), torch.eye(8).double(), atol=1e-3, rtol=0)
    assert torch.equal(found, principal_directions(model, [TEXTS[:3], TEXTS[3:]], 10**6).double())
    unread = iter([TEXTS[:1], TEXTS[1:]])
    principal_directions(model, unread, 4)
    assert list(unread) == [TEXTS[1:]], "enough tokens were seen"


def test_principal_directions_keep_more_of_all_products_than_others_and_all_where_there_is_room(backbone):
    def lost(dim, weights=None, **head):
        model, whole = make(backbone, dim=dim, **head), make(backbone, dim=32)
        with torch.no_grad():
            last_layer(whole).linear.weight.copy_(torch.eye(32))
            if weights is not None:
                last_layer(model).linear.weight.copy_(weights)
        projected, own = (encode(m, TEXTS, "document").values for m in (model, whole))
        return (projected @ projected.T - own @ own.T).norm().item()

    for dim in (8, 40):
        weights = principal_directions(make(backbone, dim=dim), [TEXTS], 10**6)
        assert weights.shape == (dim, 32)
        if dim > 32:
            assert lost(dim, weights) < 1e-4
        else:
            assert lost(dim, weights) < 0.8 * lost(dim, start="orthogonal")


def test_a_phase_starts_its_new_head_from_the_documents_that_it_reads(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    made = one_phase(tmp_path, tmp_path / "base", "multi-vector", model={"dim": 8, "start": "pca"})
    weight = last_layer(load_model(train(made))).linear.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    documents = sorted({json.loads(line)["document"] for line in lines})
    model = assemble(str(backbone), "multi-vector", made.alignment(made.recipe.phases["one"]), 8, 1, "p")
    expected = principal_directions(model, [documents], 10**6)
    # The space of all of them; a phase reads whole batches of those that are not held out.
    assert (weight @ expected.T).square().sum().item() > 7.5
