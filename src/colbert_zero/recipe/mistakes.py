"""A recipe's mistakes in the user's words: the key's path, what is wrong, what was found, the mend."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from colbert_zero.errors import near, show
from colbert_zero.recipe.data import written_out
from colbert_zero.recipe.miners import BM25, RANDOM
from colbert_zero.recipe.schema import CHOICE_ROUNDS, CHOICE_TEMPERATURE
from colbert_zero.recipe.untrained import Untrained
from colbert_zero.recipe.wrong_chains import merged_into, wrong_chain, wrong_merges, wrong_untrained

if TYPE_CHECKING:
    from colbert_zero.recipe.data import Mined
    from colbert_zero.recipe.schema import Recipe


SECTIONS = ("sources", "collections", "teachers", "phases", "pipelines", "ensembles")

_NAME_MEND = "use at most 60 letters, digits, - and _, beginning with a letter or digit"

_SHOULD = {
    "switch": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "literal_error": "one of {expected}",
    "list_type": "a list",
    "too_short": "one entry or more",
    "tuple_type": "a list",
    "too_long": "at most {max_length} entries",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
}


_OF_FORMS = ("temperature", "negatives", "layers", "vocabulary", "corpus")
"""Keys of phases that are written in two ways."""


def explain(error: Any, keys: Callable[[list[Any], str | None], Iterable[str]]) -> str:
    """One of pydantic's errors in the user's words.

    Args:
        error: An entry of `ValidationError.errors()`.
        keys: The keys allowed at a path; a source's, collection's or phase's kind comes beside.
    """
    path, kind, value, context = list(error["loc"]), error["type"], error["input"], error.get("ctx", {})
    if kind == "invalid_key" or path[-1] == "[key]":
        path = [part for part in path if part != "[key]"]
        mend = _NAME_MEND if isinstance(path[-1], str) else "put it in quotes"
        return f"{_dotted(path[:-1]) or 'top level'}: the name {show(path[-1])} cannot be used; {mend}"
    # A discriminated union adds the branch it took, which the user did not write.
    branch = path.pop(2) if path[0] in ("sources", "collections", "phases") and len(path) > 2 else None
    if path[0] == "phases" and path[2:3] and path[2] in _OF_FORMS and len(path) > 3:
        del path[3]
    if path[0] == "model" and path[1:2] in (["head"], ["skip_list"]) and len(path) > 2:
        del path[2]
    where = _dotted(path)
    if kind in ("missing", "union_tag_not_found"):
        what = "entry" if isinstance(path[-1], int) else "key"
        return f"{where}{'' if kind == 'missing' else '.kind'}: missing; this {what} is required"
    if kind == "extra_forbidden":
        return f"{where}: unknown key{near(path[-1], keys(path[:-1], branch))}"
    if kind == "union_tag_invalid":
        kinds = context["expected_tags"].replace("'", "").split(", ")
        return f"{where}.kind: {show(value['kind'])} is unknown{near(value['kind'], kinds)}"
    if kind == "string_pattern_mismatch" and path[-1] == "negatives":
        return f"{where}: should be a number, all, or a draw such as 7 of 50, found {show(value)}"
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return f"{where}: {show(value)} cannot be a name; {_NAME_MEND}"
    mend = "; put it in quotes" if kind == "string_type" and isinstance(value, int | float | list) else ""
    if kind == "literal_error":
        context = {"expected": context["expected"].replace("'", "").replace(" or ", ", ").replace("False", "false")}
        alike = difflib.get_close_matches(str(value), context["expected"].split(", "), 1)
        mend = f", did you mean {alike[0]}?" if alike else ""
    should = _SHOULD[kind].format(**context) if kind in _SHOULD else error["msg"]
    return f"{where}: should be {should}, found {show(value)}{mend}"


def _dotted(path: list[Any]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return text if text.isprintable() else ascii(text)


# ---- What keys and entries do to each other


def _entries(data: dict[str, Any], section: str) -> list[tuple[Any, dict[str, Any]]]:
    entries = data.get(section)
    entries = entries if isinstance(entries, dict) else {}
    return [(name, entry) for name, entry in entries.items() if isinstance(entry, dict)]


def _given(entry: dict[str, Any], *keys: str) -> list[str]:
    return [key for key in keys if entry.get(key) is not None]


def contradictions(data: dict[str, Any]) -> list[str]:
    """Keys of one entry that do not go together. On the raw data, to be told together with all the rest."""
    wrong = []
    model = data.get("model")
    if isinstance(model, dict):
        if len(_given(model, "base", "architecture")) != 1:
            wrong.append("model: give exactly one of `base` (a Hub id or folder) and `architecture` (from scratch)")
        if model.get("query_expansion") == "ignore" and model.get("attention") == "flash_attention_2":
            wrong.append(
                "model.query_expansion: ignore, but flash_attention_2 encodes without padding, and a token that is not "
                "attended to has no state there (for that reason expansion was void in the paper's runs); take "
                "`attend`, `false`, or `attention: sdpa`"
            )
        architecture = model.get("architecture")
        if isinstance(architecture, dict) and "model_type" not in architecture:
            wrong.append("model.architecture: needs `model_type`, for example `model_type: modernbert`")
    for name, source in _entries(data, "sources"):
        tables = _given(source, "train", "queries", "documents")
        if source.get("kind") in ("jsonl", "parquet") and (
            len(tables) not in (0, 3) or bool(tables) == bool(_given(source, "path"))
        ):
            wrong.append(f"sources.{name}: give either `path`, or all three of `train`, `queries` and `documents`")
        if source.get("kind") == "hub" and (len(tables) not in (0, 3) or (tables and _given(source, "configs"))):
            wrong.append(f"sources.{name}: give either `configs`, or all three of `train`, `queries` and `documents`")
        if source.get("kind") == "hub" and _given(source, "splits"):
            configs = source.get("configs")
            if tables or (isinstance(configs, list) and len(configs) > 1):
                wrong.append(f"sources.{name}.splits: are parts of one configuration; name one in `configs`, or none")
            if source.get("split") not in (None, "train"):
                wrong.append(f"sources.{name}: give `split` or `splits`, not both")
        if source.get("kind") in ("parquet", "hub"):
            if source.get("streaming") is True and tables:
                wrong.append(
                    f"sources.{name}.streaming: the three-table form looks texts up by their ids and cannot be "
                    "streamed; leave `streaming` out"
                )
            if _given(source, "shuffle_buffer") and source.get("streaming") in (None, False):
                wrong.append(
                    f"sources.{name}.shuffle_buffer: only for what is streamed (the rest is shuffled as a whole); "
                    "leave it out, or add `streaming: true`"
                )
    for name, teacher in _entries(data, "teachers"):
        scorers = [key for key in ("pipeline", "model") if teacher.get(key) and teacher.get(f"{key}_weight", 1)]
        if not scorers and not teacher.get("bm25_weight"):
            wrong.append(
                f"teachers.{name}: needs a `pipeline`, a `model`, a `bm25_weight` above 0, or several of these"
            )
    for name, ensemble in _entries(data, "ensembles"):
        wrong += [f"ensembles.{name}{text}" for text in _wrong_ensemble(ensemble)]
    for name, phase in _entries(data, "phases"):
        if phase.get("kind", "train") != "train":
            wrong += [f"phases.{name}{text}" for text in wrong_untrained(phase)]
            continue
        if len(_given(phase, "steps", "epochs")) == 2:
            wrong.append(f"phases.{name}: give `steps` or `epochs`, not both")
        if _given(phase, "low_rank") and phase.get("optimiser") == "muon":
            wrong.append(
                f"phases.{name}.low_rank: muon makes whole matrices' updates orthogonal, and adapters are narrow "
                "factors of them; take `optimiser: adamw`"
            )
        wrong_objective = _wrong_cross_encoder if _reads_pairs(phase) else _wrong_objective
        wrong += [f"phases.{name}.{text}" for text in (*wrong_objective(phase), *_wrong_schedule(phase))]
        if phase.get("select") == "best" and not _given(phase, "evaluate_every") and not _reads_pairs(phase):
            wrong.append(f"phases.{name}.select: best needs `evaluate_every`, the steps between evaluations; add it")
    return wrong


_OF_CHOICE = {"choose": None, "on": None, "temperature": CHOICE_TEMPERATURE, "rounds": CHOICE_ROUNDS}
"""Keys of an ensemble that is chosen, with what they are unset."""


def _wrong_ensemble(ensemble: dict[str, Any]) -> list[str]:
    """Keys of an ensemble that do not go together, or are missing."""
    members, of = ensemble.get("members"), ensemble.get("of")
    if bool(members) == bool(of):
        return [": give either `members` with their weights, or `of`, `choose` and `on`"]
    names: Any = members or of
    wrong = [f".{key}: only of a choice (`of`); leave it out" for key in _used(ensemble, _OF_CHOICE) if members]
    if of and not _given(ensemble, "choose"):
        wrong.append(".choose: missing; how to choose (`choose: greedy`)")
    if of and not _given(ensemble, "on"):
        wrong.append(".on: missing; name a collection to choose on, which is then for choosing alone")
    if isinstance(names, dict | list) and len(names) == 1:
        wrong.append(f".{'of' if of else 'members'}: an ensemble of one is that system itself; name two or more")
    return wrong


# Keys of some objectives alone, with what they are unset or in a resolved recipe.
_OF_DISTILLATION = {"student_scores": None, "teacher_temperature": None, "distillation_loss": "kl"}

_OF_BOTH = {"contrastive_temperature": None, "contrastive_weight": 1}

_OF_CONTRASTIVE = {"mask_duplicates": True, "max_relative": None}


def _used(entry: dict[str, Any], keys: dict[str, Any]) -> list[str]:
    """Keys that say something."""
    return [key for key in _given(entry, *keys) if entry[key] != keys[key]]


_OF_PAIRS = ("listwise", "binary")
"""Objectives of cross-encoders."""

_NOT_OF_PAIRS = (
    {"length_normalised": False, "max_relative": None, "prompts": None, "allow_prompt_mismatch": False}
    | {"low_rank": None, "evaluate_every": None, "select": "last"}
    | _OF_DISTILLATION
    | _OF_BOTH
)
"""Keys that a cross-encoder has no use for, with what they are unset."""


def _reads_pairs(phase: dict[str, Any]) -> bool:
    return phase.get("representation") == "cross-encoder"


def _wrong_cross_encoder(phase: dict[str, Any]) -> list[str]:
    """Keys that a phase that reads pairs has no use for, or lacks."""
    objective, wrong = phase.get("objective"), []
    if objective in ("contrastive", "distillation", "contrastive + distillation"):
        wrong.append(f"objective: a cross-encoder has none but {' and '.join(_OF_PAIRS)}, found {objective}")
    wrong += [f"{key}: a cross-encoder has no use for it; leave it out" for key in _used(phase, _NOT_OF_PAIRS)]
    if not phase.get("negatives"):
        wrong.append("negatives: a cross-encoder learns from a query's hard negatives; say how many, as `negatives: 7`")
    if objective == "binary" and _used(phase, {"temperature": 1}):
        wrong.append("temperature: only a softmax has one, of `objective: listwise`; leave it out")
    return wrong + _wrong_draw(phase)


def _wrong_draw(phase: dict[str, Any]) -> list[str]:
    taken, _, of = str(phase.get("negatives")).partition(" of ")
    if taken.isdecimal() and of.isdecimal() and int(taken) > int(of):
        return [f"negatives: {taken} cannot be drawn of {of}"]
    return []


def _wrong_objective(phase: dict[str, Any]) -> list[str]:
    """Keys that a phase's objective has no use for, or that do not go together in it."""
    objective = phase.get("objective")
    if objective in _OF_PAIRS:
        return [f"objective: {objective} is a cross-encoder's; take `representation: cross-encoder`, or contrastive"]
    if objective not in ("contrastive", "distillation", "contrastive + distillation"):
        return []
    wrong = []
    if objective != "contrastive" and phase.get("negatives"):
        wrong.append("negatives: distillation uses all candidates of a query; leave it out")
    if objective == "contrastive":
        wrong += [f"{key}: only distillation has a teacher; leave it out" for key in _used(phase, _OF_DISTILLATION)]
    if objective != "contrastive + distillation":
        only = "only of `objective: contrastive + distillation`; leave it out"
        wrong += [f"{key}: {only}" for key in _used(phase, _OF_BOTH)]
    if objective == "distillation":
        wrong += [
            f"{key}: distillation compares a query's own candidates alone; leave it out"
            for key in _used(phase, _OF_CONTRASTIVE)
        ]
        if phase.get("length_normalised") is True and phase.get("student_scores") in (None, "min-max"):
            wrong.append(
                "length_normalised: scales each query's scores, and so does `student_scores: min-max`; leave it out, "
                "or set `student_scores: raw`"
            )
    if objective == "contrastive" and _given(phase, "max_relative") and not phase.get("negatives"):
        wrong.append("max_relative: is of hard negatives, and the phase takes none; add `negatives`, or leave it out")
    wrong += _wrong_draw(phase)
    temperature = phase.get("temperature")
    if phase.get("distillation_loss") == "margin-mse":
        temperatures = {"teacher_temperature": None} | ({"temperature": 1} if objective == "distillation" else {})
        wrong += [f"{key}: margin-mse has no temperature; leave it out" for key in _used(phase, temperatures)]
        if _given(phase, "contrastive_temperature") and _used(phase, {"temperature": 1}):
            wrong.append("temperature: used for nothing beside `contrastive_temperature` and margin-mse; leave it out")
        return wrong
    learned = isinstance(temperature, dict) and temperature.get("learnable", True)
    if "distillation" in objective and learned and not wrong and not _given(phase, "teacher_temperature"):
        wrong.append(
            "temperature: learned, it would flatten both sides, and so the loss; give the teacher's side a "
            "`teacher_temperature` of its own"
        )
    return wrong


def _wrong_schedule(phase: dict[str, Any]) -> list[str]:
    """Keys of the learning rate's schedule that do not go together."""
    wrong = []
    if phase.get("schedule") != "wsd" and _used(phase, {"decay": 0.2}):
        wrong.append("decay: only `schedule: wsd` has a share of the steps to fall in; leave it out")
    warmup, steps, horizon = (phase.get(key) for key in ("warmup", "steps", "horizon"))
    share, decay = warmup if isinstance(warmup, float) and warmup < 1 else 0, phase.get("decay", 0.2)
    if phase.get("schedule") == "wsd" and isinstance(decay, int | float) and decay <= 1 < decay + share:
        wrong.append(f"decay: {decay:g} of the steps, but {share:g} are the warm-up; together they are at most 1")
    if isinstance(steps, int) and isinstance(horizon, int | None) and isinstance(warmup, int | float):
        longest = max(steps, horizon or 0)
        if 1 <= warmup >= longest:
            wrong.append(f"warmup: {warmup:g} steps of a schedule of {longest}; lower it, or give a `horizon`")
    if isinstance(warmup, float) and warmup > 1 and warmup % 1:
        wrong.append(f"warmup: should be a share of the steps below 1, or their whole number, found {warmup:g}")
    if isinstance(horizon, int) and isinstance(steps, int) and horizon < steps:
        wrong.append(
            f"horizon: {horizon} steps, but the phase has {steps}; a schedule is at least as long as its phase"
        )
    return wrong


def wrong_references(recipe: "Recipe", data: dict[str, Any]) -> list[str]:
    """Names that point nowhere, and entries that cannot work together."""
    names = {"teachers": {}, "ensembles": {}} | {key: data[key] for key in SECTIONS if key in data}
    if len(names) < len(SECTIONS) or not all(isinstance(names[key], dict) for key in names):
        return []  # a section without names, which is told elsewhere
    wrong = _wrong_sources(recipe, names) + _wrong_phases(recipe, names)
    chains = {f"pipelines.{name}": chain for name, chain in recipe.pipelines.items()}
    chains |= {f"teachers.{name}.pipeline": teacher.pipeline for name, teacher in recipe.teachers.items()}
    for place, chain in chains.items():
        wrong += [f"{place}: no phase {p!r}{near(p, names['phases'])}" for p in chain if p not in names["phases"]]
        wrong += [f"{place}: the phase {p!r} stands twice" for p in dict.fromkeys(chain) if chain.count(p) > 1]
        wrong += wrong_chain(recipe, place, chain)
        learnt = [p for p in chain if not isinstance(recipe.phases.get(p), Untrained)]
        kinds = [recipe.trained[p].representation if p in recipe.trained else None for p in learnt]
        if ("multi-vector", "dense") in pairwise(kinds):
            wrong.append(f"{place}: a dense phase cannot follow a multi-vector one; put it before")
        if "cross-encoder" in kinds and place.startswith("pipelines."):
            wrong.append(
                f"{place}: {learnt[kinds.index('cross-encoder')]!r} is a cross-encoder, which has no vectors to "
                "rank by; put it into a teacher's pipeline"
            )
        elif any(a == "cross-encoder" != b for a, b in pairwise(kinds)):
            wrong.append(
                f"{place}: only a cross-encoder can follow {learnt[kinds.index('cross-encoder')]!r}; put it last"
            )
        wrong += [_other_prompts(recipe, *pair) for pair in pairwise(learnt) if set(pair) <= set(recipe.trained)]
    wrong += wrong_merges(recipe)
    for name, teacher in recipe.teachers.items():
        last = recipe.phases.get(teacher.pipeline[-1]) if teacher.pipeline and teacher.pipeline_weight else None
        if teacher.asked().get("rerank") and not teacher.model and not (last and last.reads_pairs):
            wrong.append(f"teachers.{name}.rerank: only of a cross-encoder, which this is not; leave it out")
        encodes = (teacher.model and teacher.model_weight) or (teacher.pipeline and teacher.pipeline_weight)
        if teacher.precision != "float32" and not encodes:
            wrong.append(f"teachers.{name}.precision: only of a model, and bm25 encodes nothing; leave it out")
    taken = {"bm25": "the lexical baseline"} | {f"teacher-{name}": "a teacher" for name in names["teachers"]}
    firsts = {chain[0]: recipe.trained.get(chain[0]) for chain in chains.values() if chain}
    dense = {name for name, first in firsts.items() if first and first.representation == "dense"}
    for name, chain in recipe.pipelines.items():
        if name in taken or (name in dense and chain != [name]):
            wrong.append(f"pipelines.{name}: the name of {taken.get(name, 'the dense phase alone')}; choose another")
    for name, teacher in recipe.teachers.items():
        behind = [recipe.sources[source] for source in _sources_behind(recipe, [teacher.pipeline])]
        if any(source.kind == "scored" and source.teacher == name for source in behind):
            wrong.append(f"teachers.{name}.pipeline: one of its phases learns from this very teacher")
    wrong += _wrong_ensembles(recipe, names)
    return [mistake for mistake in wrong if mistake]


def _wrong_ensembles(recipe: "Recipe", names: dict[str, Any]) -> list[str]:
    """What is wrong between ensembles, systems and collections."""
    if not recipe.ensembles:
        return []
    with suppress(PydanticCustomError):  # two entries of one name are told elsewhere
        recipe = recipe.model_copy(update={"collections": written_out(recipe.collections)})
    wrong, systems = [], recipe.systems()
    taken = {BM25: "the lexical baseline"} | {f"teacher-{name}": "a teacher" for name in names["teachers"]}
    taken |= dict.fromkeys(systems[1:], "a dense baseline") | dict.fromkeys(names["pipelines"], "a pipeline")
    for name, ensemble in recipe.ensembles.items():
        key = f"ensembles.{name}"
        if name in taken:
            wrong.append(f"{key}: the name of {taken[name]}; choose another")
        place, known = f"{key}.{'of' if ensemble.of else 'members'}", dict[Any, str]()
        for member in ensemble.names:
            chain = recipe.system_chain(member)
            is_known = member == BM25 or chain is not None
            if member in recipe.ensembles and not is_known:
                wrong.append(f"{place}: {member!r} is an ensemble itself; name its members")
            elif not is_known:
                wrong.append(f"{place}: no system {member!r}{near(member, systems)}")
            elif (before := known.setdefault(chain, member)) != member:
                wrong.append(f"{place}: {before!r} and {member!r} are the same checkpoint; name one of them")
            elif ensemble.of.count(member) > 1:
                wrong.append(f"{place}: {member!r} stands twice; a choice takes it as often as it helps")
        wrong += [f"{key}.on: {text}" for text in _wrong_on(recipe, ensemble.on, names["collections"]) if ensemble.on]
    return wrong


def _wrong_on(recipe: "Recipe", on: str | None, collections: dict[str, Any]) -> list[str]:
    """What is wrong with a collection that an ensemble is chosen on."""
    if on not in recipe.collections:
        parts = [name for name in recipe.collections if on in collections and name.startswith(f"{on}-")]
        if parts:
            return [f"{on!r} is {len(parts)} collections; name one of your own, which no mean needs"]
        # One with a mistake of its own is told elsewhere.
        return [] if on in collections else [f"no collection {on!r}{near(str(on), recipe.collections)}"]
    compared = [name for name in recipe.collections if name not in recipe.for_choosing]
    if not compared:
        return [f"{on!r} is for choosing then, and no collection is left to compare on; add one"]
    spec = recipe.collections[on]
    if (whole := recipe.whole_of(on)) != on:
        return [f"{on!r} is a part of {whole}, which is compared; name a collection of its own"]
    # Two that are held out of one source have no pair in common.
    same = [n for n in compared if recipe.collections[n] == spec and spec.kind != "held-out"]
    return [f"{on!r} is {same[0]!r} under another name, which is compared; name other queries"] if same else []


def _other_prompts(recipe: "Recipe", before: str, name: str) -> str:
    """What to say of a phase whose start is trained with other prompts; nothing where that is allowed."""
    phase = recipe.trained[name]
    had, wants = recipe.trained[before].prompts or recipe.prompts, phase.prompts or recipe.prompts
    # One that says nothing has the base's own, which is compared once the base has been read.
    if phase.reads_pairs or phase.allow_prompt_mismatch or had == wants or not had or not wants:
        return ""
    return (
        f"phases.{name}.prompts: {wants.query!r} and {wants.document!r}, but its start {before!r} is trained with "
        f"{had.query!r} and {had.document!r}, and changing prompts hurts clearly; make them equal, or, for an "
        "ablation, add `allow_prompt_mismatch: true`"
    )


def _sources_behind(recipe: "Recipe", chains: Iterable[Sequence[str]]) -> set[str]:
    """Every source that chains of phases learn from, directly or by what made it: sources, teachers, miners."""
    behind: set[str] = set()
    waiting, seen = [*chains], set[tuple[str, ...]]()
    while waiting:
        chain = tuple(waiting.pop())
        if chain in seen:
            continue
        seen.add(chain)
        phases = [recipe.phases[name] for name in chain if name in recipe.phases]
        waiting += merged_into(recipe, chain)
        sources = [source for phase in phases for source in phase.sources]
        while sources:
            name = sources.pop()
            source = recipe.sources.get(name)
            if source is None or name in behind:
                continue
            behind.add(name)
            if source.kind == "scored":
                sources.append(source.of)
                waiting += [recipe.teachers[source.teacher].pipeline] if source.teacher in recipe.teachers else []
            elif source.kind == "mined":
                sources.append(source.of)
                waiting += [chain for miner in source.phases for chain in recipe.chains_to(miner)]
    return behind


def _wrong_miners(recipe: "Recipe", name: str, source: "Mined") -> list[str]:
    """What is wrong with phases that mine a source or judge what is mined."""
    wrong = []
    for miner in source.phases:
        place = f"sources.{name}.{'miners' if miner in source.shares else 'judge'}"
        pipeline, _, phase = miner.rpartition("@")
        chains = recipe.chains_to(miner)
        if not chains:
            owners = [*recipe.pipelines.items(), *((n, teacher.pipeline) for n, teacher in recipe.teachers.items())]
            known = {phase for owner, chain in owners for phase in chain if pipeline in ("", owner)}
            if pipeline and not known:
                what = f"no pipeline {pipeline!r}{near(pipeline, [owner for owner, _ in owners])}"
            else:
                what = f"no pipeline has the phase {phase!r}{near(phase, sorted(known))}"
            wrong.append(f"{place}: {miner}: {what}")
        elif len(chains) > 1:
            names = ", ".join(f"{owner}@{phase}" for owner in chains.values())
            wrong.append(f"{place}: {miner}: {phase!r} starts differently in several pipelines; say which: {names}")
        elif phase in recipe.phases and recipe.phases[phase].reads_pairs:
            wrong.append(
                f"{place}: {miner}: a cross-encoder, which has no vectors to find documents by; name a dense or "
                "multi-vector phase"
            )
        elif name in _sources_behind(recipe, chains):
            wrong.append(
                f"{place}: {miner}: learns from this very source, or from what is made of it; name a phase before it"
            )
    return wrong


def _wrong_sources(recipe: "Recipe", names: dict[str, Any]) -> list[str]:
    """What is wrong between sources, teachers and collections."""
    wrong = []
    for name, source in recipe.sources.items():
        place = f"sources.{name}"
        if source.kind in ("mined", "scored"):
            of = recipe.sources.get(source.of)
            if source.of not in names["sources"]:
                wrong.append(f"{place}.of: no source {source.of!r}{near(source.of, names['sources'])}")
            elif source.kind == "mined" and of and not _has_pairs(of, allow_mined=False):
                wrong.append(f"{place}.of: {source.of!r} has no plain pairs ({of.kind}); mine a source of pairs")
            elif source.kind == "scored" and of and of.kind != "mined":
                wrong.append(f"{place}.of: {source.of!r} has no mined negatives; point it at a source of kind mined")
        if source.kind == "scored" and source.teacher not in names["teachers"]:
            wrong.append(f"{place}.teacher: no teacher {source.teacher!r}{near(source.teacher, names['teachers'])}")
        if source.kind == "mined" and source.skip + source.negatives > source.depth:
            wrong.append(
                f"{place}.depth: {source.depth} documents hold no {source.negatives} negatives"
                f"{f' after {source.skip} skipped' if source.skip else ''}; raise it"
            )
        if source.kind == "mined" and source.precision != "float32" and not source.models:
            wrong.append(f"{place}.precision: no model mines or judges, and bm25 encodes nothing; leave it out")
        if source.kind == "mined" and source.judge == RANDOM:
            wrong.append(f"{place}.judge: random scores nothing; name bm25 or a checkpoint")
        if source.kind == "mined":
            wrong += _wrong_miners(recipe, name, source)
    for name, held in recipe.collections.items():
        if held.kind != "held-out":
            continue
        place, of = f"collections.{name}", recipe.sources.get(held.source)
        if held.source not in names["sources"]:
            wrong.append(f"{place}.source: no source {held.source!r}{near(held.source, names['sources'])}")
        elif _is_streamed(of):
            wrong.append(
                f"{place}.source: {held.source!r} is only streamed, and pairs are held out before training; name "
                f"another source, or take `streaming` out of sources.{held.source}"
            )
        elif of and not _has_pairs(of, allow_mined=False):
            wrong.append(f"{place}.source: {held.source!r} has no plain pairs ({of.kind}); name a source of pairs")
        if held.queries and held.queries > held.documents:
            wrong.append(f"{place}.queries: {held.queries} is more than the {held.documents} pairs held out")
    return wrong


def _is_streamed(source: Any) -> bool:
    return source is not None and source.kind in ("parquet", "hub") and source.streaming


def _has_pairs(source: Any, allow_mined: bool) -> bool:
    """Whether a source's rows may be pairs, as far as the recipe tells."""
    if source.kind == "mined":
        return allow_mined
    # With both `path` and `train` the entry is refused for that alone.
    return source.kind in ("docstrings", "folder") or (
        source.kind != "scored" and (source.train is None or (source.kind != "hub" and source.path is not None))
    )


def _mined(recipe: "Recipe", source: Any) -> int | None:
    """Hard negatives of a mined source, or of the one that a scored source is made of."""
    mined: Any = recipe.sources.get(source.of) if source.kind == "scored" else source
    return mined.negatives if mined and mined.kind == "mined" else None


def _wrong_phases(recipe: "Recipe", names: dict[str, Any]) -> list[str]:
    """What is wrong between phases and their sources."""
    wrong = []
    for name, entry in recipe.phases.items():
        if not isinstance(entry, Untrained):
            continue
        for source_name in entry.sources:
            named = [key for key in ("vocabulary", "corpus") if source_name in (getattr(entry, key, None) or ())]
            key = named[0] if named and entry.kind == "compress" else "sources"
            place, source = f"phases.{name}.{key}", recipe.sources.get(source_name)
            if source_name not in names["sources"]:
                wrong.append(f"{place}: no source {source_name!r}{near(source_name, names['sources'])}")
            elif source and not _has_pairs(source, allow_mined=True):
                wrong.append(f"{place}: {source_name!r} has scored candidates, for distillation, and no pairs")
    for name, phase in recipe.trained.items():
        for source_name in phase.sources:
            place, source = f"phases.{name}.sources", recipe.sources.get(source_name)
            if source_name not in names["sources"]:
                wrong.append(f"{place}: no source {source_name!r}{near(source_name, names['sources'])}")
            elif source is None or (phase.reads_pairs and phase.reads_scores):
                continue  # told elsewhere
            elif phase.reads_scores and source.kind in ("docstrings", "folder", "mined"):
                what = "teacher scores for distillation" if phase.distils else "recorded scores for `max_relative`"
                wrong.append(
                    f"{place}: {source_name!r} has no {what}; use a source of kind scored, or rows with `documents` "
                    "and `scores`"
                )
            elif not phase.reads_scores and source.kind == "scored":
                wrong.append(f"{place}: {source_name!r} is for distillation; use {source.of!r} here")
            elif not phase.reads_scores and not _has_pairs(source, allow_mined=True):
                wrong.append(f"{place}: {source_name!r} has scored candidates, for distillation, and no pairs")
            elif phase.negatives and source.kind in ("docstrings", "folder"):
                wrong.append(f"phases.{name}.negatives: {source_name!r} has no hard negatives; mine them (kind: mined)")
            elif (had := _mined(recipe, source)) is not None and phase.hard_negatives.of_part(0) > had:
                wrong.append(f"phases.{name}.negatives: {phase.negatives}, but {source_name!r} has {had}")
        wrong += [
            f"phases.{name}.sources: {s!r} stands twice"
            for s in dict.fromkeys(phase.sources)
            if phase.sources.count(s) > 1
        ]
    return wrong
