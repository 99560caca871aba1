"""Token pooling of documents: its formula, its place in checkpoints, and training without it."""

import pytest
import torch
from safetensors.torch import load_file
from test_layouts import assert_same_vectors, one_phase, their_vectors, told, train, vectors

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.pooling import pooling_of, with_pooling
from example_bases import MULTI_VECTOR, plain
from helpers import DOCUMENTS, QUERIES
from oracles import pooled

TEXTS, ASKED = list(DOCUMENTS.values()), list(QUERIES.values())


@pytest.mark.parametrize("factor", [1, 2, 3, 100])
def test_documents_become_the_means_of_wards_clusters_and_queries_stay(tiny_multi_vector, factor):
    model = with_pooling(tiny_multi_vector, factor)
    whole, found = encode(tiny_multi_vector, TEXTS, "document"), encode(model, TEXTS, "document")
    texts = [side.values.split(side.lengths.tolist()) for side in (whole, found)]
    for before, after in zip(*texts, strict=True):
        expected = before.double() if factor == 1 else pooled(before, factor)
        assert len(after) == 1 + max(1, (len(before) - 1) // factor)
        # The clusters' order is nobody's.
        products = expected @ after.double().T
        assert products.amax(1).min() > 1 - 1e-6
        assert products.amax(0).min() > 1 - 1e-6
    assert torch.equal(encode(model, ASKED, "query").values, encode(tiny_multi_vector, ASKED, "query").values)
    assert pooling_of(tiny_multi_vector) == 1


def test_pooling_replaces_a_models_own(tiny_multi_vector):
    twice = with_pooling(with_pooling(tiny_multi_vector, 2), 3)
    assert pooling_of(twice) == 3
    assert len(twice) == len(tiny_multi_vector) + 1
    assert len(with_pooling(twice, 1)) == len(tiny_multi_vector)


def test_a_dense_model_has_nothing_to_pool(tiny_dense):
    assert len(with_pooling(tiny_dense, 1)) == len(tiny_dense)
    with pytest.raises(ColbertZeroError, match="a dense one has one vector a text already"):
        with_pooling(tiny_dense, 2)


def test_a_checkpoint_pools_in_sentence_transformers_too_and_was_trained_on_all_tokens(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    weights = []
    for pool in (None, 2):
        folder = tmp_path / str(pool)
        folder.mkdir()
        model = {"dim": 8} | ({"pool": pool} if pool else {})
        made = one_phase(folder, tmp_path / "base", "multi-vector", model=model, phase={"learning_rate": 0.01})
        trained = train(made)
        assert_same_vectors(vectors(load_model(trained)), their_vectors(trained, "multi-vector"))
        weights.append(load_file(trained / "model.safetensors"))
        [record] = made.folder.glob("phases/*/phase.json")
        assert read_json(record)["pool"] == (pool or 1)
        assert pooling_of(load_model(trained)) == (pool or 1)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_base_keeps_its_pooling_unless_another_is_asked_for_which_is_told(backbone, tmp_path):
    make = MULTI_VECTOR["sentence-transformers, queries filled up at least, pooled tokens"]
    make(tmp_path / "base", backbone)
    for pool, expected in ((None, 2), (1, 1), (4, 4)):
        (tmp_path / str(pool)).mkdir()
        made = one_phase(tmp_path / str(pool), tmp_path / "base", "multi-vector", model={"pool": pool} if pool else {})
        assert (f"pool: {pool} instead of its own 2" in told(made)) == (pool is not None)
        assert pooling_of(load_model(train(made))) == expected


def test_pooling_without_a_multi_vector_phase_is_told(backbone, tmp_path):
    plain(tmp_path / "base", backbone)
    said = told(one_phase(tmp_path, tmp_path / "base", "dense", model={"pool": 2}))
    assert "model.pool: has no effect, since no phase is multi-vector" in said
