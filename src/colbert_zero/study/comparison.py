"""A study's results: everything trained and evaluated, compared, counted and written down (docs/records.md)."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import combinations
from typing import Any

import torch

from colbert_zero.evaluation.significance import compare
from colbert_zero.files import read_json, write_json
from colbert_zero.maxsim.backends import backend_here
from colbert_zero.processes import agree, is_main, world_size
from colbert_zero.recipe.data import Mined, NamedCollection, Scored
from colbert_zero.recipe.miners import BM25
from colbert_zero.recipe.schema import Recipe
from colbert_zero.report.card import write_cards
from colbert_zero.report.records import MEASURE
from colbert_zero.study import ensembles
from colbert_zero.study.graph import chains_of, graph, way_to
from colbert_zero.study.host import cpu_features, processor
from colbert_zero.study.leaks import together
from colbert_zero.study.rankings import bm25
from colbert_zero.study.study import Study
from colbert_zero.study.teachers import fusions, record_of, used_teachers

_COUNTED = ("flops", "padding_flops", "second_pass_flops", "wall_seconds", "cpu_seconds", "threads")
"""What a phase.json counts since it has `cpu_seconds`; an older one has `flops` by another estimate."""


def run_study(study: Study, only: list[str] | None, command: str) -> dict[str, Any]:
    """Train and evaluate everything a recipe's pipelines need that is not there yet; returns results.json's content."""
    recipe = study.recipe
    chains = chains_of(recipe, only)
    nodes = graph(recipe, chains)
    if not study.collections:
        study.prepare(nodes)
    if is_main():
        write_json(study.folder / "recipe.json", recipe.model_dump())
        write_json(study.folder / "environment.json", environment(command))
    whole = [name for name, missing in ensembles.whole_ensembles(recipe, nodes).items() if missing is None]
    study.rankings.fusions = fusions(study, nodes) | ensembles.fusions(study, whole)
    systems = _Systems(study)
    systems.add(BM25, "baseline", (), None, lambda: study.evaluate(BM25, BM25, bm25))
    for chain in nodes:
        study.train(chain)
        owner = next((name for name, c in chains.items() if c[: len(chain)] == chain), None)
        kind = study.representation(chain)
        if kind == "dense":
            systems.add_phase("+".join(chain), "baseline", chain, None)
        elif owner is not None and kind is not None:  # a plain encoder, cut, ranks nothing
            systems.add_phase(owner if chains[owner] == chain else f"{owner}@{chain[-1]}", "pipeline", chain, owner)
    # A dense pipeline, or a second one with the same phases, is a system under its own name too.
    for name, chain in chains.items():
        if name not in systems.records:
            systems.add_phase(name, "pipeline", chain, name)
    for name in whole:
        systems.add_ensemble(name)
    teachers, data = _teachers(study, nodes), _data(study, nodes)
    results = {
        "schema": 1, "recipe": recipe.name,
        "collections": _sizes(study),
        "systems": systems.records,
        "comparisons": _comparisons(study, systems.records, list(chains)),
    }  # fmt: skip
    if is_main():
        write_json(study.folder / "teachers.json", teachers)
        write_json(study.folder / "data.json", data)
        write_json(study.folder / "results.json", results)
        for told in (*_left_out(recipe, nodes), *write_cards(study.folder)):
            study.show.say(told)
    return results


def _left_out(recipe: Recipe, nodes: list[tuple[str, ...]]) -> list[str]:
    """What to say of ensembles whose members were not asked for."""
    missing = ensembles.whole_ensembles(recipe, nodes)
    return [f"ensembles.{name}: left out, since its member {m} is" for name, m in missing.items() if m is not None]


def _sizes(study: Study) -> dict[str, Any]:
    """Documents and queries of each compared collection, of one in parts altogether; a public collection's name."""
    sizes: dict[str, Any] = {}
    for name, collection in study.compared.items():
        whole = study.recipe.whole_of(name)
        size = sizes.setdefault(whole, {"documents": 0, "queries": 0})
        size["documents"] += collection.documents_count
        size["queries"] += len(collection.qrels)
        spec = study.recipe.collections[name]
        if isinstance(spec, NamedCollection):
            size["name"] = spec.name if whole == name else spec.of.whole
    found = study.leaks["collections"] if study.leaks else {}
    for whole, size in sizes.items() if found else ():
        size["leaks"] = together(found[name] for name in study.compared if study.recipe.whole_of(name) == whole)
    return sizes


class _Systems:
    """The systems of results.json, evaluated as they come."""

    def __init__(self, study: Study):
        self.study = study
        self.records: dict[str, Any] = {}

    def add_phase(self, name: str, kind: str, chain: tuple[str, ...], pipeline: str | None) -> None:
        """Evaluate a trained phase's model as a system."""
        self.add(name, kind, chain, pipeline, partial(self.study.evaluate_phase, name, chain))

    def add(
        self, name: str, kind: str, chain: tuple[str, ...], pipeline: str | None, evaluate: Callable[[], Any]
    ) -> None:
        """Evaluate a system and keep its record."""
        phases = [_cost(self.study.train(one)) for one in way_to(self.study.recipe, chain)]
        representation = self.study.representation(chain) if chain else "lexical"
        self.records[name] = {
            "kind": kind,
            "pipeline": pipeline,
            "after": chain[-1] if pipeline is not None and name != pipeline else None,
            "representation": representation,
            "phases": phases,
            **{key: _total(phases, key) for key in ("flops", "cpu_seconds", "device_seconds")},
            **ensembles.takes(self.study, [chain] if chain else []),
            "scores": evaluate(),
        }
        self._say(name)

    def add_ensemble(self, name: str) -> None:
        """Evaluate an ensemble; it cost what its members' phases did, each once."""
        found = ensembles.evaluate_ensemble(self.study, name)
        chains = [chain for member in found["members"] if (chain := self.study.recipe.system_chain(member))]
        made_of = dict.fromkeys(one for chain in chains for one in way_to(self.study.recipe, chain))
        phases = [_cost(self.study.train(chain)) for chain in made_of]
        self.records[name] = {
            "kind": "ensemble",
            "pipeline": None,
            "after": None,
            "representation": "ensemble",
            "members": {self._name_of(member): weight for member, weight in found["members"].items()},
            "choice": found["choice"],
            "phases": phases,
            **{key: _total(phases, key) for key in ("flops", "cpu_seconds", "device_seconds")},
            **ensembles.takes(self.study, chains),
            "scores": found["scores"],
        }
        self._say(name)

    def _name_of(self, member: str) -> str:
        """The name that a member has among the systems; a checkpoint that pipelines share stands there once."""
        if member in self.records:
            return member
        identity = self.study.phase_id(self.study.recipe.system_chain(member) or ())
        return next(name for name, s in self.records.items() if s["phases"] and s["phases"][-1]["id"] == identity)

    def _say(self, name: str) -> None:
        self.study.show.say(f"{name}: nDCG@10 {mean_score(self.records[name]):.4f}")


def _cost(record: dict[str, Any]) -> dict[str, Any]:
    """What a phase.json says of a phase's cost; null where an older one did not count it."""
    counted = record.get("cpu_seconds") is not None
    asked = {key: record[key] for key in ("name", "id", "device_seconds", "texts", "tokens")}
    if record.get("kind", "train") != "train":
        asked["kind"] = record["kind"]
    return asked | {key: record.get(key) if counted else None for key in _COUNTED}


def _total(phases: list[dict[str, Any]], key: str) -> float | None:
    """A sum over phases; None where one of them lacks it."""
    values = [phase[key] for phase in phases]
    return None if None in values else round(sum(values), 3)


def families(systems: dict[str, Any], pipelines: list[str]) -> dict[str, list[tuple[str, str]]]:
    """The pairs of systems that a study tests, in families; each is corrected for its own number of tests.

    `pipelines`: every two finished pipelines, and each against BM25 and the dense baseline with the highest mean.
    `checkpoints`: each finished pipeline against every multi-vector checkpoint on its way, whosever name that has; one
    that is a finished pipeline itself is in the first family already.
    `ensembles`, where there are some: each against its best member (chosen by the scores themselves, which favours that
    member) and against BM25.
    """
    dense = [n for n, s in systems.items() if s["kind"] == "baseline" and s["representation"] == "dense"]
    dense = [max(dense, key=lambda name: mean_score(systems[name]))] if dense else []
    pairs = list(combinations(pipelines, 2))
    single = {name: system for name, system in systems.items() if system["kind"] != "ensemble"}
    last = {name: system["phases"][-1]["id"] if system["phases"] else None for name, system in single.items()}
    pairs += [(p, other) for other in ("bm25", *dense) for p in pipelines if last[p] != last[other]]
    # A checkpoint with two names goes by the later one, a pipeline's own.
    named = {last[name]: name for name, system in single.items() if system["representation"] == "multi-vector"}
    on_the_way = [
        (p, named[phase["id"]]) for p in pipelines for phase in systems[p]["phases"][:-1] if phase["id"] in named
    ]
    known = {frozenset(pair) for pair in pairs}
    found = {"pipelines": pairs, "checkpoints": [pair for pair in on_the_way if frozenset(pair) not in known]}
    together = [pair for name in systems for pair in _of_ensemble(systems, name)]
    return found | ({"ensembles": together} if together else {})


def _of_ensemble(systems: dict[str, Any], name: str) -> list[tuple[str, str]]:
    """What an ensemble is tested against; one that came to a single member is that member, and nothing to test."""
    members = systems[name].get("members", {})
    if len(members) < 2:
        return []
    best = max(members, key=lambda member: mean_score(systems[member]))
    return [(name, other) for other in dict.fromkeys([best, BM25])]


def mean_score(system: dict[str, Any]) -> float:
    """A system's mean nDCG@10 over collections, each with the same weight."""
    scores: list[float] = [scores[MEASURE] for scores in system["scores"].values()]
    return sum(scores) / len(scores)


def _comparisons(study: Study, systems: dict[str, Any], pipelines: list[str]) -> list[dict[str, Any]]:
    """The tests of all families, on the mean over collections and on each."""
    rows = []
    for family, pairs in families(systems, pipelines).items():
        per_query = {
            collection: {
                system: read_json(study.folder / "per_query" / f"{system}.{collection}.json")
                for system in dict.fromkeys(name for pair in pairs for name in pair)
            }
            for collection in study.compared
        }
        tested = compare(per_query, pairs, MEASURE, seed=study.recipe.seed, whole_of=study.recipe.whole_of)
        rows += [{"family": family, **row} for row in tested]
    return rows


def _teachers(study: Study, nodes: list[tuple[str, ...]]) -> dict[str, Any]:
    """Each teacher that was used: what it is, how good, what it cost."""
    records = {}
    for name in used_teachers(study.recipe, nodes):
        sources = [source for source in _sources(study, nodes).values() if source.get("teacher") == name]
        chain = tuple(study.recipe.teachers[name].pipeline)
        phases = [_cost(study.train(one)) for one in way_to(study.recipe, chain)]
        records[name] = {
            **record_of(study, name),
            **{key: _total(phases, key) for key in ("flops", "device_seconds")},
            "scoring_seconds": round(sum(source["seconds"] for source in sources), 3),
            "queries": sum(source["rows"] for source in sources),
            "n_ways": sources[0]["n_ways"] if sources else None,
        }
    return records


def _sources(study: Study, nodes: list[tuple[str, ...]]) -> dict[str, Any]:
    """Records of the sources that these phases are trained on and of what those are made of, opened or not yet."""
    names = set(study.sources)
    for name in (name for chain in nodes for name in study.recipe.phases[chain[-1]].sources):
        names.add(name)
        while isinstance(spec := study.recipe.sources[name], Mined | Scored):
            name = spec.of
            names.add(name)
    # A second run that finds all phases trained has opened none of the sources that are made on the way.
    made = [name for name in study.recipe.sources if name in names and agree(study.is_made(name))]
    return {name: study.source(name).record for name in made}


def _data(study: Study, nodes: list[tuple[str, ...]]) -> dict[str, Any]:
    return {
        **({"leaks": study.leaks} if study.leaks else {}),
        "sources": {
            name: {k: v for k, v in source.items() if k != "id"} for name, source in _sources(study, nodes).items()
        },
        "collections": {
            name: {
                "documents": collection.documents_count,
                "queries": len(collection.qrels),
                "judgements": sum(len(grades) for grades in collection.qrels.values()),
                "own_left_out": len(collection.own),
                "empty": collection.empty,
                "missing": collection.missing,
                "missing_queries": collection.missing_queries,
                "from": study.recipe.collections[name].model_dump(),
                **({"read_from": collection.place} if collection.place else {}),
                **({"for_choosing": True} if name in study.recipe.for_choosing else {}),
            }
            for name, collection in study.collections.items()
        },
    }


def environment(command: str) -> dict[str, Any]:
    """environment.json: what ran where."""
    return {
        "colbert_zero": version("colbert-zero"),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "cpu_features": cpu_features(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "maxsim": backend_here(),
        "processes": world_size(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
