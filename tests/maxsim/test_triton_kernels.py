"""What scores on a CUDA device: the Triton kernels in Triton's interpreter, late-interaction-kernels by a stand-in.

The functions named check_... need TRITON_INTERPRET=1 before triton's first import, so one process of its own runs them;
the test of each shows its outcome. Tests marked gpu run the same comparison on a device.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from colbert_zero.errors import ColbertZeroError
from colbert_zero.maxsim import backends
from colbert_zero.maxsim import late_interaction as maxsim_late_interaction
from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import (
    _checked,
    _groups,
    candidate_scores,
    packed_candidate_scores,
    packed_scores,
)
from helpers import ROOT
from oracles import maxsim_matrix

UNEVEN = [3, 0, 5, 1, 40], [20, 0, 1, 70, 7, 3]


def packed(lengths, dim=20, seed=0):
    values = F.normalize(torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return Packed(values.requires_grad_(), torch.tensor(lengths))


def expected_scores(queries, documents):
    """The oracle's scores, -1e9 for documents without tokens."""
    q, d = (side.values.split(side.lengths.tolist()) for side in (queries, documents))
    real = documents.lengths > 0
    scores = torch.full((len(q), len(d)), -1e9, dtype=torch.float64)
    scores[:, real] = maxsim_matrix(list(q), [document for document in d if len(document)])
    return scores


def assert_agrees(scores, expected, queries, documents, tolerance=1e-5, share=0.7):
    """Scores and both gradients, with some pairs without a gradient."""
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(expected.shape, generator=generator)
    weights *= torch.rand(expected.shape, generator=generator) < share
    torch.testing.assert_close(scores.cpu().double(), expected.double(), rtol=tolerance, atol=tolerance)
    assert scores.dtype == torch.float32
    sides = (queries.values, documents.values)
    found = torch.autograd.grad((scores * weights.to(scores)).sum(), sides, retain_graph=True)
    wanted = torch.autograd.grad((expected * weights.to(expected)).sum(), sides, retain_graph=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def kernels(queries, documents, n_ways=0):
    from colbert_zero.maxsim import triton_kernels as maxsim_triton

    return maxsim_triton.scores(_checked(queries), _checked(documents), n_ways)


def check_scores_and_gradients_of_uneven_and_empty_texts():
    queries, documents = (packed(lengths) for lengths in UNEVEN)
    assert_agrees(kernels(queries, documents), expected_scores(queries, documents), queries, documents)


def check_documents_scored_slice_by_slice():
    from colbert_zero.maxsim import triton_kernels as maxsim_triton

    whole = maxsim_triton.SLICE_BYTES
    maxsim_triton.SLICE_BYTES = 110
    queries, documents = packed([3, 0, 5, 18]), packed([20, 0, 1, 33, 7, 3])
    try:
        assert len(list(maxsim_triton._Batch(_checked(queries), _checked(documents), 0).slices(1))) == 2
        assert_agrees(kernels(queries, documents), expected_scores(queries, documents), queries, documents)
        candidates = packed([20, 0, 1, 33, 7, 3, 2, 2])
        expected = packed_candidate_scores(queries, candidates, 2)
        assert_agrees(kernels(queries, candidates, 2), expected, queries, candidates)
    finally:
        maxsim_triton.SLICE_BYTES = whole


def check_candidates():
    queries, documents = packed([3, 18, 1, 0]), packed([20, 0, 1, 33, 7, 3, 2, 2], seed=1)
    expected = packed_candidate_scores(queries, documents, 2)
    assert_agrees(kernels(queries, documents, 2), expected, queries, documents)


def check_texts_of_one_token_and_of_one_dimension():
    for dim in (1, 4):
        queries, documents = packed([1, 1, 1], dim), packed([1, 1, 1, 1], dim, 1)
        assert_agrees(kernels(queries, documents), expected_scores(queries, documents), queries, documents)


def check_half_precision_inputs_are_summed_in_float32():
    # Triton's interpreter multiplies no bf16; the tests on a device do.
    queries, documents = (packed(lengths) for lengths in UNEVEN)
    half = [Packed(s.values.detach().half().requires_grad_(), s.lengths) for s in (queries, documents)]
    exact = [Packed(s.values.detach().float().requires_grad_(), s.lengths) for s in half]
    scores, expected = kernels(*half), packed_scores(*exact)
    torch.testing.assert_close(scores, expected)
    scores.clamp(min=-1e3).sum().backward()
    expected.clamp(min=-1e3).sum().backward()
    for mine, theirs in zip(half, exact, strict=True):
        torch.testing.assert_close(mine.values.grad, theirs.values.grad.half())


def check_first_of_equal_tokens_gets_the_gradient():
    queries = Packed(torch.ones(2, 4), torch.tensor([2]))
    documents = Packed(torch.ones(103, 4).requires_grad_(), torch.tensor([3, 100]))
    kernels(queries, documents).sum().backward()
    assert documents.values.grad[:, 0].nonzero().flatten().tolist() == [0, 3]
    assert documents.values.grad[0].tolist() == [2.0] * 4


def check_results_are_bitwise_the_same_twice():
    results = []
    for _ in range(2):
        queries, documents = (packed(lengths) for lengths in UNEVEN)
        scores = kernels(queries, documents)
        scores.square().clamp(max=1e6).sum().backward()
        results.append((scores.detach(), queries.values.grad, documents.values.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def check_one_side_alone_may_want_its_gradient():
    for wanted in ((True, False), (False, True)):
        sides = [packed(lengths) for lengths in UNEVEN]
        for side, wants in zip(sides, wanted, strict=True):
            side.values.requires_grad_(wants)
        kernels(*sides).clamp(min=-1e3).sum().backward()
        assert tuple(side.values.grad is not None for side in sides) == wanted


def check_not_a_number_stays_in_the_pairs_of_its_text():
    queries, documents = (packed(lengths) for lengths in UNEVEN)
    with torch.no_grad():
        documents.values[25, 3] = float("nan")
    assert kernels(queries, documents).isnan().nonzero()[:, 1].unique().tolist() == [3]


def check_nothing_to_score():
    none, some, empty = packed([]), packed([2, 3]), packed([0, 0])
    assert kernels(none, some).shape == (0, 2)
    assert kernels(some, none).shape == (2, 0)
    assert kernels(some, empty).tolist() == [[-1e9] * 2] * 2
    assert kernels(empty, some).tolist() == [[0.0] * 2] * 2


def check_padding_between_documents_is_left_where_it_is():
    queries = packed([3, 2])
    documents = F.normalize(torch.randn(2, 3, 6, 20, generator=torch.Generator().manual_seed(3)), dim=-1)
    mask = torch.arange(6) < torch.tensor([[2, 6, 1], [0, 4, 3]])[..., None]
    from colbert_zero.maxsim import triton_kernels as maxsim_triton

    documents.requires_grad_()
    scores = maxsim_triton.scores(_checked(queries), _groups(documents, mask), 3)
    padded = torch.zeros(2, 3, 20)
    padded[0], padded[1, :2] = queries.values[:3], queries.values[3:]
    expected = candidate_scores(padded, documents, torch.tensor([[1, 1, 1], [1, 1, 0]]), mask)
    torch.testing.assert_close(scores, expected)
    mine, theirs = (torch.autograd.grad(s.clamp(min=-1e3).sum(), documents)[0] for s in (scores, expected))
    torch.testing.assert_close(mine, theirs)


def check_the_kernels_pass_their_self_check():
    assert backends.fault("triton", "cpu") is None


@pytest.fixture(scope="module")
def interpreted():
    """What pytest says of the checks in a process with Triton's interpreter."""
    pytest.importorskip("triton", reason="triton comes with CUDA builds of torch only")
    options = ["-o", "python_functions=check_*", "-rA", "-p", "no:cacheprovider", "--noconftest"]
    command = [sys.executable, "-m", "pytest", *options, __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    folder = ROOT
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder).stdout


@pytest.mark.parametrize("name", [name for name in list(globals()) if name.startswith("check_")])
def test_kernels_in_the_interpreter(name, interpreted):
    passed = [line.split("::")[-1] for line in interpreted.splitlines() if line.startswith("PASSED")]
    assert name in passed, interpreted


COMPILED = {
    "_best_tokens": {"BLOCK_Q": 64, "BLOCK_D": 32, "GROUP": 4, "POSITIONS": True},
    "_sum_tokens": {"BLOCK": 32, "BLOCK_T": 64},
    "_query_gradient": {"BLOCK_T": 32, "BLOCK_W": 32},
    "_document_gradient": {"BLOCK_D": 32, "BLOCK_T": 32, "BLOCK_W": 32},
}


@pytest.mark.parametrize("n_ways", [0, 4])
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernels_compile_for_a_hopper_device(name, n_ways, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="triton comes with CUDA builds of torch only")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from colbert_zero.maxsim import triton_kernels as maxsim_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(maxsim_triton, name)
    constants = {"N_WAYS": n_ways, "dim": 48, "DIM": 64, "PRECISION": "ieee", **COMPILED[name]}
    constants = {(i,): constants[n] for i, n in enumerate(kernel.arg_names) if n in constants}
    types = {"q_values": "*bf16", "d_values": "*bf16", "weights": "*fp32", "best": "*fp32", "positions": "*u8"}
    types["out"] = {"_best_tokens": "*u8", "_document_gradient": "*bf16"}.get(name, "*fp32")
    types |= dict.fromkeys(("q_starts", "q_lengths", "d_starts", "d_lengths", "token_query"), "*i64")
    signature = {n: "constexpr" if (i,) in constants else types.get(n, "i32") for i, n in enumerate(kernel.arg_names)}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    multiplies = name in ("_best_tokens", "_document_gradient")
    assert ("mma" in compiled.asm["ptx"]) == multiplies


def stand_in(q, d, q_mask, d_mask, *, backward):
    """MaxSim of padded texts as late-interaction-kernels defines it, 0 for a text without tokens; counts the calls."""
    bucket = max(16, 1 << (q.shape[1] - 1).bit_length())
    pairs = len(q) * (d.shape[1] if d.dim() == 4 else len(d))
    assert max(pairs * bucket, q.numel(), d.numel()) <= maxsim_late_interaction.INDEX_LIMIT
    assert q_mask.dtype == d_mask.dtype == torch.bool
    assert backward == "lowmem"
    stand_in.calls += 1
    products = torch.einsum("qid,qkjd->qkij" if d.dim() == 4 else "qid,kjd->qkij", q, d)
    products = products.masked_fill(~(d_mask[:, :, None] if d.dim() == 4 else d_mask[None, :, None]), float("-inf"))
    best = products.max(3).values
    return best.masked_fill(~q_mask[:, None] | best.isinf(), 0.0).sum(2)


@pytest.mark.parametrize(("limit", "calls", "candidate_calls"), [((1 << 31) - 1, 1, 1), (4000, 3, 3)])
def test_late_interaction_kernels_get_padded_texts_in_calls_within_their_limit(
    limit, calls, candidate_calls, monkeypatch
):
    monkeypatch.setattr(maxsim_late_interaction, "INDEX_LIMIT", limit)
    queries, documents = packed([3, 0, 5]), packed([20, 0, 1, 70, 7, 3])
    stand_in.calls = 0
    scores = maxsim_late_interaction.scores(_checked(queries), _checked(documents), 0, stand_in)
    assert stand_in.calls == calls
    assert_agrees(scores, expected_scores(queries, documents), queries, documents)
    stand_in.calls = 0
    scores = maxsim_late_interaction.scores(_checked(queries), _checked(documents), 2, stand_in)
    assert stand_in.calls == candidate_calls
    assert_agrees(scores, packed_candidate_scores(queries, documents, 2), queries, documents)


def test_backend_is_chosen_by_the_environment_and_a_cpu_always_uses_torch(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv(backends.BACKEND_VARIABLE, raising=False)
    for found, backend in ((object(), "triton"), (None, "torch")):
        monkeypatch.setattr(backends, "find_spec", lambda name, found=found: found)
        assert backends.wanted(cuda)[0] == backend
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    for backend in ("torch", "triton", "late-interaction-kernels", "plain"):
        monkeypatch.setenv(backends.BACKEND_VARIABLE, backend)
        assert backends.wanted(cuda)[0] == backend
        assert backends.wanted(cpu) == ["torch", "plain"]
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "cuda")
    with pytest.raises(ColbertZeroError, match="COLBERT_ZERO_MAXSIM='cuda' is none of auto, torch, triton, late-inter"):
        backends.wanted(cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("backend", ["torch", "triton", "late-interaction-kernels", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_ways", [0, 4])
def test_cuda_backends_agree_with_the_cpu(backend, dtype, n_ways, monkeypatch):
    if backend in ("triton", "late-interaction-kernels"):
        pytest.importorskip({"triton": "triton"}.get(backend, "late_interaction_kernels"))
    monkeypatch.setenv(backends.BACKEND_VARIABLE, backend)
    sides = packed([39, 1, 0, 64, 30], 128), packed([187, 0, 1, 300, *range(1, 17)], 128)
    sides = [Packed(side.values.detach().to(dtype).requires_grad_(), side.lengths) for side in sides]

    def score(device):
        q, d = (Packed(side.values.to(device), side.lengths) for side in sides)
        return packed_candidate_scores(q, d, n_ways) if n_ways else packed_scores(q, d)

    assert backends.fault(backend, "cuda") is None
    rough = dtype == torch.bfloat16 or backend == "late-interaction-kernels"
    assert_agrees(score("cuda"), score("cpu"), *sides, tolerance=2e-2 if rough else 1e-5)
    assert torch.equal(score("cuda"), score("cuda"))
