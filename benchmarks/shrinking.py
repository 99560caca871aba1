"""What models lose by being cut: python benchmarks/shrinking.py --collection PATH --model MODEL [--model MODEL …]

Of each model (multi-vector and dense, say): nDCG@10 as it is and without layers, neurons, with zeros and on grids;
the difference with its 95 % interval (paired bootstrap over
queries); bytes of the weights as float32, and what they would take packed; documents a second of processor time, one
thread, medians of rounds in turn. Nothing is trained anew. Layers are chosen by token vectors of 32 documents, by no
judgement. Then, of the first two models, whether one loses less than the other: the difference of their differences,
over the same queries.

`--queries` and `--documents` take a part of the collection, by a seed: so many queries, with the documents that are
judged for them and others; `--tokens` lets all read equally much. A line is printed when it is known. Give it one
thread (OMP_NUM_THREADS=1).
"""

import random
import statistics
import time
from typing import Any

import numpy as np
import torch

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import load_beir
from colbert_zero.evaluation.shrinking import loss, scores_of
from colbert_zero.models.axes import table_of
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.shrinking import (
    Cuts,
    cut,
    encoder_of,
    kept_after,
    layers_in,
    packed_bytes,
    parameters,
    removals,
)
from colbert_zero.models.shrunk import sample_of
from harness import parser_of, report

NAMES = {
    "as it is": Cuts(),
    "5 layers": Cuts(layers=5),
    "4 layers": Cuts(layers=4),
    "3 layers": Cuts(layers=3),
    "neurons 0.75": Cuts(neurons=0.75),
    "neurons 0.5": Cuts(neurons=0.5),
    "zeros 0.3": Cuts(zeros=0.3),
    "zeros 0.5": Cuts(zeros=0.5),
    "zeros 0.6": Cuts(zeros=0.6),
    "8 bits": Cuts(bits=8),
    "4 bits": Cuts(bits=4),
}


def part_of(whole: Collection, queries: int, documents: int, seed: int) -> Collection:
    """So many queries, and so many documents: those judged relevant for them, and others."""
    dice = random.Random(seed)
    chosen = dice.sample(sorted(whole.queries), min(queries, len(whole.queries)))
    judged = {d for q in chosen for d, grade in whole.qrels[q].items() if grade > 0}
    texts = dict(whole.documents())
    others = dice.sample(sorted(set(texts) - judged), max(0, min(documents, len(texts)) - len(judged)))
    kept = judged & set(texts) | set(others)
    qrels = {q: {d: grade for d, grade in whole.qrels[q].items() if d in kept} for q in chosen}
    return Collection.from_memory(
        f"{whole.name}, {len(chosen)} queries, {len(kept)} documents",
        {d: text for d, text in texts.items() if d in kept},
        {q: whole.queries[q] for q in chosen if qrels[q]},
        {q: grades for q, grades in qrels.items() if grades},
    )


def speed(models: dict[str, Encoder], texts: list[str], rounds: int) -> dict[str, float]:
    """Documents a second of processor time, which other work on the machine does not add to."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            started = time.process_time()
            encode(model, texts, "document")
            times[name].append(time.process_time() - started)
    return {name: len(texts) / statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = parser_of(__doc__, "30 queries, 100 documents")
    parser.add_argument("--collection", action="append", required=True, metavar="PATH", help="in BEIR layout")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--tokens", type=int, default=10**9, help="that a model reads of a text, at most")
    parser.add_argument("--chosen-by", type=int, default=32, help="documents by which layers are chosen")
    parser.add_argument("--rounds", type=int, default=3, help="of encoding those, for speed; 0: speed is not measured")
    parser.add_argument("--queries", type=int, default=10**9)
    parser.add_argument("--documents", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cut", action="append", choices=list(NAMES), help="these alone; all by default")
    asked = parser.parse_args()
    if asked.quick:
        asked.queries, asked.documents = 30, 100
    names = {name: NAMES[name] for name in NAMES if name == "as it is" or not asked.cut or name in asked.cut}
    collections = [
        part_of(load_beir(place, "test"), asked.queries, asked.documents, asked.seed) for place in asked.collection
    ]
    print("; ".join(f"{c.name}: {len(c.queries)} judged" for c in collections), flush=True)
    texts = sample_of([text for c in collections for _, text in c.documents()], asked.chosen_by)
    models = [Cut(folder, names, texts, asked.tokens, asked.rounds) for folder in asked.model]
    rows, records = [], []
    for name in names:
        losses = []
        for number, model in enumerate(models):
            found = model.smaller[name]
            scores = np.concatenate([scores_of(found, collection) for collection in collections])
            model.before = scores if name == "as it is" else model.before
            lost, packed = loss(model.before, scores), 1e-6 * packed_bytes(found, names[name].bits)
            losses.append(scores - model.before)
            megabytes, speed = 4e-6 * parameters(found), model.per_second.get(name)
            rows.append([str(number), name, 100 * lost["score"], *shown(lost), megabytes, packed, speed or "–"])
            records.append({"model": number, "name": name, **lost, "megabytes": megabytes, "packed": packed,
                            "per_second": speed, "per_query": scores.tolist()})  # fmt: skip
            print(*rows[-1], sep="  ", flush=True)
        if len(models) > 1 and name != "as it is":
            apart = loss(losses[1], losses[0])
            rows.append(["0 − 1", name, "", *shown(apart), "", "", ""])
            records.append({"model": "0 - 1", "name": name, **apart})
            print(*rows[-1], sep="  ", flush=True)
    for number, folder in enumerate(asked.model):
        print(f"model {number}: {folder}")
    columns = ["model", "cut", "nDCG@10", "difference", "95 %", "MB", "MB packed", "documents/s"]
    report("shrinking", columns, rows, {"collections": [c.name for c in collections], "seed": asked.seed,
                                        "threads": torch.get_num_threads(), "records": records})  # fmt: skip


def shown(lost: dict[str, Any]) -> tuple[float, str]:
    low, high = (100 * bound for bound in lost["interval"])
    return 100 * lost["difference"], f"{low:+.2f} to {high:+.2f}"


class Cut:
    """A model and all its cuts."""

    def __init__(self, folder: str, names: dict[str, Cuts], texts: list[str], tokens: int, rounds: int) -> None:
        model = load_model(folder, device="cpu")
        first: Any = model[0]
        first.max_seq_length = min(tokens, first.max_seq_length)
        self.before = np.zeros(0)
        encoder = encoder_of(model, folder)
        layers = layers_in(encoder, table_of(encoder, folder))
        fewest = min((c.layers for c in names.values() if isinstance(c.layers, int)), default=layers)
        left_out = removals(model, fewest, texts, folder) if fewest < layers else []
        for step in left_out:
            print(
                f"{folder}: out goes layer {step['layer']}, {step['cosine']:.3f}; others {step['others']}", flush=True
            )
        self.smaller = {}
        for name, cuts in names.items():
            kept = kept_after(layers, left_out[: layers - cuts.layers]) if isinstance(cuts.layers, int) else None
            self.smaller[name] = cut(model, Cuts(kept, cuts.neurons, cuts.zeros, cuts.bits), folder)
        faster = {n: m for n, m in self.smaller.items() if n == "as it is" or "layers" in n or "neurons" in n}
        self.per_second = speed(faster, texts, rounds) if rounds else {}


if __name__ == "__main__":
    main()
