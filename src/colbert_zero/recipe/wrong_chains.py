"""What is wrong with phases that are not trained: what they are asked for, what they follow, what is merged."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from colbert_zero.errors import near
from colbert_zero.recipe.untrained import Adapt, Compress, Merge, Untrained

if TYPE_CHECKING:
    from colbert_zero.recipe.schema import Recipe

_DOES = {"train": "trains", "compress": "compresses", "merge": "merges", "adapt": "adapts"}


def wrong_untrained(phase: dict[str, Any]) -> list[str]:
    """Keys of one entry that do not go together, on the raw data; each begins after the phase's name."""
    wrong = []
    if phase["kind"] == "compress":
        layers = phase.get("layers")
        if not _says(phase, neurons=1, zeros=0) and not any(phase.get(key) for key in ("layers", "bits", "vocabulary")):
            wrong.append(": nothing is cut; give some of `layers`, `neurons`, `zeros`, `bits` and `vocabulary`")
        if isinstance(layers, list) and all(isinstance(number, int) for number in layers):
            if layers != sorted(set(layers)):
                wrong.append(f".layers: {layers} is not ascending; name each layer that is kept once, in order")
        elif isinstance(layers, int) and not phase.get("corpus"):
            wrong.append(
                f".layers: {layers}: which ones hurt least is measured on texts; add `corpus` (a path, or a list of "
                f"sources), or name those that are kept, as {list(range(layers))}"
            )
    if phase["kind"] == "merge":
        others, weights, method = (phase.get(key) for key in ("with", "weights", "method"))
        count = 1 + len(others) if isinstance(others, list) else None
        if count and isinstance(weights, list) and len(weights) != count:
            wrong.append(
                f".weights: {len(weights)}, and {count} models are merged, its start and those of `with`; give one each"
            )
        if count and count > 2 and method == "slerp":
            wrong.append(f".method: slerp is between two models, and {count} are merged; take multislerp")
        if weights and method == "karcher":
            wrong.append(".weights: karcher takes all models alike; leave them out, or take multislerp")
        if count and isinstance(others, list):
            twice = dict.fromkeys(str(name) for name in others if others.count(name) > 1)
            wrong += [f".with: {name!r} stands twice; give it a larger weight" for name in twice]
    if phase["kind"] == "adapt":
        if phase.get("decorrelate") not in (None, False, "false", "no", "off") and phase.get("projection") is not None:
            wrong.append(".projection: `decorrelate` has no random features; leave one out")
        sources = phase.get("sources")
        if isinstance(sources, list):
            twice = dict.fromkeys(str(name) for name in sources if sources.count(name) > 1)
            wrong += [f".sources: {name!r} stands twice" for name in twice]
    return wrong


def _says(phase: dict[str, Any], **unset: Any) -> bool:
    """Whether one of these keys says something."""
    return any(phase.get(key) not in (None, value) for key, value in unset.items())


def wrong_chain(recipe: "Recipe", place: str, chain: Sequence[str]) -> list[str]:
    """Phases that cannot follow those before them."""
    wrong, adapted, domains = [], "", dict[str, str]()
    for number, name in enumerate(chain):
        phase, before = recipe.phases.get(name), chain[:number]
        if phase is None:
            continue
        kind = recipe.representation_after(before)
        if adapted and not isinstance(phase, Adapt):
            wrong.append(
                f"{place}: {name!r} {_DOES[phase.kind]} what {adapted!r} adapted: modules for queries alone, fitted to "
                f"the model as it was; put {adapted!r} last"
            )
        if isinstance(phase, Untrained) and kind == "cross-encoder":
            wrong.append(f"{place}: {name!r} {_DOES[phase.kind]} a cross-encoder; only encoders are; leave it out")
        elif isinstance(phase, Adapt) and kind == "dense":
            wrong.append(
                f"{place}: {name!r} adapts a multi-vector model's queries, and its start is dense; put a multi-vector "
                "phase before it"
            )
        elif isinstance(phase, Adapt) and adapted:
            wrong += _wrong_second(recipe, place, adapted, name, domains)
        adapted = name if isinstance(phase, Adapt) else ""
        domains = dict.fromkeys(phase.sources, name) | domains if isinstance(phase, Adapt) else {}
    untrained = [isinstance(recipe.phases.get(name), Untrained) for name in chain]
    model = getattr(recipe, "model", None)  # a recipe with mistakes may have none
    if untrained and all(untrained) and model and model.architecture:
        wrong.append(f"{place}: none of its phases is trained, and random weights rank nothing; add one that is")
    return wrong


def _wrong_second(recipe: "Recipe", place: str, first: str, second: str, domains: dict[str, str]) -> list[str]:
    """What cannot be added to the sums of the `adapt` right before it, and of those before that."""
    specs = [spec for name in (first, second) if isinstance(spec := recipe.phases[name], Adapt)]
    one, other = (f"({spec.way}, {spec.projection or 0} features, seed {recipe.seed_of(spec)})" for spec in specs)
    if one != other:
        told = f"{first!r} {one} and {second!r} {other} adapt otherwise"
        return [f"{place}: {told}, and sums of two kinds cannot be added; give both the same"]
    twice = [source for source in specs[1].sources if source in domains]
    return [
        f"{place}: {second!r} adapts to {source!r}, and so did {domains[source]!r}; leave one out" for source in twice
    ]


def merged_into(recipe: "Recipe", chain: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The chains that a chain's phases merge their starts with."""
    for name in chain:
        phase = recipe.phases.get(name)
        if isinstance(phase, Merge):
            yield from (other for with_ in phase.others if (other := recipe.chain_named(with_)))


def wrong_merges(recipe: "Recipe") -> list[str]:
    """Merges with what is not there, is not alike, or waits for the merge itself."""
    wrong: dict[str, None] = {}
    owners = [*recipe.pipelines.items(), *((name, t.pipeline) for name, t in recipe.teachers.items() if t.pipeline)]
    for owner, chain in owners:
        for number, name in enumerate(chain):
            phase = recipe.phases.get(name)
            if isinstance(phase, Merge):
                start, known = tuple(chain[:number]), dict[Any, str]()
                for other in phase.others:
                    same = known.setdefault(recipe.chain_named(other) or other, other)
                    if same != other:
                        wrong[f"phases.{name}.with: {same} and {other} are one checkpoint; name one of them"] = None
                    if said := _wrong_merge(recipe, owner, (*start, name), other):
                        wrong[f"phases.{name}.with: {said}"] = None
    return list(wrong)


def _wrong_merge(recipe: "Recipe", owner: str, chain: tuple[str, ...], other: str) -> str:
    pipeline, _, phase = other.partition("@")
    start, found = chain[:-1], recipe.chain_named(other)
    if pipeline not in recipe.pipelines:
        return f"no pipeline {pipeline!r}{near(pipeline, recipe.pipelines)}"
    if found is None:
        return f"{other}: {pipeline!r} has no phase {phase!r}{near(phase, recipe.pipelines[pipeline])}"
    if found == start:
        return f"{other} is its start in {owner!r}, merged with itself; name another"
    if _leads_to(recipe, found, chain):
        return f"{other} is made with this very merge in {owner!r}; name PIPELINE@PHASE before it"
    if isinstance(recipe.phases.get(found[-1]), Adapt):
        return f"{other} is adapted, with modules for queries alone; merge what it was made of, and adapt that"
    kinds = [recipe.representation_after(one) for one in (found, start)]
    if None not in kinds and kinds[0] != kinds[1]:
        return f"{other} is {kinds[0]}, and its start in {owner!r} is {kinds[1]}; merge what is alike"
    cuts = [_cuts_in(recipe, one) for one in (found, start)]
    names = [" and ".join(map(repr, one)) for one in cuts]
    if bool(names[0]) != bool(names[1]):
        small, large = (other, "its start") if names[0] else ("its start", other)
        by = names[0] or names[1]
        return f"{small} is cut by {by}, and {large} is not; merge what has the same shapes, or merge before cutting"
    if _shape(cuts[0].values()) != _shape(cuts[1].values()):
        return (
            f"{other} is cut by {names[0]}, and its start in another way, by {names[1]}; merge what has the same shapes"
        )
    return ""


def _cuts_in(recipe: "Recipe", chain: Sequence[str]) -> dict[str, Compress]:
    """The phases of a chain that change shapes."""
    phases = ((name, recipe.phases.get(name)) for name in chain)
    return {name: phase for name, phase in phases if isinstance(phase, Compress) and phase.reshapes}


def _shape(cuts: Iterable[Compress]) -> tuple[int | None, float, bool]:
    """What these cuts together leave, as far as a recipe shows: layers, the share of neurons, a cut vocabulary."""
    layers, neurons, vocabulary = None, 1.0, False
    for cut in cuts:
        if cut.layers is not None:
            layers = cut.layers if isinstance(cut.layers, int) else len(cut.layers)
        neurons, vocabulary = round(neurons * cut.neurons, 9), vocabulary or cut.vocabulary is not None
    return layers, neurons, vocabulary


def _leads_to(recipe: "Recipe", chain: tuple[str, ...], merge: tuple[str, ...]) -> bool:
    """Whether a chain, or what it is made with, begins with this one."""
    waiting, seen = [chain], set[tuple[str, ...]]()
    while waiting:
        one = waiting.pop()
        if one[: len(merge)] == merge:
            return True
        if one not in seen:
            seen.add(one)
            waiting += [*merged_into(recipe, one), *_taught_by(recipe, one)]
    return False


def _taught_by(recipe: "Recipe", chain: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The chains whose models score or mine what a chain's phases read."""
    sources = [source for name in chain if name in recipe.phases for source in recipe.phases[name].sources]
    for name in sources:  # grows
        source = recipe.sources.get(name)
        if source is None:
            continue
        if source.kind == "scored":
            if source.teacher in recipe.teachers:
                yield tuple(recipe.teachers[source.teacher].pipeline)
            sources.append(source.of)
        elif source.kind == "mined":
            yield from (found for miner in source.phases for found in recipe.chains_to(miner))
