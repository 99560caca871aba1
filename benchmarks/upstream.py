"""Are models of different upstream data better together than seeds of one? And a dense model with a multi-vector one?

    python benchmarks/upstream.py DATA MODEL OUT [--no-training]

From MODEL (a folder of an encoder) nine multi-vector trainings in two phases: 24 steps of 32 pairs of one of three
sources, the upstream data (commands, medicine, textbooks), with three seeds each, and then 12 steps of the target, the
664 pairs of a fourth source that are not held out. Three of them are put together (fixed equal weights), of one
upstream with its three seeds, or of one seed with the three upstreams: each of the nine is once in either, so their
mean single model is the same. A seed draws the projection and the order of the data, so models of one seed share these.
Beside them three multi-vector and three dense trainings on the target alone, from MODEL itself, in twos of one kind and
of both.

The held-out pairs are of the target; `cranfield` and `med` are of nothing that was trained on, a shift. Scores of a
query are means over what stands in a row; differences are tested over queries, on all collections, the target alone and
the shift alone, and corrected after Holm over all of these. DATA as for `healing.py`. The same command goes on where it
was stopped. An hour on one core.
"""

from pathlib import Path
from typing import Any

from healing import COLLECTIONS, SEEDS, common_of, run_study

UPSTREAMS = ("tldr", "medquad", "openstax")
TARGET = "skeptics_se"
BOTH = [f"{upstream}-{seed}" for upstream in UPSTREAMS for seed in SEEDS]

SYSTEMS = {
    "one model": BOTH,
    "three seeds of one upstream": [f"seeds-{upstream}" for upstream in UPSTREAMS],
    "three upstreams": [f"upstreams-{seed}" for seed in SEEDS],
    **{f"one model, {upstream}": [f"{upstream}-{seed}" for seed in SEEDS] for upstream in UPSTREAMS},
    "no upstream": [f"none-{seed}" for seed in SEEDS],
    "no upstream, dense": [f"dense-{seed}" for seed in SEEDS],
    "two seeds, multi-vector": [f"two-{seed}" for seed in SEEDS],
    "dense and multi-vector": [f"kinds-{seed}" for seed in SEEDS],
    "bm25": ["bm25"],
}
QUESTIONS = (
    ("three seeds of one upstream", "one model"),
    ("three upstreams", "one model"),
    ("three upstreams", "three seeds of one upstream"),
    ("one model", "no upstream"),
    ("two seeds, multi-vector", "no upstream"),
    ("dense and multi-vector", "no upstream"),
    ("dense and multi-vector", "two seeds, multi-vector"),
)


def recipe_of(data: Path, model: str) -> dict[str, Any]:
    """The study."""
    contrastive: dict[str, Any] = {"objective": "contrastive", "global_batch_size": 32, "learning_rate": 5e-5}
    multi = contrastive | {"representation": "multi-vector", "temperature": 0.3}
    dense = contrastive | {"representation": "dense", "temperature": 0.05}
    phases, pipelines, ensembles = dict[str, Any](), dict[str, list[str]](), dict[str, Any]()
    for seed in SEEDS:
        phases[f"target-{seed}"] = multi | {"sources": ["target"], "steps": 12, "seed": seed}
        phases[f"dense-{seed}"] = dense | {"sources": ["target"], "steps": 12, "seed": seed}
        pipelines |= {f"none-{seed}": [f"target-{seed}"], f"dense-{seed}": [f"dense-{seed}"]}
        for upstream in UPSTREAMS:
            phases[f"{upstream}-{seed}"] = multi | {"sources": [upstream], "steps": 24, "seed": seed}
            pipelines[f"{upstream}-{seed}"] = [f"{upstream}-{seed}", f"target-{seed}"]
        members = {
            f"upstreams-{seed}": [f"{upstream}-{seed}" for upstream in UPSTREAMS],
            f"two-{seed}": [f"none-{seed}", f"none-{seed % len(SEEDS) + 1}"],
            f"kinds-{seed}": [f"none-{seed}", f"dense-{seed}"],
        }
        ensembles |= {name: {"members": dict.fromkeys(of, 1)} for name, of in members.items()}
    for upstream in UPSTREAMS:
        ensembles[f"seeds-{upstream}"] = {"members": {f"{upstream}-{seed}": 1 for seed in SEEDS}}
    common = common_of("upstream", data, model)
    files = {"target": TARGET} | {upstream: upstream for upstream in UPSTREAMS}
    return common | {
        "document_tokens": 64,
        "sources": {name: {"kind": "jsonl", "path": str(data / "pairs" / f"{file}.jsonl.gz")}
                    for name, file in files.items()},
        "collections": common["collections"] | {
            "held-out": {"kind": "held-out", "source": "target", "queries": 300, "documents": 400},
        },
        "phases": phases,
        "pipelines": pipelines,
        "ensembles": ensembles,
    }  # fmt: skip


if __name__ == "__main__":
    parts = {"all": COLLECTIONS, "the target": COLLECTIONS[:1], "the shift": COLLECTIONS[1:]}
    run_study(__doc__, recipe_of, SYSTEMS, QUESTIONS, parts)
