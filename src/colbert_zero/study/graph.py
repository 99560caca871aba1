"""What stands on what: chains of phases, and sources made from sources."""

from collections.abc import Iterator

from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.data import Mined, Scored
from colbert_zero.recipe.schema import Recipe
from colbert_zero.recipe.wrong_chains import merged_into


def chains_of(recipe: Recipe, only: list[str] | None) -> dict[str, tuple[str, ...]]:
    """Pipelines to run, as chains of phases.

    Raises:
        ColbertZeroError: A name in `only` is no pipeline.
    """
    for name in only or []:
        if name not in recipe.pipelines:
            raise ColbertZeroError(f"--only {name}: no such pipeline (there are: {', '.join(recipe.pipelines)})")
    return {name: tuple(chain) for name, chain in recipe.pipelines.items() if not only or name in only}


def chain_to(recipe: Recipe, phase: str) -> tuple[str, ...]:
    """The chain that ends in a phase, which may be named PIPELINE@PHASE.

    Raises:
        ColbertZeroError: There is none, or several that start differently.
    """
    found, name = recipe.chains_to(phase), phase.rpartition("@")[2]
    if not found:
        chains = [*recipe.pipelines.values(), *(teacher.pipeline for teacher in recipe.teachers.values())]
        names = ", ".join(dict.fromkeys(p for chain in chains for p in chain))
        raise ColbertZeroError(f"--phase {phase}: no pipeline has it (there are: {names})")
    if len(found) > 1:
        raise ColbertZeroError(
            f"--phase {phase}: it starts differently in each of several pipelines; say which: "
            + ", ".join(f"{n}@{name}" for n in found.values())
        )
    return next(iter(found))


def graph(recipe: Recipe, chains: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Every phase that the chains need, each once, in order.

    A start comes before what builds on it, what is merged before the merge, teachers before their students, what mines
    before who reads what it mined.
    """
    ordered: dict[tuple[str, ...], None] = {}

    def visit(chain: tuple[str, ...]) -> None:
        if not chain or chain in ordered:
            return
        visit(chain[:-1])
        for other in merged_into(recipe, chain[-1:]):
            visit(other)
        for name in recipe.phases[chain[-1]].sources:
            for behind in chains_behind(recipe, name):
                visit(behind)
        ordered[chain] = None

    for chain in chains.values():
        visit(chain)
    return list(ordered)


def way_to(recipe: Recipe, chain: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A chain and those that its model is made of: its beginnings, and what is merged into it; each once, in order."""
    ordered: dict[tuple[str, ...], None] = {}
    for number in range(1, len(chain) + 1):
        for other in merged_into(recipe, chain[number - 1 : number]):
            ordered |= dict.fromkeys(way_to(recipe, other))
        ordered[chain[:number]] = None
    return list(ordered)


def chains_behind(recipe: Recipe, source: str) -> Iterator[tuple[str, ...]]:
    """Chains of phases whose models make a source: its teacher's, and those that mine or judge."""
    spec = recipe.sources[source]
    if isinstance(spec, Scored):
        yield tuple(recipe.teachers[spec.teacher].pipeline)
        yield from chains_behind(recipe, spec.of)
    elif isinstance(spec, Mined):
        yield from (chain_to(recipe, name) for name in spec.phases)


def root_of(recipe: Recipe, source: str) -> str:
    """The source of texts that a mined or scored source is made of; another is its own."""
    spec = recipe.sources[source]
    return root_of(recipe, spec.of) if isinstance(spec, Mined | Scored) else source
