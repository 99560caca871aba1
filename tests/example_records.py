"""Records as a run writes them, for tests of what reads them."""

import random
from pathlib import Path

from colbert_zero.files import write_json
from colbert_zero.report.records import Records

COLLECTIONS = {"scifact": (5183, 300), "nfcorpus": (3633, 323), "fiqa": (57638, 648)}


# name: (kind, pipeline, after, representation, phase ids, scores), scores from the paper's table.
SYSTEMS = {
    "bm25": ("baseline", None, None, "lexical", [], (66.50, 32.50, 23.60)),
    "dense-unsupervised": ("baseline", None, None, "dense", ["du"], (72.30, 35.33, 42.53)),
    "dense-unsupervised+dense-supervised": (
        "baseline",
        None,
        None,
        "dense",
        ["du", "ds"],
        (69.63, 33.40, 40.59),
    ),
    "kd-only": ("pipeline", "kd-only", None, "multi-vector", ["du", "ds", "k1"], (75.04, 37.01, 42.51)),
    "supervised-kd@supervised": (
        "pipeline",
        "supervised-kd",
        "supervised",
        "multi-vector",
        ["du", "s2"],
        (73.78, 35.56, 40.09),
    ),
    "supervised-kd": (
        "pipeline",
        "supervised-kd",
        None,
        "multi-vector",
        ["du", "s2", "k2"],
        (74.90, 36.51, 41.50),
    ),
    "full@unsupervised": ("pipeline", "full", "unsupervised", "multi-vector", ["u3"], (76.76, 36.88, 45.38)),
    "full@supervised": (
        "pipeline",
        "full",
        "supervised",
        "multi-vector",
        ["u3", "s3"],
        (73.71, 35.60, 42.45),
    ),
    "full": ("pipeline", "full", None, "multi-vector", ["u3", "s3", "k3"], (76.50, 37.28, 42.62)),
}


# id: (name, chain, representation, objective, device-seconds)
PHASES = {
    "du": ("dense-unsupervised", ["dense-unsupervised"], "dense", "contrastive", 96.0),
    "ds": ("dense-supervised", ["dense-unsupervised", "dense-supervised"], "dense", "contrastive", 30.0),
    "k1": (
        "distillation",
        ["dense-unsupervised", "dense-supervised", "distillation"],
        "",
        "distillation",
        24.0,
    ),
    "s2": ("supervised", ["dense-unsupervised", "supervised"], "", "contrastive", 66.0),
    "k2": ("distillation", ["dense-unsupervised", "supervised", "distillation"], "", "distillation", 24.0),
    "u3": ("unsupervised", ["unsupervised"], "", "contrastive", 1770.0),
    "s3": ("supervised", ["unsupervised", "supervised"], "", "contrastive", 66.0),
    "k3": ("distillation", ["unsupervised", "supervised", "distillation"], "", "distillation", 24.0),
}


def phase_record(identity: str) -> dict:
    name, chain, representation, objective, seconds = PHASES[identity]
    steps = 60 if objective == "distillation" else 400
    start = 1.2 if objective == "distillation" else 5.5
    noise = random.Random(identity)
    losses = [
        {
            "step": k,
            "loss": start / (1 + k / 40) * noise.uniform(0.7, 1.3),
            "source": "paq",
            "elapsed_seconds": k,
        }
        for k in range(1, steps + 1)
    ]
    return {
        "schema": 1,
        "name": name,
        "id": identity,
        "parent": None,
        "chain": chain,
        "representation": representation or "multi-vector",
        "objective": objective,
        "prompts": {"query": "search_query: ", "document": "search_document: "},
        "markers": {} if representation == "dense" else {"query": "[Q]", "document": "[D]"},
        "query_tokens": 39,
        "document_tokens": 187,
        "steps": steps,
        "global_batch_size": 64,
        "mini_batch_tokens": 16384,
        "learning_rate": 8e-6,
        "temperature": 0.02,
        "negatives": 7,
        "seed": 42,
        "sources": {"paq": {"rows": 25600, "batches": 400, "dropped_rows": 12}},
        "device": "cpu",
        "device_seconds": seconds,
        "texts": int(seconds * 130),
        "tokens": int(seconds * 14_000),
        "flops": seconds * 3e11,
        "peak_memory_bytes": 1_900_000_000,
        "parameters": 4_200_000,
        "losses": losses,
        "final_loss": losses[-1]["loss"],
        "finished_at": "2026-05-01T10:00:00Z",
    }


def result_record(
    pipelines: list[str], p_value: float = 0.2, collections: tuple[str, ...] = tuple(COLLECTIONS)
) -> dict:
    """results.json of the named pipelines with all baselines; every comparison has this p value."""
    systems = {}
    for name, (kind, pipeline, after, representation, ids, scores) in SYSTEMS.items():
        if kind == "pipeline" and pipeline not in pipelines:
            continue
        phases = [
            {
                "name": PHASES[i][0],
                "id": i,
                "device_seconds": PHASES[i][4],
                "texts": 12_000,
                "tokens": 1_400_000,
            }
            for i in ids
        ]
        values = dict(zip(COLLECTIONS, scores, strict=True))
        systems[name] = {
            "kind": kind,
            "pipeline": pipeline,
            "after": after,
            "representation": representation,
            "phases": phases,
            "device_seconds": sum(phase["device_seconds"] for phase in phases),
            "scores": {
                c: {
                    "nDCG@10": values[c] / 100,
                    "R@100": min(1, values[c] / 100 + 0.15),
                    "RR@10": values[c] / 100 - 0.04,
                }
                for c in collections
            },
        }
    comparisons = []
    for measure in ("nDCG@10", "R@100"):
        for i, a in enumerate(pipelines):
            for b in pipelines[i + 1 :]:
                gaps = {c: systems[a]["scores"][c][measure] - systems[b]["scores"][c][measure] for c in collections}
                for c in (None, *collections):
                    gap = sum(gaps.values()) / len(gaps) if c is None else gaps[c]
                    test = {
                        "family": "pipelines",
                        "a": a,
                        "b": b,
                        "collection": c,
                        "measure": measure,
                        "difference": gap,
                    }
                    test |= {
                        "p_value": p_value / 3,
                        "p_value_holm": p_value,
                        "interval": [gap - 0.012, gap + 0.012],
                    }
                    comparisons.append(test)
    sizes = {c: {"documents": COLLECTIONS[c][0], "queries": COLLECTIONS[c][1]} for c in collections}
    return {
        "schema": 1,
        "recipe": "study",
        "collections": sizes,
        "systems": systems,
        "comparisons": comparisons,
    }


ALL = ["kd-only", "supervised-kd", "full"]


def write_records(folder: Path, results: dict, teacher: float | None = 0.58) -> Path:
    """A realistic record folder for these results; a teacher with this nDCG@10 everywhere, or none."""
    write_json(folder / "results.json", results)
    used = {phase["id"] for system in results["systems"].values() for phase in system["phases"]}
    for identity in sorted(used):
        write_json(folder / "phases" / f"{PHASES[identity][0]}-{identity}" / "phase.json", phase_record(identity))
    sources = {
        f"source-{i:02}": {
            "kind": "jsonl",
            "parts": {"train": 1000 * (20 - i)},
            "rows": 1000 * (20 - i),
            "dropped": {"too short": i, "duplicate": 2 * i},
            "held_out": 50,
            "seconds": 1.5,
        }
        for i in range(20)
    }
    known = {
        c: size | {"judgements": 2 * size["queries"], "from": f"beir/{c}"} for c, size in results["collections"].items()
    }
    write_json(folder / "data.json", {"sources": sources, "collections": known})
    environment = {
        "colbert_zero": "0.1.0",
        "python": "3.12.8",
        "torch": "2.13.0",
        "platform": "Linux x86-64",
        "processor": "two cores",
        "cores": 2,
        "memory_bytes": 8_000_000_000,
        "devices": ["cpu"],
        "processes": 1,
        "started_at": "2026-05-01T09:00:00Z",
        "command": "colbert-zero run recipes/records.yaml --out out/study",
    }
    write_json(folder / "environment.json", environment)
    if teacher is not None:
        record = {
            "description": "BM25 and the best dense checkpoint, fused",
            "parts": [{"name": "bm25", "weight": 0.4}, {"name": "dense-supervised", "weight": 0.6}],
            "device_seconds": 12.5,
            "scores": {c: {"nDCG@10": teacher} for c in results["collections"]},
            "queries": 6400,
            "n_ways": 16,
        }
        write_json(folder / "teachers.json", {"fused": record})
    return folder


def records_of(folder: Path, results: dict, teacher: float | None = 0.58) -> Records:
    return Records(write_records(folder, results, teacher))
