"""Does bfloat16 cost score? A recipe trained in float32 and in bfloat16, several seeds, compared query by query.

    python benchmarks/precision_study.py RECIPE OUT [--seeds 1 2 3] [--set KEY=VALUE …] [--only PIPELINES]

Every phase that is trained has that precision, and nothing else differs; a seed is one of the order of the data, of
random weights and of held-out pairs. Prints for every system its mean nDCG@10 in both, the differences of the seeds,
the interval of their mean (95 %, queries bootstrapped within seeds), and the smallest margin within which two one-sided
tests at .05 show both to be equal; and seconds of training. The same command goes on where it was stopped, and prints
what is there. `evaluate` and the report rank in float32 either way.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.evaluation.significance import compare
from colbert_zero.models.precision import ARITHMETICS
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.report.records import MEASURE


def scores_of(study: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{system.collection: {query: {measure: score}}} of a study that is done."""
    read = {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in study.glob("per_query/*.json")}
    return {name: rows for name, rows in read.items() if not name.startswith("bm25.")}


def in_points(row: dict[str, Any]) -> str:
    """A difference that `compare` tested, with its interval."""
    low, high = (100 * bound for bound in row["interval"])
    return f"{100 * row['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


def seconds_of(study: Path) -> float:
    """What its phases trained for, each once."""
    records = [json.loads(path.read_text()) for path in study.glob("phases/*/phase.json")]
    return sum(record["wall_seconds"] for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `colbert-zero run`")
    parser.add_argument("--only", metavar="PIPELINES", help="as in `colbert-zero run`")
    asked = parser.parse_args()
    studies = {}
    for seed in asked.seeds:
        for arithmetic in ARITHMETICS:
            changes = [*asked.set, "validation.layers=false", f"seed={seed}"]
            changes += [
                f"phases.{name}.precision={arithmetic}" for name in load_recipe(asked.recipe, asked.set).trained
            ]
            out = studies[seed, arithmetic] = asked.out / f"{arithmetic}-{seed}"
            options = [option for change in changes for option in ("--set", change)]
            options += ["--only", asked.only] if asked.only else []
            run = [sys.executable, "-m", "colbert_zero", "run", asked.recipe, "--out", str(out), *options]
            if subprocess.run(run, stdout=sys.stderr).returncode:
                sys.exit(f"{arithmetic}, seed {seed}: the run failed")
    scores = {key: scores_of(study) for key, study in studies.items()}
    print("| system | float32 | bfloat16 | points, each seed | their mean | equal within |\n|---|---|---|---|---|---|")
    for system in scores[asked.seeds[0], "float32"]:
        of = {f"seed {s}": {way: scores[s, way][system] for way in ARITHMETICS} for s in asked.seeds}
        means = [
            f"{np.mean([np.mean([row[MEASURE] for row in ways[way].values()]) for ways in of.values()]):.4f}"
            for way in ARITHMETICS
        ]
        mean, *seeds = compare(of, [("bfloat16", "float32")], MEASURE)
        each = ", ".join(f"{100 * row['difference']:+.2f}" for row in seeds)
        print("|", " | ".join([system, *means, each, in_points(mean), f"{100 * mean['equal_within']:.2f}"]), "|")
    for arithmetic in ARITHMETICS:
        each = ", ".join(f"{seconds_of(studies[seed, arithmetic]):.0f} s" for seed in asked.seeds)
        print(f"training in {arithmetic}: {each}")


if __name__ == "__main__":
    main()
