"""What a short distillation heals of a cut, and what three trainings are worth together, on real data.

    python benchmarks/healing.py DATA MODEL OUT [--no-training]

From MODEL (a folder of a BERT with a WordPiece tokenizer) three multi-vector trainings of 12 steps, seeds 1 to 3; of
each a cut of two layers of six, a quarter of the neurons and the vocabulary that the pairs do not use; healed by 40
steps of distillation from itself as it was. Beside them the three's scores together.
Scores of a query are means over the seeds; differences are tested over queries and corrected after Holm. DATA has
`pairs/*.jsonl.gz` and `collections/*`; the held-out pairs are of the trained sources, the collections of none. The same
command goes on where it was stopped; `--no-training` prints the table of what is there. An hour on one core.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from colbert_zero.evaluation.significance import compare, holm
from colbert_zero.report.records import MEASURE
from precision_study import in_points

PAIRS = ("tldr", "openstax", "mdn_archived", "medquad", "cpp_docs")
COLLECTIONS = ("held-out", "cranfield", "med")
SEEDS = (1, 2, 3)
SYSTEMS = {
    "uncut": [f"uncut-{seed}" for seed in SEEDS],
    "cut": [f"smaller-{seed}@small" for seed in SEEDS],
    "cut and healed": [f"smaller-{seed}" for seed in SEEDS],
    "together": ["together"],
    "bm25": ["bm25"],
}
QUESTIONS = (
    ("cut", "uncut"),
    ("cut and healed", "cut"),
    ("cut and healed", "uncut"),
    ("together", "uncut"),
    ("cut and healed", "bm25"),
)


def common_of(name: str, data: Path, model: str) -> dict[str, Any]:
    """What studies of this kind share: their start, sources and collections."""
    collections: dict[str, Any] = {"held-out": {"kind": "held-out", "source": "pairs", "documents": 1000}}
    for collection in COLLECTIONS[1:]:
        collections[collection] = {"kind": "beir", "path": str(data / "collections" / collection)}
    return {
        "name": name,
        "seed": 1,
        "model": {"base": model, "dim": 384, "start": "orthogonal"},
        "markers": {"query": "", "document": ""},
        "query_tokens": 32,
        "document_tokens": 128,
        "sources": {
            "pairs": {"kind": "jsonl", "path": [str(data / "pairs" / f"{pairs}.jsonl.gz") for pairs in PAIRS]},
            "hard": {"kind": "mined", "of": "pairs", "negatives": 3, "skip": 10, "depth": 60, "queries": 1000},
        },
        "collections": collections,
        "validation": {"layers": False},
    }


def first_phase(seed: int) -> dict[str, Any]:
    """The contrastive phase that all begin with."""
    return {
        "representation": "multi-vector", "objective": "contrastive", "sources": ["pairs"], "learning_rate": 5e-5,
        "global_batch_size": 64, "temperature": 0.3, "steps": 12, "seed": seed,
    }  # fmt: skip


def recipe_of(data: Path, model: str) -> dict[str, Any]:
    """The study."""
    phases: dict[str, Any] = {
        "small": {"kind": "compress", "layers": [0, 2, 3, 5], "neurons": 0.75, "vocabulary": ["pairs"]},
    }
    scored, pipelines = dict[str, Any](), dict[str, list[str]]()
    for seed in SEEDS:
        phases[f"unsupervised-{seed}"] = first_phase(seed)
        phases[f"heal-{seed}"] = {
            "representation": "multi-vector", "objective": "distillation", "sources": [f"scored-{seed}"],
            "learning_rate": 5e-5, "global_batch_size": 16, "temperature": 0.5, "steps": 40, "seed": seed,
        }  # fmt: skip
        scored[f"scored-{seed}"] = {"kind": "scored", "of": "hard", "teacher": f"uncut-{seed}", "queries": 640}
        pipelines[f"uncut-{seed}"] = [f"unsupervised-{seed}"]
        pipelines[f"smaller-{seed}"] = [f"unsupervised-{seed}", "small", f"heal-{seed}"]
    common = common_of("healing", data, model)
    return common | {
        "sources": common["sources"] | scored,
        "teachers": {f"uncut-{seed}": {"pipeline": [f"unsupervised-{seed}"]} for seed in SEEDS},
        "phases": phases,
        "pipelines": pipelines,
        "ensembles": {"together": {"members": {f"uncut-{seed}": 1 for seed in SEEDS}}},
    }


def scores_of(out: Path, collection: str, systems: list[str]) -> dict[str, dict[str, float]]:
    """The scores of a collection's queries, each the mean over these systems."""
    read = [json.loads((out / "per_query" / f"{system}.{collection}.json").read_text()) for system in systems]
    return {query: {MEASURE: float(np.mean([rows[query][MEASURE] for rows in read]))} for query in read[0]}


def run_recipe(recipe: dict[str, Any], out: Path) -> Path:
    """Run a study, or go on with it; its folder.

    Raises:
        SystemExit: It failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    if subprocess.run([sys.executable, "-m", "colbert_zero", "run", str(file), "--out", str(out / "study")]).returncode:
        sys.exit("the run failed")
    return out / "study"


def show_tests(
    scores: Mapping[str, Any], questions: Sequence[tuple[str, str]], parts: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print what is asked, of the mean of collections, corrected after Holm over all rows.

    Args:
        scores: {collection: {system: {query: {measure: score}}}}.
        questions: Pairs of systems.
        parts: {name: collections} that everything is asked of; all of them at once where nothing is said.
    """
    parts = parts or {"all": list(scores)}
    rows = [
        (part, row)
        for part, names in parts.items()
        for row in compare({name: scores[name] for name in names}, questions, MEASURE)[: len(questions)]
    ]
    adjusted = holm([row["p_value"] for _, row in rows])
    print("\n| collections | | points in their mean | p (Holm) | equal within |\n|---|---|---|---|---|")
    for (part, row), p in zip(rows, adjusted, strict=True):
        margin = 100 * row["equal_within"]
        print(f"| {part} | {row['a']} − {row['b']} | {in_points(row)} | {p:.3f} | {margin:.2f} |")


def run_study(
    description: str,
    recipe_of: Callable[[Path, str], dict[str, Any]],
    systems: dict[str, list[str]],
    questions: Sequence[tuple[str, str]],
    parts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Run a study as the command asks, and print the means of its systems and the tests of its questions."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-training", action="store_true")
    asked = parser.parse_args()
    if not asked.no_training:
        run_recipe(recipe_of(asked.data.resolve(), asked.model), asked.out)
    scores = {
        collection: {name: scores_of(asked.out / "study", collection, of) for name, of in systems.items()}
        for collection in COLLECTIONS
    }
    print(f"| | {' | '.join(COLLECTIONS)} | mean |\n|{'---|' * (len(COLLECTIONS) + 2)}")
    for name in systems:
        means = [100 * np.mean([row[MEASURE] for row in scores[one][name].values()]) for one in COLLECTIONS]
        print("|", " | ".join([name, *(f"{mean:.1f}" for mean in [*means, np.mean(means)])]), "|")
    show_tests(scores, questions, parts)


if __name__ == "__main__":
    run_study(__doc__, recipe_of, SYSTEMS, QUESTIONS)
