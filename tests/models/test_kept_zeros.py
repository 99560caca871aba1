"""A pruned model is trained with its zeros held, and is an ordinary one afterwards."""

import copy

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from transformers import AutoModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import write_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.kept_zeros import RECORD, cut_record, fold_zeros, held, hold_zeros, keeps_zeros, write_kept
from colbert_zero.models.shrinking import Cuts, zeros_in
from colbert_zero.models.shrunk import Uncut, write_shrunk
from helpers import DOCUMENTS

TEXTS = list(DOCUMENTS.values())


@pytest.fixture(scope="module")
def pruned(tiny_multi_vector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zeros")
    tiny_multi_vector.save_pretrained(str(folder / "model"), create_model_card=False)
    write_shrunk(Uncut(str(folder / "model")), folder / "cut", Cuts(zeros=0.5), texts=TEXTS)
    return folder / "cut"


def steps(model, count):
    """Some steps of AdamW with decay, which moves whatever is not held."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(count):
        features = model.preprocess(TEXTS, prompt="", task="document")
        loss = model(features)["token_embeddings"].square().mean(0).sum() + sum(p.sum() for p in model.parameters())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_zeros_stay_whatever_is_trained_and_all_else_moves(pruned):
    model = load_model(pruned, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zeros, numbers = zeros_in(model, "")
    assert zeros == numbers // 2
    hold_zeros(model, "here")
    assert sum(int((~mask).sum()) for mask in held(model).values()) == zeros
    steps(model, 3)
    vectors = encode(model, TEXTS, "document").values
    fold_zeros(model, "here")
    after = model.state_dict()
    assert after.keys() == before.keys()  # an ordinary model again
    assert held(model) == {}
    assert zeros_in(model, "") == (zeros, numbers)
    moved = [name for name in before if before[name].dim() == 2 and "layer." in name]
    assert len(moved) == 12
    for name in moved:
        assert torch.equal(after[name] == 0, before[name] == 0)
        assert not torch.equal(after[name], before[name])
    torch.testing.assert_close(encode(model, TEXTS, "document").values, vectors)


def test_what_is_not_held_would_be_filled(pruned):
    model = load_model(pruned, device="cpu")
    steps(model, 1)
    assert zeros_in(model, "")[0] == 0


def test_a_trained_models_folder_says_that_zeros_stay_and_loads_anywhere(pruned, tmp_path):
    assert keeps_zeros(cut_record(pruned))
    model = load_model(pruned, device="cpu")
    hold_zeros(model, "here")
    steps(model, 1)
    fold_zeros(model, "here")
    model.save_pretrained(str(tmp_path), create_model_card=False)
    counted = write_kept(tmp_path, model, cut_record(pruned), "heal")
    assert counted["zeros"] == counted["zeros_of"] // 2
    assert keeps_zeros(cut_record(tmp_path))
    assert cut_record(tmp_path)["trained_by"] == "heal"
    assert MultiVectorEncoder(str(tmp_path), device="cpu").encode_query(["a wing"])[0].shape[1] == 16
    query = AutoModel.from_pretrained(tmp_path).get_submodule("encoder.layer.0.attention.self.query")
    assert int((query.weight == 0).sum()) == query.weight.numel() // 2


def test_zeros_of_an_earlier_cut_stay_after_another(pruned, tmp_path):
    record = write_shrunk(Uncut(str(pruned)), tmp_path / "again", Cuts(neurons=0.5), texts=TEXTS)
    assert record["keep_zeros"]
    assert record["zeros"] >= record["zeros_of"] // 4


def test_records_say_whether_zeros_stay(tmp_path):
    assert cut_record(tmp_path) is None
    assert cut_record("org/on-the-hub") is None
    assert not keeps_zeros({"kind": "compress", "asked": {"zeros": 0.0}})
    assert keeps_zeros({"kind": "compress", "asked": {"zeros": 0.0}, "keep_zeros": True})
    write_json(tmp_path / RECORD, {"kind": "another"})
    assert cut_record(tmp_path) is None
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(
        ColbertZeroError, match=r"compress.json: cannot be read \(.*\); delete it, or cut the model again"
    ):
        cut_record(tmp_path)


def test_a_model_whose_zeros_are_held_is_copied_with_its_masks(pruned):
    model = load_model(pruned, device="cpu")
    hold_zeros(model, "here")
    own = copy.deepcopy(model)
    steps(own, 1)
    fold_zeros(own, "here")
    assert zeros_in(own, "")[0] == zeros_in(load_model(pruned, device="cpu"), "")[0]
