"""How many steps phases will have, and of how many rows, known before anything is trained."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Rows
from colbert_zero.files import read_json
from colbert_zero.recipe.data import Mined, Scored
from colbert_zero.recipe.schema import Phase, PhaseSpec, Recipe
from colbert_zero.study.graph import root_of
from colbert_zero.study.study import Study
from colbert_zero.teaching.derived import share_out
from colbert_zero.training.batches import least_negatives
from colbert_zero.training.phase import order_of, steps_of

PartsOf = Callable[[str], Mapping[str, Rows]]
"""Parts of a source that is made of no other."""


@dataclass(frozen=True)
class Steps:
    """A phase's length.

    Attributes:
        order: Of its data.
        steps: Optimiser steps.
        ways: Documents of a row, at most.
        pairs: Whether a query and a document are read together.
    """

    order: Order
    steps: int
    ways: int
    pairs: bool

    @property
    def texts(self) -> int:
        """Queries and documents, each as often as it is read, at most; of a cross-encoder pairs."""
        return self.steps * self.order.global_batch_size * (self.ways if self.pairs else 1 + self.ways)


def steps_for(recipe: Recipe, name: str, parts_of: PartsOf) -> Steps:
    """The length of a phase.

    Args:
        recipe: The study's.
        name: The phase.
        parts_of: Parts of a source that is made of no other.

    Raises:
        ColbertZeroError: No source of the phase fills a batch, or its schedule is shorter than it.
    """
    spec = recipe.trained[name]
    rows, ways = _rows(recipe, spec, parts_of)
    order = order_of(spec, rows, {}, recipe.seed_of(spec), name)
    return Steps(order, steps_of(spec, order, name), ways, spec.reads_pairs)


@dataclass(frozen=True)
class Outline:
    """A phase to be trained, or trained already, at a glance.

    Attributes:
        chain: The phases before it, and itself.
        spec: Its recipe entry.
        steps: Optimiser steps; 0 of one that is not trained.
        texts: Texts read, each as often as it is; 0 of one that is not trained, before it is made.
        tokens: Real tokens of a finished phase; of another the most it can read, without markers and prompts where they
            come on top of the lengths.
        done: Whether it is finished.
    """

    chain: tuple[str, ...]
    spec: PhaseSpec
    steps: int
    texts: int
    tokens: int
    done: bool


def outline(study: Study, chains: Iterable[tuple[str, ...]]) -> list[Outline]:
    """Every chain's last phase, as it will be or was trained; raises as `steps_for` does."""
    return [_outline(study, chain) for chain in chains]


def _outline(study: Study, chain: tuple[str, ...]) -> Outline:
    name, spec = chain[-1], study.recipe.phases[chain[-1]]
    if study.is_done(chain):
        record = read_json(study.phase_folder(chain) / "phase.json")
        return Outline(chain, spec, record.get("steps", 0), record["texts"], record["tokens"], True)
    if not isinstance(spec, Phase):
        return Outline(chain, spec, 0, 0, 0, False)
    length = steps_for(study.recipe, name, lambda root: study.sources[root].parts)
    alignment = study.alignment(spec)
    rows, ways = length.steps * spec.global_batch_size, length.ways
    of_row = alignment.query_tokens + ways * alignment.document_tokens
    if spec.reads_pairs:
        of_row = ways * (alignment.query_tokens + alignment.document_tokens - 1)
    return Outline(chain, spec, length.steps, length.texts, rows * of_row, False)


def _rows(recipe: Recipe, spec: Phase, parts_of: PartsOf) -> tuple[dict[str, int], int]:
    """Rows that each part of a phase's sources has or will have, and documents a row."""
    rows: dict[str, int] = {}
    ways = spec.hard_negatives.of_part(0) + 1
    for source in spec.sources:
        count, entry = None, recipe.sources[source]
        while isinstance(entry, Mined | Scored):
            count = min(filter(None, (count, entry.queries)), default=None)
            all_of_them = spec.distils or spec.hard_negatives.taken is None
            if isinstance(entry, Mined) and all_of_them:
                taken = entry.negatives if spec.distils else spec.hard_negatives.of_part(entry.negatives)
                ways = max(ways, taken + 1)
            entry = recipe.sources[entry.of]
        parts = parts_of(root_of(recipe, source))
        shares = share_out({name: len(part) for name, part in parts.items()}, count)
        for name, part in parts.items():
            if spec.distils and part.scored:
                ways = max(ways, *part.lengths())
            elif spec.hard_negatives.taken is None:
                ways = max(ways, spec.hard_negatives.of_part(least_negatives(part)) + 1)
            rows[f"{source}/{name.split('/', 1)[1]}"] = shares[name]
    return rows, ways
