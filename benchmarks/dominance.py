"""Is a larger model, cut, better than a smaller one of as many bytes? python benchmarks/dominance.py DATA MODEL OUT

From MODEL (a folder of a BERT of six layers) three multi-vector trainings, seeds 1 to 3, of --steps steps; and of its
cut to three layers (those that hurt least to leave out) three of twice as many steps, which cost as many operations of
the encoder (the trials that choose the layers are not in it). So cut-then-train is set beside train-then-cut: both
begin with one pre-trained encoder, where the paper trains two sizes from nothing. Both read the same texts in the same
order, the smaller one more of them. Then both are cut to the same budgets of bytes, without another training:

    as float32    layers, neurons and the vocabulary alone: what the smaller model takes, and what it does with its
                  vocabulary cut
    packed        grids of 8 and 4 bits too, as they would be stored: what the smaller model takes in 8 bits, and in 4

Of all cuts that fit, none of which another that fits has more of everything, the one is taken that scores best on 200
held-out queries of the trained sources, in the mean of the seeds. It is then measured on `cranfield`, `med` and `cacm`,
which were not trained on: queries' scores are means over the seeds, differences are tested over queries and corrected
after Holm. The vocabulary is cut to the documents that are ranked. DATA as for `healing.py`; --tokens of a document are
read where cuts are measured. The same command goes on where it was stopped; an hour and a half on one core.
"""

import argparse
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colbert_zero.data.layouts import load_beir
from colbert_zero.evaluation.shrinking import scores_of
from colbert_zero.files import read_json, write_json
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.shrinking import Bits, Cuts, cut, kept_after, packed_bytes
from colbert_zero.models.shrunk import Texts, Uncut, sample_of, write_shrunk
from colbert_zero.report.records import MEASURE
from healing import SEEDS, common_of, first_phase, run_recipe, show_tests
from shrinking import loaded, part_of

COLLECTIONS = ("cranfield", "med", "cacm")
SIZES = ("larger", "smaller")


class Way(NamedTuple):
    """A cut: how many layers, which share of the neurons, which grid, and whether the vocabulary is cut."""

    layers: int
    neurons: float
    bits: Bits | None
    vocabulary: bool

    @property
    def amounts(self) -> tuple[float, ...]:
        return self.layers, self.neurons, self.bits or 32, not self.vocabulary

    def __str__(self) -> str:
        words = [f"{self.layers} layers"]
        words += [f"neurons {self.neurons}"] if self.neurons < 1 else []
        words += ["vocabulary"] if self.vocabulary else []
        words += [f"{self.bits} bits"] if self.bits else []
        return ", ".join(words)


def recipe_of(data: Path, model: str, steps: int) -> dict[str, Any]:
    """The study: both sizes, each with its seeds."""
    phases: dict[str, Any] = {"cut": {"kind": "compress", "layers": 3, "corpus": ["pairs"]}}
    pipelines = dict[str, list[str]]()
    for seed in SEEDS:
        phases[f"larger-{seed}"] = first_phase(seed) | {"steps": steps}
        phases[f"smaller-{seed}"] = first_phase(seed) | {"steps": 2 * steps}
        pipelines |= {f"larger-{seed}": [f"larger-{seed}"], f"smaller-{seed}": ["cut", f"smaller-{seed}"]}
    common = common_of("dominance", data, model)
    del common["sources"]["hard"]
    return common | {
        "collections": {"held-out": common["collections"]["held-out"]},
        "phases": phases,
        "pipelines": pipelines,
    }


BUDGETS = {
    "as float32": (Way(3, 1.0, None, False), Way(3, 1.0, None, True)),
    "packed": (Way(3, 1.0, 8, False), Way(3, 1.0, 4, False)),
}
"""The bytes of the smaller model, cut so."""


class Trained:
    """One training, and what its cuts score; kept in a file."""

    def __init__(self, folder: Path, keep: Path, corpus: list[str], tokens: int) -> None:
        self.file = keep / f"{folder.parent.name}-{tokens}.json"
        self.kept: dict[str, Any] = read_json(self.file) if self.file.exists() else {}
        source = Uncut(str(folder))
        self.layers = source.layers
        self.left_out = source.removals(2, sample_of(corpus, 8))
        narrow = keep / f"{folder.parent.name}-vocabulary"
        if not narrow.exists():
            write_shrunk(source, narrow, Cuts(), Texts("documents", lambda: corpus), tell=lambda _: None)
        self.models = {False: loaded(folder, tokens), True: loaded(narrow, tokens)}

    def ways(self, grids: bool) -> list[Way]:
        """Every cut of it."""
        bits: tuple[Bits | None, ...] = (None, 8, 4) if grids else (None,)
        return [Way(*way) for way in product(range(2, self.layers + 1), (1.0, 0.75, 0.5), bits, (False, True))]

    def cut(self, way: Way) -> Encoder:
        layers = kept_after(self.layers, self.left_out[: self.layers - way.layers])
        return cut(self.models[way.vocabulary], Cuts(layers=layers, neurons=way.neurons, bits=way.bits), "MODEL")

    def bytes_of(self, way: Way) -> int:
        return int(self._once(f"bytes of {way}", lambda: packed_bytes(self.cut(way), way.bits)))

    def scores(self, way: Way, collection: Any) -> np.ndarray:
        """nDCG@10 of each query, (queries,)."""
        return np.array(self._once(f"{collection.name}: {way}", lambda: scores_of(self.cut(way), collection).tolist()))

    def _once(self, key: str, found: Any) -> Any:
        if key not in self.kept:
            self.kept[key] = found()
            write_json(self.file, self.kept)
        return self.kept[key]


def most_of(ways: Iterable[Way]) -> list[Way]:
    """Those of which no other has at least as much of everything."""
    ways = list(ways)

    def under(one: Way, other: Way) -> bool:
        return one != other and all(a <= b for a, b in zip(one.amounts, other.amounts, strict=True))

    return [one for one in ways if not any(under(one, other) for other in ways)]


def only(places: Iterable[Path]) -> Path:
    """The one there is; OUT has one number of steps."""
    [place] = places
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=24, help="of the larger model; the smaller has twice as many")
    parser.add_argument("--tokens", type=int, default=48)
    asked = parser.parse_args()
    study = run_recipe(recipe_of(asked.data.resolve(), asked.model, asked.steps), asked.out)

    held_out = only(study.glob("data/pairs-*/held-out-held-out"))
    dev = part_of(load_beir(held_out, name="dev"), 200, 400, 1)
    tests = [
        part_of(load_beir(asked.data / "collections" / name, "test", name=name), 10**9, 700, 1) for name in COLLECTIONS
    ]
    corpus = [text for collection in (dev, *tests) for _, text in collection.documents()]
    folders = {size: [only(study.glob(f"phases/{size}-{seed}-*/model")) for seed in SEEDS] for size in SIZES}
    trained = {size: [Trained(one, asked.out, corpus, asked.tokens) for one in of] for size, of in folders.items()}
    chosen = {("uncut", size): Way(of[0].layers, 1.0, None, False) for size, of in trained.items()}
    for how, ways in BUDGETS.items():
        for most in (trained["smaller"][0].bytes_of(way) for way in ways):
            budget = f"{most / 1e6:.1f} MB {how}"
            for size, of in trained.items():
                fit = most_of(way for way in of[0].ways(how == "packed") if of[0].bytes_of(way) <= most)
                on_dev = {way: float(np.mean([one.scores(way, dev) for one in of])) for way in fit}
                chosen[budget, size] = max(on_dev, key=on_dev.__getitem__)
                told = "; ".join(f"{way} {100 * mean:.1f}" for way, mean in on_dev.items())
                print(f"{budget}, {size}: {told}", flush=True)

    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {one.name: {} for one in tests}
    print(f"\n| budget | model | cut to | MB | {' | '.join(one.name for one in tests)} | mean |")
    print("|---" * (len(tests) + 5) + "|")
    for (budget, size), way in chosen.items():
        means = []
        for collection in tests:
            found = np.mean([one.scores(way, collection) for one in trained[size]], axis=0)
            rows = {query: {MEASURE: score} for query, score in zip(collection.qrels, found.tolist(), strict=True)}
            scores[collection.name][f"{size}, {budget}"] = rows
            means.append(100 * found.mean())
        numbers = [trained[size][0].bytes_of(way) / 1e6, *means, np.mean(means)]
        print("|", " | ".join([budget, size, str(way), *(f"{number:.1f}" for number in numbers)]), "|", flush=True)
    budgets = list(dict.fromkeys(budget for budget, _ in chosen if budget != "uncut"))
    show_tests(scores, [(f"larger, {budget}", f"smaller, {budget}") for budget in budgets])


if __name__ == "__main__":
    main()
