"""Rankings in float32 and by a copy of the weights in bfloat16.

    python benchmarks/precision_rankings.py MODEL … --collections FOLDER …

MODELs are folders, collections folders in BEIR layout. Each model ranks each collection in float32 and by the copy with
which `evaluate`, `index`, `mine` and `teach` encode under `--precision bfloat16`. Prints nDCG@10 of both; the share of
the first ten that stay, and of queries whose first ten stay in their order; seconds; and of all models and collections
the interval of the mean difference (95 %, queries bootstrapped) and the margin within which both are shown to be equal.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import load_beir
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import Run, measure
from colbert_zero.evaluation.significance import compare
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.precision import ARITHMETICS, encoding_in
from colbert_zero.report.records import MEASURE
from precision_study import in_points


def ranked(model: Encoder, collection: Collection) -> tuple[Run, float]:
    encode(model, list(collection.queries.values())[:32], "query")  # to warm up
    started = time.perf_counter()
    return rank(model, collection, 10), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--collections", nargs="+", required=True, type=Path)
    asked = parser.parse_args()
    scores = {}
    print("| model, collection | nDCG@10 float32, bfloat16 | of the first ten | same order | float32 takes × |")
    print("|---|---|---|---|---|")
    for name in asked.models:
        model = load_model(name, device="cpu")
        ways = [encoding_in(model, arithmetic) for arithmetic in ARITHMETICS]
        for place in asked.collections:
            collection = load_beir(place)
            (own, seconds), (half, fewer) = (ranked(way, collection) for way in ways)
            path = Path(name).resolve()
            case = f"{path.parent.name if path.name == 'model' else path.name}, {place.name}"
            (before, one), (after, other) = (measure(run, collection.qrels, [MEASURE]) for run in (own, half))
            scores[case] = {"float32": one, "bfloat16": other}
            firsts = [([i for i, _ in own[query]], [i for i, _ in half[query]]) for query in own]
            shared = np.mean([len({*a} & {*b}) / max(1, len(a)) for a, b in firsts])
            same = np.mean([a == b for a, b in firsts])
            means = f"{before[MEASURE]:.4f}, {after[MEASURE]:.4f}"
            row = [case, means, f"{shared:.1%}", f"{same:.1%}"]
            print("|", " | ".join([*row, f"{seconds / fewer:.2f}"]), "|", flush=True)
    mean = compare(scores, [("bfloat16", "float32")], MEASURE)[0]
    print(f"points in the mean: {in_points(mean)}, equal within {100 * mean['equal_within']:.2f}")


if __name__ == "__main__":
    main()
