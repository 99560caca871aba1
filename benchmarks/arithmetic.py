"""A training step and encoding in float32 and in bfloat16, on this machine: python benchmarks/arithmetic.py [--quick]

What `precision: auto` decides on: contrastive steps of the program's own, in the chunks it takes by default, at
temperature 1, on the pairs of training_step.py, and encoding those pairs' documents. Encoders with random weights: the
quickstart's, and the two of training_step.py. In bfloat16 a step is under autocast; on a processor it attends in plain
products, beside it with fused attention, as float32 does. Encoding in bfloat16 is by a copy of the weights. In turn,
each in a process of its own; `× time` is against float32 in the same round.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from colbert_zero.models.encoding import forward
from colbert_zero.models.precision import Arithmetic, attend_fast, encoding_in, faster
from colbert_zero.training.execution import autocast_of
from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
from colbert_zero.training.objectives import Contrastive
from harness import in_turn, measure, parse, parser_of, report, summary
from training_step import ENCODERS, model_of, pairs, write_encoder

WAYS = ["ours", "bfloat16", "bfloat16, fused attention"]  # what is `ours` to the harness is float32
ENCODERS["quickstart's"] = {
    "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 384,
}  # fmt: skip
MINI_BATCH_TOKENS = 32_768  # the default; a chunk on a processor has 2,048


def child(contender: str, path: str, batch: int, encoding: bool, repeats: int, **_: Any) -> dict[str, Any]:
    """One way's measurement, in this process."""
    arithmetic: Arithmetic = "float32" if contender == "ours" else "bfloat16"
    model = model_of("ours", path)
    texts = [TokenisedTexts(task, **f) for f, task in zip(pairs(batch), ("query", "document"), strict=True)]
    if encoding:
        model = encoding_in(model.eval(), arithmetic)
        documents = texts[1].features(list(range(batch)))

        @torch.no_grad()
        def step() -> None:
            for start in range(0, batch, 32):
                forward(model, {name: f[start : start + 32] for name, f in documents.items()}, "document")

        return measure(step, repeats)
    model.train()
    if contender == "bfloat16":
        attend_fast(model, arithmetic)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    precision, loss_of = autocast_of(arithmetic, model.device), Contrastive().of(*texts)

    def step() -> None:
        grad_cache(model, texts, loss_of, MINI_BATCH_TOKENS, precision)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return measure(step, repeats)


def main() -> None:
    parser = parser_of(__doc__, "batches of 64, one round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parse(parser, child)
    rounds, batch = (1, 64) if asked.quick else (asked.rounds, 128)
    print(f"`precision: auto` is {faster(torch.device('cpu'))} on this processor")
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        for encoder in ENCODERS:
            path = write_encoder(Path(folder), encoder, ["one text"])
            for encoding in (False, True):
                case = {"encoder": encoder, "batch": batch, "encoding": encoding, "repeats": 2}
                [(_, runs)] = in_turn(__file__, WAYS[:2] if encoding else WAYS, [{**case, "path": path}], rounds)
                found = summary(runs)
                records.append({**case, "summary": found, "runs": runs})
                for way, row in found.items():
                    name = "float32" if way == "ours" else way
                    rows.append([encoder, "encoding" if encoding else "a step", name, *row.values()])
    report(
        "arithmetic",
        ["encoder", "what", "arithmetic", "ms", "peak MiB", "× time", "× memory", "disturbed"],
        rows,
        records,
    )


if __name__ == "__main__":
    main()
