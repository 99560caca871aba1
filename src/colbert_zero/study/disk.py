"""Disk space: about what a study will need, against what is free, before anything is prepared."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal
from transformers import AutoConfig, AutoModel

from colbert_zero.data.folders import folder_files
from colbert_zero.data.readers import input_files
from colbert_zero.data.streams import is_streamed
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import place_of
from colbert_zero.recipe.data import Folder, Hub, Jsonl, Mined, Parquet, Scored, Tsv
from colbert_zero.recipe.schema import Model, Phase, Recipe
from colbert_zero.study.bases import options_of
from colbert_zero.study.graph import root_of

MODEL_BYTES, CHECKPOINT_BYTES = 4, 12
"""Of a parameter: its float32; and with AdamW's two moments."""

_UNPACKED = {".gz": 4, ".parquet": 3}
"""How much larger texts are once prepared, about."""


@dataclass(frozen=True)
class Disk:
    """Bytes that a study will need, about, and has.

    Attributes:
        checkpoints: Of the phases that are not finished: their models, and the checkpoints of one while it is trained.
        data: Of sources that are not prepared yet; of those that may be read in part (`limit`, configurations), and of
            data sets on the Hub, nothing.
        free: On the disk of the study's folder.
    """

    checkpoints: int | None
    data: int
    free: int

    @property
    def needed(self) -> int:
        """Altogether."""
        return (self.checkpoints or 0) + self.data

    def words(self) -> str:
        """In a line."""
        models = (
            "models of unknown size" if self.checkpoints is None else f"{decimal(self.checkpoints)} for checkpoints"
        )
        return f"about {models} and {decimal(self.data)} for data to come; {decimal(self.free)} free"


def disk_for(
    recipe: Recipe, folder: Path, chains: Iterable[tuple[str, ...]], sources: Iterable[str], commit: str | None = None
) -> Disk:
    """What the last phases of these chains, and these sources, will need in a study's folder.

    Rough, and rather too little than too much: a phase or source of which the folder has any version counts as made.

    Args:
        recipe: Of the study.
        folder: Its place.
        chains: Of phases.
        sources: Names.
        commit: Of a Hub base.
    """
    names = [chain[-1] for chain in chains if not any(folder.glob(f"phases/{chain[-1]}-*/phase.json"))]
    parameters = _parameters(recipe.model, commit) if names else 0
    checkpoints = None
    if parameters is not None:
        models = len(names) + (recipe.model.base is None)
        begun = sum(file.stat().st_size for file in folder.glob("phases/*.unfinished/step-*/*"))
        most = max((_kept(recipe.trained[name]) for name in names if name in recipe.trained), default=0)
        checkpoints = max(0, parameters * (models * MODEL_BYTES + most * CHECKPOINT_BYTES) - begun) if names else 0
    wanted = dict.fromkeys(origin for name in sources for origin in _origins(recipe, name))
    missing = [name for name in wanted if not any(folder.glob(f"data/{name}-*"))]
    data = sum(source_bytes(recipe, name) for name in missing)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return Disk(checkpoints, data, shutil.disk_usage(there).free)


def check_disk(found: Disk, folder: Path, say: Callable[[str], None]) -> None:
    """Refuse a disk that is surely too small, and tell of one that may be.

    Raises:
        ColbertZeroError: Half of what is needed, about, is not free.
    """
    mend = "make room, name a larger disk by --out, or lower keep_checkpoints"
    if found.free < found.needed / 2:
        raise ColbertZeroError(f"--out {folder}: its disk is too small, it needs {found.words()}; {mend}")
    if found.free < found.needed * 1.25:
        say(f"{folder}: its disk may be too small, it needs {found.words()}; {mend}")


def _kept(phase: Phase) -> int:
    """Checkpoints of a phase that are on the disk at once, at most: an old one goes when the new one is whole."""
    kept = phase.keep_checkpoints + (2 if phase.evaluate_every else 1)  # the best one as well
    if phase.steps is None:
        return kept
    ever = (phase.steps - 1) // phase.checkpoint_every
    return min(kept, ever + phase.steps // phase.evaluate_every if phase.evaluate_every else ever)


def _parameters(model: Model, commit: str | None) -> int | None:
    """Parameters of the encoder; None where only its own code or its weights say how many."""
    try:
        if model.architecture is not None:
            config = AutoConfig.for_model(**{"vocab_size": model.vocabulary, **model.architecture})
        else:
            revision = options_of(model, commit).get("revision")
            config = AutoConfig.from_pretrained(place_of(str(model.base)), revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            encoder: torch.nn.Module = AutoModel.from_config(config)
        return sum(parameter.numel() for parameter in encoder.parameters())
    except Exception:  # each architecture fails in its own way; whether it can be loaded is another's question
        return None


def _origins(recipe: Recipe, name: str) -> Iterator[str]:
    """A source, and those that it is made of."""
    yield name
    spec = recipe.sources[name]
    if isinstance(spec, Mined | Scored):
        yield from _origins(recipe, spec.of)


def _read_in_part(spec: Hub) -> bool:
    """Whether a data set's folder holds more than is read of it."""
    return bool(spec.configs or spec.splits or spec.train)


def source_bytes(recipe: Recipe, name: str) -> int:
    """Bytes of a source once prepared; of a derived one, those of the documents that it keeps beside its rows."""
    spec = recipe.sources[name]
    if isinstance(spec, Mined | Scored):
        return source_bytes(recipe, root_of(recipe, name))
    if spec.limit or is_streamed(spec):
        return 0
    if isinstance(spec, Jsonl | Parquet | Tsv):
        given = {key: getattr(spec, key, None) for key in ("path", "train", "queries", "documents")}
        files = [file for key, paths in given.items() if paths for file in input_files(name, key, paths)]
    elif isinstance(spec, Folder):
        files = folder_files(name, spec)
    elif (
        isinstance(spec, Hub)
        and not (spec.configs or spec.splits or spec.train)
        and (folder := Path(place_of(spec.path))).is_dir()
    ):
        inside = (file for file in folder.rglob("*") if file.is_file())
        files = [file for file in inside if not any(p.startswith(".") for p in file.relative_to(folder).parts)]
    else:
        return 0
    return sum(file.stat().st_size * _UNPACKED.get(file.suffix, 1) for file in files)
