"""Queries adapted in closed form: the sums, what is solved from them, and the modules that say it."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json, write_json
from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.adapting import (
    FOLDER,
    RECORD,
    SUMS,
    Adaptation,
    Statistics,
    form_of,
    has_route,
    random_projection,
    read_adaptation,
    read_statistics,
    save_adapted,
    solve,
    statistics_of_documents,
    statistics_of_pairs,
    with_route,
    without_route,
)
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.layers import without_layers
from colbert_zero.models.pooling import with_pooling
from helpers import DOCUMENTS, QUERIES, environment
from oracles import sums_of_pairs

TEXTS, ASKED = list(DOCUMENTS.values()), list(QUERIES.values())
WAYS = ["projection", "linear", "decorrelate"]


def some(count, dim=16, seed=0):
    """Texts of 1 to 7 tokens of length 1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=generator)
    values = torch.randn(int(lengths.sum()), dim, generator=generator)
    return Packed(torch.nn.functional.normalize(values, dim=-1), lengths)


def sums(form, seed, count=20):
    if form.way == "decorrelate":
        return statistics_of_documents(form, some(count, seed=seed))
    return statistics_of_pairs(form, some(count, seed=seed), some(count, seed=seed + 100))


def same(one, other):
    assert one.tokens == other.tokens
    assert (one.gram - other.gram).abs().max() < 1e-9
    assert (one.cross - other.cross).abs().max() < 1e-9


@pytest.mark.parametrize("way", ["projection", "linear"])
def test_the_sums_are_those_of_a_loop_over_tokens(tiny_multi_vector, way):
    form = form_of(tiny_multi_vector, way, 40, seed=3)
    queries, documents = some(9, seed=1), some(9, seed=2)
    found = statistics_of_pairs(form, queries, documents)
    sides = [side.values.split(side.lengths.tolist()) for side in (queries, documents)]
    gram, cross = sums_of_pairs(*sides, form.projection)
    # Features are float32, their products summed in float64.
    assert (found.gram - gram).abs().max() < 1e-5
    assert (found.cross - cross).abs().max() < 1e-5
    assert found.tokens == int(queries.lengths.sum())


@pytest.mark.parametrize("way", WAYS)
def test_domains_add_up_in_any_order_to_what_their_union_gives(tiny_multi_vector, way):
    form = form_of(tiny_multi_vector, way, 40, seed=3)
    a, b, c = (sums(form, seed) for seed in range(3))
    same(a + b + c, c + a + b)
    united = [
        Packed(torch.cat([one.values for one in side]), torch.cat([one.lengths for one in side]))
        for side in ([some(20, seed=0), some(20, seed=1)], [some(20, seed=100), some(20, seed=101)])
    ]
    union = statistics_of_documents(form, united[0]) if way == "decorrelate" else statistics_of_pairs(form, *united)
    same(a + b, union)
    assert (solve(form, a + b + c, 0.1) - solve(form, c + b + a, 0.1)).abs().max() < 1e-9


def test_what_is_solved_is_the_minimum_of_the_ridge_regression(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "projection", 40, seed=3)
    queries, documents = some(30, seed=1), some(30, seed=2)
    found, ridge = statistics_of_pairs(form, queries, documents), 0.3
    weights = solve(form, found, ridge).requires_grad_()
    scale = ridge * float(found.gram.trace()) / 40
    loss = (weights * (found.gram @ weights)).sum() - 2 * (weights * found.cross).sum() + scale * (weights**2).sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-9


def test_decorrelated_queries_are_products_with_the_inverse_of_the_documents_gram(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "decorrelate", 0, seed=3)
    documents = some(30)
    gram = (documents.values.T @ documents.values).double()
    weights = solve(form, statistics_of_documents(form, documents), 0.5)
    inverse = torch.linalg.inv(gram + 0.5 * gram.trace() / 16 * torch.eye(16))
    query = some(3, seed=5).values
    wanted = torch.nn.functional.normalize(query.double() @ inverse, dim=-1)
    assert (form.moved(query.double(), weights) - wanted).abs().max() < 1e-6


def test_no_tokens_are_nothing_to_fit_to(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "linear", 0, seed=1)
    empty = Packed(torch.zeros(0, 16), torch.tensor([0, 0]))
    found = statistics_of_pairs(form, empty, some(2))
    assert found.tokens == 0
    with pytest.raises(ValueError, match="no tokens"):
        solve(form, found, 1.0)


@pytest.mark.parametrize("way", WAYS)
def test_stock_modules_move_queries_as_the_formula_does_and_documents_not_at_all(tiny_multi_vector, way):
    form = form_of(tiny_multi_vector, way, 40, seed=3)
    weights = solve(form, sums(form, 0), 0.1)
    adapted = with_route(tiny_multi_vector, form, weights)
    before, after = (encode(model, ASKED, "query") for model in (tiny_multi_vector, adapted))
    assert (form.moved(before.values, weights.float()) - after.values).abs().max() < 1e-5
    assert (before.values - after.values).abs().max() > 0.01
    documents = [encode(model, TEXTS, "document").values for model in (tiny_multi_vector, adapted)]
    assert torch.equal(*documents)
    assert has_route(adapted)
    assert not has_route(tiny_multi_vector)
    assert torch.equal(encode(without_route(adapted), ASKED, "query").values, before.values)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_of_nothing_leaves_scores_as_they_were(tiny_multi_vector, way):
    form = form_of(tiny_multi_vector, way, 40, seed=3)
    adapted = with_route(tiny_multi_vector, form, torch.zeros(form.width, 16, dtype=torch.float64))
    documents = encode(tiny_multi_vector, TEXTS, "document")
    before, after = (packed_scores(encode(m, ASKED, "query"), documents) for m in (tiny_multi_vector, adapted))
    assert (before - after).abs().max() < 1e-5


def test_the_random_features_are_the_same_for_the_same_seed_and_of_unit_scale():
    assert torch.equal(random_projection(16, 50, 1), random_projection(16, 50, 1))
    assert not torch.equal(random_projection(16, 50, 1), random_projection(16, 50, 2))
    assert random_projection(64, 2000, 1).var().item() == pytest.approx(1 / 64, rel=0.05)


def test_an_adapted_model_is_pooled_and_scored_without_its_layers_like_any_other(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "linear", 0, seed=3)
    adapted = with_route(tiny_multi_vector, form, solve(form, sums(form, 0), 0.1))
    pooled, own = with_pooling(adapted, 2), with_pooling(tiny_multi_vector, 2)
    assert torch.equal(encode(pooled, TEXTS, "document").values, encode(own, TEXTS, "document").values)
    assert torch.equal(encode(pooled, ASKED, "query").values, encode(adapted, ASKED, "query").values)
    bare = without_layers(adapted, "it")
    assert (encode(bare, ASKED, "query").values - encode(adapted, ASKED, "query").values).abs().max() > 0.01


SAID = Adaptation("projection", 40, 3, 0.1, 1.0, {"d": "0" * 32}, ["1" * 32], None)


def written(folder, model, way="projection"):
    form = form_of(model, way, 40, seed=3)
    found = sums(form, 0)
    folder.mkdir()
    weights = solve(form, found, 0.1)
    save_adapted(folder, model, form, found, weights, replace(SAID, way=way), None)
    return form, found, weights


ALONE = """
import sys
sys.modules["colbert_zero"] = None  # as if it were not installed
import torch
from sentence_transformers import MultiVectorEncoder
for folder in sys.argv[1].split(","):
    model = MultiVectorEncoder(folder, device="cpu")
    sides = model.encode_query(sys.argv[2:]), model.encode_document(sys.argv[2:])
    torch.save([[torch.as_tensor(text) for text in side] for side in sides], f"{folder}.pt")
"""


def test_a_written_model_encodes_in_sentence_transformers_alone(tiny_multi_vector, tmp_path):
    made = {way: written(tmp_path / way, tiny_multi_vector, way) for way in WAYS}
    command = [sys.executable, "-c", ALONE, ",".join(str(tmp_path / way) for way in WAYS), *ASKED]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before = [tiny_multi_vector.encode_query(ASKED), tiny_multi_vector.encode_document(ASKED)]
    for way, (form, _, weights) in made.items():
        queries, documents = torch.load(tmp_path / f"{way}.pt", weights_only=True)
        for plain, moved in zip(before[0], queries, strict=True):
            wanted = form.moved(torch.as_tensor(plain), weights.float())
            assert (wanted - torch.as_tensor(moved)).abs().max() < 1e-5, way
        for plain, found in zip(before[1], documents, strict=True):
            assert (torch.as_tensor(plain) - torch.as_tensor(found)).abs().max() < 1e-6, way


def test_what_was_written_is_read_again(tiny_multi_vector, tmp_path):
    form, found, _ = written(tmp_path / "m", tiny_multi_vector)
    said = read_adaptation(tmp_path / "m")
    assert (said.way, said.features, said.domains) == ("projection", 40, SAID.domains)
    assert said.adapts("1" * 32, None)
    assert not said.adapts(said.contents, None)
    assert not said.adapts(None, "2" * 40)
    same(read_statistics(tmp_path / "m", form), found)
    assert isinstance(load_model(tmp_path / "m"), MultiVectorEncoder)
    assert read_adaptation(tmp_path) is None


def test_a_record_or_sums_that_cannot_be_read_are_told(tiny_multi_vector, tmp_path):
    form, *_ = written(tmp_path / "m", tiny_multi_vector)
    record = tmp_path / "m" / FOLDER / RECORD
    with pytest.raises(ColbertZeroError, match="adapt the base again"):
        read_statistics(tmp_path / "m", form_of(tiny_multi_vector, "projection", 41, seed=3))
    (record.with_name(SUMS)).write_bytes(b"half")
    with pytest.raises(ColbertZeroError, match="no domain can be added; adapt the model"):
        read_statistics(tmp_path / "m", form)
    write_json(record, read_json(record) | {"format": 2})
    with pytest.raises(ColbertZeroError, match="newer version"):
        read_adaptation(tmp_path / "m")
    record.write_text("[")
    with pytest.raises(ColbertZeroError, match="cannot be read"):
        read_adaptation(tmp_path / "m")


def test_statistics_of_two_domains_are_a_sum():
    one = Statistics(torch.ones(1, 1), torch.ones(1, 2), 3)
    assert ((one + one).tokens, (one + one).gram.item()) == (6, 2)
