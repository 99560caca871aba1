"""What the mean of several trainings is worth, on real data: beside each one, their ensemble, and one longer training.

    python benchmarks/merging.py DATA MODEL OUT [--no-training]

From MODEL (a folder of an encoder) one multi-vector training of 12 steps, and from its end three second phases of 24
steps on mined negatives that differ in their seed: in the order of their data, and in dropout if MODEL has any. Their
weights are averaged, two and three at a time. One of 72 steps cost what the three did; of it there is one seed, and of
the mean of three one too, so their tests are over queries alone. Scores of a query are means over the seeds, or over
the three means of two; differences are tested over queries and corrected after Holm. DATA as for `healing.py`, which
this shares its study's beginning with; half an hour on two cores. Wants the extra `merge`.
"""

from pathlib import Path
from typing import Any

from healing import SEEDS, common_of, first_phase, run_study

SYSTEMS = {
    "first phase": ["first"],
    "one seed": [f"one-{seed}" for seed in SEEDS],
    "two merged": [f"two-{seed}" for seed in SEEDS],
    "three merged": ["three"],
    "three, an ensemble": ["together"],
    "one of 72 steps": ["longer"],
    "bm25": ["bm25"],
}
QUESTIONS = (
    ("one seed", "first phase"),
    ("two merged", "one seed"),
    ("three merged", "one seed"),
    ("three merged", "three, an ensemble"),
    ("three merged", "one of 72 steps"),
    ("one of 72 steps", "one seed"),
)


def recipe_of(data: Path, model: str) -> dict[str, Any]:
    """The study."""
    second = {
        "representation": "multi-vector", "objective": "contrastive", "sources": ["hard"], "learning_rate": 5e-5,
        "global_batch_size": 32, "temperature": 0.3,
    }  # fmt: skip
    phases: dict[str, Any] = {"unsupervised": first_phase(1)}
    phases |= {"second-long": second | {"steps": 72}, "three": {"kind": "merge", "with": ["one-2", "one-3"]}}
    pipelines = {"first": ["unsupervised"], "longer": ["unsupervised", "second-long"]}
    for seed in SEEDS:
        phases[f"second-{seed}"] = second | {"steps": 24, "seed": seed}
        phases[f"two-{seed}"] = {"kind": "merge", "with": [f"one-{seed % len(SEEDS) + 1}"]}
        pipelines[f"one-{seed}"] = ["unsupervised", f"second-{seed}"]
        pipelines[f"two-{seed}"] = ["unsupervised", f"second-{seed}", f"two-{seed}"]
    pipelines["three"] = ["unsupervised", "second-1", "three"]
    return common_of("merging", data, model) | {
        "phases": phases,
        "pipelines": pipelines,
        "ensembles": {"together": {"members": {f"one-{seed}": 1 for seed in SEEDS}}},
    }


if __name__ == "__main__":
    run_study(__doc__, recipe_of, SYSTEMS, QUESTIONS)
