import copy
import itertools
import socket
from datetime import timedelta
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DataCollatorWithFlattening

from colbert_zero.models.encoding import forward, unpadded
from colbert_zero.processes import average_gradients
from colbert_zero.training import gradcache
from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
from colbert_zero.training.losses import contrastive_loss, distillation_loss, false_negatives, margin_mse_loss
from colbert_zero.training.objectives import Contrastive, ContrastiveDistillation, Distillation, identities
from colbert_zero.training.trainer_loss import TrainerLoss
from oracles import distillation, margin_mse, maxsim_matrix

WORDS = """
lift drag wing heat body flow index term stem query rank lens blood lung heart root matrix sort
""".split()  # noqa: SIM905


def sentence(seed, words):
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=generator))


def column(model, texts, task):
    features = model.preprocess(texts, prompt=model.prompts.get(task), task=task)
    return {"task": task, "input_ids": features["input_ids"], "attention_mask": features["attention_mask"]}


def batch(model, queries=5, columns=3):
    """Queries and document columns of uneven lengths."""
    texts = [[sentence(100 * c + i, 2 + (7 * i + 3 * c) % 19) for i in range(queries)] for c in range(columns)]
    query_texts = [sentence(1000 + i, 1 + i % 6) for i in range(queries)]
    return [column(model, query_texts, "query"), *(column(model, t, "document") for t in texts)]


def sides(features):
    """Queries, and documents column by column."""
    width = max(f["input_ids"].shape[1] for f in features[1:])
    documents = {key: torch.cat([nn.functional.pad(f[key], (0, width - f[key].shape[1])) for f in features[1:]])
                 for key in ("input_ids", "attention_mask")}  # fmt: skip
    return TokenisedTexts(**features[0]), TokenisedTexts("document", **documents)


def cached(model, objective, features, mini_batch_tokens=100_000, teacher=None, scale=1):
    """Loss of a batch and its gradient of the model's weights."""
    model.zero_grad()
    texts = sides(features)
    loss_of = objective.of(*texts, teacher)
    loss, _ = grad_cache(model, texts, lambda *embeddings: scale * loss_of(*embeddings), mini_batch_tokens)
    return loss, gradient_of(model)


def oracle_embeddings(model, features):
    """One text at a time, no padding at all."""
    out = []
    for i in range(len(features["input_ids"])):
        real = features["attention_mask"][i].bool()
        end = int(real.nonzero().max()) + 1
        inputs = {
            "input_ids": features["input_ids"][i : i + 1, :end],
            "attention_mask": features["attention_mask"][i : i + 1, :end],
        }
        result = model(inputs, task=features["task"])
        if "sentence_embedding" in result:
            out.append(result["sentence_embedding"])
        else:
            out.append(result["token_embeddings"][0][result["attention_mask"][0].bool()])
    return out


def oracle_contrastive(model, features, temperature):
    queries = oracle_embeddings(model, features[0])
    documents = [e for f in features[1:] for e in oracle_embeddings(model, f)]
    logits = maxsim_matrix(queries, documents) / temperature
    return nn.functional.cross_entropy(logits, torch.arange(len(queries)))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return gradient_of(model)


def gradient_of(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def assert_same_gradient(found, expected):
    assert found.shape == expected.shape
    # float32 on both sides: processors without AVX-512 differ by 1.1e-5.
    assert (found - expected).norm() <= 3e-5 * expected.norm()


@pytest.fixture(params=["tiny_multi_vector", "tiny_dense"])
def model(request):
    model = copy.deepcopy(request.getfixturevalue(request.param))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.mark.parametrize("mini_batch_tokens", [1, 60, 150, 100_000])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_cached_gradients_equal_the_full_batch_whatever_the_chunk(model, mini_batch_tokens, temperature):
    features = batch(model)
    expected_loss = oracle_contrastive(model, features, temperature)
    expected = gradients(model, expected_loss)
    loss, found = cached(model, Contrastive(temperature), features, mini_batch_tokens)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert_same_gradient(found, expected)


def test_a_mask_with_holes_gives_the_full_batch_gradients(model):
    features = batch(model)
    for f in features:
        f["attention_mask"][:, 2] = 0
        f["attention_mask"][1, 12:] = 0
    expected = gradients(model, oracle_contrastive(model, features, 1.0))
    for tokens in (40, 100_000):
        assert_same_gradient(cached(model, Contrastive(), features, tokens)[1], expected)


def test_upstream_scale_reaches_the_weights_and_the_temperature(model):
    features = batch(model)
    found = []
    for tokens in (50, 100_000):
        objective = Contrastive(0.5, learnable=True)
        gradient = cached(model, objective, features, tokens, scale=3)[1]
        found.append((gradient, objective.log_temperature.grad))
    assert_same_gradient(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3)
    assert found[0][1].abs() > 0


def test_dropout_is_replayed_so_that_the_cached_gradient_fits_its_embeddings(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    features = batch(model)
    torch.manual_seed(5)
    loss, found = cached(model, Contrastive(), features, 60)
    torch.manual_seed(5)
    _, again = cached(model, Contrastive(), features, 60)
    assert torch.equal(found, again)
    # A finite difference along the gradient, with the same dropout, moves the loss as the gradient says.
    step = 1e-3 / found.norm()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= step * p.grad
    torch.manual_seed(5)
    moved, _ = cached(model, Contrastive(), features, 60)
    assert (loss - moved).item() == pytest.approx((step * found.norm() ** 2).item(), rel=0.05)


@pytest.mark.parametrize("loss", ["kl", "margin-mse"])
@pytest.mark.parametrize("scaling", ["min-max", "raw"])
def test_distillation_gradients_equal_the_plain_computation(model, scaling, loss):
    features = batch(model, queries=4, columns=5)
    teacher = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) * 20
    expected_loss = oracle_distillation(oracle_scores(model, features), teacher, scaling, loss)
    expected = gradients(model, expected_loss)
    for tokens in (50, 100_000):
        loss_found, found = cached(model, Distillation(0.5, scaling=scaling, loss=loss), features, tokens, teacher)
        assert loss_found.item() == pytest.approx(expected_loss.item(), rel=1e-4)
        assert_same_gradient(found, expected)


@pytest.mark.parametrize("contrastive_temperature", [None, 0.2])
@pytest.mark.parametrize("loss", ["kl", "margin-mse"])
def test_both_objectives_at_once_are_the_weighted_sum_of_each(model, contrastive_temperature, loss):
    features = batch(model, queries=4, columns=3)
    teacher = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    scores = oracle_scores(model, features)
    contrastive = nn.functional.cross_entropy(scores / (contrastive_temperature or 0.5), torch.arange(4))
    expected_loss = oracle_distillation(scores, teacher, "min-max", loss) + 0.3 * contrastive
    expected = gradients(model, expected_loss)
    objective = ContrastiveDistillation(contrastive_temperature, 0.3, temperature=0.5, loss=loss)
    for tokens in (60, 100_000):
        loss_found, found = cached(model, objective, features, tokens, teacher)
        assert loss_found.item() == pytest.approx(expected_loss.item(), rel=1e-5)
        assert_same_gradient(found, expected)


@pytest.mark.parametrize("mask_duplicates", [True, False])
def test_a_trainers_loss_has_the_gradient_of_training_itself(model, mask_duplicates):
    features = batch(model, queries=4, columns=3)
    for key in ("input_ids", "attention_mask"):
        features[2][key] = features[1][key].roll(1, 0)  # each query's hard negative is another's answer
    expected_loss, expected = cached(model, Contrastive(0.3, mask_duplicates=mask_duplicates), features, 60)
    loss = TrainerLoss(model, Contrastive(0.3, mask_duplicates=mask_duplicates))(features)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert_same_gradient(gradients(model, loss), expected)


@pytest.mark.parametrize("objective", [Distillation, ContrastiveDistillation])
def test_a_trainers_loss_takes_a_teachers_scores_as_labels(model, objective):
    features = batch(model, queries=4, columns=3)
    teacher = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    expected_loss, expected = cached(model, objective(temperature=0.5), features, 60, teacher)
    loss = TrainerLoss(model, objective(temperature=0.5))(features, teacher)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert_same_gradient(gradients(model, loss), expected)


def test_a_trainers_loss_tells_which_columns_it_wants(model):
    features = batch(model, queries=4, columns=3)
    loss = TrainerLoss(model, Distillation())
    with pytest.raises(ValueError, match="a query and at least one document"):
        loss(features[:1])
    with pytest.raises(ValueError, match=r"scores of shape \(4, 2\), but 4 queries have 3 documents each"):
        loss(features, torch.rand(4, 2))
    with pytest.raises(ValueError, match="the candidates' scores are needed"):
        loss(features)


@pytest.mark.parametrize("objective", [Contrastive, ContrastiveDistillation])
def test_own_candidates_too_near_to_the_answer_are_no_negatives_and_others_candidates_are(model, objective):
    features = batch(model, queries=4, columns=3)
    teacher = torch.tensor([[1.0, 0.96, 0.2], [0.5, 0.4, 0.6], [-1.0, -0.5, -1.5], [0.0, 0.0, 0.1]])
    near = [(0, 1), (1, 2), (2, 1), (3, 2)]  # (query, column); of answers of 0 or less what scores above them
    scores = oracle_scores(model, features)
    left = scores.clone()
    for query, column in near:
        left[query, 4 * column + query] = float("-inf")
    expected_loss = nn.functional.cross_entropy(left / 0.5, torch.arange(4))
    if objective is ContrastiveDistillation:
        expected_loss = expected_loss + oracle_distillation(scores, teacher, "min-max", "kl")
    expected = gradients(model, expected_loss)
    for tokens in (60, 100_000):
        found_loss, found = cached(model, objective(temperature=0.5, max_relative=0.95), features, tokens, teacher)
        assert found_loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
        assert_same_gradient(found, expected)


def oracle_scores(model, features):
    """MaxSim of every query with every document, column by column, (queries, documents)."""
    documents = [e for f in features[1:] for e in oracle_embeddings(model, f)]
    return maxsim_matrix(oracle_embeddings(model, features[0]), documents)


def oracle_distillation(scores, teacher, scaling, loss):
    queries, n_ways = teacher.shape
    own = torch.stack([scores[i, i::queries] for i in range(queries)])
    assert own.shape == (queries, n_ways)
    rows = zip(own, teacher, strict=True)
    of_row = margin_mse if loss == "margin-mse" else lambda s, t, scaling: distillation(s, t, 0.5, scaling)
    return torch.stack([of_row(s, t, scaling=scaling) for s, t in rows]).mean()


@pytest.mark.parametrize("mini_batch_tokens", [60, 100_000])
def test_real_tokens_padding_and_second_passes_are_counted_as_they_are_computed(model, mini_batch_tokens, monkeypatch):
    features = batch(model)
    texts = sides(features)
    computed = []
    monkeypatch.setattr(
        gradcache, "forward", lambda m, f, task: computed.append(f["input_ids"].numel()) or forward(m, f, task)
    )
    _, work = grad_cache(model, texts, Contrastive().of(*texts), mini_batch_tokens)
    assert work.texts == 20
    assert work.tokens == sum(int(f["attention_mask"].sum()) for f in features)
    assert work.tokens + work.padding + work.repeated == sum(computed)
    assert work.repeated == (work.tokens + work.padding if mini_batch_tokens == 60 else 0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 2000))
@settings(deadline=None)
def test_chunks_hold_each_text_once_within_the_token_budget(lengths, budget):
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    texts = TokenisedTexts("document", input_ids=mask, attention_mask=mask)
    chunks = texts.chunks(budget)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(lengths[i] for i in chunk) <= budget


def test_equal_documents_and_answers_of_equal_queries_are_no_negatives():
    # Answers of a, b, a' (an equal query), then one hard negative each.
    queries, positives = torch.tensor([7, 8, 7]), torch.arange(3)
    documents, asked = torch.tensor([1, 2, 3, 2, 9, 1]), torch.tensor([7, 8, 7, -1, -1, -1])
    expected = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    assert torch.equal(false_negatives(queries, positives, documents, asked), expected)
    none = torch.tensor([1, 2]), torch.arange(2), torch.tensor([3, 4]), torch.tensor([1, 2])
    assert false_negatives(*none) is None


def test_texts_have_equal_identities_exactly_when_their_tokens_are_equal():
    ids = torch.tensor([[3, 5, 0], [3, 5, 9], [5, 3, 0], [0, 3, 5], [3, 5, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    found = identities(TokenisedTexts("document", input_ids=ids, attention_mask=mask)).tolist()
    assert found[0] == found[1]
    assert len(set(found)) == 4
    wider = TokenisedTexts(
        "document", input_ids=torch.tensor([[3, 5, 0, 0, 0]]), attention_mask=torch.tensor([[1, 1, 0, 0, 0]])
    )
    assert identities(wider).tolist() == found[:1]


def test_an_excluded_document_leaves_the_sum():
    scores = torch.tensor([[2.0, 5.0, 1.0]])
    excluded = torch.tensor([[False, True, False]])
    expected = -torch.tensor([2.0, 1.0]).div(0.5).log_softmax(0)[0]
    found = contrastive_loss(scores, 0.5, torch.tensor([0]), excluded)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


TEACHER = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
SHARES = {"even": (2, 2, 2), "uneven": (3, 1, 2), "an empty one": (4, 0, 2)}


OBJECTIVES = {
    "contrastive": (Contrastive, None),
    "distillation": (Distillation, TEACHER),
    "both": (ContrastiveDistillation, TEACHER),
    "contrastive, with a bound": (partial(Contrastive, max_relative=0.5), TEACHER),
}


def cases():
    return itertools.product(SHARES, OBJECTIVES.values(), (60, 100_000))


def loss_and_gradient(model, features, make, teacher, mini_batch_tokens):
    """Loss and gradient of this process's queries; parameters without a gradient have zeros."""
    objective = make(temperature=0.7, learnable=True)
    model.zero_grad()
    texts = sides(features)
    loss, _ = grad_cache(model, texts, objective.of(*texts, teacher), mini_batch_tokens)
    parameters = [*model.parameters(), *objective.parameters()]
    average_gradients(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return loss, torch.cat([g.flatten().double() for g in gradients])


def _worker(rank, world, port, model, features, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        for number, (shares, (make, teacher), mini_batch_tokens) in enumerate(cases()):
            begin = sum(SHARES[shares][:rank])
            own = slice(begin, begin + SHARES[shares][rank])
            features_here = [{k: v[own] if isinstance(v, torch.Tensor) else v for k, v in f.items()} for f in features]
            teacher_here = None if teacher is None else teacher[own]
            loss, gradient = loss_and_gradient(model, features_here, make, teacher_here, mini_batch_tokens)
            torch.distributed.all_reduce(loss)
            if rank == 0:
                save_file({"loss": loss / world, "gradient": gradient}, folder / f"{number}.safetensors")
    finally:
        torch.distributed.destroy_process_group()


def test_three_processes_have_the_loss_and_gradients_of_one_however_the_queries_are_shared_out(
    tiny_multi_vector, tmp_path
):
    model = copy.deepcopy(tiny_multi_vector).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    features = batch(model, queries=6, columns=2)
    # Equal documents in different processes, which must not be each other's negatives.
    for key in ("input_ids", "attention_mask"):
        features[1][key][5] = features[1][key][0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (3, port, model, features, tmp_path), nprocs=3)
    for number, (shares, (make, teacher), mini_batch_tokens) in enumerate(cases()):
        expected_loss, expected = loss_and_gradient(model, features, make, teacher, mini_batch_tokens)
        found = load_file(tmp_path / f"{number}.safetensors")
        assert found["loss"].item() == pytest.approx(expected_loss.item(), rel=1e-5), shares
        assert_same_gradient(found["gradient"], expected)


def test_a_repeated_pair_is_not_its_own_negative(model):
    features = batch(model, queries=3, columns=1)
    repeated = [
        {k: (torch.cat([v, v[:1]]) if isinstance(v, torch.Tensor) else v) for k, v in f.items()} for f in features
    ]
    logits = maxsim_matrix(*(oracle_embeddings(model, f) for f in repeated))
    logits[0, 3] = logits[3, 0] = float("-inf")
    expected = nn.functional.cross_entropy(logits, torch.arange(4)).item()
    assert cached(model, Contrastive(), repeated)[0].item() == pytest.approx(expected, rel=1e-5)


def test_a_repeated_pair_is_its_own_negative_where_duplicates_are_not_masked(model):
    features = batch(model, queries=3, columns=1)
    repeated = [
        {k: (torch.cat([v, v[:1]]) if isinstance(v, torch.Tensor) else v) for k, v in f.items()} for f in features
    ]
    expected = oracle_contrastive(model, repeated, 1.0).item()
    found = cached(model, Contrastive(mask_duplicates=False), repeated)[0].item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > cached(model, Contrastive(), repeated)[0].item()


def test_distillation_is_zero_for_a_student_that_agrees_and_ignores_the_teachers_scale():
    teacher = torch.tensor([[3.0, 1.0, 2.0], [0.0, 10.0, 5.0]])
    student = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(0, abs=1e-7)
    worse = distillation_loss(student.flip(1), teacher, 1.0)
    assert worse.item() > 0.05
    assert worse.item() == pytest.approx(distillation_loss(student.flip(1), teacher * 7 - 3, 1.0).item(), rel=1e-5)


NO_PREFERENCE = {
    "one candidate": ([[3.0]], [[7.0]]),
    "equal student scores": ([[2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0]]),
    "student scores equal but for rounding": ([[2.0, 2.0 + 5e-7, 2.0]], [[1.0, 2.0, 3.0]]),
    "equal teacher scores": ([[1.0, 2.0, 3.0]], [[5.0, 5.0, 5.0]]),
}


@pytest.mark.parametrize(("student", "teacher"), NO_PREFERENCE.values(), ids=NO_PREFERENCE)
def test_a_query_without_a_preference_on_either_side_gives_no_gradient(student, teacher):
    scores = torch.tensor(student, requires_grad=True)
    loss = distillation_loss(scores, torch.tensor(teacher), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_a_query_without_a_preference_counts_in_the_mean_and_leaves_the_others_alone():
    student = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 9.0, 5.0], [1.0, 2.0, 3.0]])
    loss = distillation_loss(student, teacher, 0.5)
    loss.backward()
    alone = student.detach()[:1].requires_grad_()
    expected = distillation_loss(alone, teacher[:1], 0.5) / 2
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(student.grad, torch.cat([alone.grad, torch.zeros(1, 3)]), rtol=1e-5)


@given(
    st.lists(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6), min_size=1, max_size=5),
    st.integers(0, 2**31),
    st.sampled_from([0.1, 0.25, 1.0]),
    st.sampled_from(["min-max", "raw"]),
)
@settings(deadline=None)
def test_distillation_is_the_plain_formula_also_with_ties(rows, seed, temperature, scaling):
    ways = min(len(row) for row in rows)
    student = torch.tensor([row[:ways] for row in rows])
    # A span of 1e-6 itself is one of scores that are alike in double precision, and not in single.
    assume(not torch.isclose(student.amax(1) - student.amin(1), torch.tensor(1e-6), rtol=0.01, atol=0).any())
    teacher = torch.rand(student.shape, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    found, plain = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = distillation_loss(found, teacher, temperature, scaling=scaling)
    expected = torch.stack(
        [distillation(s, t, temperature, scaling) for s, t in zip(plain, teacher, strict=True)]
    ).mean()
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
    # A gradient of the scaled scores is divided by their span.
    spans = (student.amax(1) - student.amin(1)).clamp(1e-6, 1)[:, None]
    assert torch.allclose(found.grad * spans, plain.grad.float() * spans, rtol=1e-3, atol=1e-4)


@given(
    st.lists(st.lists(st.floats(-3, 3, width=16), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(0, 2**31),
    st.sampled_from(["min-max", "raw"]),
)
@settings(deadline=None)
def test_margin_mse_is_the_plain_formula_also_with_ties(rows, seed, scaling):
    student = torch.tensor(rows)
    teacher = torch.randint(0, 5, student.shape, generator=torch.Generator().manual_seed(seed)).float()
    expected = torch.stack([margin_mse(s, t, scaling) for s, t in zip(student, teacher, strict=True)]).mean()
    found = margin_mse_loss(student, teacher, scaling)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_distillation_refuses_other_shapes_by_name():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


def test_texts_without_padding_are_what_transformers_makes_of_them(tiny_multi_vector):
    features = column(tiny_multi_vector, [sentence(i, 1 + 3 * i) for i in range(4)], "document")
    ids, mask = features["input_ids"], features["attention_mask"]
    collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True, return_position_ids=True)
    expected = collator([{"input_ids": row[real.bool()].tolist()} for row, real in zip(ids, mask, strict=True)])
    found = unpadded(ids, mask)
    assert set(found) == set(expected) - {"labels"}
    for key, value in found.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected[key]), key
            assert value.dtype == expected[key].dtype, key
        else:
            assert value == expected[key], key
