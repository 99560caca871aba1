"""MaxSim against the plain definition in float64, and against sentence-transformers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.multi_vector_encoder.scoring import colbert_kd_scores, colbert_scores

from colbert_zero.maxsim import cpu
from colbert_zero.maxsim.packed import Packed, Spans, pack
from colbert_zero.maxsim.scores import (
    candidate_scores,
    maxsim_scores,
    packed_candidate_scores,
    packed_scores,
    scaled_scores,
    span_scores,
)

FORMS = {
    "usual": {},
    "tiny blocks and chunks": {"BLOCK_ELEMENTS": 40, "CHUNK_HITS": 3},
    "nothing kept": {"KEPT_BYTES": 0},
    "little kept, pairs always listed": {"KEPT_BYTES": 64, "SPARSE": 2.0, "BLOCK_ELEMENTS": 200},
    "pairs never listed": {"SPARSE": 0.0, "CHUNK_HITS": 50},
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    for name, value in FORMS[request.param].items():
        monkeypatch.setattr(cpu, name, value)
    return request.param


def oracle(queries, documents, queries_mask, documents_mask):
    """One pair at a time, float64: sum over query tokens of max over document tokens."""
    rows = []
    for query, query_mask in zip(queries.double(), queries_mask, strict=True):
        row = []
        for document, document_mask in zip(documents.double(), documents_mask, strict=True):
            products = query[query_mask] @ document[document_mask].T
            empty = products.sum() - 1e9
            row.append(products.max(1).values.sum() if document_mask.any() else empty)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def random_texts(generator, texts, tokens, dim, holes):
    embeddings = F.normalize(torch.randn(texts, tokens, dim, generator=generator), dim=-1)
    mask = torch.rand(texts, tokens, generator=generator) >= holes
    mask[torch.rand(texts, generator=generator) < holes / 4] = False
    return embeddings, mask


def gradients(scores, weights, *inputs):
    return torch.autograd.grad((scores * weights).sum(), inputs)


def assert_close(found, expected, tolerance=1e-5):
    found, expected = found.detach().double(), expected.detach()
    scale = expected.abs().max().clamp(min=1.0)
    assert float((found - expected).abs().max() / scale) <= tolerance


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1 << 20),
        "queries": st.integers(1, 6),
        "documents": st.integers(1, 9),
        "q_tokens": st.integers(1, 7),
        "d_tokens": st.integers(1, 20),
        "dim": st.sampled_from([1, 4, 32]),
        "holes": st.sampled_from([0.0, 0.3, 0.8, 1.0]),
        "dense": st.sampled_from([0.0, 0.1, 1.0]),
    }
)


@given(shape=shapes, form=st.sampled_from(sorted(FORMS)))
@settings(deadline=None, max_examples=120)
def test_scores_and_gradients_are_those_of_the_definition(shape, form):
    generator = torch.Generator().manual_seed(shape["seed"])
    q, q_mask = random_texts(generator, shape["queries"], shape["q_tokens"], shape["dim"], shape["holes"])
    d, d_mask = random_texts(generator, shape["documents"], shape["d_tokens"], shape["dim"], shape["holes"])
    q.requires_grad_(), d.requires_grad_()
    weights = torch.randn(shape["queries"], shape["documents"], generator=generator)
    weights *= torch.rand(weights.shape, generator=generator) < shape["dense"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FORMS[form].items():
            patch.setattr(cpu, name, value)
        scores = packed_scores(pack(q, q_mask), pack(d, d_mask))
        found = gradients(scores, weights, q, d)
    expected = oracle(q, d, q_mask, d_mask)
    real = d_mask.any(1)
    assert scores.dtype == torch.float32
    assert_close(scores[:, real], expected[:, real]) if real.any() else None
    assert (scores[:, ~real] == -1e9).all()
    for mine, wanted in zip(found, gradients(expected, weights.double(), q, d), strict=True):
        assert_close(mine, wanted.double())


@given(shape=shapes, n_ways=st.integers(1, 5), form=st.sampled_from(sorted(FORMS)))
@settings(deadline=None, max_examples=60)
def test_candidate_scores_are_the_diagonal_blocks_of_all_pairs(shape, n_ways, form):
    generator = torch.Generator().manual_seed(shape["seed"])
    count = shape["queries"]
    q, q_mask = random_texts(generator, count, shape["q_tokens"], shape["dim"], shape["holes"])
    d, d_mask = random_texts(generator, count * n_ways, shape["d_tokens"], shape["dim"], shape["holes"])
    q.requires_grad_(), d.requires_grad_()
    weights = torch.randn(count, n_ways, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FORMS[form].items():
            patch.setattr(cpu, name, value)
        scores = packed_candidate_scores(pack(q, q_mask), pack(d, d_mask), n_ways)
        found = gradients(scores, weights, q, d)
    every = oracle(q, d, q_mask, d_mask).view(count, count, n_ways)
    expected = every[torch.arange(count), torch.arange(count)]
    real = d_mask.any(1).view(count, n_ways)
    assert scores.shape == (count, n_ways)
    assert_close(scores[real], expected[real]) if real.any() else None
    assert (scores[~real] == -1e9).all()
    for mine, wanted in zip(found, gradients(expected, weights.double(), q, d), strict=True):
        assert_close(mine, wanted.double())


def masked_batch(queries=5, groups=5, n=3, q_tokens=8, d_tokens=30, dim=16):
    generator = torch.Generator().manual_seed(7)
    q, q_mask = random_texts(generator, queries, q_tokens, dim, 0.3)
    d, d_mask = random_texts(generator, groups * n, d_tokens, dim, 0.4)
    q_mask[1], d_mask[4] = False, False
    d, d_mask = d.view(groups, n, d_tokens, dim), d_mask.view(groups, n, d_tokens)
    return q.requires_grad_(), d.requires_grad_(), q_mask, d_mask


@pytest.mark.parametrize(("ours", "theirs"), [(maxsim_scores, colbert_scores), (candidate_scores, colbert_kd_scores)])
@pytest.mark.parametrize("masked", [True, False])
def test_drop_ins_agree_with_sentence_transformers(ours, theirs, masked, form):
    q, d, q_mask, d_mask = masked_batch()
    masks = {"queries_mask": q_mask, "documents_mask": d_mask} if masked else {}
    mine, wanted = ours(q, d, **masks), theirs(q, d, **masks)
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    assert not masked or (mine == -1e9).any()
    weights = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(gradients(mine, weights, q, d), gradients(wanted, weights, q, d), strict=True):
        assert_close(found, expected.double())


@pytest.mark.parametrize("function", [maxsim_scores, candidate_scores])
def test_gradient_is_bitwise_the_same_twice_and_sums_to_its_closed_form(function, form):
    q, d, q_mask, d_mask = masked_batch()
    results = []
    for _ in range(2):
        scores = function(q, d, q_mask, d_mask)
        weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))
        results.append((scores.detach(), *gradients(scores, weights, q, d)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    scores, q_gradient, d_gradient = results[0]
    # MaxSim is homogeneous of degree one in either side, so x · gradient(x) gives the scores back (Euler).
    total = (scores * weights)[scores > -1e8].sum()
    assert_close((q * q_gradient).sum().detach(), total.double(), 1e-4)
    assert_close((d * d_gradient).sum().detach(), total.double(), 1e-4)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("function", [maxsim_scores, candidate_scores])
def test_one_side_alone_may_want_its_gradient(wanted, function, form):
    q, d, q_mask, d_mask = masked_batch()
    both = gradients(function(q, d, q_mask, d_mask).clamp(min=-1e3), 1.0, q, d)
    q, d = q.detach().requires_grad_(wanted[0]), d.detach().requires_grad_(wanted[1])
    function(q, d, q_mask, d_mask).clamp(min=-1e3).sum().backward()
    assert (q.grad is not None, d.grad is not None) == wanted
    assert torch.equal(q.grad if wanted[0] else d.grad, both[0] if wanted[0] else both[1])


@pytest.mark.parametrize("function", [maxsim_scores, candidate_scores])
def test_evaluation_keeps_nothing_for_a_backward_pass(function):
    q, d, q_mask, d_mask = masked_batch()
    saved = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        assert function(q, d, q_mask, d_mask).grad_fn is None
        assert function(q.detach(), d.detach()).grad_fn is None
    assert saved == []


@pytest.mark.parametrize("function", [maxsim_scores, candidate_scores])
def test_scores_without_a_gradient_are_those_of_training(function, form):
    """Where nothing is learned no position of a best token is looked for."""
    q, d, q_mask, d_mask = masked_batch()
    trained = function(q, d, q_mask, d_mask)
    assert trained.grad_fn is not None
    with torch.no_grad():
        found = function(q, d, q_mask, d_mask)
    torch.testing.assert_close(found, trained.detach(), rtol=1e-6, atol=1e-6)


def test_first_of_equal_tokens_gets_the_gradient(form):
    query = torch.ones(1, 2, 4)
    document = torch.ones(1, 3, 4).requires_grad_()
    packed_scores(pack(query), pack(document)).sum().backward()
    assert document.grad[0].tolist() == [[2.0] * 4, [0.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_scored_in_float32_also_under_autocast(dtype, form):
    q, d, q_mask, d_mask = masked_batch()
    half_q, half_d = q.detach().to(dtype).requires_grad_(), d.detach().to(dtype).requires_grad_()
    exact_q, exact_d = (x.detach().float().requires_grad_() for x in (half_q, half_d))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = maxsim_scores(half_q, half_d, q_mask, d_mask)
        one_token = packed_scores(pack(half_q[:, :1]), pack(half_d[:, 0, :1]))
    expected = maxsim_scores(exact_q, exact_d, q_mask, d_mask)
    assert scores.dtype == one_token.dtype == torch.float32
    assert torch.equal(scores, expected)
    torch.testing.assert_close(one_token, exact_q[:, 0] @ exact_d[:, 0, 0].T)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3))
    for a, b in zip(
        gradients(scores, weights, half_q, half_d),
        gradients(expected, weights, exact_q, exact_d),
        strict=True,
    ):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


def test_documents_longer_than_a_byte_of_positions_find_their_best_token():
    query = torch.eye(1, 8).view(1, 1, 8).requires_grad_()
    document = torch.zeros(2, 40_000, 8)
    document[0, 39_999, 0], document[1, 300, 0] = 2.0, 3.0
    document.requires_grad_()
    scores = packed_scores(pack(query), pack(document))
    scores.sum().backward()
    assert scores.tolist() == [[2.0, 3.0]]
    assert document.grad.nonzero().tolist() == [[0, 39_999, 0], [1, 300, 0]]


def test_padding_of_a_block_never_beats_a_negative_maximum():
    query = torch.ones(1, 1, 1)
    documents = Packed(torch.tensor([[-3.0], [-1.0], [-2.0], [-5.0]]), torch.tensor([1, 2, 0, 1]))
    assert packed_scores(pack(query), documents).tolist() == [[-3.0, -1.0, -1e9, -5.0]]


def test_not_a_number_stays_in_the_pairs_of_its_text():
    q, d, _, _ = masked_batch()
    d = d.detach().clone()
    mask = torch.arange(d.shape[2]) < torch.arange(d.shape[0] * d.shape[1]).add(3)[:, None]
    d[2, 1, 0] = float("nan")
    d.requires_grad_()
    scores = maxsim_scores(q, d, documents_mask=mask.view(d.shape[:3]))
    assert scores.isnan().nonzero()[:, 1].unique().tolist() == [7]
    scores.sum().backward()
    assert not d.grad[:2].isnan().any()


@pytest.mark.parametrize("blocks", [{}, {"BLOCK_PRODUCTS": 200, "BLOCK_ELEMENTS": 100}, {"BLOCK_NUMBERS": 1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "gap", "in_order"),
    [
        ([5] * 12, 0, True),
        ([3, 0, 7, 1, 0, 2, 5, 0], 0, True),
        ([1] * 9 + [90] + [2] * 9, 0, True),
        ([4, 2, 6], 3, True),
        ([1, 1, 1], 9, False),
        ([0, 0], 0, False),
        ([0, 5], 0, True),
    ],
)
def test_documents_in_order_score_as_the_definition_says(lengths, gap, in_order, dtype, blocks, monkeypatch):
    """Equal and unequal lengths, empty documents, a long one among short ones, rows between them that are nobody's."""
    for name, value in blocks.items():
        monkeypatch.setattr(cpu, name, value)
    lengths = torch.tensor(lengths)
    starts = (lengths + gap).cumsum(0) - lengths
    values = torch.randn(int(starts[-1] + lengths[-1]), 8).to(dtype)
    queries = Packed(torch.randn(6, 8), torch.tensor([2, 0, 3, 1]))
    documents = Spans(values, starts, lengths)
    assert cpu.in_order(documents) == in_order
    found = span_scores(queries, documents)
    for query, wanted in zip(queries.values.double().split(queries.lengths.tolist()), found, strict=True):
        for start, length, score in zip(starts.tolist(), lengths.tolist(), wanted.tolist(), strict=True):
            products = query @ values[start : start + length].double().T
            assert score == pytest.approx(float(products.amax(1).sum()) if length else -1e9, abs=1e-4)


def test_scores_of_no_queries_or_no_documents_are_empty():
    none, some = Packed(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), pack(torch.ones(2, 3, 4))
    assert packed_scores(none, some).shape == (0, 2)
    assert packed_scores(some, none).shape == (2, 0)
    assert packed_candidate_scores(none, none, 3).shape == (0, 3)


def test_mistaken_shapes_are_told():
    some = pack(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="3 documents are not 2 candidates for each of 2 queries"):
        packed_candidate_scores(some, pack(torch.ones(3, 3, 4)), 2)
    with pytest.raises(ValueError, match="sum to 5, but there are 6 tokens"):
        packed_scores(Packed(torch.ones(6, 4), torch.tensor([2, 3])), some)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2\)"):
        pack(torch.ones(2, 3, 4), torch.ones(2, 2))


@pytest.mark.parametrize("order", ["in order", "apart"])
def test_whole_numbers_with_scales_score_as_what_they_stand_for(order):
    generator = torch.Generator().manual_seed(3)
    table = torch.randint(-127, 128, (900, 8), generator=generator, dtype=torch.int8)
    scales, lengths = torch.rand(900, generator=generator), torch.randint(0, 9, (100,), generator=generator)
    starts = torch.arange(100) * 9
    if order == "apart":
        starts = starts.flip(0)
    queries = Packed(torch.randn(12, 8, generator=generator), torch.tensor([3, 0, 9]))
    found = scaled_scores(queries, Spans(table, starts, lengths), scales)
    wanted = span_scores(queries, Spans(table.float() * scales[:, None], starts, lengths))
    torch.testing.assert_close(found, wanted)
