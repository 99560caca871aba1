"""The JSON records of one folder, read and checked."""

import math
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.report.cost import COMPUTE, TIME, Currency, idle_phases, is_counted

MEASURE = "nDCG@10"
SEEN = "†"
"""Beside scores on a collection whose queries were seen in training."""
SCHEMA = 1
"""Of the records that this version reads."""
SYSTEM_KEYS = ("kind", "pipeline", "after", "representation", "phases", "device_seconds", "scores")
Record = dict[str, Any]


def read_record(path: Path, keys: tuple[str, ...], optional: bool = False) -> Record:
    """A JSON record with at least these keys; {} for an optional one that was not written."""
    if optional and not path.is_file():
        return {}
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ColbertZeroError(
            f"{path} is not readable JSON ({error}): restore it, or delete it and run the recipe again."
        ) from error
    if not isinstance(record, dict):
        raise ColbertZeroError(f"{path} is no JSON object: restore it, or delete it and run the recipe again.")
    # Records of names alone, such as teachers.json, have no schema; a name may be anything.
    if keys and record.get("schema", SCHEMA) != SCHEMA:
        raise ColbertZeroError(
            f"{path} has schema {record['schema']!r}, and this version reads schema {SCHEMA}: report it with the "
            "version of colbert-zero that wrote it, or run the recipe again."
        )
    missing = [key for key in keys if key not in record]
    if missing:
        raise ColbertZeroError(f"{path} lacks {', '.join(missing)}: restore it, or delete it and run the recipe again.")
    return record


class Records:
    """The records of one folder, read and checked."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "results.json").is_file():
            raise ColbertZeroError(
                f"{folder} holds no results.json, so there is nothing to report: "
                f"run `colbert-zero run RECIPE --out {folder}` first."
            )
        results = read_record(folder / "results.json", ("recipe", "collections", "systems", "comparisons"))
        for name, system in results["systems"].items():
            missing = [key for key in SYSTEM_KEYS if key not in system]
            if missing:
                raise ColbertZeroError(f"{folder / 'results.json'}: {name} lacks {', '.join(missing)}.")
        self.recipe: str = results["recipe"]
        self.collections: dict[str, Record] = results["collections"]
        self.systems: dict[str, Record] = results["systems"]
        self.comparisons: list[Record] = results["comparisons"]
        needed = {phase["id"] for system in self.systems.values() for phase in system["phases"]}
        read = [read_record(path, ("id", "name", "chain", "losses")) for path in folder.glob("phases/*/phase.json")]
        self.phases: dict[str, Record] = {
            phase["id"]: phase
            for phase in sorted(read, key=lambda phase: (len(phase["chain"]), phase["chain"], phase["id"]))
            if phase["id"] in needed
        }
        self.teachers = read_record(folder / "teachers.json", (), optional=True)
        self.data = read_record(folder / "data.json", (), optional=True)
        self.environment = read_record(folder / "environment.json", (), optional=True)
        self.planned: Record = read_record(folder / "plan.json", ("phases",), optional=True).get("phases", {})
        self.currency = COMPUTE if all(map(is_counted, self.systems.values())) else TIME
        """What costs are counted in: with one system of an older study, whose operations nobody counted, it is time."""
        means = {name: self.mean(system["scores"]) for name, system in self.systems.items()}
        self.means: dict[str, float] = {name: mean for name, mean in means.items() if mean is not None}

    def label(self, collection: str) -> str:
        """A collection's name, marked if its queries were seen in training."""
        return marked(collection, self.collections[collection])

    @property
    def seen(self) -> list[str]:
        """Collections whose queries were seen in training."""
        return [name for name, sizes in self.collections.items() if marked(name, sizes) != name]

    def mean(self, scores: Record, measure: str = MEASURE) -> float | None:
        """Mean of a measure over all collections; None if one of them has no score."""
        values = [scores.get(collection, {}).get(measure) for collection in self.collections]
        if not values or None in values:
            return None
        return math.fsum(values) / len(values)

    def pipelines(self) -> list[str]:
        """Finished pipelines that have all their scores, the best first."""
        names = [n for n, s in self.systems.items() if s["kind"] == "pipeline" and s["after"] is None]
        return sorted((n for n in names if n in self.means), key=lambda n: (-self.means[n], self.cost(n), n))

    def baselines(self, representation: str) -> list[str]:
        """Baselines of one representation that have all their scores, the best first."""
        names = [
            n for n, s in self.systems.items() if s["kind"] == "baseline" and s["representation"] == representation
        ]
        return sorted((n for n in names if n in self.means), key=lambda n: (-self.means[n], n))

    def cost(self, system: str, currency: Currency | None = None) -> float:
        """What a system's phases cost from zero, in the report's currency or in this one."""
        return float(self.systems[system][(currency or self.currency).key])

    def comparable(self, *systems: str) -> bool:
        """Whether the times of these systems may be compared: all their phases kept their threads busy."""
        return not any(idle_phases(self.systems[system]) for system in systems)

    def way(self, system: str) -> list[Record]:
        """The phases that a system's model went through from its base, without those of what was merged into it."""
        phases = [self.phases[p["id"]] for p in self.systems[system]["phases"] if p["id"] in self.phases]
        last = phases[-1]["chain"] if phases else []
        return [phase for phase in phases if phase["chain"] == last[: len(phase["chain"])]]

    def pre_training(self, pipeline: str) -> int:
        """How many of a pipeline's phases are contrastive and multi-vector: the title's *pre-training*."""
        phases = self.way(pipeline)
        return sum(p.get("objective") == "contrastive" and p.get("representation") == "multi-vector" for p in phases)

    def checkpoints(self, pipeline: str) -> list[str]:
        """The systems a pipeline passes through, itself last: dense ones and shared ones too."""
        phases = [phase["id"] for phase in self.way(pipeline)]
        single = {name: system for name, system in self.systems.items() if system["kind"] != "ensemble"}
        by_id = {s["phases"][-1]["id"]: name for name, s in single.items() if s["phases"]}
        path = [by_id.get(phase) for phase in phases[:-1]]
        return [name for name in path if name in self.means] + [pipeline]


def marked(collection: str, sizes: Record) -> str:
    """A collection's name, with a mark if its queries were seen in training, by its entry in results.json."""
    return f"{collection} {SEEN}" if sizes.get("leaks", {}).get("verdict") == "queries seen" else collection


def chain_of(phase: Record) -> str:
    """A phase with those before it: `dense → distillation`."""
    return " → ".join(phase["chain"])
