"""A study: its pipelines become a graph of phases, each found by its fingerprint, made and evaluated if missing."""

import os
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from sentence_transformers.util import get_device_name

from colbert_zero.data.by_name import load_named
from colbert_zero.data.collection import Collection, Rules
from colbert_zero.data.columns import peculiarities
from colbert_zero.data.layouts import load_beir, load_hub
from colbert_zero.data.prepared import Part, Source, is_made, open_source, source_folder
from colbert_zero.data.sources import folder_fingerprints, prepare_source, source_id
from colbert_zero.evaluation import validation
from colbert_zero.evaluation.layers import layers_add
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import Run, mean_of_queries, means_of_parts
from colbert_zero.files import fingerprint, place_of, read_json, user_cache
from colbert_zero.maxsim.backends import refused, tell_refused
from colbert_zero.models.alignment import MARKERS, Alignment, Own, check_training
from colbert_zero.models.bases import check_base, find_checkpoint, go_offline
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.encoders import ways_to_train
from colbert_zero.models.kept_zeros import cut_record, keeps_zeros
from colbert_zero.models.scratch import check_architecture
from colbert_zero.processes import agree, appears, from_main, is_main, made_by_main, share
from colbert_zero.recipe.data import Beir, CollectionSpec, Docstrings, HeldOut, Mined, NamedCollection, Scored
from colbert_zero.recipe.schema import Phase, Recipe
from colbert_zero.recipe.wrong_chains import merged_into
from colbert_zero.report import layers as layers_in_words
from colbert_zero.study import bases, untrained
from colbert_zero.study.disk import Disk, check_disk, disk_for
from colbert_zero.study.graph import chain_to, root_of
from colbert_zero.study.leaks import leaks_of
from colbert_zero.study.leaks import told as told_of_leaks
from colbert_zero.study.rankings import Ranker, Rankings
from colbert_zero.study.resolved import Resolved, asked
from colbert_zero.study.show import Quiet, Show
from colbert_zero.study.start import write_start
from colbert_zero.study.teachers import Ready, arithmetic_of, mark_of, members_of, ready_of, scorers, unmade
from colbert_zero.study.untrained_checks import check_untested, check_untrained
from colbert_zero.teaching.mined import made_of, mine_source
from colbert_zero.teaching.mining import told_of
from colbert_zero.teaching.teacher import score
from colbert_zero.training.batches import check_columns
from colbert_zero.training.execution import check_compiler
from colbert_zero.training.low_rank import check_peft
from colbert_zero.training.phase import order_of_parts, steps_of, train_phase
from colbert_zero.training.reporters import check_reporters, reporting
from colbert_zero.training.training import Training
from colbert_zero.watch import stop_if_asked

T = TypeVar("T")

RECORD_VERSION = 1
"""Part of every fingerprint: raised when a change of the code makes older phases incomparable."""

_NOT_LEARNT = {"checkpoint_every", "keep_checkpoints", "gradient_checkpointing", "compile"}
"""Keys of a phase that change nothing of what it learns."""


@dataclass
class Study:
    """A recipe in a folder.

    Attributes:
        recipe: Checked.
        folder: Where the records go.
        show: Progress; nothing is shown by default.
        cache: Where parsed docstrings are kept between studies; in the user's cache if nothing else is said, or in the
            study where that cannot be written.
        refresh_base: Take the commit that a Hub base has today, not the one this study keeps.

    Example:
        >>> from colbert_zero import Study, load_recipe
        >>> study = Study(load_recipe("my.yaml"), Path("out"))
        >>> study.prepare([("unsupervised",)])
        >>> record = study.train(("unsupervised",))
        >>> f"{record['steps']} steps, {record['texts']} texts"
        '6 steps, 192 texts'
        >>> study.phase_folder(("unsupervised",)).joinpath("model").is_dir()
        True
    """

    recipe: Recipe
    folder: Path
    show: Show = field(default_factory=Quiet)
    cache: Path | None = None
    refresh_base: bool = False
    commits: dict[str, str | None] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    validation: list[Collection] = field(default_factory=list)
    rankings: Rankings = field(init=False)
    disk: Disk | None = None
    told: set[str] = field(default_factory=set)
    models: dict[str, Ready] = field(default_factory=dict)
    leaks: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.rankings = Rankings(self.folder, RECORD_VERSION)

    @property
    def data(self) -> Path:
        """Prepared sources."""
        return self.folder / "data"

    # ---- What there is to do: fingerprints, before anything is trained

    def prepare(self, chains: list[tuple[str, ...]]) -> None:
        """Check what needs no data, load the collections, and read the sources these chains need.

        A tokenizer trained from scratch reads all texts of the recipe, whatever phases are trained now.
        """
        base, seen = self.recipe.model.base, agree((self.folder / "base.json").is_file())
        self.find_base()
        self.check(chains)
        names = {source for chain in chains for phase in chain for source in self.recipe.phases[phase].sources}
        used = frozenset(names)
        if self.recipe.model.architecture:
            names |= {name for phase in self.recipe.trained.values() for name in phase.sources}
        names |= {spec.source for spec in self.recipe.collections.values() if isinstance(spec, HeldOut)}
        if self.disk is None:
            roots = {root_of(self.recipe, name) for name in names}
            self.disk = disk_for(self.recipe, self.folder, chains, used | roots, self.commit())
            check_disk(self.disk, self.folder, self.show.say)
        self._load_collections(held_out=False)  # sources may take hours
        self.prepare_sources(names)
        self.check_data(chains)
        self._load_collections(held_out=True)
        check_untested(self, chains)
        self._check_miners(used)
        for teacher, model in unmade(self.recipe, sorted(used), self.is_made):
            self.ready(teacher, model)
        self.collections = {name: self.collections[name] for name in self.recipe.collections}  # in its order again
        if self.recipe.leaks:
            self._find_leaks(used)
        if any(self.recipe.phases[phase].evaluate_every for chain in chains for phase in chain):
            self.prepare_validation()
        # A base that was seen before is looked for only by who starts from it: a finished study needs no network.
        if base is not None and seen and any(len(chain) == 1 and not self.is_done(chain) for chain in chains):
            check_base(base, self.commit(), self.recipe.model.trust_remote_code)

    def find_base(self) -> None:
        """Find the commit of a Hub base, which `train` keeps, and what a base has of its own; told."""
        name, model = bases.name_of(self.recipe.model), self.recipe.model
        if name not in self.commits:
            settle = partial(bases.settle, model, self.folder, self.refresh_base, self.show.say)
            self.commits[name], silent = from_main(settle() if is_main() else None)
            if silent:
                go_offline()
        if model.base is not None:
            self.say_once(f"base {model.base} is {self.own.words}")

    def check(self, chains: list[tuple[str, ...]]) -> None:
        """Refuse what cannot be trained, as far as that is known without data; tell what differs from the base."""
        check_reporters(self.recipe.reporters)
        tell_refused(refused(torch.device(get_device_name())), self.say_once)
        phases, model = self._phases(chains), self.recipe.model
        if model.base is not None:
            for told in self.resolved.differences(phases.values()):
                self.say_once(f"base {model.base}: {told}")
            self.resolved.check(chains)
        for told in self.resolved.peculiarities(phases.values()):
            self.say_once(told)
        if model.architecture:
            encoder = Own(**ways_to_train(check_architecture(model.architecture)))
        for name, phase in phases.items():
            share(phase.global_batch_size, f"phases.{name}.global_batch_size")
            if phase.compile:
                check_compiler(torch.device(get_device_name()), f"phases.{name}")
            if phase.low_rank:
                check_peft(f"phases.{name}")
            if model.architecture:
                check_training(encoder, phase.gradient_checkpointing, phase.targets, name)
        check_untrained(self, chains)

    def check_data(self, chains: list[tuple[str, ...]]) -> None:
        """Refuse phases that their sources cannot serve, as far as these are prepared."""
        for name, phase in self._phases(chains).items():
            known = [self.sources[source].parts for source in phase.sources if source in self.sources]
            check_columns(name, phase, {n: p for parts in known for n, p in parts.items()})

    def _check_miners(self, sources: Set[str]) -> None:
        """Refuse models that are to mine, or to judge what is mined, and are not there."""
        for name in sources:
            spec = self.recipe.sources[name]
            spec = self.recipe.sources[spec.of] if isinstance(spec, Scored) else spec
            if isinstance(spec, Mined) and spec.models and not self.is_made(name):
                self._commits(name, spec)

    def _commits(self, name: str, spec: Mined) -> dict[str, str | None]:
        """Of each model that mines or judges, and is no phase, the Hub's commit, None of a folder."""
        models = [model for model in spec.models if model not in spec.phases]
        return {model: find_checkpoint(model, f"sources.{name}", self.say_once) for model in models}

    def _miners(self, spec: Mined) -> dict[str, tuple[str, ...]]:
        """The chains of phases that mine or judge, by their names there."""
        return {name: chain_to(self.recipe, name) for name in spec.phases}

    def ready(self, teacher: str, model: str) -> Ready:
        """What is known of a teacher's model that is there already; looked for once."""
        if model not in self.models:
            self.models[model] = ready_of(model, f"teachers.{teacher}.model", self.say_once)
        return self.models[model]

    def _find_leaks(self, names: frozenset[str]) -> None:
        """Look once for the collections in the sources that these are made of; told."""
        roots = {root_of(self.recipe, name) for name in names}
        sources = {name: self.sources[name] for name in self.recipe.sources if name in roots}
        with self.show.bar("leaks: rows compared", 0) as advance:

            def report(done: int, total: int) -> None:
                stop_if_asked()
                advance(done, {"total": total})

            make = partial(leaks_of, sources, self.collections, self.data, report)
            self.leaks = from_main(make() if is_main() else None)
        assert self.leaks is not None
        for line in told_of_leaks(self.leaks):
            self.say_once(line)

    def _phases(self, chains: list[tuple[str, ...]]) -> dict[str, Phase]:
        """The phases of these chains that are trained."""
        return {name: self.recipe.trained[name] for chain in chains for name in chain if name in self.recipe.trained}

    def say_once(self, text: str) -> None:
        """Tell something, unless it was told before."""
        if text not in self.told:
            self.told.add(text)
            self.show.say(text)

    def commit(self) -> str | None:
        """The commit of a Hub base that this study trains from."""
        name = bases.name_of(self.recipe.model)
        return self.commits[name] if name in self.commits else bases.kept(self.folder, self.recipe.model)

    def prepare_sources(self, names: set[str]) -> None:
        """Read the files, data sets or docstrings that these sources are made of."""
        roots = {root_of(self.recipe, name) for name in names}
        cache = self._docstring_cache(roots)
        for name in (name for name in self.recipe.sources if name in roots):
            make = partial(prepare_source, name, self.recipe, self.data, cache)
            self.sources[name] = self._make(f"data: {name}", name, make)
            for told in peculiarities(self.sources[name].record):
                self.show.say(f"source {name}: {told}")

    def _docstring_cache(self, roots: set[str]) -> Path:
        if self.cache is not None:
            return Path(self.cache)
        if (user := user_cache()) is not None:
            return user / "docstrings"
        if any(isinstance(self.recipe.sources[name], Docstrings) and not self.is_made(name) for name in roots):
            self.show.say(
                f"docstrings: the user's cache cannot be written (XDG_CACHE_HOME names another), so {self.data} keeps "
                "what is parsed, for this study alone"
            )
        return self.data / "docstrings"

    def prepare_validation(self) -> list[Collection]:
        """The small collections that training is judged on, chosen at first use."""
        if not self.validation:
            choose = partial(
                validation.choose, self.recipe, self.collections, self.folder / "validation", self.show.say
            )
            self.validation = made_by_main(choose, validation.chosen)
        return self.validation

    def _make(self, title: str, name: str, make: Callable[[Callable[[int, int], None]], Path]) -> Source:
        """A source that the main process makes under a progress bar, in the folder that `make` returns."""
        with self.show.bar(title, 0) as advance:

            def report(done: int, total: int) -> None:
                stop_if_asked()
                advance(done, {"total": total})

            return made_by_main(lambda: make(report), partial(open_source, name, spec=self.recipe.sources[name]))

    def _load_collections(self, held_out: bool) -> None:
        """Load those that are held out of sources, or the others; tell what is to be known of them."""
        for name, spec in self.recipe.collections.items():
            if isinstance(spec, HeldOut) == held_out:
                self.collections[name] = self._collection(name, spec)
                for told in self.collections[name].peculiarities():
                    self.show.say(f"collection {name}: {told}")

    def _collection(self, name: str, spec: CollectionSpec) -> Collection:
        if isinstance(spec, HeldOut):
            return load_beir(self.sources[spec.source].folder / f"held-out-{name}", name=name)
        rules = Rules(spec.exclude_self, spec.on_missing)
        if isinstance(spec, NamedCollection):
            return replace(load_named(spec.of, rules), name=name)
        if isinstance(spec, Beir):
            return load_beir(Path(os.path.expanduser(spec.path)), spec.split, name, rules)
        return replace(load_hub(place_of(spec.path), spec.split, spec.revision, rules), name=name)

    def source_id(self, name: str) -> str:
        """Fingerprint of a source, whether it is made yet or not."""
        spec = self.recipe.sources[name]
        if isinstance(spec, Mined):
            phases = {miner: self.phase_id(chain) for miner, chain in self._miners(spec).items()}
            made = made_of(spec, self.recipe.seed, phases, self.data, f"sources.{name}.corpus")
            return fingerprint(RECORD_VERSION, made, self.source_id(spec.of))
        if isinstance(spec, Scored):
            teacher = self.recipe.teachers[spec.teacher]
            run = self.phase_id(tuple(teacher.pipeline)) if teacher.pipeline else None
            model = [mark_of(teacher.model, self.data)] if teacher.model else []
            asked = teacher.asked({"rerank", "model"})
            return fingerprint(RECORD_VERSION, spec.asked(), asked, self.source_id(spec.of), run, *model)
        return self.sources[name].id if name in self.sources else source_id(name, self.recipe, self.data)

    def is_made(self, name: str) -> bool:
        """Whether a source is prepared, mined or scored already."""
        return is_made(source_folder(self.data, name, self.source_id(name)))

    def start_id(self) -> str:
        """Fingerprint of the model before any phase."""
        model = self.recipe.model
        asked = model.asked() | {"dim": self.resolved.dim}
        if model.base is not None:
            folder = Path(place_of(model.base))
            if not folder.is_dir():
                commit = self.commit()
                return fingerprint(RECORD_VERSION, asked | ({"revision": commit} if commit else {}))
            # What is in it, not where it lies: another model put in its place is another start.
            files = folder_fingerprints(folder, self.data)
            held = {"zeros": "held"} if keeps_zeros(cut_record(folder)) else {}  # once they were not
            return fingerprint(RECORD_VERSION, {k: v for k, v in asked.items() if k != "base"} | held, files)
        roots = sorted({root_of(self.recipe, name) for phase in self.recipe.trained.values() for name in phase.sources})
        texts = [self.source_id(name) for name in roots]
        markers = self.recipe.markers.asked() if self.recipe.markers else MARKERS
        return fingerprint(RECORD_VERSION, asked, markers, self.recipe.seed, texts)

    def phase_id(self, chain: tuple[str, ...]) -> str:
        """Fingerprint of all that makes the last phase of a chain: its entry, data, prompts, and its parent's."""
        spec = self.recipe.phases[chain[-1]]
        parent = self.phase_id(chain[:-1]) if len(chain) > 1 else self.start_id()
        if not isinstance(spec, Phase):
            return fingerprint(RECORD_VERSION, untrained.asked_of(self, chain[-1], spec), parent)
        made_of = spec.asked(exclude={*_NOT_LEARNT, "evaluate_every", "select"})
        if spec.select == "best":
            judged_on = [[c.name, c.fingerprint] for c in self.prepare_validation()]
            made_of |= {"select": "best", "evaluate_every": spec.evaluate_every, "validation": judged_on}
        sources = [[name, self.source_id(name)] for name in spec.sources]
        # False is what was meant before the key existed.
        alignment = {key: value for key, value in vars(self.alignment(spec)).items() if value is not False}
        if self.resolved.prompts_without_blank(spec):
            alignment["prompts"] = "as written"  # a blank was once put after them
        return fingerprint(RECORD_VERSION, made_of, alignment, self.resolved.dim, self.recipe.seed, sources, parent)

    def phase_folder(self, chain: tuple[str, ...]) -> Path:
        """Where a phase is, or will be, kept."""
        return self.folder / "phases" / f"{chain[-1]}-{self.phase_id(chain)}"

    def is_done(self, chain: tuple[str, ...]) -> bool:
        """Whether a phase is finished; its folder appears only whole."""
        return bool(agree((self.phase_folder(chain) / "phase.json").is_file()))

    def representation(self, chain: tuple[str, ...]) -> str | None:
        """What a model is after a chain of phases: its last training's, or the base's; None of a plain encoder."""
        return self.recipe.representation_after(chain) or self.own.representation

    def alignment(self, spec: Phase) -> Alignment:
        """Prompts, markers and lengths of a phase: asked for, or the base's own."""
        return self.resolved.alignment(spec)

    @cached_property
    def own(self) -> Own:
        """What the base has of its own. Read once, and kept in base.json: a finished study needs no network."""
        wanted = [asked(self.recipe, phase) for phase in self.recipe.trained.values()]
        read = partial(bases.own_of, self.recipe.model, self.commit(), self.folder, self.data, wanted)
        own: Own = from_main(read() if is_main() else None)
        return own

    @cached_property
    def resolved(self) -> Resolved:
        """What phases have, as asked for or as the base has it."""
        return Resolved(self.recipe, self.own)

    # ---- Making what is missing

    def source(self, name: str) -> Source:
        """A source, made now if it is mined or scored and not there yet."""
        if name not in self.sources:
            spec, identity = self.recipe.sources[name], self.source_id(name)
            folder = source_folder(self.data, name, identity)
            if agree(is_made(folder)):
                appears(folder / "source.json")
                self.sources[name] = open_source(name, folder, spec)
                return self.sources[name]
            assert isinstance(spec, Mined | Scored)
            of = self.source(spec.of)
            if isinstance(spec, Mined):
                self.sources[name] = self._mined(name, spec, of, identity)
                return self.sources[name]
            for member in members_of(self.recipe.teachers[spec.teacher]):
                if member.chain:
                    self.train(member.chain)
            arithmetic = arithmetic_of(self, spec.teacher)
            members = partial(scorers, self, spec.teacher, arithmetic)
            make = partial(score, name, spec, members, arithmetic, of, identity, self.data)
            self.sources[name] = self._make(f"teacher scores: {name}", name, make)
        return self.sources[name]

    def _mined(self, name: str, spec: Mined, of: Source, identity: str) -> Source:
        """A mined source, by all processes; what was left out is told."""
        commits, places = self._commits(name, spec), dict[str, Path]()
        for miner, chain in self._miners(spec).items():
            self.train(chain)
            commits[miner], places[miner] = self.phase_id(chain), self.phase_folder(chain) / "model"
            appears(places[miner])
        source = mine_source(name, spec, of, self.recipe.seed, identity, self.data, commits, places, self.show.bar)
        for told in told_of(source.record, spec):
            self.show.say(f"sources.{name}: {told}")
        return source

    def start(self) -> tuple[str, dict[str, Any]]:
        """The model before any phase (folder or Hub id) and options for loading it; made now if it is from scratch."""
        model = self.recipe.model
        if model.base is not None:
            return place_of(model.base), bases.options_of(model, self.commit())
        folder = self.folder / "phases" / f"start-{self.start_id()}"
        made_by_main(lambda: folder if folder.is_dir() else self._write_start(folder), lambda _: None)
        return str(folder), {}

    def _write_start(self, folder: Path) -> Path:
        self.show.say("training the tokenizer and writing random weights")
        roots = dict.fromkeys(root_of(self.recipe, name) for p in self.recipe.trained.values() for name in p.sources)
        return write_start(folder, self.recipe, map(self.source, roots))

    def parts(self, spec: Phase) -> dict[str, Part]:
        """All parts of a phase's sources, as it reads them."""
        parts = (part for source in spec.sources for part in self.source(source).parts.values())
        return {part.name: part.for_phase(spec) for part in parts}

    def train(self, chain: tuple[str, ...]) -> dict[str, Any]:
        """The record of a chain's last phase, trained, cut, merged or adapted now if it is not yet."""
        folder = self.phase_folder(chain)
        stop_if_asked()
        if is_main():
            bases.keep(self.folder, self.recipe.model, self.commit())
        if self.is_done(chain):
            record: dict[str, Any] = read_json(folder / "phase.json")
            return record
        start, spec = self._start_of(chain), self.recipe.phases[chain[-1]]
        if not isinstance(spec, Phase):
            return untrained.make(self, chain, spec, start)
        return self._train(chain, spec, start)

    def _start_of(self, chain: tuple[str, ...]) -> untrained.Start:
        """What a chain's last phase starts from, made now if it is not yet, and all that is merged into it."""
        for other in merged_into(self.recipe, chain[-1:]):
            self.train(other)
            appears(self.phase_folder(other) / "model")
        if len(chain) == 1:
            return untrained.Start(*self.start(), None)
        self.train(chain[:-1])
        start = self.phase_folder(chain[:-1]) / "model"
        appears(start)
        return untrained.Start(str(start), {}, self.phase_id(chain[:-1]))

    def _train(self, chain: tuple[str, ...], spec: Phase, start: untrained.Start) -> dict[str, Any]:
        parts = self.parts(spec)
        check_columns(chain[-1], spec, parts)
        seed = self.recipe.seed_of(spec)
        order = order_of_parts(spec, parts, seed, chain[-1])
        options = dict(start.options)
        if self.recipe.model.attention:
            options["attn_implementation"] = self.recipe.model.attention
        training = Training(
            name=chain[-1],
            id=self.phase_id(chain),
            chain=chain,
            parent=start.parent,
            start=start.place,
            spec=spec,
            alignment=self.alignment(spec),
            seed=seed,
            order=order,
            steps=steps_of(spec, order, chain[-1]),
            dim=self.resolved.dim,
            head=self.resolved.head(spec, first=not any(name in self.recipe.trained for name in chain[:-1])),
            scored=self.resolved.scored,
            options=options,
        )
        validate = partial(validation.validate, collections=self.prepare_validation()) if spec.evaluate_every else None
        measured = self.recipe.validation.layers and self.collections and not spec.reads_pairs
        layers = partial(self.layers_add, chain) if measured else None
        reporters, folder = self.recipe.reporters if is_main() else [], self.phase_folder(chain)
        with (
            self.show.bar(" → ".join(chain), training.steps) as advance,
            reporting(reporters, self.folder, folder.name, self.recipe.name, spec.model_dump()) as report,
        ):
            takers = (lambda entry: advance(entry["step"], entry), report)
            return train_phase(training, parts, folder, takers, validate, self.show.say, layers)

    def layers_add(self, chain: tuple[str, ...], model: Encoder) -> dict[str, Any] | None:
        """What its encoder's layers add to a model, on a sample of the study's collections; told."""
        whose = " → ".join(chain)
        sample = partial(validation.own_sample, self.recipe, self.collections, self.folder / "validation")
        added = layers_add(model, made_by_main(sample, validation.chosen), whose, self.show.say)
        if added:
            self.show.say(f"{whose}: {layers_in_words.told(added)}")
        return added

    # ---- Evaluation

    @property
    def compared(self) -> dict[str, Collection]:
        """The collections without those that ensembles are chosen on."""
        return {name: self.collections[name] for name in self.collections if name not in self.recipe.for_choosing}

    def evaluate(self, system: str, identity: str, make: Ranker) -> dict[str, dict[str, float]]:
        """Scores of a system on every compared collection; what its identity has ranked before is not ranked again.

        Of a collection in parts the mean over these, under the whole's name.
        """
        scores = {}
        for name, collection in self.compared.items():
            stop_if_asked()
            scores[name] = mean_of_queries(self.rankings.scores(system, identity, collection, make))
        return means_of_parts(scores, self.recipe.whole_of)

    def rank(self, chain: tuple[str, ...], collection: Collection, depth: int) -> Run:
        """Rank a collection with a trained phase's model."""
        model = load_model(self.phase_folder(chain) / "model")
        with self.show.bar(f"evaluating {chain[-1]} on {collection.name}", collection.documents_count) as advance:
            return rank(model, collection, depth, lambda done, total: advance(done, {}))

    def evaluate_phase(self, system: str, chain: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Scores of a trained phase."""
        return self.evaluate(system, self.phase_id(chain), partial(self.rank, chain))
