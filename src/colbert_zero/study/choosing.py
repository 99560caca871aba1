"""Which of several models to start from, by what each does on the user's own pairs before anything is trained."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.util import load_file_path

from colbert_zero import __version__
from colbert_zero.data.prepared import ArrowPart, Part, Source
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.choosing import (
    MARGIN,
    Sample,
    apart_from_best,
    bm25_hits,
    embed_sample,
    hits_of,
    sample_pairs,
)
from colbert_zero.evaluation.significance import wilson_interval
from colbert_zero.files import Tell, place_of
from colbert_zero.models.alignment import TASKS, Own
from colbert_zero.models.bases import check_base, told_commit
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoders import assemble, read_own
from colbert_zero.models.heads import Head
from colbert_zero.models.layers import without_layers
from colbert_zero.models.shrinking import parameters
from colbert_zero.models.shrunk import folder_bytes
from colbert_zero.recipe.schema import Model, PerTask, Phase, Recipe
from colbert_zero.study.resolved import Resolved, asked

By = Literal["dense", "multi-vector"]

Pair = tuple[str, str]
"""Query and document."""

OPTION = "--candidates"

FEWEST_PAIRS = 50
"""Pairs of a sample."""

MOST_ROWS = 200_000
"""Rows of all sources, that a sample is drawn from; told where there are more."""

_SEED = 1


@dataclass(frozen=True)
class Candidate:
    """A model to choose from.

    Attributes:
        name: As it was given.
        place: Folder or Hub id.
        commit: Of the latter.
        own: What it has of its own.
        resolved: The recipe as it would be with this base: prompts, markers and width are the candidate's own where it
            has some; markers that it has not are left out, since their vectors would be random.
        phase: The recipe's first of the kind that is measured; the name is for errors.
    """

    name: str
    place: str
    commit: str | None
    own: Own
    resolved: Resolved
    phase: tuple[str, Phase]

    @property
    def options(self) -> dict[str, Any]:
        """What it is loaded with."""
        return {"revision": self.commit} if self.commit else {}

    def also(self, by: By) -> list[By]:
        """The other kind, where a phase of it would begin with something that was learned."""
        if self.own.representation == "multi-vector" or self.own.similarity not in (None, "cosine", "dot"):
            return []
        both: list[By] = ["dense", "multi-vector"]
        return [kind for kind in both if kind != by and (kind == "dense" or self.own.representation is None)]

    def model(self, kind: By) -> Encoder:
        """What a phase of a kind would start from, without a projection of random weights: MaxSim is of states."""
        name, spec = self.phase
        spec = spec.model_copy(update={"representation": kind})
        new, scored = self.resolved.head(spec, first=True).new, self.resolved.scored
        model = assemble(
            self.place, kind, self.resolved.alignment(spec), self.resolved.dim, _SEED, name, True, Head(new),
            scored=scored, **self.options,
        )  # fmt: skip
        if kind == "multi-vector" and (new or self.own.representation != kind):
            kept = [module for module in model if not isinstance(module, Dense)]
            model._modules = {str(place): module for place, module in enumerate(kept)}
        return model


# ---- What is measured, and how


def first_phases(recipe: Recipe) -> dict[By, tuple[str, Phase]]:
    """Of each kind of vectors the first phase that a pipeline trains."""
    found: dict[By, tuple[str, Phase]] = {}
    for chain in recipe.pipelines.values():
        trained = [(name, recipe.trained[name]) for name in chain if name in recipe.trained]
        for first in trained[:1]:
            if first[1].representation != "cross-encoder":
                found.setdefault(first[1].representation, first)
    return found


def kind_measured(recipe: Recipe | None, by: By | None, tell: Tell) -> By:
    """What candidates are ordered by: asked for, what the recipe's pipelines begin with, or multi-vector."""
    begins = list(first_phases(recipe)) if recipe else []
    if by or len(begins) == 1:
        return by or begins[0]
    if begins:
        tell("the recipe's pipelines begin with dense and with multi-vector phases: ordered by MaxSim; or --by dense")
    return "multi-vector"


def recipe_of_nothing(kind: By) -> Recipe:
    """For pairs without a recipe: one that leaves everything to the base."""
    entry = {"objective": "contrastive", "sources": ["pairs"], "global_batch_size": 2, "learning_rate": 0}
    phase = Phase.model_validate({"representation": kind, **entry})
    return Recipe.model_construct(
        name="pairs", model=Model.model_construct(), phases={"first": phase}, pipelines={"only": ["first"]}
    )


def find_candidates(names: Sequence[str], recipe: Recipe | None, kind: By, tell: Tell) -> list[Candidate]:
    """Candidates that can be had and trained; each is loaded, and none measured.

    Args:
        names: Folders or Hub ids.
        recipe: Says prompts and lengths; without, each candidate has its own.
        kind: That candidates are ordered by.
        tell: Told which commits Hub ids are at, and where a candidate's prompts are not the recipe's.

    Raises:
        ColbertZeroError: There are fewer than two, one is not there, is no text encoder, or is none that the recipe
            could train.
    """
    # A folder that is named twice, in two ways, is one.
    different = {os.path.realpath(place) if os.path.isdir(place := place_of(name)) else place: name for name in names}
    places = {place_of(name): name for name in different.values()}
    if len(places) < 2:
        what = f"{names[0]} is one" if names else "there is none"
        raise ColbertZeroError(f"{OPTION}: {what}; name at least two models to choose from")
    commits = {place: _commit(place, tell) for place in places}
    recipe = recipe or recipe_of_nothing(kind)
    firsts = first_phases(recipe)
    name, spec = firsts.get(kind) or next(iter(firsts.values()), None) or _first(recipe_of_nothing(kind))
    spec = spec.model_copy(update={"representation": kind})
    return [_candidate(places[place], place, commit, recipe, name, spec, tell) for place, commit in commits.items()]


def _first(recipe: Recipe) -> tuple[str, Phase]:
    return next(iter(recipe.trained.items()))


def _commit(place: str, tell: Tell) -> str | None:
    """The commit of a Hub id; what is not there, or cannot be trained, is refused."""
    commit = told_commit(place, OPTION, tell)
    check_base(place, commit, whose=OPTION)
    return commit


def _candidate(
    name: str, place: str, commit: str | None, recipe: Recipe, phase: str, spec: Phase, tell: Tell
) -> Candidate:
    options = {"revision": commit} if commit else {}
    kinds: list[By] = ["dense", "multi-vector"]
    wanted = [asked(recipe, spec.model_copy(update={"representation": kind})) for kind in kinds]
    try:
        own = read_own(place, [*wanted, *((kind, None, None) for kind in kinds)], **options)
        fitted, spec = _fitted(recipe, place, commit, own, spec, name, tell)
        resolved = Resolved(fitted.model_copy(update={"phases": {phase: spec}}), own)
        resolved.check([(phase,)])
    except ColbertZeroError as error:
        raise ColbertZeroError(f"{OPTION}: {name}: {str(error).removeprefix('model.base: ')}") from None
    return Candidate(name, place, commit, own, resolved, (phase, spec))


def _fitted(
    recipe: Recipe, place: str, commit: str | None, own: Own, spec: Phase, name: str, tell: Tell
) -> tuple[Recipe, Phase]:
    """The recipe and its phase with this base, whose own prompts, markers and width count before the recipe's."""
    model = recipe.model.model_copy(update={"base": place, "revision": commit, "architecture": None, "dim": None})
    prompts = spec.prompts or recipe.prompts
    if own.prompts is not None and prompts and any(own.prompts[task] != getattr(prompts, task) for task in TASKS):
        tell(f"{name}: its own prompts count, {dict(own.prompts)}; those of the recipe it was not trained with")
    if own.prompts is not None:
        prompts = None
    markers = None if own.markers is not None else PerTask()
    fitted = recipe.model_copy(update={"model": model, "prompts": prompts, "markers": markers})
    return fitted, spec.model_copy(update={"prompts": None})


# ---- Pairs


def pairs_in(sources: Sequence[Source], option: str, seed: int) -> tuple[list[tuple[str, Pair]], bool]:
    """Pairs of sources, with the sources' names, and whether these are all: at most `MOST_ROWS`, spread by size.

    Args:
        sources: Prepared or streamed.
        option: That named them, for errors.
        seed: Of which rows are read, where not all are.

    Raises:
        ColbertZeroError: A source has candidates with scores in place of pairs.
    """
    parts = [(source.name, part) for source in sources for part in source.parts.values()]
    total, found = sum(len(part) for _, part in parts), []
    for name, part in parts:
        if part.scored:
            raise ColbertZeroError(f"{option}: {name} has candidates with scores; name pairs of query and document")
        most = len(part) if total <= MOST_ROWS else -(-MOST_ROWS * len(part) // total)
        found += [(name, pair) for pair in _rows(part, most, seed)]
    return found, total <= MOST_ROWS


def _rows(part: Part, most: int, seed: int) -> Iterator[Pair]:
    if isinstance(part, ArrowPart) and most < len(part):
        numbers = np.sort(np.random.default_rng(seed).choice(len(part), most, replace=False))
        blocks: Iterable[dict[str, list[Any]]] = (
            part.read(some) for some in np.split(numbers, range(1000, most, 1000))
        )
    else:
        blocks = part.sample(most)
    for block in blocks:
        yield from zip(block["query"], block["document"], strict=True)


# ---- The choice


def choose_base(
    candidates: Sequence[str],
    pairs: Iterable[Pair],
    recipe: Recipe | None = None,
    by: By | None = None,
    count: int = 500,
    seed: int = 1,
    tell: Tell = print,
) -> dict[str, Any]:
    """Order models by recall@1 on pairs: how often a query's nearest document of a sample is its own.

    Args:
        candidates: Folders or Hub ids of encoders, dense or multi-vector checkpoints, at least two.
        pairs: (query, document), at least 50 whose texts all differ.
        recipe: Prompts and lengths, where candidates have none of their own; what its pipelines begin with is measured.
        by: That is measured instead: `dense`, each text's one vector, a candidate's own or the mean of its states; or
            `multi-vector`, MaxSim of a candidate's own token vectors or of its states. Multi-vector by default.
        count: Pairs of the sample, at most.
        seed: Of the draw.
        tell: Told what is done otherwise than asked for.

    Returns:
        The record; `best`, `as_good` and `candidates` (best first) answer, see docs/backbone.md.

    Raises:
        ColbertZeroError: A candidate is not there or cannot be trained; there are too few pairs.

    Example:
        >>> from colbert_zero import choose_base
        >>> model.save_pretrained("trained")
        >>> pairs = [(f"what is {word}{n}", f"{word}{n} is a {word}") for word in ("wing", "lung") for n in range(40)]
        >>> found = choose_base([encoder, "trained"], pairs, tell=lambda text: None)
        >>> found["best"] in (encoder, "trained"), found["pairs"]
        (True, 80)
    """
    kind = kind_measured(recipe, by, tell)
    found = find_candidates(candidates, recipe, kind, tell)
    sample = checked_sample([("pairs", pair) for pair in pairs], count, seed, "pairs")
    return compare_candidates(found, sample, kind, tell) | {"seed": seed}


def checked_sample(pairs: Iterable[tuple[str, Pair]], count: int, seed: int, option: str) -> Sample:
    """A sample of pairs.

    Args:
        pairs: With their sources' names.
        count: At most so many.
        seed: Of the draw.
        option: That named them, for errors.

    Raises:
        ColbertZeroError: There are fewer than `FEWEST_PAIRS`.
    """
    sample = sample_pairs(((name, *pair) for name, pair in pairs), count, seed)
    if len(sample.queries) < FEWEST_PAIRS:
        shared = f" ({sample.left_out:,} more share their query or document with these)" if sample.left_out else ""
        raise ColbertZeroError(
            f"{option}: {len(sample.queries)} different pairs{shared}; at least {FEWEST_PAIRS} are needed; add some"
        )
    return sample


def compare_candidates(
    candidates: Sequence[Candidate],
    sample: Sample,
    kind: By,
    tell: Tell,
    counted: Callable[[str], Any] = lambda _: nullcontext(),
) -> dict[str, Any]:
    """Measure candidates one after the other, and order them.

    Args:
        candidates: At least two.
        sample: Of pairs.
        kind: That they are ordered by.
        tell: Told where layers cannot be taken out.
        counted: Gives a context in which one is shown: what it yields is called with the texts done and all.

    Returns:
        As `choose_base`, without the seed.
    """
    records, hits = {}, {}
    for candidate in candidates:
        records[candidate.name], hits[candidate.name] = _measure(candidate, sample, kind, tell, counted)
    order = apart_from_best(hits)
    best = next(iter(order))
    return {
        "measure": "recall@1",
        "by": kind,
        "pairs": len(sample.queries),
        "drawn_from": sample.drawn_from,
        "left_out": sample.left_out,
        "margin": MARGIN,
        "bm25": _mean(bm25_hits(sample)),
        "best": best,
        "as_good": [name for name, about in order.items() if about["verdict"] == "as good"],
        "candidates": {name: records[name] | about | {"hits": hits[name].tolist()} for name, about in order.items()},
        "versions": {"colbert_zero": __version__, "torch": torch.__version__},
    }


def _measure(
    candidate: Candidate, sample: Sample, kind: By, tell: Tell, counted: Callable[[str], Any]
) -> tuple[dict[str, Any], np.ndarray]:
    started, model = time.monotonic(), candidate.model(kind)
    with counted(f"texts by {candidate.name}") as progress:
        embedded = embed_sample(model, sample, progress)
    hits = hits_of(embedded, candidate.name)
    record = {
        "kind": candidate.own.representation or "encoder",
        "commit": candidate.commit,
        **_mean(hits),
        "without_layers": None,
        "other": {},
        "parameters": parameters(model),
        "bytes": folder_bytes(_folder(candidate)),
        "documents_per_second": round(len(sample.documents) / embedded.seconds, 3),
    }
    try:
        bare = without_layers(model, candidate.name)
    except ColbertZeroError as error:
        tell(str(error))
    else:
        record["without_layers"] = _mean(hits_of(embed_sample(bare, sample), candidate.name))["score"]
    for other in candidate.also(kind):
        with counted(f"texts by {candidate.name}, {other}") as progress:
            embedded = embed_sample(candidate.model(other), sample, progress)
        found = hits_of(embedded, candidate.name)
        record["other"][other] = _mean(found) | {"hits": found.tolist()}
    return record | {"seconds": round(time.monotonic() - started, 3)}, hits


def _mean(hits: np.ndarray) -> dict[str, Any]:
    score = float(hits.mean())
    return {"score": score, "interval": list(wilson_interval(score, len(hits)))}


def _folder(candidate: Candidate) -> Path:
    """Where its files are: its own folder, or that of the Hub's cache."""
    if candidate.commit is None:
        return Path(candidate.place)
    names = ("modules.json", "config.json")
    found = (load_file_path(candidate.place, name, revision=candidate.commit) for name in names)
    return next(Path(path).parent for path in found if path)
