"""Checkpoint to checkpoint: a model's queries fitted to domains, written only where it helps."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder

from colbert_zero import __version__
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.adapting import Domain, Fitted, fit, verdict
from colbert_zero.files import Progress, atomic_folder, place_of
from colbert_zero.models.adapting import (
    Adaptation,
    Form,
    Statistics,
    Way,
    form_of,
    has_route,
    read_adaptation,
    read_statistics,
    save_adapted,
    without_route,
)
from colbert_zero.models.alignment import read_alignment
from colbert_zero.models.bases import find_checkpoint
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.contents import contents_of
from colbert_zero.report.records import MEASURE


@dataclass(frozen=True)
class Adaptable:
    """A model to adapt.

    Attributes:
        name: As it was given.
        model: As it is.
        bare: Without an adapter.
        form: That its queries are moved in.
        known: Sums of earlier domains.
        said: What is known of it; nothing is chosen yet.
        alignment: What its own colbert_zero.json says.
    """

    name: str
    model: MultiVectorEncoder
    bare: MultiVectorEncoder
    form: Form
    known: Statistics | None
    said: Adaptation
    alignment: dict[str, Any] | None


def check_model(
    model: str,
    way: Way | None,
    features: int | None,
    seed: int | None,
    tell: Any,
    revision: str | None = None,
) -> Adaptable:
    """Load a model to adapt; refuse what cannot be.

    Args:
        model: Folder or Hub id; one that was adapted goes on from its sums.
        way: That was asked for; None: that it was adapted in, or decorrelated.
        features: Of a projection, that were asked for.
        seed: That was asked for.
        tell: Told which commit a Hub id is at, and which domains are kept.
        revision: Of a Hub id, whose commit is known already.

    Raises:
        ColbertZeroError: It is not multi-vector, has modules of its own for queries, or was adapted in another way.
    """
    commit = revision or find_checkpoint(model, "MODEL", tell)
    place = place_of(model)
    encoder = load_model(place, revision=commit)
    if not isinstance(encoder, MultiVectorEncoder):
        raise ColbertZeroError(
            f"MODEL: {model} is dense, with one vector a text; only multi-vector models are adapted: train one from it "
            "first, with `model.base` and a multi-vector phase"
        )
    before = None if commit else read_adaptation(place)
    if has_route(encoder) and before is None:
        whose = "on the Hub, whose sums are not read" if commit else "that `adapt` did not write"
        raise ColbertZeroError(
            f"MODEL: {model} has a Router {whose}, with modules for queries or documents alone; only a model whose "
            "queries and documents go one way is adapted, or a folder by `adapt`: adapt the model it was made of"
        )
    alignment = read_alignment(place) if commit is None else None
    if before is None:
        way, features, seed = way or "decorrelate", features or 0, 1 if seed is None else seed
        said = Adaptation(way, features if way == "projection" else 0, seed, 0.0, 0.0, {},
                          [str(contents_of(place))] if commit is None else [], commit)  # fmt: skip
        form = form_of(encoder, way, features, seed)
        return Adaptable(model, encoder, encoder, form, None, said, alignment)
    if before.contents != (own := contents_of(place)):
        raise ColbertZeroError(
            f"MODEL: {model} was changed since it was adapted, so its sums are of another model; adapt the one it was "
            "made of"
        )
    asked = {"--projection": features, "--seed": seed, "--decorrelate or --projection": way}
    had = {"--projection": before.features, "--seed": before.seed, "--decorrelate or --projection": before.way}
    for option in (name for name, value in asked.items() if value is not None and value != had[name]):
        raise ColbertZeroError(
            f"{option}: {model} was adapted otherwise ({before.way}, {before.features} features, seed {before.seed}), "
            "and sums of two kinds cannot be added; leave the option out, or adapt the model it was made of"
        )
    bare = without_route(encoder)
    form = form_of(bare, before.way, before.features, before.seed)
    tell(f"{model}: goes on from {', '.join(before.domains)}, whose pairs are not measured again")
    said = replace(before, base=[*before.base, str(own)])
    return Adaptable(model, encoder, bare, form, read_statistics(place, form), said, alignment)


def adapt(given: Adaptable, domains: list[Domain], out: Path, progress: Progress | None = None) -> Fitted:
    """Fit a model's queries to domains, and write it where that helps on pairs that were held out.

    Args:
        given: By `check_model`.
        domains: See there.
        out: A new folder; written whole, or not at all.
        progress: Called with the pairs done and all.

    Returns:
        What came of it; `helps` says whether it was written.

    Raises:
        ColbertZeroError: A domain has too few pairs, or was added before.
    """
    digests = {domain.name: domain.digest for domain in domains}
    for name, digest in digests.items():
        if same := [other for other in digests if other != name and digests[other] == digest]:
            raise ColbertZeroError(f"--pairs: {name} and {same[0]} hold the same pairs; name them once")
        for known, there in given.said.domains.items():
            if digest == there:
                raise ColbertZeroError(
                    f"--pairs: {given.name} was adapted to the pairs of {name} before (as {known}); leave them out, or "
                    "adapt the model it was made of"
                )
    fitted = fit(given.model, given.bare, domains, given.form, given.said.seed, given.known, progress)
    if not fitted.helps:
        return fitted
    had = given.said.domains
    taken = {f"{name} {digest[:6]}" if name in had else name: digest for name, digest in digests.items()}
    adaptation = replace(
        given.said,
        ridge=fitted.ridge,
        step=fitted.step,
        domains={**had, **taken},
        found={
            "of": Path(given.name).name,
            "verdict": verdict(fitted),
            "measure": MEASURE,
            "difference": fitted.difference,
            "interval": list(fitted.interval),
            "domains": fitted.domains,
            "seconds": fitted.seconds,
            "versions": {"colbert_zero": __version__, "torch": torch.__version__},
        },
    )
    with atomic_folder(out) as folder:
        save_adapted(folder, given.bare, given.form, fitted.statistics, fitted.weights, adaptation, given.alignment)
    return fitted
