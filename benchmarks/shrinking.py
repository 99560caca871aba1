"""What models lose by being cut: python benchmarks/shrinking.py --collection PATH --multi MODEL [--dense MODEL]

nDCG@10 of a multi-vector model, and of a dense one, as it is and without layers, neurons, tokens, with zeros and on
grids. Nothing is trained anew. `--multi` and `--dense` may each be named several times: trainings of the same model
with other seeds, each cut by itself; a query's score is then its mean over them. Of each cut:

    difference    points of nDCG@10, with its 95 % interval
    of its score  the same as a share of the uncut model's mean, per cent
    multi − dense the difference of these shares: whether MaxSim bears the cut better than pooling (above 0: it does);
                  and the mean of these differences over the cuts

Intervals are paired bootstraps over the queries of all collections, drawn within each; p-values paired randomisations,
corrected by Holm over the cuts. Bytes are of the weights as float32, and packed. Layers are chosen by token vectors of
`--chosen-by` documents, by no judgement; a vocabulary is cut to the collections' documents.

`--queries` and `--documents` take a part of each collection, by a seed: so many queries, with the documents that are
judged for them and others; `--tokens` lets all read equally much. `--rounds` measures documents a second of processor
time, medians of so many rounds in turn. A line is printed when it is known. Give it one thread (OMP_NUM_THREADS=1).

What a cut of a model scores is kept in --keep, so several processes may share the work, each with models of its own;
the last call, with all of them, reads it and prints the table.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import load_beir
from colbert_zero.evaluation.shrinking import scores_of
from colbert_zero.evaluation.significance import bootstrap_means, holm, paired_randomisation, percentile_interval
from colbert_zero.files import fingerprint, read_json, write_json
from colbert_zero.models.axes import table_of
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.contents import contents_of
from colbert_zero.models.encoding import encode
from colbert_zero.models.shrinking import (
    Cuts,
    cut,
    encoder_of,
    kept_after,
    layers_in,
    packed_bytes,
    parameters,
    removals,
)
from colbert_zero.models.shrunk import Texts, Uncut, sample_of, write_shrunk
from harness import parser_of, report

WHOLE = "as it is"
VOCABULARY = "vocabulary"

NAMES = {
    WHOLE: Cuts(),
    "5 layers": Cuts(count=5),
    "4 layers": Cuts(count=4),
    "3 layers": Cuts(count=3),
    "neurons 0.75": Cuts(neurons=0.75),
    "neurons 0.5": Cuts(neurons=0.5),
    "zeros 0.3": Cuts(zeros=0.3),
    "zeros 0.5": Cuts(zeros=0.5),
    "zeros 0.6": Cuts(zeros=0.6),
    "8 bits": Cuts(bits=8),
    "4 bits": Cuts(bits=4),
    VOCABULARY: Cuts(),
    f"4 layers, {VOCABULARY}": Cuts(count=4),
}

Strata = list[np.ndarray]
"""A number of each query, (queries,), a collection each."""


def part_of(whole: Collection, queries: int, documents: int, seed: int) -> Collection:
    """So many queries, and so many documents: those judged relevant for them, and others."""
    dice = random.Random(seed)
    chosen = dice.sample(sorted(whole.queries), min(queries, len(whole.queries)))
    judged = {d for q in chosen for d, grade in whole.qrels[q].items() if grade > 0}
    texts = dict(whole.documents())
    others = dice.sample(sorted(set(texts) - judged), max(0, min(documents, len(texts)) - len(judged)))
    kept = judged & set(texts) | set(others)
    qrels = {q: {d: grade for d, grade in whole.qrels[q].items() if d in kept} for q in chosen}
    return Collection.from_memory(
        f"{whole.name}, {len(chosen)} queries, {len(kept)} documents",
        {d: text for d, text in texts.items() if d in kept},
        {q: whole.queries[q] for q in chosen if qrels[q]},
        {q: grades for q, grades in qrels.items() if grades},
    )


def speed(models: dict[str, Encoder], texts: list[str], rounds: int) -> dict[str, float]:
    """Documents a second of processor time, which other work on the machine does not add to."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            started = time.process_time()
            encode(model, texts, "document")
            times[name].append(time.process_time() - started)
    return {name: len(texts) / statistics.median(found) for name, found in times.items()}


def loaded(folder: str | Path, tokens: int) -> Encoder:
    """A model that reads so many tokens of a text at most."""
    model = load_model(str(folder), device="cpu")
    first: Any = model[0]
    first.max_seq_length = min(tokens, first.max_seq_length)
    return model


class Subject:
    """A model with all its cuts."""

    def __init__(self, folder: str, names: list[str], collections: list[Collection], asked: Any) -> None:
        self.folder, self.tokens, self.names, self.collections = folder, asked.tokens, names, collections
        self.texts = [text for collection in collections for _, text in collection.documents()]
        self.chosen_by, self.timed = asked.chosen_by, dict[str, Encoder]()
        self.file = asked.keep and asked.keep / (
            fingerprint(contents_of(folder), [c.name for c in collections], asked.seed, asked.tokens,
                        asked.chosen_by) + ".json")  # fmt: skip
        self.kept = read_json(self.file) if self.file and self.file.exists() else {}
        self.rounds = asked.rounds

    def _prepare(self) -> None:
        folder, names = self.folder, self.names
        self.model = loaded(folder, self.tokens)
        encoder = encoder_of(self.model, folder)
        self.layers = layers_in(encoder, table_of(encoder, folder))
        counts = (NAMES[name].count for name in names)
        fewest = min((count for count in counts if count is not None), default=self.layers)
        some = sample_of(self.texts, self.chosen_by)
        self.left_out = removals(self.model, fewest, some, folder) if fewest < self.layers else []
        for step in self.left_out:
            print(
                f"{folder}: out goes layer {step['layer']}, {step['cosine']:.3f}; others {step['others']}", flush=True
            )

    def found(self, kind: str, name: str) -> dict[str, Any]:
        """Scores of a cut, measured now or before, and its megabytes, as float32 and packed."""
        if name not in self.kept:
            if not hasattr(self, "model"):
                self._prepare()
            model = self.cut(name)
            scores = [scores_of(model, collection) for collection in self.collections]
            said = ", ".join(f"{100 * one.mean():.2f}" for one in scores)
            print(f"{kind} {self.folder}, {name}: {said}; {time.process_time():.0f} s of processor time", flush=True)
            sizes = 4e-6 * parameters(model), 1e-6 * packed_bytes(model, NAMES[name].bits)
            self.kept[name] = {"scores": [one.tolist() for one in scores], "sizes": sizes}
            if self.rounds and (name == WHOLE or "layers" in name or "neurons" in name):
                self.timed[name] = model
            if self.file:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.file, self.kept)
        return dict(self.kept[name])

    def cut(self, name: str) -> Encoder:
        """It, cut."""
        cuts = NAMES[name]
        if cuts.count is not None:
            kept = kept_after(self.layers, self.left_out[: self.layers - cuts.count])
            cuts = replace(cuts, layers=kept, count=None)
        if VOCABULARY in name:  # the tokenizer is another, so it is written and read
            with tempfile.TemporaryDirectory() as place:
                corpus = Texts("documents", lambda: self.texts)
                write_shrunk(Uncut(self.folder), Path(place) / "cut", cuts, corpus, tell=print)
                return loaded(f"{place}/cut", self.tokens)
        return cut(self.model, cuts, self.folder)


def drawn(strata: Strata) -> np.ndarray:
    """Means over all queries of every round, (rounds,); the same queries for all that are as long."""
    return np.average(bootstrap_means(strata), axis=0, weights=[len(one) for one in strata])


def lost(before: Strata, after: Strata) -> dict[str, Any]:
    """What a cut costs: in nDCG@10, and as a share of the uncut model's mean; `rounds` of the latter."""
    was, found = drawn(before), drawn(after)
    flat, then = np.concatenate(before), np.concatenate(after)
    return {
        "score": 100 * then.mean(),
        "difference": 100 * (then - flat).mean(),
        "interval": [100 * bound for bound in percentile_interval(found - was)],
        "share": 100 * (then - flat).mean() / flat.mean(),
        "share_interval": [100 * bound for bound in percentile_interval((found - was) / was)],
        "p_value": paired_randomisation(then, flat),
        "rounds": 100 * (found - was) / was,
        "scaled": 100 * (then - flat) / flat.mean(),
    }


def main() -> None:
    parser = parser_of(__doc__, "30 queries, 100 documents")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--collection", action="append", required=True, metavar="PATH", help="in BEIR layout")
    parser.add_argument("--multi", action="append", default=[], metavar="MODEL")
    parser.add_argument("--dense", action="append", default=[], metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=10**9, help="that a model reads of a text, at most")
    parser.add_argument("--chosen-by", type=int, default=32, help="documents by which layers are chosen")
    parser.add_argument("--rounds", type=int, default=0, help="of encoding those, for speed")
    parser.add_argument("--queries", type=int, default=10**9)
    parser.add_argument("--documents", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where scores are kept; nowhere by default")
    parser.add_argument("--cut", action="append", choices=list(NAMES), help="these alone; all by default")
    asked = parser.parse_args()
    if asked.quick:
        asked.queries, asked.documents = 30, 100
    names = [name for name in NAMES if name == WHOLE or not asked.cut or name in asked.cut]
    collections = [
        part_of(load_beir(place, "test"), asked.queries, asked.documents, asked.seed) for place in asked.collection
    ]
    print("; ".join(f"{c.name}: {len(c.queries)} judged" for c in collections), flush=True)
    kinds = {kind: folders for kind in ("multi", "dense") if (folders := getattr(asked, kind))}
    # {kind: {cut: strata of each model}}
    scores: dict[str, dict[str, list[Strata]]] = {kind: {name: [] for name in names} for kind in kinds}
    sizes: dict[tuple[str, str], tuple[float, float]] = {}
    for kind, folders in kinds.items():
        for folder in folders:
            subject = Subject(folder, names, collections, asked)
            for name in names:
                found = subject.found(kind, name)
                scores[kind][name].append([np.array(one) for one in found["scores"]])
                sizes[kind, name] = found["sizes"]
            if subject.timed:
                print(speed(subject.timed, sample_of(subject.texts, asked.chosen_by), asked.rounds), flush=True)
    table(names, kinds, scores, sizes, [c.name for c in collections], asked)


def table(names: list[str], kinds: dict[str, list[str]], scores: Any, sizes: Any, collections: Any, asked: Any) -> None:
    """Print and keep what each cut costs, and whether one kind bears it better."""
    cuts = [name for name in names if name != WHOLE]
    means = {
        kind: {name: [np.mean(same, axis=0) for same in zip(*found, strict=True)] for name, found in of.items()}
        for kind, of in scores.items()
    }
    found = {(kind, name): lost(means[kind][WHOLE], means[kind][name]) for kind in kinds for name in names}
    for kind in kinds:
        for name, adjusted in zip(cuts, holm([found[kind, name]["p_value"] for name in cuts]), strict=True):
            found[kind, name]["p_value_holm"] = adjusted
    rows = []
    for (kind, name), one in found.items():
        p_value = f"{one['p_value_holm']:.4f}" if name != WHOLE else ""
        shares = one["share"], between(one["share_interval"]), p_value
        rows.append(
            [kind, name, one["score"], one["difference"], between(one["interval"]), *shares, *sizes[kind, name]]
        )
    apart = {}
    if len(kinds) == 2:
        for name in cuts:
            multi, dense = found["multi", name], found["dense", name]
            apart[name] = {
                "difference": multi["share"] - dense["share"],
                "interval": list(percentile_interval(multi["rounds"] - dense["rounds"])),
                "p_value": paired_randomisation(multi["scaled"], dense["scaled"]),
            }
        scaled, rounds = (
            [np.mean([found[kind, name][key] for name in cuts], axis=0) for kind in ("multi", "dense")]
            for key in ("scaled", "rounds")
        )
        apart["mean of the cuts"] = {
            "difference": float(np.mean(scaled[0] - scaled[1])),
            "interval": list(percentile_interval(rounds[0] - rounds[1])),
            "p_value": paired_randomisation(*scaled),
        }
        for one, adjusted in zip(apart.values(), holm([one["p_value"] for one in apart.values()]), strict=True):
            one["p_value_holm"] = adjusted
        for name, one in apart.items():
            shares = one["difference"], between(one["interval"]), f"{one['p_value_holm']:.4f}"
            rows.append(["multi − dense", name, "", "", "", *shares, "", ""])
    columns = ["model", "cut", "nDCG@10", "difference", "95 %", "of its score, %", "95 %", "p, Holm", "MB", "MB packed"]
    kept = []
    for (kind, name), one in found.items():
        about = {key: value for key, value in one.items() if key not in ("rounds", "scaled")}
        per_query = [[values.tolist() for values in strata] for strata in scores[kind][name]]
        kept.append({"model": kind, "name": name, **about, "models": len(kinds[kind]), "per_query": per_query})
    report("shrinking", columns, rows, {"collections": collections, "seed": asked.seed, "tokens": asked.tokens,
           "threads": torch.get_num_threads(), "records": kept, "apart": apart})  # fmt: skip


def between(interval: list[float]) -> str:
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}"


if __name__ == "__main__":
    main()
