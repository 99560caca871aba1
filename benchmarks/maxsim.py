"""MaxSim of all pairs, forward and backward, against the peers: python benchmarks/maxsim.py [--quick]

64 queries × 32 tokens; documents of at most 180 tokens (104 on average), dim 128, float32. The loss is the
cross-entropy of score / temperature with the positives in the first columns. The embeddings look trained:
unit length, every text's tokens share a direction, and a positive holds noisy copies of its query's tokens.
So at temperature 0.02 the softmax is nearly one-hot and few pairs carry a gradient, as in training. Every
contender gets the same padded embeddings and mask, and returns gradients of the same shape; packing is part
of our time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import in_turn, measure, parse, parser_of, report, summary

QUERIES, Q_TOKENS, D_TOKENS, DIM = 64, 32, 180, 128
CONTENDERS = ["ours", "sentence-transformers", "pylate"]


def embeddings(queries: int, documents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (queries, q_tokens, dim), documents (documents, d_tokens, dim), mask; i answers query i."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, DIM, generator=generator), dim=-1)

    q = F.normalize(noise(queries, Q_TOKENS) + noise(queries, 1), dim=-1)
    d = noise(documents, D_TOKENS)
    d += noise(documents, 1)
    answers = min(queries, documents)
    d[:answers, :Q_TOKENS] = q[:answers] + 0.8 * noise(answers, Q_TOKENS)
    d = F.normalize(d, dim=-1)
    lengths = (104 + 38 * torch.randn(documents, generator=generator)).round().clamp(Q_TOKENS, D_TOKENS)
    return q, d, torch.arange(D_TOKENS) < lengths[:, None]


def scores_of(contender: str) -> Any:
    """The peer's function of (queries, documents, queries_mask, documents_mask)."""
    if contender == "pylate":
        from pylate.scores import colbert_scores as pylate_scores

        return pylate_scores
    if contender == "sentence-transformers":
        from sentence_transformers.multi_vector_encoder.scoring import colbert_scores as function
    else:
        from colbert_zero.maxsim.scores import maxsim_scores as function
    return lambda q, d, q_mask, d_mask: function(q, d[:, None], q_mask, d_mask[:, None])


def child(contender: str, documents: int, temperature: float, repeats: int) -> dict[str, float]:
    """One contender's measurement, in this process."""
    q, d, d_mask = embeddings(QUERIES, documents)
    q_mask = torch.ones(QUERIES, Q_TOKENS, dtype=torch.bool)
    q.requires_grad_(), d.requires_grad_()
    scores, labels = scores_of(contender), torch.arange(QUERIES)

    def step() -> None:
        q.grad = d.grad = None
        F.cross_entropy(scores(q, d, q_mask, d_mask) / temperature, labels).backward()

    return measure(step, repeats)


def main() -> None:
    parser = parser_of(__doc__, "64 and 256 documents, one round")
    arguments = parse(parser, child)
    sizes, rounds, repeats = ([64, 256], 1, 3) if arguments.quick else ([64, 128, 256, 512, 2048], 3, 3)
    cases = [{"documents": n, "temperature": t, "repeats": repeats} for n in sizes for t in (1.0, 0.02)]
    rows, records = [], []
    for case, runs in in_turn(__file__, CONTENDERS, cases, rounds):
        found = summary(runs)
        records.append({**case, "summary": found, "runs": runs})
        for contender, row in found.items():
            per_document = row["milliseconds"] / case["documents"]
            rows.append([case["documents"], case["temperature"], contender, *row.values(), per_document])
    columns = ["documents", "temperature", "contender", "ms", "peak MiB", "× time", "× memory", "disturbed"]
    report("maxsim", [*columns, "ms/document"], rows, records)


if __name__ == "__main__":
    main()
