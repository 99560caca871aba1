"""The best of a model's cuts that take no more than so many bytes: tried, measured, written."""

import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.shrinking import (
    agreement,
    documents_per_second,
    loss,
    neighbours,
    scores_of,
    times_faster,
)
from colbert_zero.files import Progress, Tell, atomic_folder, temporary_folder
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.shrinking import Cuts
from colbert_zero.models.shrunk import Finish, Record, Texts, Uncut, cut_into, finish_record, folder_bytes, sample_of
from colbert_zero.models.vocabulary import why_kept
from colbert_zero.report.records import MEASURE
from colbert_zero.report.shrinking import AGREEMENT, combination
from colbert_zero.report.words import size as in_bytes
from colbert_zero.watch import stop_if_asked

COMPARED = 200
"""Texts among which each finds its neighbours."""

TIMED = 64
"""Texts by which speed is measured."""

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of neurons, that are tried."""


@dataclass(frozen=True)
class Combination:
    """One to try.

    Attributes:
        layers: How many.
        neurons: Share.
        vocabulary: Whether it is cut.
    """

    layers: int
    neurons: float
    vocabulary: bool


def target_bytes(target: str, before: int) -> int:
    """Bytes that a target means.

    Args:
        target: `50MB` (or KB, GB; of 1000), or `2x`: half of what there is.
        before: What there is.

    Raises:
        ColbertZeroError: It is neither, or nothing has to be cut for it.

    Example:
        >>> target_bytes("2x", 90_000_000), target_bytes("50MB", 90_000_000)
        (45000000, 50000000)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(x|[KMG]B)", target.strip(), re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise ColbertZeroError(f"--target {target}: write bytes, as in 50MB, or how many times smaller, as in 2x")
    number, unit = float(found[1]), found[2].upper()
    wanted = int(before / number) if unit == "X" else int(number * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])
    if wanted >= before:
        raise ColbertZeroError(
            f"--target {target}: the model takes {in_bytes(before)} already; name less, or how many times smaller (2x)"
        )
    return wanted


def combinations(
    layers: int, target: int, tokens: bool, expected: Callable[[Combination], float]
) -> Iterator[Combination]:
    """What is tried: single cuts, for the curve; and with so many layers the most neurons that the target leaves.

    Args:
        layers: That there are.
        target: Bytes.
        tokens: Whether the vocabulary can be cut.
        expected: Bytes of one.
    """
    single = [Combination(layers, share, False) for share in SHARES[:3]]
    single += [Combination(count, 1.0, False) for count in range(layers - 1, layers // 2 - 1, -1) if count]
    single += [Combination(layers, 1.0, True)] if tokens else []
    tried = dict.fromkeys(single)
    for vocabulary in (False, True) if tokens else (False,):
        for count in range(layers, 0, -1):
            enough = [s for s in SHARES if expected(Combination(count, s, vocabulary)) <= target]
            if enough:
                tried[Combination(count, enough[0], vocabulary)] = None
            if enough and enough[0] == 1.0:
                break  # fewer layers are then only fewer
    yield from tried


def expected_bytes(source: Uncut, before: int, tokens: int | None) -> Callable[[Combination], float]:
    """Bytes of a combination, reckoned from the shapes of the arrays; what is beside the weights is taken to stay.

    Args:
        source: The checkpoint.
        before: Bytes of it.
        tokens: How many would stay; None where the vocabulary is not cut.
    """
    table, numbers = source.table, {"layer": 0, "neurons": 0, "vocabulary": 0}
    for name, tensor in source.encoder.state_dict().items():
        layer, _ = table.layer_of(name)
        array = table.array(name)
        numbers["layer"] += tensor.numel() if layer == 0 else 0
        numbers["neurons"] += tensor.numel() if layer == 0 and array and "neurons" in array.axes else 0
        numbers["vocabulary"] += tensor.numel() if array and "vocabulary" in array.axes else 0
    known = int(getattr(source.encoder.config, table.keys["vocabulary"]))
    each = source.stored.itemsize

    def expected(one: Combination) -> float:
        less = (source.layers - one.layers) * numbers["layer"] + one.layers * (1 - one.neurons) * numbers["neurons"]
        if one.vocabulary and tokens is not None:
            less += numbers["vocabulary"] * (1 - tokens / known)
        return before - each * less

    return expected


class _Judge:
    """Scores models by a collection, or by agreement with the model before."""

    def __init__(self, before: Encoder, texts: list[str], collection: Collection | None) -> None:
        self.collection = collection
        self.texts = sample_of(texts, COMPARED)
        self.found = [] if collection else neighbours(before, self.texts)
        self.before = scores_of(before, collection) if collection else np.ones(len(self.texts))

    def scores(self, model: Encoder) -> np.ndarray:
        if self.collection:
            return scores_of(model, self.collection)
        return agreement(self.found, neighbours(model, self.texts))

    @property
    def measure(self) -> str:
        return MEASURE if self.collection else AGREEMENT


def find_smallest(
    source: Uncut,
    out: Path,
    target: str,
    corpus: Texts,
    collection: Collection | None,
    tell: Tell,
    counted: Callable[[str], AbstractContextManager[Progress]],
    finish: Finish | None = None,
) -> Record:
    """Try cuts of layers, neurons and vocabulary, and write the best of those that take no more bytes than asked.

    Args:
        source: The checkpoint.
        out: The new folder.
        target: As `target_bytes` reads it.
        corpus: Its texts choose the layers, are what a vocabulary is cut to, and are encoded to measure speed.
        collection: nDCG@10 on it is the score; None: agreement with the model before on the corpus' texts.
        tell: Told what is not tried, and why.
        counted: Gives a progress for a name: of the trials of layers, and of the combinations.
        finish: Called before the folder appears, with all that is measured in the record.

    Returns:
        The record of the one that is written, with all that were measured under `tried`.

    Raises:
        ColbertZeroError: None takes so few bytes; names the smallest.
    """
    before = folder_bytes(source.place)
    most, texts = target_bytes(target, before), list(corpus.texts())
    why = why_kept(source.model)
    cutting = None if why else corpus
    if why:
        tell(f"the vocabulary is not among what is tried: {why}")
    tokens = len(source.vocabulary(corpus).kept) if cutting else None
    expected = expected_bytes(source, before, tokens)
    least = Combination(1, SHARES[-1], cutting is not None)
    if expected(least) > most:
        raise ColbertZeroError(
            f"--target {target}: even {combination(asdict(least))} would take about {in_bytes(expected(least))}; take "
            "a smaller model, or a larger target"
        )
    asked = list(combinations(source.layers, most, cutting is not None, expected))
    left_out = []
    if source.layers > 1:
        with counted("trials of layers") as trials:
            left_out = source.removals(min(one.layers for one in asked), sample_of(texts), trials)
    judge, timed = _Judge(source.model, texts, collection), sample_of(texts, TIMED)
    points: list[Record] = []
    best: tuple[int, Record, Encoder] | None = None
    with temporary_folder(out) as work:
        with counted("combinations") as tried:
            for number, one in enumerate(asked):
                stop_if_asked()
                folder = work / str(number)
                folder.mkdir()
                cuts = _cuts(one, source.layers)
                record, model = cut_into(folder, source, cuts, cutting if one.vocabulary else None, texts)
                speeds = documents_per_second({"before": source.model, "after": model}, timed)
                faster, interval = times_faster(speeds["before"], speeds["after"])
                whole = cuts == Cuts() and not one.vocabulary
                points.append({
                    **asdict(one), "layers_kept": record["layers_kept"], "bytes": record["bytes"],
                    "parameters": record["parameters"],
                    **loss(judge.before, judge.before if whole else judge.scores(model)),
                    "documents_per_second": statistics.median(speeds["after"]), "times_faster": faster,
                    "times_faster_interval": list(interval),
                    "meets": record["bytes"] <= most,
                })  # fmt: skip
                if points[-1]["meets"] and (best is None or _rank(points[-1]) > _rank(points[best[0]])):
                    if best:
                        shutil.rmtree(work / str(best[0]))
                    best = number, record, model
                else:
                    shutil.rmtree(folder)
                tried(number + 1, len(asked))
        if best is None:  # by the few bytes of a longer settings file
            fewest = min(point["bytes"] for point in points)
            raise ColbertZeroError(
                f"--target {target}: the smallest that was tried takes {fewest:,} bytes; name so many"
            )
        number, record, model = best
        record |= {
            "target": target, "target_bytes": most, "measure": judge.measure,
            "collection": collection and collection.name, "corpus": corpus.name, "removals": left_out,
            "tried": points, "best": number,
        }  # fmt: skip
        with atomic_folder(out) as folder:
            for file in (work / str(number)).iterdir():
                shutil.move(file, folder)
            finish_record(folder, source, model, record, texts, tell, finish)
        return record


def _rank(point: Record) -> tuple[float, int]:
    """Of two points the larger is the better: the score, and of equal ones the fewer bytes."""
    return point["score"], -point["bytes"]


def _cuts(one: Combination, layers: int) -> Cuts:
    return Cuts(neurons=one.neurons, count=one.layers if one.layers < layers else None)
