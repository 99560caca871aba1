"""Device-hours of the shipped recipes, by what is published of their data and bases."""

from colbert_zero.errors import ColbertZeroError
from colbert_zero.planning.data import Published
from colbert_zero.planning.model import published_models
from colbert_zero.planning.plan import machine_named, plan_phases
from colbert_zero.planning.words import hours_of
from colbert_zero.recipe.schema import Recipe
from colbert_zero.study.graph import chains_of, graph


def h100_hours(recipe: Recipe) -> list[int] | None:
    """Hours of one H100 that all of a recipe's phases take, each once, least and most.

    Every text counts as the longest allowed. None where nothing is published of its data or base, as of one's own.
    """
    chains = graph(recipe, chains_of(recipe, None))
    try:
        models = published_models(recipe)
        phases = plan_phases(recipe, chains, Published(recipe), models, machine_named("H100"))
    except ColbertZeroError:
        return None
    hours = hours_of(phases)
    return [round(value) for value in hours] if hours else None
