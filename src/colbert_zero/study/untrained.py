"""Phases that are not trained: what their ids hold, and their making.

Each has its model and its phase.json in one folder, which appears whole, like a training's; the main process makes it.
"""

import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from colbert_zero.data.corpus import corpus_files, corpus_texts
from colbert_zero.data.prepared import ArrowPart
from colbert_zero.data.sources import file_fingerprints
from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.evaluation.adapting import MOST_SUMMED, Domain, sampled, verdict
from colbert_zero.files import atomic_folder, read_json, write_json
from colbert_zero.maxsim.backends import backend_here
from colbert_zero.models.adapting import FOLDER
from colbert_zero.models.alignment import META, TASKS
from colbert_zero.models.bases import is_hub_id
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.contents import model_files
from colbert_zero.models.kept_zeros import cut_record, keeps_zeros, write_kept
from colbert_zero.models.kinds import kind_of
from colbert_zero.models.merging import merged
from colbert_zero.models.shrinking import Cuts, parameters
from colbert_zero.models.shrunk import SAMPLE, Texts, Uncut, folder_bytes, place_of_model, save_as, write_shrunk
from colbert_zero.processes import from_main, is_main, made_by_main, world_size
from colbert_zero.recipe.untrained import Adapt, AnyUntrained, Compress, Merge
from colbert_zero.report.card import write_card
from colbert_zero.study.adapting import adapt, check_model
from colbert_zero.study.record import UntrainedRecord
from colbert_zero.training.machine import attention_of
from colbert_zero.training.record import LayersRecord

if TYPE_CHECKING:
    from colbert_zero.study.study import Study

Chain = tuple[str, ...]

_KEYS = ("layers", "neurons", "zeros", "bits", "vocabulary", "corpus")

MOST_ROWS = 100_000
"""Of a streamed part, that are read: its first ones."""


@dataclass(frozen=True)
class Start:
    """What a phase starts from.

    Attributes:
        place: Folder or Hub id.
        options: For loading it.
        parent: Id of its phase; None of a base.
    """

    place: str
    options: dict[str, Any]
    parent: str | None

    @property
    def revision(self) -> str | None:
        """Of a Hub id."""
        return self.options.get("revision")


# ---- What is asked for


def asked_of(study: "Study", name: str, spec: AnyUntrained) -> list[Any]:
    """What makes the checkpoint, besides its start, for an id: the entry, the contents of texts, the others' ids."""
    match spec:
        case Compress():
            texts = {key: _mark(study, name, key, getattr(spec, key)) for key in ("vocabulary", "corpus")}
            return [spec.asked({"vocabulary", "corpus"}), texts, study.recipe.seed]
        case Merge():
            return [spec.asked({"others"}), [study.phase_id(chain) for chain in others_of(study, spec).values()]]
        case Adapt():
            sources = [[source, study.source_id(source)] for source in spec.sources]
            made_of = [study.recipe.seed_of(spec), sources, _mark(study, name, "corpus", spec.corpus)]
            return [spec.asked({"sources", "corpus", "seed"}), *made_of]


def others_of(study: "Study", spec: Merge) -> dict[str, Chain]:
    """What a start is merged with: chains by their names there."""
    return {other: chain for other in spec.others if (chain := study.recipe.chain_named(other))}


def _mark(study: "Study", name: str, key: str, texts: str | list[str] | None) -> Any:
    """What texts are, for an id: the contents of files, which may lie anywhere, or sources."""
    if not isinstance(texts, str):
        return texts and [[source, study.source_id(source)] for source in texts]
    files = corpus_files([texts], f"phases.{name}.{key}")
    return [mark for _, mark in file_fingerprints(files, files[0].parent, study.data)]


def cuts_of(spec: Compress) -> Cuts:
    """The entry as `compress` takes it."""
    layers, count = (tuple(spec.layers), None) if isinstance(spec.layers, list) else (None, spec.layers)
    return Cuts(layers, spec.neurons, spec.zeros, spec.bits, count)


# ---- Making it


def make(study: "Study", chain: Chain, spec: AnyUntrained, start: Start) -> dict[str, Any]:
    """Make a chain's last phase, by the main process alone; returns phase.json's content."""
    for source in spec.sources:  # one that is mined is made by all processes
        study.source(source)
    made: Path = made_by_main(lambda: _make(study, chain, spec, start), lambda folder: folder)
    record: dict[str, Any] = from_main(read_json(made / "phase.json") if is_main() else None)
    return record


@dataclass
class _Work:
    """What was encoded on the way."""

    texts: int = 0
    tokens: int = 0
    padding: int = 0
    told: list[str] = field(default_factory=list)
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    before: int = 0
    computing: int = 0
    device: str = "cpu"


def _make(study: "Study", chain: Chain, spec: AnyUntrained, start: Start) -> Path:
    out, name, work = study.phase_folder(chain), chain[-1], _Work()
    clocks = time.monotonic(), time.process_time()
    with named(name), atomic_folder(out) as folder:
        place = folder / "model"
        match spec:
            case Compress():
                made = _compress(study, chain, spec, start, place, work)
            case Merge():
                made = _merge(study, chain, spec, start, place, work)
            case Adapt():
                made = _adapt(study, chain, spec, start, place, work)
        spent = time.monotonic() - clocks[0], time.process_time() - clocks[1]
        record = _record(study, chain, spec, start, place, work, made, spent)
        write_json(folder / "phase.json", record)
        if record["representation"]:
            write_card(folder)
    return out


def _tell(study: "Study", chain: Chain, work: _Work, text: str) -> None:
    work.told.append(f"{chain[-1]}: {text}")
    study.show.say(f"{' → '.join(chain)}: {text}")


@contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of what the commands call, with the phase's key in place of the option."""
    try:
        yield
    except ColbertZeroError as error:
        text = str(error).removeprefix("MODEL: ")
        if text.startswith("phases."):
            raise
        if text.startswith("--pairs: "):
            text = f"sources: {text.removeprefix('--pairs: ')}"
        key = text.partition(":")[0] in (*_KEYS, "sources")
        raise ColbertZeroError(f"phases.{name}{'.' if key else ': '}{text}") from error


@contextmanager
def _counted(model: Encoder, work: _Work) -> Iterator[None]:
    """Count what a model, and copies of it with other encoders, encode meanwhile."""

    def count(_: Any, given: tuple[Any, ...]) -> None:
        if (mask := given[0].get("attention_mask")) is not None:
            real = int(mask.sum())
            work.texts += len(mask)
            work.tokens += real
            work.padding += mask.numel() - real

    hook = model[0].register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _size(model: Encoder, work: _Work) -> None:
    encoder: Any = model[0].get_submodule("model")
    work.device = str(model.device)
    work.before = parameters(model)
    work.computing = work.before - encoder.get_input_embeddings().weight.numel()


def _texts(study: "Study", texts: str | Sequence[str], work: _Work) -> Iterator[str]:
    """Texts of a path's documents, or of sources' queries and documents."""
    if isinstance(texts, str):
        yield from (text for text in corpus_texts(corpus_files([texts], "corpus")) if text)
        return
    for source in texts:
        for columns in _columns(study, source, work):
            yield from columns["query"]
            yield from columns["document"]


def _columns(study: "Study", source: str, work: _Work) -> Iterator[dict[str, list[str]]]:
    """Rows of a source, in blocks; of a streamed part of more than `MOST_ROWS` its first ones, which is told."""
    for name, part in study.source(source).parts.items():
        read = len(part) if isinstance(part, ArrowPart) else min(len(part), MOST_ROWS)
        if read < len(part) and name not in work.sources:
            said = f"{name} is streamed: the first {read:,} of {len(part):,} rows are read"
            work.told.append(said)
            study.show.say(said)
        work.sources[name] = {"rows": read}
        yield from part.sample(read)


def _compress(study: "Study", chain: Chain, spec: Compress, start: Start, out: Path, work: _Work) -> dict[str, Any]:
    source = Uncut(start.place, start.revision)
    _size(source.model, work)
    seed, vocabulary, sample = study.recipe.seed, None, None
    if (texts := spec.vocabulary) is not None:
        vocabulary = Texts(_label(texts), partial(_texts, study, texts, work))
    if spec.corpus is not None:
        sample = sampled(_texts(study, spec.corpus, work), SAMPLE, seed)
        if not sample:
            raise ColbertZeroError(f"corpus: {_label(spec.corpus)} has no text; name one that has some")
    title = f"{' → '.join(chain)}: trials of layers"
    with _counted(source.model, work), study.show.bar(title, 0) as advance:

        def tried(done: int, total: int) -> None:
            advance(done, {"total": total})

        record = write_shrunk(source, out, cuts_of(spec), vocabulary, sample, lambda _: None, tried)
    lost = record["deviation"]
    sizes = f"{record['bytes_before']:,} bytes cut to {record['bytes']:,}"
    numbers = f"{record['parameters_before']:,} parameters to {record['parameters']:,}"
    _tell(study, chain, work, f"{sizes}, {numbers}; mean cosine of token vectors {lost['cosine']:.4f}")
    return record


def _label(texts: str | Sequence[str]) -> str:
    return Path(texts).name if isinstance(texts, str) else ", ".join(texts)


def _merge(study: "Study", chain: Chain, spec: Merge, start: Start, out: Path, work: _Work) -> dict[str, Any]:
    others = {other: study.phase_folder(chain) / "model" for other, chain in others_of(study, spec).items()}
    models = {"its start": load_model(start.place, device="cpu", **_revision(start))}
    models |= {other: load_model(place, device="cpu") for other, place in others.items()}
    _size(models["its start"], work)
    model = merged(models, spec.weights, spec.method, f"phases.{chain[-1]}.with")
    save_as(model, kind_of(start.place, start.revision), out)
    if (meta := place_of_model(start.place, start.revision) / META).is_file():
        shutil.copyfile(meta, out / META)
    places: dict[str, str | Path] = {"its start": start.place, **others}
    cuts = {name: cut_record(place) for name, place in places.items()}
    keeping = [name for name, cut in cuts.items() if keeps_zeros(cut)]
    if len(keeping) == len(cuts):
        write_kept(out, model, cuts["its start"] or {}, chain[-1])
    elif keeping:
        whose = " and ".join(keeping)
        _tell(study, chain, work, f"the zeros of {whose} are not kept, since not all that is merged has been cut so")
    total = sum(spec.weights or [1.0] * len(models))
    weights = [weight / total for weight in spec.weights or [1.0] * len(models)]
    return {"models": [start.parent, *(study.phase_id(c) for c in others_of(study, spec).values())], "weights": weights}


def _revision(start: Start) -> dict[str, str]:
    return {"revision": start.revision} if start.revision else {}


def _adapt(study: "Study", chain: Chain, spec: Adapt, start: Start, out: Path, work: _Work) -> dict[str, Any]:
    seed, features = study.recipe.seed_of(spec), spec.projection if spec.way == "projection" else None
    given = check_model(start.place, spec.way, features, seed, study.say_once, start.revision)
    _size(given.model, work)
    corpus: list[str] = []
    if spec.corpus is not None:
        corpus = sampled(_texts(study, spec.corpus, work), MOST_SUMMED, seed)
    domains = [Domain(source, _pairs(study, source, work), corpus) for source in spec.sources]
    with _counted(given.bare, work), study.show.bar(f"{' → '.join(chain)}: pairs encoded", 0) as advance:

        def encoded(done: int, total: int) -> None:
            advance(done, {"total": total})

        fitted = adapt(given, domains, out, encoded)
    if not fitted.helps:
        _copy(start, out)
    said = verdict(fitted)
    _tell(study, chain, work, said if fitted.helps else f"not adapted, and its model is its start's, since it {said}")
    return {
        "ridge": fitted.ridge,
        "step": fitted.step,
        "domains": fitted.domains,
        "difference": fitted.difference,
        "interval": list(fitted.interval),
        "helps": fitted.helps,
        "verdict": said,
    }


def _pairs(study: "Study", source: str, work: _Work) -> list[tuple[str, str]]:
    blocks = _columns(study, source, work)
    return [pair for columns in blocks for pair in zip(columns["query"], columns["document"], strict=True)]


def _copy(start: Start, out: Path) -> None:
    """The start's own files, unchanged."""
    place = place_of_model(start.place, start.revision)
    sums = [file for file in (place / FOLDER).rglob("*") if file.is_file()]  # of an adapter before
    for file in [*model_files(place), *sums]:
        to = out / Path(os.path.relpath(file, place))
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)


# ---- What is said of it


def _record(
    study: "Study",
    chain: Chain,
    spec: AnyUntrained,
    start: Start,
    place: Path,
    work: _Work,
    made: dict[str, Any],
    spent: tuple[float, float],
) -> dict[str, Any]:
    model, inherited = load_model(place, device="cpu"), _inherited(study, chain)
    layers = None
    measured = study.recipe.validation.layers and study.collections and inherited["representation"]
    if measured and not isinstance(spec, Adapt) and world_size() == 1:
        try:
            layers = study.layers_add(chain, model)
        except Exception as error:  # as in a training: of an evaluation, which ends nothing
            _tell(study, chain, work, f"what its encoder's layers add cannot be measured ({reason(error)})")
    cut = cut_record(place) or (cut_record(start.place) if isinstance(spec, Adapt) else None)
    threads = torch.get_num_threads()
    wall, cpu = (round(seconds, 3) for seconds in spent)
    record = UntrainedRecord(
        kind=spec.kind,
        name=chain[-1],
        id=study.phase_id(chain),
        parent=start.parent,
        merged={o: study.phase_id(c) for o, c in others_of(study, spec).items()} if isinstance(spec, Merge) else {},
        chain=list(chain),
        base=start.place if start.parent is None and is_hub_id(start.place) else None,
        base_commit=start.revision,
        **inherited,
        asked=spec.model_dump(),
        made=made,
        seed=study.recipe.seed_of(spec) if isinstance(spec, Adapt) else None,
        sources=work.sources,
        machine={
            "device": work.device,
            "host": socket.gethostname(),
            "torch": torch.__version__,
            "threads": threads,
            # Merging encodes nothing, cutting scores nothing.
            **({} if isinstance(spec, Merge) else {"precision": "float32", "attention": attention_of(model)}),
            **({"maxsim": backend_here()} if isinstance(spec, Adapt) else {}),
        },
        processes=1,
        wall_seconds=wall,
        cpu_seconds=cpu,
        threads=threads,
        device_seconds=wall,
        texts=work.texts,
        tokens=work.tokens,
        padding_tokens=work.padding,
        flops=2.0 * work.computing * (work.tokens + work.padding),
        padding_flops=2.0 * work.computing * work.padding,
        parameters_before=work.before,
        parameters=parameters(model),
        bytes_before=folder_bytes(place_of_model(start.place, start.revision)),
        model_bytes=folder_bytes(place),
        zeros={key: cut[key] for key in ("zeros", "zeros_of")} if cut and keeps_zeros(cut) else None,
        told=work.told,
        layers=LayersRecord(**layers) if layers else None,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    dumped = record.model_dump()
    return {"schema": dumped.pop("schema_version"), **dumped}


def _inherited(study: "Study", chain: Chain) -> dict[str, Any]:
    """What a start has, and the checkpoint made of it too: its kind, prompts, markers and lengths."""
    own = study.own
    none = dict.fromkeys(TASKS, "")
    found: dict[str, Any] = {
        "representation": own.representation,
        "prompts": dict(own.prompts or none),
        "markers": dict(own.markers or none),
        "query_tokens": own.tokens and own.tokens["query"],
        "document_tokens": own.tokens and own.tokens["document"],
        "lengths": "text",
        "skip_list": list(own.skip_list),
        "query_expansion": own.query_expansion,
        "pool": own.pool,
    }
    if len(chain) == 1:
        return found
    record: Mapping[str, Any] = read_json(study.phase_folder(chain[:-1]) / "phase.json")
    # Records of older phases lack some keys.
    return {key: record.get(key, value) for key, value in found.items()}
