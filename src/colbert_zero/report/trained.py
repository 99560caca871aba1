"""Which trained model a place on the disk means: a checkpoint's folder, its phase's, or a system of its study's."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from colbert_zero.errors import ColbertZeroError, near
from colbert_zero.report.card import name_of, system_of
from colbert_zero.report.records import Records


class Found(NamedTuple):
    """A trained model.

    Attributes:
        folder: Of its checkpoint.
        name: What it is called.
    """

    folder: Path
    name: str


def find_model(place: str) -> Found:
    """The model that a place means.

    Args:
        place: A checkpoint's folder or its phase's; a study's, for its best finished pipeline; or STUDY:SYSTEM.

    Raises:
        ColbertZeroError: It is not there; names what is.
    """
    folder, system = Path(os.path.expanduser(place)), ""
    if not folder.is_dir():
        before, _, system = place.rpartition(":")
        folder = Path(os.path.expanduser(before)) if before else folder
    if not folder.is_dir():
        raise ColbertZeroError(
            f"MODEL: no such folder {place!r}; name a checkpoint's, or a study's (out/quickstart:full)"
        )
    if (folder / "results.json").is_file():
        return _of_study(folder, system)
    if system:
        raise ColbertZeroError(f"MODEL: {folder} holds no results.json, so {system!r} is no system there")
    if (folder / "phase.json").is_file():
        folder = folder / "model"
    own = folder.absolute()
    study = own.parents[2] if len(own.parents) > 2 else own
    if own.name == "model" and (study / "results.json").is_file():
        records = Records(study)
        if name := system_of(records, own.parent.name):
            return Found(folder, name_of(records, name))
    return Found(folder, re.sub(r"-[0-9a-f]{12}$", "", own.parent.name) if own.name == "model" else own.name)


def _of_study(folder: Path, system: str) -> Found:
    records = Records(folder)
    trained = [name for name, record in records.systems.items() if record["phases"] and record["kind"] != "ensemble"]
    if system in records.systems and records.systems[system]["kind"] == "ensemble":
        members = ", ".join(name for name in records.systems[system]["members"] if name in trained)
        raise ColbertZeroError(f"MODEL: {folder}:{system} is an ensemble, and no one model; name a member ({members})")
    if not system:
        if not (best := records.pipelines()):
            raise ColbertZeroError(f"MODEL: {folder} has no finished pipeline; name a system, {folder}:{trained[-1]}"
                                   if trained else f"MODEL: {folder} has no trained model")  # fmt: skip
        system = best[0]
    if system not in trained:
        raise ColbertZeroError(f"MODEL: {folder} has no trained system {system!r}{near(system, trained)}")
    identity = records.systems[system]["phases"][-1]["id"]
    model = next(folder.glob(f"phases/*-{identity}/model"), None)
    if model is None:
        raise ColbertZeroError(f"MODEL: {folder}/phases has no model of {system} ({identity}); run the recipe again")
    return Found(model, name_of(records, system))
