"""Losses of a cross-encoder's scores against plain versions, sentence-transformers' own, and chunks of any size."""

import copy

import pytest
import torch
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss
from torch import nn

from colbert_zero.maxsim.packed import pack
from colbert_zero.models.cross_encoders import pair_tokeniser
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
from colbert_zero.training.objectives import objective_of
from colbert_zero.training.pair_objectives import Binary, Listwise
from helpers import DOCUMENTS, QUERIES
from oracles import binary, listwise

WORDS = list(DOCUMENTS.values())
ROWS = [(query, [WORDS[3 * i + k] for k in (0, 7, 1, 5)]) for i, query in enumerate(QUERIES.values())]
"""Queries with an answer and three hard negatives."""


def sides(model, rows):
    """Pairs of queries and answers, and those of negatives column by column, as a batch has them."""
    columns = list(zip(*[[(query, text) for text in texts] for query, texts in rows], strict=True))
    tokenise = pair_tokeniser(model)
    others = [pair for column in columns[1:] for pair in column]
    return tuple(
        TokenisedTexts(task, **tokenise(list(pairs), task))
        for task, pairs in (("query", columns[0]), ("document", others))
    )


def plain_scores(model, rows):
    """One pair at a time, (queries, 1 + negatives)."""
    return torch.stack(
        [torch.cat([model(model.preprocess([(q, text)]))["scores"][0] for text in texts]) for q, texts in rows]
    )


def gradient_of(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def cached(model, objective, rows, mini_batch_tokens=100_000):
    """Loss of a batch, its gradient of the model's weights, and what was encoded."""
    model.zero_grad()
    both = sides(model, rows)
    loss, work = grad_cache(model, both, objective.of(*both), mini_batch_tokens)
    return loss, gradient_of(model), work


def with_dropout(model, share):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
    return model


@pytest.fixture
def model(tiny_cross_encoder):
    return with_dropout(copy.deepcopy(tiny_cross_encoder), 0.0).train()


ORACLES = {
    "listwise": (Listwise(), lambda scores, out: listwise(scores, out, 1.0)),
    "listwise, cold": (Listwise(0.05), lambda scores, out: listwise(scores, out, 0.05)),
    "binary": (Binary(), binary),
}


@pytest.mark.parametrize(("objective", "oracle"), ORACLES.values(), ids=ORACLES)
def test_a_loss_is_the_mean_of_the_plain_one_of_each_query(objective, oracle):
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    left_out = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)) < 0.4
    left_out[0], left_out[1] = True, False  # one query has its answer alone
    expected = torch.stack([oracle(*row) for row in zip(scores, left_out, strict=True)]).mean()
    assert objective.of_scores(scores, left_out).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("objective", "oracle"), ORACLES.values(), ids=ORACLES)
def test_negatives_stand_column_by_column(objective, oracle, model):
    scores = torch.arange(20.0).reshape(5, 4) / 7
    loss = objective.of(*sides(model, ROWS))
    found = loss(pack(scores[:, :1, None]), pack(scores[:, 1:].T.reshape(-1, 1, 1)))
    expected = torch.stack([oracle(row, torch.zeros(3)) for row in scores]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("objective", ["listwise", "binary"])
def test_a_negative_that_reads_as_the_answer_does_is_left_out_unless_it_is_not_to_be(objective, mask, model):
    rows = [(query, list(texts)) for query, texts in ROWS]
    rows[1][1][2] = rows[1][1][0]
    rows[3][1][1:] = [rows[3][1][0]] * 3
    rows[4][1][1] = rows[0][1][0]  # another query's answer is no answer of this one
    spec = Phase(
        representation="cross-encoder", objective=objective, sources=["x"], global_batch_size=5, learning_rate=1e-3,
        negatives=3, mask_duplicates=mask,
    )  # fmt: skip
    left_out = torch.zeros(5, 3, dtype=torch.bool)
    left_out[1, 1] = left_out[3] = mask
    plain = plain_scores(model, rows)
    oracle = binary if objective == "binary" else lambda scores, out: listwise(scores, out, 1.0)
    expected = torch.stack([oracle(*row) for row in zip(plain, left_out, strict=True)]).mean()
    assert cached(model, objective_of(spec), rows)[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_duplicate_is_known_on_whichever_side_a_tokenizer_pads(side, model):
    model.tokenizer.padding_side = side
    rows = [(query, [texts[0], texts[0]]) for query, texts in ROWS]
    rows[0] = (rows[0][0], [rows[0][1][0], "a much longer document " * 6])  # wider than any answer
    loss = Listwise().of(*sides(model, rows))
    zeros = pack(torch.zeros(5, 1, 1))
    assert loss(zeros, zeros).item() == pytest.approx(torch.tensor(2.0).log().item() / 5)


def test_sentence_transformers_own_losses_are_the_same_where_nothing_is_left_out(model):
    pairs = [(query, text) for query, texts in ROWS for text in texts]
    queries, documents = map(list, zip(*pairs, strict=True))
    own = BinaryCrossEntropyLoss(model)([queries, documents], torch.tensor([1.0, 0, 0, 0] * 5))
    assert cached(model, Binary(), ROWS)[0].item() == pytest.approx(own.item(), rel=1e-5)
    labels = [torch.tensor([1000.0, 0, 0, 0])] * 5  # ListNet's softmax of them is all the answer's
    own = ListNetLoss(model)([list(QUERIES.values()), [texts for _, texts in ROWS]], labels)
    assert cached(model, Listwise(), ROWS)[0].item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("mini_batch_tokens", [1, 200, 100_000])
@pytest.mark.parametrize("name", ["listwise, cold", "binary"])
def test_cached_gradients_equal_the_full_batch_whatever_the_chunk(model, mini_batch_tokens, name):
    objective, oracle = ORACLES[name]
    expected_loss = torch.stack([oracle(scores, torch.zeros(3)) for scores in plain_scores(model, ROWS)]).mean()
    model.zero_grad()
    expected_loss.backward()
    expected = gradient_of(model)
    loss, found, work = cached(model, objective, ROWS, mini_batch_tokens)
    assert (work.texts, work.repeated > 0) == (20, mini_batch_tokens < 100_000)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert (found - expected).norm() <= 3e-5 * expected.norm()


@pytest.mark.parametrize("objective", [Listwise(0.5), Binary()])
def test_dropout_is_replayed_so_that_the_cached_gradient_fits_its_scores(model, objective):
    with_dropout(model, 0.3)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(cached(model, objective, ROWS, 200)[:2])
    assert torch.equal(found[0][1], found[1][1])
    loss, gradient = found[0]
    # A finite difference along the gradient, with the same dropout, moves the loss as the gradient says.
    step = 1e-3 / gradient.norm()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= step * p.grad
    torch.manual_seed(5)
    moved, _, _ = cached(model, objective, ROWS, 200)
    assert (loss - moved).item() == pytest.approx((step * gradient.norm() ** 2).item(), rel=0.05)


def test_a_learned_temperature_has_a_gradient_of_its_own(model):
    gradients = []
    for tokens in (60, 100_000):
        objective = Listwise(0.5, learnable=True)
        cached(model, objective, ROWS, tokens)
        gradients.append(objective.log_temperature.grad)
    assert gradients[0].abs() > 0
    assert torch.allclose(*gradients, rtol=1e-3)


@pytest.mark.parametrize("objective", [Listwise(), Binary()])
def test_a_process_without_a_share_has_a_loss_of_0_and_takes_part_in_what_all_exchange(objective, model):
    ids = torch.zeros(0, 3, dtype=torch.int64)
    none = tuple(TokenisedTexts(task, input_ids=ids, attention_mask=ids) for task in ("query", "document"))
    loss, work = grad_cache(model, none, objective.of(*none), 100)
    assert (loss.item(), work.texts) == (0.0, 0)
