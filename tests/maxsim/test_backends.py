"""Which backend scores, where one fails or is wrong on the present device."""

import pytest
import torch

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.maxsim import backends, cpu, plain
from colbert_zero.maxsim.packed import Packed, Spans, row_starts
from colbert_zero.maxsim.scores import packed_candidate_scores, packed_scores
from helpers import data, study, write_rows

CPU = torch.device("cpu")


def scaled(scores):
    """Right scores, gradients a tenth too large."""
    return scores + 0.1 * (scores - scores.detach())


WRONG = {
    "does not compile": (None, "fails with RuntimeError: no code for this device"),
    "scores others": (lambda scores, n_ways: scores * 1.1, "gives other scores in float32 than the definition, by "),
    "scores nothing": (lambda scores, n_ways: scores * float("nan"), "gives other scores"),
    "has other gradients": (lambda scores, n_ways: scaled(scores), "gives other gradients"),
    "is wrong on candidates alone": (lambda scores, n_ways: scores + (n_ways > 0), "gives other scores"),
    "misses a last token": ("short", "gives other scores"),
}


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not scored yet."""
    monkeypatch.setattr(backends, "_told", set())
    backends.fault.cache_clear()
    yield
    backends.fault.cache_clear()


def break_torch(monkeypatch, change):
    right = cpu.scores

    def scores(queries, documents, n_ways=0):
        if change is None:
            raise RuntimeError("no code for this device\nlong details")
        if change == "short":
            return right(
                queries, documents._replace(lengths=documents.lengths - (documents.lengths > 1).long()), n_ways
            )
        return change(right(queries, documents, n_ways), n_ways)

    monkeypatch.setattr(cpu, "scores", scores)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", WRONG)
def test_a_backend_that_is_wrong_here_is_told_once_and_the_plain_one_takes_its_place(how, monkeypatch):
    change, said = WRONG[how]
    break_torch(monkeypatch, change)
    assert backends.backend(CPU) == "plain"
    found, told = backends.refused(CPU), []
    assert list(found) == ["torch"]
    assert found["torch"].startswith(said)
    for _ in range(2):
        backends.tell_refused(found, told.append)
    assert told == [f"MaxSim: the backend torch is not used, since on a small case on this device it {found['torch']}"]


@pytest.mark.usefixtures("fresh")
def test_a_backend_that_is_right_is_looked_at_once_a_process_also_while_nothing_is_to_be_differentiated(monkeypatch):
    calls = []
    right = backends._computed
    monkeypatch.setattr(backends, "_computed", lambda *args, **more: calls.append(1) or right(*args, **more))
    with torch.no_grad(), torch.inference_mode():
        assert backends.backend(CPU) == "torch"
    count = len(calls)
    assert backends.backend(CPU) == "torch"
    assert not backends.refused(CPU)
    assert len(calls) == count > 0


@pytest.mark.usefixtures("fresh")
def test_on_a_device_whose_kernels_do_not_compile_torch_scores(monkeypatch):
    monkeypatch.setattr(backends, "wanted", lambda device: ["triton", "torch", "plain"])
    monkeypatch.setattr(
        backends, "kernels", lambda name, right=backends.kernels: right(name) if name != "triton" else 1
    )
    assert backends.backend(CPU) == "torch"
    assert backends.refused(CPU) == {"triton": "fails with TypeError: 'int' object is not callable"}


@pytest.mark.parametrize("block", [1 << 22, 1])
@pytest.mark.parametrize("n_ways", [0, 2])
def test_the_plain_path_agrees_with_the_packed_one_whatever_its_block(block, n_ways, monkeypatch):
    monkeypatch.setattr(plain, "BLOCK_ELEMENTS", block)
    q_lengths, d_lengths = torch.tensor([3, 0, 5]), torch.tensor([20, 0, 1, 70, 7, 3])
    generator = torch.Generator().manual_seed(3)
    q, d = (torch.randn(int(n.sum()), 16, generator=generator, requires_grad=True) for n in (q_lengths, d_lengths))
    sides = Spans(q, row_starts(q_lengths)[:-1], q_lengths), Spans(d, row_starts(d_lengths)[:-1], d_lengths)
    found, right = (module.scores(*sides, n_ways) for module in (plain, cpu))
    torch.testing.assert_close(found, right)
    weights = torch.randn(right.shape, generator=generator)
    gradients = [torch.autograd.grad((scores * weights).sum(), (q, d)) for scores in (found, right)]
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its)


def test_the_plain_path_scores_no_queries_and_no_documents_too():
    none = Spans(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    one = Spans(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    assert plain.scores(none, one).shape == (0, 1)
    assert plain.scores(one, none).shape == (1, 0)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("phase", ["unsupervised", "distillation"])
def test_a_phase_on_such_a_device_is_trained_by_the_plain_path_and_its_record_says_why(phase, tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path, pipelines={"full": ["unsupervised", "distillation"]})
    chain = ("unsupervised", "distillation")[: 1 + (phase == "distillation")]
    records = []
    for folder, change in (("right", lambda scores, n_ways: scores), ("wrong", None)):
        (tmp_path / folder).mkdir()
        backends.fault.cache_clear()
        with monkeypatch.context() as patch:
            break_torch(patch, change)
            one, told = study(tmp_path / folder, recipe), []
            one.show.say = told.append
            one.prepare([("unsupervised",), chain])
            one.train(chain)
            records.append(read_json(one.phase_folder(chain) / "phase.json"))
    seen = [(record["machine"]["maxsim"], list(record["machine"]["maxsim_refused"])) for record in records]
    assert seen == [("torch", []), ("plain", ["torch"])]
    assert [text for text in told if "the backend torch is not used" in text] == told[:1]
    assert records[1]["final_loss"] == pytest.approx(records[0]["final_loss"], rel=1e-4)


@pytest.mark.usefixtures("fresh")
def test_scores_go_through_the_backend_that_is_right(monkeypatch):
    break_torch(monkeypatch, None)
    texts = Packed(torch.eye(4), torch.tensor([1, 3]))
    assert packed_scores(texts, texts).tolist() == [[1, 0], [0, 3]]
    assert packed_candidate_scores(texts, texts, 1).tolist() == [[1], [3]]


@pytest.mark.usefixtures("fresh")
def test_a_resumed_training_does_not_go_on_with_a_backend_that_is_wrong_here(monkeypatch):
    assert backends.can_score("torch", CPU)
    assert backends.can_score("plain", CPU)
    assert not backends.can_score("triton", CPU)
    backends.fault.cache_clear()
    break_torch(monkeypatch, None)
    assert not backends.can_score("torch", CPU)


def test_a_chosen_backend_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "triton")
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ColbertZeroError, match="not installed"):
        backends.wanted(torch.device("cuda"))
