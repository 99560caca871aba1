"""A study's teachers: ensembles that score students' candidates. What each is made of, how good it is by itself."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sentence_transformers.util import get_device_name

from colbert_zero.data.collection import Collection
from colbert_zero.data.sources import folder_fingerprints
from colbert_zero.evaluation.ensembles import FUSED
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import Run
from colbert_zero.files import fingerprint, place_of
from colbert_zero.models.bases import find_checkpoint
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.kinds import is_cross_encoder
from colbert_zero.models.precision import Arithmetic, decided, why
from colbert_zero.processes import from_main
from colbert_zero.recipe.data import Mined, Scored
from colbert_zero.recipe.miners import BM25
from colbert_zero.recipe.schema import Recipe, Teacher
from colbert_zero.study.ensembles import Weighted, ranked_together
from colbert_zero.study.rankings import Ranker, bm25
from colbert_zero.teaching.reranking import rerank
from colbert_zero.teaching.scorers import ByBm25, Scorer, scorer_of

if TYPE_CHECKING:
    from colbert_zero.study.study import Study


class Ready(NamedTuple):
    """What is known of a model that is there already.

    Attributes:
        commit: Of a Hub id; None of a folder.
        reads_pairs: Whether it is a cross-encoder.
    """

    commit: str | None
    reads_pairs: bool


def ready_of(model: str, whose: str, tell: Callable[[str], None]) -> Ready:
    """Look for a model.

    Raises:
        ColbertZeroError: It is not there, or scores nothing.
    """
    commit = find_checkpoint(model, whose, tell, cross_encoder=True)
    return Ready(commit, is_cross_encoder(place_of(model), commit))


@dataclass(frozen=True)
class Member:
    """One of what a teacher's scores are the weighted sum of: phases trained here, a model that is there, or BM25.

    Attributes:
        weight: Above 0.
        chain: Phases; none of another member.
        model: Folder or Hub id; None of another member.
    """

    weight: float
    chain: tuple[str, ...] = ()
    model: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return " → ".join(self.chain) or self.model or "BM25"


def members_of(teacher: Teacher) -> list[Member]:
    """What a teacher is made of, as far as it has a weight."""
    members = [Member(teacher.pipeline_weight, tuple(teacher.pipeline))] if teacher.pipeline else []
    members += [Member(teacher.model_weight, model=teacher.model)] if teacher.model else []
    return [member for member in [*members, Member(teacher.bm25_weight)] if member.weight]


def used_teachers(recipe: Recipe, chains: Sequence[tuple[str, ...]]) -> list[str]:
    """The teachers whose scores these chains' last phases are trained on."""
    used = dict[str, None]()
    for source in dict.fromkeys(name for chain in chains for name in recipe.phases[chain[-1]].sources):
        spec = recipe.sources[source]
        while isinstance(spec, Mined | Scored):
            if isinstance(spec, Scored):
                used[spec.teacher] = None
            spec = recipe.sources[spec.of]
    return list(used)


def mark_of(model: str, data: Path) -> str:
    """What a ready model is in an id: the contents of a folder; of a Hub id its name, since its commit is recorded."""
    place = place_of(model)
    return fingerprint(folder_fingerprints(Path(place), data)) if os.path.isdir(place) else model


def scorers(study: "Study", name: str, arithmetic: Arithmetic, documents: Sequence[str]) -> list[tuple[float, Scorer]]:
    """What scores pairs for a teacher, with its weight; its phases are trained."""
    members = members_of(study.recipe.teachers[name])
    return [(member.weight, _scorer(study, name, member, documents, arithmetic)) for member in members]


def arithmetic_of(study: "Study", name: str) -> Arithmetic:
    """What a teacher's models score in: as asked for, or what `auto` comes to here, which is told."""
    asked = study.recipe.teachers[name].precision
    found = decided(asked, torch.device(get_device_name()))
    if asked == "auto":
        study.show.say(f"teachers.{name}.precision: auto, which is {why(found)}")
    return found


def _scorer(
    study: "Study", name: str, member: Member, documents: Sequence[str] = (), arithmetic: Arithmetic = "float32"
) -> Scorer:
    if member.chain:  # what it cuts was told when it was trained
        folder, whose = str(study.phase_folder(member.chain) / "model"), f"teachers.{name}.pipeline:"
        return scorer_of(folder, documents, None, lambda _: None, whose, arithmetic)
    if member.model:
        commit, whose = study.ready(name, member.model).commit, f"teachers.{name}.model:"
        return scorer_of(member.model, documents, commit, study.say_once, whose, arithmetic)
    return ByBm25(documents)


# ---- How good a teacher is


def _scores(study: "Study", name: str) -> dict[str, dict[str, float]]:
    """Scores of a teacher on every collection of its study."""
    members = [Weighted(m.weight, _identity(study, name, m), ranker_of(study, name, m)) for m in _members(study, name)]
    if len(members) == 1:  # whose order is the teacher's
        return study.evaluate(f"teacher-{name}", members[0].identity, members[0].ranker)
    return study.evaluate(f"teacher-{name}", _fused_identity(study, name), ranked_together(study, members))


def fusions(study: "Study", chains: Sequence[tuple[str, ...]]) -> dict[str, list[str]]:
    """Of each teacher of several members what its ranking is known by, and what theirs are."""
    found = {}
    for name in used_teachers(study.recipe, chains):
        if len(members := _members(study, name)) > 1:
            found[_fused_identity(study, name)] = [_identity(study, name, member) for member in members]
    return found


def _reranks(study: "Study", name: str) -> bool:
    """Whether a member is a cross-encoder, which ranks BM25's best anew and nothing by itself."""
    return any(_is_cross_encoder(study, name, member) for member in _members(study, name))


def _fused_identity(study: "Study", name: str) -> str:
    """What a ranking of several members together is known by."""
    teacher = study.recipe.teachers[name]
    phases = study.phase_id(tuple(teacher.pipeline)) if teacher.pipeline else None
    model = [mark_of(teacher.model, study.data)] if teacher.model else []
    return fingerprint(FUSED, teacher.asked({"model", "precision"}), phases, *model)


def _members(study: "Study", name: str) -> list[Member]:
    """BM25 first."""
    return members_of(study.recipe.teachers[name])[::-1]


def _is_cross_encoder(study: "Study", name: str, member: Member) -> bool:
    if member.chain:
        return study.recipe.phases[member.chain[-1]].reads_pairs
    return member.model is not None and study.ready(name, member.model).reads_pairs


def _identity(study: "Study", name: str, member: Member) -> str:
    if not member.chain and not member.model:
        return BM25
    known = study.phase_id(member.chain) if member.chain else mark_of(str(member.model), study.data)
    # One that ranks so many of BM25's best anew is another ranking than one that ranks more of them.
    return fingerprint(known, study.recipe.teachers[name].rerank) if _is_cross_encoder(study, name, member) else known


def ranker_of(study: "Study", name: str, member: Member) -> Ranker:
    """Ranks a collection by a member of a teacher."""
    if _is_cross_encoder(study, name, member):
        return partial(_rerank, study, name, member)
    if member.chain:
        return partial(study.rank, member.chain)
    return partial(_rank, study, name, member) if member.model else bm25


def _rank(study: "Study", name: str, member: Member, collection: Collection, depth: int) -> Run:
    model = str(member.model)
    encoder = load_model(place_of(model), revision=study.ready(name, model).commit)
    with study.show.bar(f"evaluating {model} on {collection.name}", collection.documents_count) as advance:
        return rank(encoder, collection, depth, lambda done, total: advance(done, {}))


def _rerank(study: "Study", name: str, member: Member, collection: Collection, depth: int) -> Run:
    """BM25's best anew, as many as the teacher's `rerank` says, whatever the depth."""
    scorer, most = _scorer(study, name, member), study.recipe.teachers[name].rerank
    first = from_main(bm25(collection, most))
    title = f"reranking {most} of BM25's by {member.name} on {collection.name}"
    with study.show.bar(title, len(first)) as advance:
        return rerank(scorer, collection, first, most, lambda done, total: advance(done, {}))


def unmade(recipe: Recipe, sources: Sequence[str], is_made: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Teachers' names and their ready models that are still to score one of these sources."""
    found = dict[tuple[str, str], None]()
    for source in sources:
        spec = recipe.sources[source]
        if isinstance(spec, Scored) and (model := recipe.teachers[spec.teacher].model) and not is_made(source):
            found[spec.teacher, model] = None
    return list(found)


def _description(study: "Study", name: str) -> str:
    """A teacher in words."""
    parts = [f"{member.weight:g} × {member.name}" for member in _members(study, name)[::-1]]
    most = study.recipe.teachers[name].rerank
    anew = f"; a cross-encoder, measured on BM25's best {most} of each query" if _reranks(study, name) else ""
    return f"{' + '.join(parts)}, each min-max normalised per query{anew}"


def record_of(study: "Study", name: str) -> dict[str, Any]:
    """What a teacher is and how good, for teachers.json."""
    parts = [{"name": member.name, "weight": member.weight} for member in members_of(study.recipe.teachers[name])]
    return {"description": _description(study, name), "parts": parts, "scores": _scores(study, name)}
