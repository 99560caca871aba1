"""What a study will do: each phase's steps, texts and tokens, known before anything is trained."""

from dataclasses import dataclass

from colbert_zero.files import read_json
from colbert_zero.recipe.data import Mined, Scored
from colbert_zero.recipe.schema import Phase
from colbert_zero.study.graph import root_of
from colbert_zero.study.study import Study
from colbert_zero.teaching.derived import share_out
from colbert_zero.training.batches import least_negatives
from colbert_zero.training.phase import order_of, steps_of


@dataclass(frozen=True)
class Planned:
    """A phase to be trained, or trained already.

    Attributes:
        chain: The phases before it, and itself.
        spec: Its recipe entry.
        steps: Optimiser steps.
        texts: Texts read, each as often as it is.
        tokens: Real tokens of a finished phase; of another the most it can read, without markers and prompts where they
            come on top of the lengths.
        done: Whether it is finished.
    """

    chain: tuple[str, ...]
    spec: Phase
    steps: int
    texts: int
    tokens: int
    done: bool


def plan(study: Study, chains: list[tuple[str, ...]]) -> list[Planned]:
    """Every chain's last phase, as it will be or was trained.

    Raises:
        ColbertZeroError: No source of a phase fills a batch.
    """
    return [_planned(study, chain) for chain in chains]


def _planned(study: Study, chain: tuple[str, ...]) -> Planned:
    spec = study.recipe.phases[chain[-1]]
    if study.is_done(chain):
        record = read_json(study.phase_folder(chain) / "phase.json")
        return Planned(chain, spec, record["steps"], record["texts"], record["tokens"], True)
    rows, ways = _rows(study, spec)
    steps = steps_of(spec, order_of(spec, rows, {}, study.recipe.seed_of(spec), chain[-1]), chain[-1])
    alignment = study.alignment(spec)
    pairs = steps * spec.global_batch_size
    return Planned(
        chain,
        spec,
        steps,
        pairs * (1 + ways),
        pairs * (alignment.query_tokens + ways * alignment.document_tokens),
        False,
    )


def _rows(study: Study, spec: Phase) -> tuple[dict[str, int], int]:
    """Rows that each part of a phase's sources has or will have, and documents a row."""
    rows: dict[str, int] = {}
    ways = spec.hard_negatives.of_part(0) + 1
    for source in spec.sources:
        count, entry = None, study.recipe.sources[source]
        while isinstance(entry, Mined | Scored):
            count = min(filter(None, (count, entry.queries)), default=None)
            all_of_them = spec.distils or spec.hard_negatives.taken is None
            if isinstance(entry, Mined) and all_of_them:
                taken = entry.negatives if spec.distils else spec.hard_negatives.of_part(entry.negatives)
                ways = max(ways, taken + 1)
            entry = study.recipe.sources[entry.of]
        parts = study.sources[root_of(study.recipe, source)].parts
        shares = share_out({name: len(part) for name, part in parts.items()}, count)
        for name, part in parts.items():
            if spec.distils and part.scored:
                ways = max(ways, *part.lengths())
            elif spec.hard_negatives.taken is None:
                ways = max(ways, spec.hard_negatives.of_part(least_negatives(part)) + 1)
            rows[f"{source}/{name.split('/', 1)[1]}"] = shares[name]
    return rows, ways
