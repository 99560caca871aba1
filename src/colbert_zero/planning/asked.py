"""A plan as it is asked for: of what is prepared, of a sample, or of what is published."""

from collections.abc import Mapping
from pathlib import Path

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import writing
from colbert_zero.models.bases import go_offline
from colbert_zero.planning.data import Data, Prepared, Sampled, has_id, is_small
from colbert_zero.planning.model import ModelOf, models_at_hand, published_models
from colbert_zero.planning.plan import Machine, PlannedPhase, calibrate, done_phases, keep_plan, plan_phases
from colbert_zero.planning.published import published
from colbert_zero.planning.words import OWN, hours_of, members_of
from colbert_zero.recipe.data import Mined, Scored
from colbert_zero.report.records import Records
from colbert_zero.study.disk import disk_for
from colbert_zero.study.graph import root_of
from colbert_zero.study.study import Study


class Asked:
    """What a user wants to know of a study.

    Args:
        study: Nothing of it is trained; small sources that it prepares, and what it mines of prepared ones, are kept.
        chains: Of phases, each once.
        machine: Planned for.
        folder: For samples.

    Raises:
        ColbertZeroError: The base or a source can neither be read nor is anything published of it; or the recipe does
            not go with its base.
    """

    def __init__(self, study: Study, chains: list[tuple[str, ...]], machine: Machine, folder: Path):
        self.study, self.chains, self.machine = study, chains, machine
        recipe = study.recipe
        self.unread: str | None = None
        try:
            study.find_base()
        except ColbertZeroError:
            if recipe.model.base not in published()["bases"]:
                raise
            self.unread = f"base {recipe.model.base}: cannot be read here, so its published configuration counts"
            go_offline()  # a Hub that does not answer would be asked for each source again
        if self.unread is None:
            study.check(chains)
        names = {source for chain in chains for phase in chain for source in recipe.phases[phase].sources}
        roots = sorted({root_of(recipe, name) for name in names})
        self.data: Data = Sampled(study, folder)
        if self.unread is None and not self._mined_by_models(names) and self._prepared(roots):
            self.data = Prepared(study)
        for root in roots:
            self.data.parts(root)
        self.models: ModelOf = self._models()
        self.disk = disk_for(recipe, study.folder, chains, names | set(roots), None if self.unread else study.commit())

    @property
    def told(self) -> list[str]:
        """What was assumed."""
        told = [*([self.unread] if self.unread else []), *dict.fromkeys(self.data.told)]
        recipe = self.study.recipe
        if self.unread and (isinstance(recipe.model.head, list) or any(p.low_rank for p in recipe.trained.values())):
            told.append("model.head's layers and low_rank are not counted, since the base cannot be read")
        if best := [name for name, phase in recipe.phases.items() if phase.select == "best"]:
            told.append(
                f"phases with `select: best` ({', '.join(best)}) and what builds on them: whether they are finished is "
                "not looked up, and their plan is not kept, since that needs the collections"
            )
        return told

    def _mined_by_models(self, names: set[str]) -> bool:
        """Whether a source is yet to be mined by models, which takes long."""
        recipe = self.study.recipe
        specs = {name: recipe.sources[name] for name in names}
        specs |= {spec.of: recipe.sources[spec.of] for spec in specs.values() if isinstance(spec, Scored)}
        return any(
            isinstance(spec, Mined) and bool(spec.models) and not (has_id(recipe, name) and self.study.is_made(name))
            for name, spec in specs.items()
        )

    def _prepared(self, roots: list[str]) -> bool:
        """Whether all sources are prepared; those that are small are prepared now, as a run would."""
        study, missing = self.study, [root for root in roots if not self.study.is_made(root)]
        if not all(is_small(study.recipe, root) for root in missing):
            return False
        if missing:
            with writing(study.folder, study.show.say):
                study.prepare_sources(set(roots))
        return True

    def _models(self) -> ModelOf:
        if self.unread is not None:
            return published_models(self.study.recipe)
        scratch = self.study.recipe.model.base is None
        # A tokenizer is trained on the sample, where there is no more.
        return models_at_hand(self.data.study if scratch and isinstance(self.data, Sampled) else self.study)

    def phases(self, seconds: float | None) -> list[PlannedPhase]:
        """All of them; with so many seconds of steps on this machine, if asked for.

        Raises:
            ColbertZeroError: There is nothing to measure with.
        """
        done = [] if self.unread else done_phases(self.study, self.chains)
        recipe = self.study.recipe
        phases = plan_phases(recipe, self.chains, self.data, self.models, self.machine, done)
        if seconds is None:
            return phases
        if self.unread or any(phase.counted == "longest" for phase in phases):
            raise ColbertZeroError(
                "--calibrate: the base or a source cannot be read here, so there is nothing to measure"
            )
        return calibrate(recipe, phases, self.data, self.models, seconds, self.study.show.say)

    def keep(self, phases: list[PlannedPhase]) -> Path | None:
        """Keep the plan for the report of a run, where ids are known; returns the file."""
        return None if self.unread else keep_plan(self.study, phases, self.machine)

    def device_hours(
        self, pipelines: Mapping[str, tuple[str, ...]], phases: list[PlannedPhase]
    ) -> dict[str, tuple[float, float]]:
        """Of each pipeline and each phase, by name, where they are known; least and most."""
        count = self.machine.on.count
        groups = {phase.chain[-1]: [phase] for phase in phases} | members_of(self.study.recipe, pipelines, phases)
        known = {name: hours_of(members) for name, members in groups.items()}
        return {name: (count * hours[0], count * hours[1]) for name, hours in known.items() if hours}

    def own_scores(self) -> dict[str, tuple[float, str]]:
        """Mean nDCG@10 of the pipelines of a finished run in the study's folder, and that it is from there."""
        if not (self.study.folder / "results.json").is_file():
            return {}
        records = Records(self.study.folder)
        return {
            name: (mean, OWN) for name, mean in records.means.items() if records.systems[name]["kind"] == "pipeline"
        }
