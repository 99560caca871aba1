"""What mining, its filters and the consistency filter are worth, one factor at a time, from a dense encoder.

One multi-vector start (an unsupervised phase of 20 steps), then one supervised phase an arm: the same pairs, steps and
rates, only where its hard negative comes from differs, or whether the pairs were filtered first. Each arm is
trained with three seeds of the order of its data. Scores of a query are means over the seeds; differences are tested
over queries and corrected after Holm. Large collections are ranked for the first seed alone.

    python benchmarks/supervision.py DATA MODEL OUT [--seeds 3] [--no-training]

DATA has `pairs/*.jsonl.gz` and `collections/*` in BEIR layout, MODEL is a folder or Hub id. The same command goes on
where it was stopped; `--no-training` prints the table of what is there. An hour and more on two cores.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from colbert_zero.evaluation.ranking import rank_bm25
from colbert_zero.evaluation.significance import compare
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.study.study import Study
from colbert_zero.terminal import RichShow

PAIRS = ("tldr", "openstax", "mdn_archived", "medquad", "cpp_docs")
COLLECTIONS = ("cranfield", "cacm", "med", "lisa", "checkthat20")
LARGE = ("lisa", "checkthat20")
MEASURE = "nDCG@10"

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {"miners": "random"}),
    "bm25-filtered": ("BM25's best below 95 %", {"miners": "bm25", "max_relative": 0.95}),
    "model": ("MODEL's best", {"miners": "MODEL", "max_relative": 0}),
    "model-filtered": ("MODEL's best below 95 %", {"miners": "MODEL", "max_relative": 0.95}),
    "kept": ("MODEL's best below 95 %, filtered pairs", {"of": "kept", "miners": "MODEL", "max_relative": 0.95}),
}
"""How an arm is called in the table, and what its mined source has; MODEL judges wherever max_relative is asked for."""

QUESTIONS = (
    ("model-filtered", "random"),
    ("bm25-filtered", "random"),
    ("model-filtered", "model"),
    ("model-filtered", "bm25-filtered"),
    ("kept", "model-filtered"),
)
"""Pairs of arms that differ in one factor; and each arm against the start."""


def recipe_of(data: Path, model: str, kept: Path, seeds: int) -> dict[str, Any]:
    """The study: an entry an arm and seed."""
    phase = {"objective": "contrastive", "representation": "multi-vector", "temperature": 0.3}
    sources: dict[str, Any] = {
        "pairs": {"kind": "jsonl", "path": [str(data / "pairs" / f"{name}.jsonl.gz") for name in PAIRS], "limit": 3000}
    }
    if kept.exists():
        sources["kept"] = {"kind": "jsonl", "path": str(kept / "pairs" / "*.jsonl")}
    phases: dict[str, Any] = {
        "untrained": phase | {"sources": ["pairs"], "global_batch_size": 64, "learning_rate": 0, "steps": 1},
        "start": phase | {"sources": ["pairs"], "global_batch_size": 64, "learning_rate": 5e-5, "steps": 20},
    }
    pipelines = {"untrained": ["untrained"], "start": ["start"]}
    for arm, (_, asked) in ARMS.items():
        wanted = {key: value.replace("MODEL", model) if key == "miners" else value for key, value in asked.items()}
        if wanted.get("of", "pairs") not in sources:
            continue
        judge = {"judge": model} if "max_relative" in wanted else {}
        sources[f"{arm}-mined"] = {
            "kind": "mined", "of": "pairs", "negatives": 3, "depth": 50, "queries": 3000, **wanted, **judge
        }  # fmt: skip
        for seed in range(1, seeds + 1):
            phases[f"{arm}-{seed}"] = phase | {
                "sources": [f"{arm}-mined"],
                "global_batch_size": 32,
                "negatives": 1,
                "learning_rate": 5e-5,
                "steps": 24,
                "seed": seed,
            }
            pipelines[f"{arm}-{seed}"] = ["start", f"{arm}-{seed}"]
    return {
        "name": "supervision",
        "model": {"base": model, "dim": 384, "start": "orthogonal"},
        "markers": {"query": "", "document": ""},
        "query_tokens": 32,
        "document_tokens": 48,
        "sources": sources,
        "collections": {"held-out": {"kind": "held-out", "source": "pairs", "documents": 1500}}
        | {name: {"kind": "beir", "path": str(data / "collections" / name)} for name in COLLECTIONS},
        "phases": phases,
        "pipelines": pipelines,
        "validation": {"nanobeir": False, "layers": False},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-training", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file, kept = asked.out / "recipe.yaml", asked.out / "kept"
    write = partial(recipe_of, asked.data, asked.model, kept, asked.seeds)
    file.write_text(yaml.safe_dump(write(), sort_keys=False))
    if not kept.exists():
        command = ["filter-pairs", "--pairs", f"{file}:pairs", "--judge", asked.model, "--out", str(kept)]
        told = ["--json", str(asked.out / "kept.json")]
        subprocess.run([sys.executable, "-m", "colbert_zero", *command, *told], check=True)
        file.write_text(yaml.safe_dump(write(), sort_keys=False))
    study = Study(load_recipe(str(file)), asked.out / "study", RichShow())
    chains = {name: tuple(chain) for name, chain in study.recipe.pipelines.items()}
    study.prepare(list(chains.values()))
    seeds = [f"{arm}-{seed}" for seed in range(1, asked.seeds + 1) for arm in ARMS]
    seeds.sort(key=lambda name: name in ("model-2", "model-3"))  # of least interest, if time is short
    first = ["untrained", "start", *(f"{arm}-1" for arm in ARMS)]
    work = [(name, False) for name in ["untrained", "start", *seeds]] + [(name, True) for name in first]
    scores: dict[str, dict[str, Any]] = {}  # by collection and system, of each query
    for collection in study.collections.values():
        scores[collection.name] = {"bm25": study.rankings.scores("bm25", "bm25", collection, rank_bm25)}
    for name, large in work:
        if asked.no_training and not study.is_done(chains[name]):
            continue
        study.train(chains[name])
        for collection in study.collections.values():
            there = study.folder / "per_query" / f"{name}.{collection.name}.json"
            if (collection.name in LARGE) == large and (there.exists() or not asked.no_training):
                make = partial(study.rank, chains[name])
                of = study.rankings.scores(name, study.phase_id(chains[name]), collection, make)
                scores[collection.name][name] = of
        study.show.say(f"{name}: { {c: f'{_mean(of[name]):.4f}' for c, of in scores.items() if name in of} }")
    table(scores, asked.seeds, asked.out)


def _mean(per_query: dict[str, dict[str, float]]) -> float:
    return float(np.mean([of[MEASURE] for of in per_query.values()]))


def table(scores: dict[str, dict[str, Any]], seeds: int, out: Path) -> None:
    """Print an arm a row and a question a row, and keep both."""
    columns = [name for name, of in scores.items() if any(f"{arm}-1" in of for arm in ARMS)]
    means: dict[str, dict[str, Any]] = {}  # by collection and arm: each query's score, the mean of its seeds
    for collection, of in ((name, scores[name]) for name in columns):
        means[collection] = {name: of[name] for name in ("bm25", "untrained", "start") if name in of}
        for arm in ARMS:
            there = [of[f"{arm}-{seed}"] for seed in range(1, seeds + 1) if f"{arm}-{seed}" in of]
            if there:
                means[collection][arm] = {
                    query: {MEASURE: float(np.mean([one[query][MEASURE] for one in there]))} for query in there[0]
                }
    counts = {arm: sum(f"{arm}-{seed}" in scores["held-out"] for seed in range(1, seeds + 1)) for arm in ARMS}
    arms = [arm for arm in means[columns[0]] if all(arm in of for of in means.values())]
    print("\n| | " + " | ".join([*columns, "mean"]) + " |\n|---|" + "---:|" * (len(columns) + 1))
    for arm in arms:
        row = [_mean(means[column][arm]) for column in columns]
        words = f"{ARMS[arm][0]} ({counts[arm]} seeds)" if arm in ARMS else arm
        print(f"| {words} | " + " | ".join(f"{value:.4f}" for value in [*row, np.mean(row)]) + " |")
    asked = [pair for pair in QUESTIONS if set(pair) <= set(arms)] + [(arm, "start") for arm in ARMS if arm in arms]
    tested = compare(means, asked, MEASURE)
    print("\n| | held-out | Holm's p | mean of all | 95 % | Holm's p |\n|---|---:|---:|---:|---|---:|")
    for a, b in asked:
        of = {row["collection"] or "mean": row for row in tested if (row["a"], row["b"]) == (a, b)}
        own, mean = of["held-out"], of["mean"]
        low, high = (100 * bound for bound in mean["interval"])
        print(
            f"| {a} − {b} | {100 * own['difference']:+.2f} | {own['p_value_holm']:.3f} | "
            f"{100 * mean['difference']:+.2f} | [{low:+.2f}, {high:+.2f}] | {mean['p_value_holm']:.3f} |"
        )
    kept = {"means": {c: {arm: _mean(s) for arm, s in of.items()} for c, of in means.items()}, "tests": tested}
    (out / "supervision.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
