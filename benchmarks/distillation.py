"""MaxSim of each query with its candidates, forward and backward: python benchmarks/distillation.py [--quick]

32 queries × 32 candidates, as in distillation; the loss is the KL divergence from random teacher scores. The
embeddings are those of maxsim.py: the first candidate of a query holds noisy copies of its tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F

from harness import in_turn, measure, parse, parser_of, report, summary
from maxsim import CONTENDERS, D_TOKENS, DIM, Q_TOKENS, embeddings

QUERIES = 32


def scores_of(contender: str) -> Any:
    """The peer's function of (queries, documents, queries_mask, documents_mask)."""
    if contender == "pylate":
        from pylate.scores import colbert_kd_scores as function
    elif contender == "sentence-transformers":
        from sentence_transformers.multi_vector_encoder.scoring import colbert_kd_scores as function
    else:
        from colbert_zero.maxsim.scores import candidate_scores as function
    return function


def child(contender: str, n_ways: int, repeats: int) -> dict[str, float]:
    """One contender's measurement, in this process."""
    q, d, d_mask = embeddings(QUERIES, QUERIES * n_ways)
    # Document i of the first rows answers query i: interleave, so that it becomes a query's first candidate.
    d = d.view(n_ways, QUERIES, D_TOKENS, DIM).transpose(0, 1).contiguous().requires_grad_()
    d_mask = d_mask.view(n_ways, QUERIES, D_TOKENS).transpose(0, 1).contiguous()
    q_mask = torch.ones(QUERIES, Q_TOKENS, dtype=torch.bool)
    q.requires_grad_()
    scores = scores_of(contender)
    teacher = torch.randn(QUERIES, n_ways, generator=torch.Generator().manual_seed(1)).log_softmax(1)

    def step() -> None:
        q.grad = d.grad = None
        student = scores(q, d, q_mask, d_mask).log_softmax(1)
        F.kl_div(student, teacher, reduction="batchmean", log_target=True).backward()

    return measure(step, repeats)


def main() -> None:
    parser = parser_of(__doc__, "32 candidates, one round")
    arguments = parse(parser, child)
    ways, rounds, repeats = ([32], 1, 3) if arguments.quick else ([8, 32], 3, 5)
    rows, records = [], []
    cases = [{"n_ways": n, "repeats": repeats} for n in ways]
    for case, runs in in_turn(__file__, CONTENDERS, cases, rounds):
        found = summary(runs)
        records.append({**case, "summary": found, "runs": runs})
        rows += [[case["n_ways"], contender, *row.values()] for contender, row in found.items()]
    columns = ["candidates", "contender", "ms", "peak MiB", "× time", "× memory", "disturbed"]
    report("distillation", columns, rows, records)


if __name__ == "__main__":
    main()
