"""A study's ensembles: what each is made of, which members are chosen, and how good they are together."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ensembles import FUSED, FUSION_DEPTH, choose_greedily, fuse
from colbert_zero.evaluation.footprint import footprint
from colbert_zero.evaluation.runs import Run, measure
from colbert_zero.files import fingerprint, read_json, write_json
from colbert_zero.processes import from_main, is_main
from colbert_zero.recipe.miners import BM25
from colbert_zero.recipe.schema import Ensemble, Recipe
from colbert_zero.report.records import MEASURE
from colbert_zero.study.rankings import Ranker, bm25

if TYPE_CHECKING:
    from colbert_zero.study.study import Study


class Weighted(NamedTuple):
    """A member of an ensemble, whatever it is.

    Attributes:
        weight: Above 0.
        identity: What its ranking is known by.
        ranker: Ranks by it.
    """

    weight: float
    identity: str
    ranker: Ranker


def ranked_together(study: "Study", members: Sequence[Weighted]) -> Ranker:
    """Ranks a collection by several members, each 1,000 documents deep."""

    def fused(collection: Collection, depth: int) -> Run:
        return fuse([(m.weight, study.rankings.deep(m.identity, collection, m.ranker)) for m in members], depth)

    return fused


def whole_ensembles(recipe: Recipe, nodes: Iterable[tuple[str, ...]]) -> dict[str, str | None]:
    """The recipe's ensembles; of each a member that is not among these phases, or None where all are."""
    there = {*nodes, None}
    return {
        name: next((member for member in ensemble.names if recipe.system_chain(member) not in there), None)
        for name, ensemble in recipe.ensembles.items()
    }


def fusions(study: "Study", names: Iterable[str]) -> dict[str, list[str]]:
    """Of each ensemble what its ranking is known by, and what its members' are.

    Who is chosen is not known before all are ranked, so one that is chosen goes by a name that no ranking has: its
    members are ranked as deep as is needed in any case.
    """
    found = {}
    for name in names:
        ensemble = study.recipe.ensembles[name]
        members = _weighted(study, ensemble.members or dict.fromkeys(ensemble.of, 1.0))
        identity = _identity(members) if ensemble.members else fingerprint("to choose from", *ensemble.of)
        found[identity] = [member.identity for member in members]
    return found


def _weighted(study: "Study", weights: Mapping[str, float]) -> list[Weighted]:
    """Systems with their weights."""
    return [Weighted(weight, *_ranked_by(study, system)) for system, weight in weights.items()]


def _ranked_by(study: "Study", system: str) -> tuple[str, Ranker]:
    """What a system's ranking is known by, and what makes it."""
    chain = study.recipe.system_chain(system)
    return (BM25, bm25) if chain is None else (study.phase_id(chain), partial(study.rank, chain))


def _identity(members: Sequence[Weighted]) -> str:
    """What a ranking of several members together is known by; of one its own, whose order it has."""
    if len(members) == 1:
        return members[0].identity
    return fingerprint("ensemble", FUSED, [[member.weight, member.identity] for member in members])


def evaluate_ensemble(study: "Study", name: str) -> dict[str, Any]:
    """Scores of an ensemble on every collection that is compared, and what it is made of.

    Returns:
        members ({system: weight}), choice (how they were chosen; null of fixed weights), scores.

    Raises:
        ColbertZeroError: There is nothing to choose by.
    """
    ensemble, choice = study.recipe.ensembles[name], None
    weights: dict[str, float] = dict(ensemble.members)
    if ensemble.of:
        choice = choose_members(study, name, ensemble)
        weights = choice["weights"]
        told = " + ".join(f"{weight} × {member}" for member, weight in weights.items())
        study.show.say(f"{name}: greedy on {ensemble.on} chose {told}")
    members = _weighted(study, weights)
    ranker = ranked_together(study, members) if len(members) > 1 else members[0].ranker
    scores = study.evaluate(name, _identity(members), ranker)
    return {"members": weights, "choice": choice, "scores": scores}


def choose_members(study: "Study", name: str, ensemble: Ensemble) -> dict[str, Any]:
    """Choose an ensemble's members on its collection, whose queries no system is compared on.

    Queries that a compared collection has too, word by word, are left out.

    Returns:
        on, objective, temperature, rounds (at most), queries (that were chosen by), shared (queries left out since they
        are compared on too), unanswered (without a relevant document that a member found), weights ({system: how
        often}), path (a round each: member, loss, the ensemble's score with it), members (by themselves: loss and
        score), best_single (the highest score of one member), score (of what was chosen).

    Raises:
        ColbertZeroError: There is nothing to choose by.
    """
    assert ensemble.on
    collection, place = study.collections[ensemble.on], f"ensembles.{name}.on: {ensemble.on}"
    compared = {text for other in study.compared.values() for text in other.queries.values()}
    qrels = {query: grades for query, grades in collection.qrels.items() if collection.queries[query] not in compared}
    if not qrels:
        raise ColbertZeroError(f"{place} has no query that is not compared on too; name other queries")
    runs = {m: study.rankings.deep(i, collection, make) for m in ensemble.of for i, make in [_ranked_by(study, m)]}

    def make() -> dict[str, Any]:
        try:
            found = choose_greedily(runs, qrels, ensemble.temperature, ensemble.rounds)
        except ColbertZeroError as error:
            raise ColbertZeroError(f"{place}: {error}") from None
        taken, path = dict[str, int](), list[dict[str, Any]]()
        for member, loss in found.path:
            taken[member] = taken.get(member, 0) + 1
            together = fuse([(weight, runs[m]) for m, weight in taken.items()], FUSION_DEPTH)
            path.append({"member": member, "loss": loss, "score": _score(together, qrels)})
        single = {m: {"loss": loss, "score": _score(runs[m], qrels)} for m, loss in found.single.items()}
        best = max(single, key=lambda member: single[member]["score"])
        return {
            "on": ensemble.on,
            "objective": "cross-entropy of relevant documents under a softmax, nats",
            "temperature": ensemble.temperature,
            "rounds": ensemble.rounds,
            "queries": found.queries,
            "shared": len(collection.qrels) - len(qrels),
            "unanswered": found.left_out,
            "weights": found.weights,
            "path": path,
            "members": single,
            "best_single": {"member": best, "score": single[best]["score"]},
            "score": path[-1]["score"],
        }

    chosen: dict[str, Any] = from_main(make() if is_main() else None)
    return chosen


def _score(run: Run, qrels: dict[str, dict[str, int]]) -> float:
    return measure(run, qrels, (MEASURE,))[0][MEASURE]


# ---- What a system takes to answer


def takes(study: "Study", chains: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Bytes of the models behind a system, and operations of encoding a query of mean length by each; 0 of BM25.

    None where a scored model is there no more. Of each checkpoint they are found once, and kept in footprints.json.
    """
    parts = [_footprint(study, chain) for chain in chains]
    found = {key: [part[key] for part in parts] for key in ("model_bytes", "query_flops")}
    return {key: None if None in values else sum(values) for key, values in found.items()}


def _footprint(study: "Study", chain: tuple[str, ...]) -> dict[str, Any]:
    path = study.folder / "footprints.json"
    key = fingerprint(study.phase_id(chain), *(c.fingerprint for c in study.compared.values()))

    def find() -> dict[str, Any]:
        kept: dict[str, Any] = read_json(path) if path.is_file() else {}
        if key not in kept and not (study.phase_folder(chain) / "model").is_dir():
            return {"model_bytes": None, "query_flops": None}
        if key not in kept:
            queries = [text for collection in study.compared.values() for text in collection.queries.values()]
            kept[key] = footprint(study.phase_folder(chain) / "model", queries)
            write_json(path, kept)
        return dict(kept[key])

    found: dict[str, Any] = from_main(find() if is_main() else None)
    return found
