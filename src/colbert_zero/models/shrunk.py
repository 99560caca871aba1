"""A checkpoint cut and written as an ordinary one, with a record of what was asked, done and lost."""

import copy
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import Progress, Tell, atomic_folder, write_json
from colbert_zero.models.adapting import has_route
from colbert_zero.models.alignment import META
from colbert_zero.models.axes import table_of
from colbert_zero.models.bases import snapshot
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.comparing import TEXTS
from colbert_zero.models.contents import model_files
from colbert_zero.models.kept_zeros import RECORD, cut_record, keeps_zeros
from colbert_zero.models.kinds import Kind, kind_of
from colbert_zero.models.shrinking import (
    Cuts,
    Removal,
    check_cuts,
    cut,
    deviation,
    encoder_of,
    kept_after,
    layers_in,
    packed_bytes,
    parameters,
    removals,
    with_encoder,
    zeros_in,
)
from colbert_zero.models.vocabulary import (
    Vocabulary,
    check_vocabulary,
    keep_tokens,
    rewrite_tokenizer,
    vocabulary_of,
)

SAMPLE = 64
"""Texts whose token vectors are compared, where there are more."""

Record = dict[str, Any]
"""What docs/backbone.md says is in compress.json."""

Finish = Callable[[Path, Encoder, Record], Mapping[str, Any]]
"""Given a folder before it appears, the model that was read from it and its record: what else the record is to hold.
It may put files into the folder."""


@dataclass(frozen=True)
class Texts:
    """Documents that a vocabulary is cut to.

    Attributes:
        name: For the record.
        texts: Read as often as it is called.
    """

    name: str
    texts: Callable[[], Iterable[str]]


def sample_of(texts: list[str], count: int = SAMPLE) -> list[str]:
    """So many of them, evenly spread; all where there are fewer.

    Example:
        >>> sample_of(["a", "b", "c", "d"], 2)
        ['a', 'c']
    """
    return [texts[place * len(texts) // count] for place in range(count)] if len(texts) > count else texts


class Uncut:
    """A checkpoint to cut, loaded once for several trials.

    Attributes:
        folder: Its own, or the Hub's id.
        place: Its own, or that of the Hub's cache.
        kind: Multi-vector, dense, or a plain encoder.
        model: Loaded; it stays as it is.
        encoder: Its encoder.
        table: Of that.
        layers: How many there are.
        stored: What its weights are stored as.
    """

    def __init__(self, folder: str, revision: str | None = None) -> None:
        """Load it.

        Raises:
            ColbertZeroError: It cannot be loaded, or no table is known of its encoder.
        """
        options = {"revision": revision} if revision else {}
        self.folder, self.kind = folder, kind_of(folder, revision)
        self.model: Encoder = load_model(folder, device="cpu", **options)
        if has_route(self.model):
            raise ColbertZeroError(
                f"MODEL: {folder} was adapted, or has other modules for queries alone, fitted to its vectors; cut the "
                "model it was made of, and adapt that"
            )
        self.encoder = encoder_of(self.model, f"MODEL: {folder}")
        self.table = table_of(self.encoder, f"MODEL: {folder}")
        self.layers = layers_in(self.encoder, self.table)
        self.place = place_of_model(folder, revision)
        self.stored = _stored_as(self.place)
        self._removals: list[Removal] = []
        self._vocabularies: dict[str, Vocabulary] = {}

    def removals(self, count: int, texts: list[str], progress: Progress | None = None) -> list[Removal]:
        """Which layers to leave out until so many are left; of several questions with the same texts, asked once."""
        if count == self.layers:
            return removals(self.model, count, texts, self.folder, progress)
        if len(self._removals) < self.layers - count:
            self._removals = removals(self.model, count, texts, self.folder, progress)
        return self._removals[: self.layers - count]

    def vocabulary(self, corpus: Texts) -> Vocabulary:
        """The tokens of a corpus, read once."""
        if corpus.name not in self._vocabularies:
            self._vocabularies[corpus.name] = vocabulary_of(self.model, corpus.texts())
        return self._vocabularies[corpus.name]


def check_asked(source: Uncut, cuts: Cuts, corpus: Texts | None, texts: list[str] | None) -> None:
    """Refuse what cannot be done before anything is measured.

    Raises:
        ColbertZeroError: Names the cut and the mend.
    """
    check_cuts(source.encoder, cuts, f"MODEL: {source.folder}")
    if cuts.count is not None and not texts:
        raise ColbertZeroError(
            f"layers: {cuts.count}: which ones hurt least is measured on texts; add --corpus or --collection, or name "
            f"those that are kept (--layers {','.join(map(str, range(cuts.count)))})"
        )
    if corpus is not None:
        check_vocabulary(source.model)


def write_shrunk(
    source: Uncut,
    out: Path,
    cuts: Cuts,
    corpus: Texts | None = None,
    texts: list[str] | None = None,
    tell: Tell = print,
    progress: Progress | None = None,
    finish: Finish | None = None,
) -> Record:
    """Cut a checkpoint and write it: an ordinary one of its kind, that transformers and sentence-transformers load.

    It is loaded once more from the folder as it was written, and what the record says is measured on that.

    Args:
        source: The checkpoint.
        out: The new folder; it appears whole, with the record in compress.json.
        cuts: See there.
        corpus: Documents that the vocabulary is cut to; None: it stays.
        texts: By which layers are chosen and deviation is measured, the first `SAMPLE`, evenly spread; some short ones
            of our own where there are none, for deviation alone.
        tell: Told what is not copied.
        progress: Of the trials by which layers are chosen.
        finish: Called before the folder appears.

    Returns:
        The record: docs/backbone.md says what is in it.

    Raises:
        ColbertZeroError: It cannot be cut so; nothing is written.
    """
    check_asked(source, cuts, corpus, texts)
    with atomic_folder(out) as folder:
        record, written = cut_into(folder, source, cuts, corpus, texts, progress)
        finish_record(folder, source, written, record, texts, tell, finish)
    return record


def cut_into(
    folder: Path,
    source: Uncut,
    cuts: Cuts,
    corpus: Texts | None = None,
    texts: list[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Record, Encoder]:
    """Cut a checkpoint and write it into an empty folder: arguments as of `write_shrunk`.

    Returns:
        The record as far as it needs no encoding, and the model, read from the folder. No record is written.
    """
    started, whose = time.monotonic(), f"MODEL: {source.folder}"
    chosen: list[Removal] = []
    kept = cuts.layers
    if cuts.count is not None:
        chosen = source.removals(cuts.count, sample_of(texts or []), progress)
        kept = kept_after(source.layers, chosen)
    model, vocabulary = source.model, None
    if corpus is not None:
        vocabulary = source.vocabulary(corpus)
        model = with_encoder(model, keep_tokens(source.encoder, vocabulary, whose))
    model = cut(model, replace(cuts, layers=kept, count=None), whose)
    if source.stored != torch.float32:
        own: Any = copy.deepcopy(encoder_of(model, whose))
        model = with_encoder(model, own.to(source.stored))
    save_as(model, source.kind, folder)
    if vocabulary is not None:
        rewrite_tokenizer(folder, vocabulary)
    if (source.place / META).is_file():  # sentence-transformers has no place for it
        shutil.copyfile(source.place / META, folder / META)
    written = load_model(folder, device="cpu")
    zeros, numbers = zeros_in(written, whose)
    record: Record = {
        "kind": "compress",
        "asked": {
            "layers": list(cuts.layers) if cuts.layers is not None else cuts.count,
            "neurons": cuts.neurons, "zeros": cuts.zeros, "bits": cuts.bits, "vocabulary": corpus and corpus.name,
        },
        "model": Path(source.folder).name if Path(source.folder).is_dir() else source.folder,
        "model_type": source.encoder.config.model_type,
        "layers_before": source.layers,
        "layers_kept": list(kept) if kept is not None else list(range(source.layers)),
        "removals": chosen,
        "parameters_before": parameters(source.model),
        "parameters": parameters(written),
        "bytes_before": folder_bytes(source.place),
        "bytes": folder_bytes(folder),
        "packed_bytes": packed_bytes(model, cuts.bits),
        "zeros": zeros,
        "zeros_of": numbers,
        "keep_zeros": cuts.zeros > 0 or keeps_zeros(cut_record(source.place)),
        "bits": cuts.bits,
        "vocabulary_before": len(cast(Any, source.model.tokenizer).get_vocab()),
        "vocabulary": len(cast(Any, written.tokenizer).get_vocab()),
        "vocabulary_texts": vocabulary and vocabulary.texts,
        "torch": torch.__version__, "processor": platform.processor(),
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return record, written


def finish_record(
    folder: Path,
    source: Uncut,
    written: Encoder,
    record: Record,
    texts: list[str] | None,
    tell: Tell,
    finish: Finish | None = None,
) -> None:
    """Measure how far token vectors are from those before, and write the record of what `cut_into` wrote.

    Args:
        folder: Of that.
        source: The checkpoint before.
        written: The model, read from the folder.
        record: Of it; completed here.
        texts: As of `write_shrunk`, and so are the others.
        tell: See there.
        finish: See there.
    """
    started = time.monotonic()
    sample = sample_of(texts) if texts else [text for side in TEXTS.values() for text in side]
    record["deviation"] = asdict(deviation(source.model, written, sample))
    record["deviation_on"] = "texts given" if texts else "texts of the program's own"
    record |= finish(folder, written, record) if finish else {}
    record["seconds"] = round(record["seconds"] + time.monotonic() - started, 3)
    write_json(folder / RECORD, record)
    if (card := source.place / "README.md").is_file():
        tell(f"{card} is not copied: it speaks of the model before it was cut")


def folder_bytes(folder: Path) -> int:
    """Bytes of the files that a checkpoint is loaded from: weights, tokenizer and settings, no pages and records."""
    return sum(file.stat().st_size for file in model_files(folder) if file.name != RECORD)


def place_of_model(folder: str, revision: str | None) -> Path:
    """A checkpoint's folder, or where the Hub's cache has it, once it is loaded."""
    return Path(folder) if Path(folder).is_dir() else cast(Path, snapshot(folder, revision))


def _stored_as(folder: Path) -> torch.dtype:
    """The type that a checkpoint's largest file of weights has most numbers in."""
    files = sorted(folder.glob("**/*.safetensors"), key=lambda file: -file.stat().st_size)
    if not files:
        return torch.float32
    with safe_open(files[0], "pt") as file:
        numbers: dict[torch.dtype, int] = {}
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            part = file.get_slice(name)
            dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(part.get_dtype(), torch.float32)
            numbers[dtype] = numbers.get(dtype, 0) + int(torch.Size(part.get_shape()).numel())
    return max(numbers, key=lambda dtype: numbers[dtype])


def save_as(model: Encoder, kind: Kind, folder: Path) -> None:
    """Write a model as what it was made of is: a plain encoder without what sentence-transformers puts around it."""
    if kind == "encoder":
        encoder_of(model, "MODEL").save_pretrained(folder)
        cast(Any, model.tokenizer).save_pretrained(folder)
    else:
        model.save_pretrained(str(folder), create_model_card=False)
