"""Records as a run writes them, for tests of what reads them."""

import random
from pathlib import Path

from colbert_zero.files import read_json, write_json
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


SPEED = 31e15 / 1860
"""Operations a device-second: `full` makes 31 PFLOP in its 31 minutes."""


def cost_record(identity: str, busy: float = 0.96) -> dict:
    """What a phase cost, as its phase.json and results.json have it; its two threads were busy for this share."""
    seconds = PHASES[identity][4]
    return {
        "device_seconds": seconds,
        "texts": int(seconds * 130),
        "tokens": int(seconds * 14_000),
        "flops": seconds * SPEED,
        "padding_flops": 0.05 * seconds * SPEED,
        "second_pass_flops": 0.2 * seconds * SPEED,
        "wall_seconds": seconds,
        "cpu_seconds": 2 * busy * seconds,
        "threads": 2,
    }


def phase_record(identity: str) -> dict:
    name, chain, representation, objective, _ = PHASES[identity]
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
        "processes": 1,
        **cost_record(identity),
        "peak_memory_bytes": 1_900_000_000,
        "parameters": 4_200_000,
        "losses": losses,
        "final_loss": losses[-1]["loss"],
        "finished_at": "2026-05-01T10:00:00Z",
    }


def result_record(
    pipelines: list[str],
    p_value: float = 0.2,
    collections: tuple[str, ...] = tuple(COLLECTIONS),
    busy: dict[str, float] | None = None,
) -> dict:
    """results.json of the named pipelines with all baselines; every comparison has this p value.

    Args:
        busy: Shares of phases, by id, whose threads were not as busy as the others'.
    """
    systems = {}
    for name, (kind, pipeline, after, representation, ids, scores) in SYSTEMS.items():
        if kind == "pipeline" and pipeline not in pipelines:
            continue
        phases = [{"name": PHASES[i][0], "id": i, **cost_record(i, (busy or {}).get(i, 0.96))} for i in ids]
        values = dict(zip(COLLECTIONS, scores, strict=True))
        systems[name] = {
            "kind": kind,
            "pipeline": pipeline,
            "after": after,
            "representation": representation,
            "phases": phases,
            **{key: sum(phase[key] for phase in phases) for key in ("flops", "cpu_seconds", "device_seconds")},
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
    used = {phase["id"]: phase for system in results["systems"].values() for phase in system["phases"]}
    for identity, phase in used.items():
        record = phase_record(identity) | {"cpu_seconds": phase["cpu_seconds"]}
        write_json(folder / "phases" / f"{PHASES[identity][0]}-{identity}" / "phase.json", record)
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
            "flops": 3e14,
            "device_seconds": 18.0,
            "scoring_seconds": 12.5,
            "scores": {c: {"nDCG@10": teacher} for c in results["collections"]},
            "queries": 6400,
            "n_ways": 16,
        }
        write_json(folder / "teachers.json", {"fused": record})
    return folder


COUNTED = ("padding_flops", "second_pass_flops", "wall_seconds", "cpu_seconds", "threads")


def made_older(folder: Path) -> Path:
    """A folder's records as they were before operations and CPU time were counted: `flops` an estimate of phases."""
    results = read_json(folder / "results.json")
    for system in results["systems"].values():
        system["phases"] = [_without(phase, ("flops", *COUNTED)) for phase in system["phases"]]
    results["systems"] = {name: _without(s, ("flops", "cpu_seconds")) for name, s in results["systems"].items()}
    write_json(folder / "results.json", results)
    for path in folder.glob("phases/*/phase.json"):
        write_json(path, _without(read_json(path), COUNTED))
    if (folder / "teachers.json").is_file():
        teachers = read_json(folder / "teachers.json")
        write_json(folder / "teachers.json", {name: _without(t, ("flops",)) for name, t in teachers.items()})
    return folder


def _without(record: dict, keys: tuple[str, ...]) -> dict:
    return {key: value for key, value in record.items() if key not in keys}


def records_of(folder: Path, results: dict, teacher: float | None = 0.58) -> Records:
    return Records(write_records(folder, results, teacher))
