"""What a compiled MaxSim would gain: python benchmarks/compiled_maxsim.py [--quick]

A prototype of the forward pass in C++ (compiled_maxsim.cpp: AVX2, exact arg-max, a block of products never leaves the
registers) against ours in PyTorch, 64 queries × 32 tokens, 512 documents of 104 tokens on average, one thread; scores
and positions must be equal. Then by Amdahl: MaxSim's share of a whole step, forward and backward, of the quickstart's
encoder at its batch and of the MiniLM-sized one of training_step.py at 512, at temperature 1, where every pair has a
gradient; what the step would gain by the prototype, and what it would if MaxSim's backward took no time either, which
no program reaches. Needs g++.
"""

import ctypes
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from colbert_zero.maxsim import cpu
from colbert_zero.maxsim.packed import Packed, Spans, row_starts
from colbert_zero.maxsim.scores import packed_scores
from harness import parser_of, report
from training_step import DIM, ENCODERS, loss_of, model_of, pairs, write_encoder

QUERIES, Q_TOKENS, DOCUMENTS = 64, 32, 512
ENCODERS["quickstart's"] = {
    "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 384,
}  # fmt: skip
STEPS = {"quickstart's": 128, "MiniLM-sized": 512}


def unit(rows: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, DIM), dim=-1)


def timed(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of the processor's seconds, in turn, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, step in contenders.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def prototype(library: ctypes.CDLL, queries: Tensor, documents: Spans) -> tuple[Tensor, Tensor]:
    """Best products and positions, (documents, query tokens)."""
    count, dim = queries.shape
    space = torch.empty(count * dim + 8)
    panels = space[-space.data_ptr() // 4 % 8 :][: count * dim].view(count // 16, dim, 16)
    panels.copy_(queries.view(count // 16, 16, dim).transpose(1, 2))
    best = torch.empty(len(documents.lengths), count)
    positions = torch.empty(len(documents.lengths), count, dtype=torch.uint8)
    sides = (
        panels,
        count // 16,
        dim,
        documents.values,
        documents.starts,
        documents.lengths,
        len(best),
        best,
        positions,
    )
    library.maxsim_forward(
        *(ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int64(x) for x in sides)
    )
    return best, positions


def kernel(library: ctypes.CDLL, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    lengths = (104 + 38 * torch.randn(DOCUMENTS)).round().clamp(8, 178).long()
    queries, q_lengths = unit(QUERIES * Q_TOKENS), torch.full((QUERIES,), Q_TOKENS)
    own_q = Spans(queries, row_starts(q_lengths)[:-1], q_lengths)
    own_d = Spans(unit(int(lengths.sum())), row_starts(lengths)[:-1], lengths)
    weights = torch.randn(QUERIES, DOCUMENTS)
    scores, kept = cpu._score_all(own_q, own_d, keep=True)
    best, positions = prototype(library, queries, own_d)
    assert kept is not None
    assert torch.equal(positions, kept)
    torch.testing.assert_close(best.view(DOCUMENTS, QUERIES, Q_TOKENS).sum(2).T, scores)

    def backward() -> None:
        gradients = cpu.Gradients(own_q, own_d, (True, True), cpu.CHUNK_HITS)
        gradients.add_all(0, weights, kept)
        gradients.result()

    return timed(
        {
            "forward": lambda: cpu._score_all(own_q, own_d, keep=True),
            "prototype": lambda: prototype(library, queries, own_d),
            "backward": backward,
        },
        rounds,
    )


def share(path: str, batch: int, rounds: int) -> float:
    """MaxSim's part of a step's processor time, forward and backward."""
    model, features = model_of("ours", path).train(), pairs(batch)
    loss, optimiser = loss_of("ours", model, cached=batch > 128), torch.optim.AdamW(model.parameters())

    def step() -> None:
        loss(features)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    q_lengths, d_lengths = (column["attention_mask"].sum(1) for column in features)
    sides = unit(int(q_lengths.sum())).requires_grad_(), unit(int(d_lengths.sum())).requires_grad_()

    def maxsim() -> None:
        found = packed_scores(Packed(sides[0], q_lengths), Packed(sides[1], d_lengths))
        torch.nn.functional.cross_entropy(found, torch.arange(batch)).backward()

    found = timed({"step": step, "maxsim": maxsim}, rounds)
    return found["maxsim"] / found["step"]


def main() -> None:
    asked = parser_of(__doc__, "one round of the small step alone").parse_args()
    if not shutil.which("g++") or not torch.cpu._is_avx2_supported():
        sys.exit("not measured: needs g++ and a processor with AVX2")
    torch.set_num_threads(1)
    rounds = 1 if asked.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "maxsim.so"
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run(["g++", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", source, "-o", built], check=True)
        found = kernel(ctypes.CDLL(str(built)), rounds)
        both = found["forward"] + found["backward"]
        print(f"forward {1e3 * found['forward']:.0f} ms, prototype's {1e3 * found['prototype']:.0f} ms "
              f"({found['forward'] / found['prototype']:.2f} ×), backward {1e3 * found['backward']:.0f} ms; together "
              f"{both / (found['prototype'] + found['backward']):.2f} ×")  # fmt: skip
        rows, records = [], [found]
        for name, batch in list(STEPS.items())[: 1 if asked.quick else 2]:
            path = write_encoder(Path(folder), name, ["one text"])
            part = share(path, batch, 1 if batch > 128 else rounds)
            gains = [1 / (1 - part * (1 - less / both)) - 1
                     for less in (found["prototype"] + found["backward"], found["prototype"])]  # fmt: skip
            rows.append([name, batch, *(f"{100 * x:.1f} %" for x in (part, *gains))])
            records.append({"encoder": name, "batch": batch, "share": part, "gains": gains})
    columns = ["encoder", "batch", "MaxSim's share", "a step gains", "if backward were free"]
    report("compiled_maxsim", columns, rows, records)


if __name__ == "__main__":
    main()
