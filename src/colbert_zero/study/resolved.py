"""What phases have: as the recipe asks for it, and where it says nothing as the base has it; what goes together."""

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from colbert_zero.models.alignment import (
    DIM,
    TASKS,
    Alignment,
    Asked,
    Own,
    align,
    check_alignment,
    check_dim,
    check_lengths,
    check_similarity,
    check_training,
    differences,
)
from colbert_zero.models.cross_encoders import no_cross_encoder
from colbert_zero.models.heads import Head
from colbert_zero.models.scored_tokens import ScoredTokens, check_expansion, scored_differences
from colbert_zero.recipe.schema import Phase, Recipe

_NONE = dict.fromkeys(TASKS, "")


def asked(recipe: Recipe, spec: Phase) -> Asked:
    """What a phase trains, with the prompts and markers that are asked for; a cross-encoder reads texts without."""
    if spec.reads_pairs:
        return spec.representation, _NONE, _NONE
    entries = spec.prompts or recipe.prompts, recipe.markers
    prompts, markers = (entry.model_dump() if entry else None for entry in entries)
    return spec.representation, prompts, markers


@dataclass(frozen=True)
class Resolved:
    """A recipe's phases and what its base has of its own.

    Attributes:
        recipe: The study's.
        own: Its base's.
    """

    recipe: Recipe
    own: Own

    @property
    def dim(self) -> int:
        """Width of a token vector."""
        return self.recipe.model.dim or self.own.dim or DIM

    @property
    def scored(self) -> ScoredTokens:
        """What multi-vector phases are asked to leave out of documents, to fill queries up with and to pool."""
        words = self.recipe.model.skip_list
        words = list(string.punctuation) if words == "punctuation" else words
        model = self.recipe.model
        return ScoredTokens(None if words is None else tuple(words), model.query_expansion, model.pool)

    def alignment(self, spec: Phase) -> Alignment:
        """Prompts, markers and lengths of a phase."""
        return align(self.own, *asked(self.recipe, spec), self.recipe.longest(spec), self.recipe.lengths == "all")

    def head(self, spec: Phase, first: bool) -> Head:
        """The head of a phase that has none from its start; only a pipeline's first replaces its base's."""
        wanted = self.recipe.model.head
        layers = tuple(wanted) if isinstance(wanted, list) else ()
        # Layers are of multi-vector heads: a dense phase keeps its pooling.
        new = wanted == "new" or (bool(layers) and spec.representation == "multi-vector")
        return Head(new and first, layers, self.recipe.model.start)

    def check(self, chains: Iterable[tuple[str, ...]]) -> None:
        """Refuse phases whose base or start does not go with what they are asked for.

        Raises:
            ColbertZeroError: Other prompts or markers than a start's, another width than that of a head that is kept,
                texts that do not fit, scores that are not trained, a token that there is not, or an encoder of which
                no cross-encoder can be made.
        """
        phases = self.recipe.trained
        learnt = [[name for name in chain if name in phases] for chain in chains]
        for before, name in {pair for chain in learnt for pair in zip((None, *chain), chain, strict=False)}:
            spec, own, base = phases[name], self.own, str(self.recipe.model.base)
            if before:
                alignment = vars(self.alignment(phases[before]))
                own, base = Own(prompts={task: alignment[f"{task}_prompt"] for task in TASKS}), before
            elif spec.representation == own.representation and self.recipe.model.head is None:
                if own.representation == "multi-vector":
                    check_dim(own, self.dim, base)
                check_similarity(own.similarity, name, base)
            if spec.representation == "multi-vector":
                check_expansion(self.own, self.scored)
            check_training(self.own, spec.gradient_checkpointing, spec.targets, name)
            if spec.reads_pairs:
                if self.own.no_pairs:
                    raise no_cross_encoder(self.own.no_pairs, name)
                continue
            if not spec.allow_prompt_mismatch:
                check_alignment(own, self.alignment(spec), spec.representation, name, base)
            switched_off = self.scored.query_expansion is False
            filling = replace(self.own, filled_to=None) if switched_off else self.own
            check_lengths(filling, self.alignment(spec), spec.representation, name)

    def differences(self, phases: Iterable[Phase]) -> Iterator[str]:
        """What phases have instead of their base's own, in words."""
        for spec in (phase for phase in phases if not phase.reads_pairs):
            yield from differences(self.own, self.alignment(spec), spec.representation)
            if spec.representation == "multi-vector":
                yield from scored_differences(self.own, self.scored)

    def peculiarities(self, phases: Iterable[Phase]) -> Iterator[str]:
        """Keys that phases have no use for, and prompts that texts follow without a blank, in words."""
        phases, model = list(phases), self.recipe.model
        given = {
            "skip_list": model.skip_list is not None,
            "query_expansion": model.query_expansion is not None,
            "pool": model.pool is not None,
            "head": isinstance(model.head, list),
            "start": model.start != "random",
        }
        if not any(phase.representation == "multi-vector" for phase in phases):
            yield from (f"model.{key}: has no effect, since no phase is multi-vector" for key in given if given[key])
        elif given["start"] and self.own.representation == "multi-vector" and model.head is None:
            yield "model.start: has no effect, since the base's projection is kept"
        for spec in phases:
            for task, prompt in self.prompts_without_blank(spec).items():
                yield f"prompts.{task}: {prompt!r} has no blank at its end, so texts follow it at once"

    def prompts_without_blank(self, spec: Phase) -> dict[str, str]:
        """Prompts that are asked for and end in no white space, by task."""
        prompts = asked(self.recipe, spec)[1] or {}
        return {task: prompt for task, prompt in prompts.items() if prompt and not prompt[-1].isspace()}
