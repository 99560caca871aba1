"""A whole training step against the peers: python benchmarks/training_step.py [--quick | --full]

From tokenised pairs to the next weights: contrastive loss with in-batch negatives, backward, clipping, AdamW.
Two BERTs with random weights, the same for all contenders, and a projection to 128 dimensions; float32, no
dropout, temperature 1. Queries of at most 32 tokens (20 on average), documents of at most 180 (104), in random
order and padded to the longest, as a data collator gives them. A document shares 4 tokens with its query, so the
loss is far from 0 and nearly every pair carries a gradient: the least favourable case for our MaxSim, which
skips pairs without one.

Cached: the peers' GradCache losses with a mini_batch_size of 16 texts, ours with the tokens of 16 of the longest
documents, mini_batch_tokens = 16 × 180. With 4, 8 or 32 (their default) neither peer was more than 10 % faster. Both
score 8 queries at once, which is as fast as more and takes less memory. sentence-transformers could bound its chunks
by mini_batch_num_tokens instead; that counts real tokens only, so a chunk of the same memory holds no more documents,
and it was no faster.
Plain: all activations are kept, the peers' losses without cache.

Peak memory is what a step adds to the weights and AdamW's moments. The losses of two successive steps must agree
within 0.1 %, the second being that of weights which the first changed; else there is no comparison. At 2,048 queries
a contender makes one step, and its one loss is compared.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import calibrate, in_turn, measure, parse, parser_of, report, summary

CONTENDERS = ["ours", "sentence-transformers", "pylate"]
Q_TOKENS, D_TOKENS, DIM, VOCABULARY, SHARED_TOKENS = 32, 180, 128, 8192, 4
MINI_BATCH_SIZE, SCORE_MINI_BATCH_SIZE = 16, 8
TOLERATED = 1e-3
ENCODERS = {
    "small": {"num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "MiniLM-sized": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
}


def write_encoder(folder: Path, encoder: str, texts: list[str]) -> str:
    """Write an encoder with random weights, and a tokenizer trained on the texts; returns its path."""
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero.models.scratch import train_tokenizer, write_scratch

    disable_progress_bar()
    tokenizer = train_tokenizer(texts, VOCABULARY, [], D_TOKENS)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture = {"model_type": "bert", "vocab_size": VOCABULARY, **dropout, **ENCODERS[encoder]}
    write_scratch(folder / encoder, architecture, tokenizer, seed=0)
    return str(folder / encoder)


def model_of(contender: str, path: str) -> Any:
    """The encoder with its projection, as the contender wants it; all have the same weights."""
    if contender == "pylate":
        from pylate.models import ColBERT

        plain: dict[str, Any] = {"query_prefix": "", "document_prefix": "", "skiplist_words": []}
        model = ColBERT(path, embedding_size=DIM, do_query_expansion=False, device="cpu", **plain)
    else:
        from colbert_zero.models.alignment import Alignment
        from colbert_zero.models.encoders import assemble

        alignment = Alignment("", "", "", "", Q_TOKENS, D_TOKENS)
        model = assemble(path, "multi-vector", alignment, DIM, seed=0, phase="benchmark").cpu()
    projection = model[1].linear.weight
    weights = torch.randn(projection.shape, generator=torch.Generator().manual_seed(0))
    projection.data.copy_(weights / projection.shape[1] ** 0.5)
    return model


def loss_of(contender: str, model: Any, cached: bool) -> Callable[[list[dict[str, Tensor]]], Tensor]:
    """The contender's contrastive loss at its default temperature, which is 1 for all; its gradient is added."""
    if contender == "ours":
        from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
        from colbert_zero.training.objectives import Contrastive

        objective, budget = Contrastive(), MINI_BATCH_SIZE * D_TOKENS if cached else 10**9

        def ours(features: list[dict[str, Tensor]]) -> Tensor:
            texts = [TokenisedTexts(task, **f) for f, task in zip(features, ("query", "document"), strict=True)]
            return grad_cache(model, texts, objective.of(*texts), budget)[0]

        return ours
    if contender == "pylate":
        from pylate.losses import CachedContrastive as Cached
        from pylate.losses import Contrastive as Plain
    else:
        from sentence_transformers.multi_vector_encoder.losses import (
            CachedMultiVectorMultipleNegativesRankingLoss as Cached,
        )
        from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss as Plain
    chunks = {"mini_batch_size": MINI_BATCH_SIZE, "score_mini_batch_size": SCORE_MINI_BATCH_SIZE}
    loss_function = Cached(model, **chunks) if cached else Plain(model)

    def theirs(features: list[dict[str, Tensor]]) -> Tensor:
        # A copy, because a model writes its outputs into its features.
        loss = loss_function([dict(column) for column in features], None)
        loss.backward()
        return loss

    return theirs


def pairs(batch: int) -> list[dict[str, Tensor]]:
    """Features of queries and documents, (batch, tokens) each; document i answers query i."""
    generator = torch.Generator().manual_seed(0)
    columns = []
    for tokens, mean, deviation in ((Q_TOKENS, 20, 7), (D_TOKENS, 104, 38)):
        lengths = mean + deviation * torch.randn(batch, generator=generator)
        mask = torch.arange(tokens) < lengths.round().clamp(2 * SHARED_TOKENS, tokens)[:, None]
        # The first ids are the tokenizer's special tokens.
        ids = torch.randint(5, VOCABULARY, (batch, tokens), generator=generator)
        columns.append({"input_ids": ids, "attention_mask": mask.long()})
    columns[1]["input_ids"][:, :SHARED_TOKENS] = columns[0]["input_ids"][:, :SHARED_TOKENS]
    return [{**c, "input_ids": c["input_ids"] * c["attention_mask"]} for c in columns]


def child(contender: str, path: str, batch: int, cached: bool, repeats: int, **_: Any) -> dict[str, Any]:
    """One contender's measurement, in this process."""
    model = model_of(contender, path).train()
    loss_function = loss_of(contender, model, cached)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []

    def step(features: list[dict[str, Tensor]]) -> None:
        loss = loss_function(features)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())

    features = pairs(batch)
    # What is loaded or allocated once, AdamW's moments among it, is no part of a step's peak.
    step(pairs(8))
    return {**measure(lambda: step(features), repeats), "losses": losses[1:3]}


def check(case: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse to compare contenders that do not do the same work."""
    ours = runs["ours"][0]["losses"]
    for contender, found in runs.items():
        for run in found:
            if any(abs(a - b) > TOLERATED * abs(b) for a, b in zip(run["losses"], ours, strict=True)):
                raise SystemExit(f"{case}: the losses of {contender} are {run['losses']}, ours are {ours}")


def expected_minutes(cases: list[dict[str, Any]]) -> float:
    """A rough guess from this machine's speed: encoding runs near it, the peers' MaxSim at a seventh of it."""
    flops_per_second = 2 * 768**3 / calibrate()
    seconds = 0.0
    for case in cases:
        encoder = ENCODERS[case["encoder"]]
        weights = 12 * encoder["num_hidden_layers"] * encoder["hidden_size"] ** 2
        encoding = 8 * weights * case["batch"] * (Q_TOKENS + D_TOKENS)
        scoring = 7 * 6 * DIM * case["batch"] ** 2 * Q_TOKENS * D_TOKENS
        steps = case["rounds"] * (1 + case["repeats"])
        seconds += len(CONTENDERS) * (steps * (1.4 * encoding + 0.8 * scoring) / flops_per_second + 12 * case["rounds"])
    return seconds / 60


def cases_of(
    encoders: list[str], batches: list[int], most_rounds: int, quick: bool, full: bool
) -> list[dict[str, Any]]:
    """What takes minutes a step is measured once, at 2,048 in one step, and with the larger encoder only on request."""
    cases = []
    for encoder, batch, cached in itertools.product(encoders, batches, (False, True)):
        wanted = (cached or batch == 128) and (encoder == "small" or batch < 2048 or full)
        if wanted and not (quick and (encoder != "small" or batch > 512)):
            once = quick or batch == 2048 or (batch, encoder) == (512, "MiniLM-sized")
            repeats = 0 if batch == 2048 else 1 if quick or batch > 128 else 2
            rounds = 1 if once else most_rounds
            cases.append({"encoder": encoder, "batch": batch, "cached": cached, "rounds": rounds, "repeats": repeats})
    return cases


def main() -> None:
    parser = parser_of(__doc__, "the small encoder, 128 and 512 queries, one round")
    parser.add_argument("--full", action="store_true", help="also 2048 queries with the larger encoder")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    parser.add_argument("--rounds", type=int, default=3, help="of what takes less than a minute a step")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 2048], help="queries a step")
    arguments = parse(parser, child)
    cases = cases_of(arguments.encoders, arguments.batches, arguments.rounds, arguments.quick, arguments.full)
    print(f"{len(cases)} cases, expected to take {expected_minutes(cases):.0f} minutes", file=sys.stderr)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = {encoder: write_encoder(Path(folder), encoder, ["one text"]) for encoder in ENCODERS}
        for case in cases:
            located = {**case, "path": paths[case["encoder"]]}
            [(_, runs)] = in_turn(__file__, CONTENDERS, [located], case["rounds"])
            check(case, runs)
            found = summary(runs)
            records.append({**case, "mini_batch_tokens": MINI_BATCH_SIZE * D_TOKENS, "summary": found, "runs": runs})
            for contender, row in found.items():
                way = "cached" if case["cached"] else "plain"
                texts_per_second = 2e3 * case["batch"] / row["milliseconds"]
                rows.append([case["encoder"], case["batch"], way, contender, *row.values(), texts_per_second])
    columns = ["encoder", "batch", "loss", "contender", "ms", "peak MiB", "× time", "× memory", "disturbed", "texts/s"]
    report("training_step", columns, rows, records)


if __name__ == "__main__":
    main()
