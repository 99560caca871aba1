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
from colbert_zero.evaluation.significance import bootstrap_means, equal_within, percentile_interval
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.precision import ARITHMETICS, encoding_in
from colbert_zero.report.records import MEASURE


def ranked(model: Encoder, collection: Collection) -> tuple[Run, float]:
    encode(model, list(collection.queries.values())[:32], "query")  # to warm up
    started = time.perf_counter()
    return rank(model, collection, 10), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--collections", nargs="+", required=True, type=Path)
    asked = parser.parse_args()
    strata = []
    print("| model, collection | nDCG@10 float32, bfloat16 | of the first ten | same order | float32 takes × |")
    print("|---|---|---|---|---|")
    for name in asked.models:
        model = load_model(name, device="cpu")
        ways = [encoding_in(model, arithmetic) for arithmetic in ARITHMETICS]
        for place in asked.collections:
            collection = load_beir(place)
            (own, seconds), (half, fewer) = (ranked(way, collection) for way in ways)
            scores = [measure(run, collection.qrels, [MEASURE]) for run in (own, half)]
            (before, one), (after, other) = scores
            strata.append(100 * np.array([other[query][MEASURE] - one[query][MEASURE] for query in one]))
            firsts = [([i for i, _ in own[query]], [i for i, _ in half[query]]) for query in own]
            shared = np.mean([len({*a} & {*b}) / max(1, len(a)) for a, b in firsts])
            same = np.mean([a == b for a, b in firsts])
            means = f"{before[MEASURE]:.4f}, {after[MEASURE]:.4f}"
            path = Path(name).resolve()
            row = [
                f"{path.parent.name if path.name == 'model' else path.name}, {place.name}",
                means,
                f"{shared:.1%}",
                f"{same:.1%}",
            ]
            print("|", " | ".join([*row, f"{seconds / fewer:.2f}"]), "|", flush=True)
    drawn = bootstrap_means(strata).mean(axis=0)
    low, high = percentile_interval(drawn)
    mean = np.mean([stratum.mean() for stratum in strata])
    print(f"points in the mean: {mean:+.3f} [{low:+.3f}, {high:+.3f}], equal within {equal_within(drawn):.3f}")


if __name__ == "__main__":
    main()
