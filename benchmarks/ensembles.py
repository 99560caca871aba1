"""Two models or one: python benchmarks/ensembles.py OUT --model MODEL … --on PATH --collection PATH …

Ranks collections by BM25 and by each model, `--depth` documents deep (1,000 as in studies), and compares, as a study's
`ensembles` do: each model with BM25 at equal weights; all models together, and with BM25; and those that a greedy
choice on `--on` takes of all. Every ensemble is tested against its best member (by the scores themselves, which favours
that member) and against BM25, paired over queries, Holm's correction over all; beside each stand bytes and operations
of encoding a query. Nothing is trained. Runs are kept in OUT, so that the same command goes on where it was stopped.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import load_beir
from colbert_zero.evaluation.ensembles import FUSION_DEPTH, choose_greedily, fuse
from colbert_zero.evaluation.footprint import footprint
from colbert_zero.evaluation.ranking import rank, rank_bm25
from colbert_zero.evaluation.runs import Run, measure, read_run, write_run
from colbert_zero.evaluation.significance import compare
from colbert_zero.models.checkpoints import load_model
from colbert_zero.recipe.schema import CHOICE_ROUNDS, CHOICE_TEMPERATURE
from colbert_zero.report.records import MEASURE
from colbert_zero.report.words import operations, points, size
from colbert_zero.study.rankings import DEPTH

BM25 = "bm25"


def kept(out: Path, name: str, collection: Collection, depth: int, make: Any) -> Run:
    """A run of so many documents a query, made once; a deeper one of before is cut."""
    path = out / f"{name}.{collection.name}.trec"
    if not path.is_file():
        write_run(path, make(collection, depth), name)
        print(f"ranked {collection.name} by {name}", flush=True)
    return {query: found[:depth] for query, found in read_run(path).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--collection", action="append", required=True, type=Path)
    parser.add_argument("--on", required=True, type=Path, help="the collection to choose on")
    parser.add_argument("--depth", type=int, default=FUSION_DEPTH, help="documents a query that are fused")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    folders = {name: Path(folder) for name, _, folder in (word.partition("=") for word in asked.model)}
    dev, *tested = (load_beir(path, name=path.name) for path in (asked.on, *asked.collection))
    runs: dict[str, dict[str, Run]] = {}
    for collection in (*tested, dev):
        runs[collection.name] = {BM25: kept(asked.out, BM25, collection, asked.depth, rank_bm25)}
        for name, folder in folders.items():
            ranker = partial(rank, load_model(folder))
            runs[collection.name][name] = kept(asked.out, name, collection, asked.depth, ranker)

    names = list(folders)
    choice = choose_greedily(runs[dev.name], dev.qrels, CHOICE_TEMPERATURE, CHOICE_ROUNDS)
    together: dict[str, dict[str, float]] = {f"bm25 + {name}": {BM25: 1.0, name: 1.0} for name in names}
    if len(names) > 1:
        together |= {" + ".join(names): dict.fromkeys(names, 1.0)}
        together |= {" + ".join([BM25, *names]): dict.fromkeys([BM25, *names], 1.0)}
    together["greedy"] = dict(choice.weights)
    print(f"\ngreedy on {dev.name}, {choice.queries} queries: loss of each by itself")
    for name, loss in choice.single.items():
        print(f"  {name}: {loss:.4f}, {MEASURE} {points(measure(runs[dev.name][name], dev.qrels)[0][MEASURE])}")
    print(f"  path: {', '.join(f'{name} {loss:.4f}' for name, loss in choice.path)}")
    on_dev = fuse([(w, runs[dev.name][m]) for m, w in choice.weights.items()], FUSION_DEPTH)
    print(f"  chosen: {choice.weights}, {MEASURE} {points(measure(on_dev, dev.qrels)[0][MEASURE])}\n")

    systems = {name: {name: 1.0} for name in (BM25, *names)} | together
    per_query: dict[str, dict[str, Any]] = {c.name: {} for c in tested}
    for c in tested:
        for system, weights in systems.items():
            of = [(weight, runs[c.name][member]) for member, weight in weights.items()]
            run = fuse(of, DEPTH) if len(of) > 1 else {q: found[:DEPTH] for q, found in of[0][1].items()}
            per_query[c.name][system] = measure(run, c.qrels)[1]

    def mean(system: str, collection: str) -> float:
        scores = per_query[collection][system]
        return sum(of_one[MEASURE] for of_one in scores.values()) / len(scores)

    means = {system: sum(mean(system, c.name) for c in tested) / len(tested) for system in systems}
    queries = [text for c in tested for text in c.queries.values()]
    takes = {name: footprint(folder, queries) for name, folder in folders.items()}
    takes[BM25] = {"model_bytes": 0, "query_flops": 0.0}
    print("system | mean | " + " | ".join(c.name for c in tested) + " | bytes | a query")
    for system, weights in systems.items():
        cost = {key: sum(takes[m][key] for m in weights) for key in ("model_bytes", "query_flops")}
        cells = [points(means[system]), *(points(mean(system, c.name)) for c in tested)]
        print(" | ".join([system, *cells, size(cost["model_bytes"]), operations(cost["query_flops"])]))

    pairs = []
    for system, weights in together.items():
        if len(weights) > 1:
            best = max(weights, key=means.__getitem__)
            pairs += [(system, other) for other in dict.fromkeys([best, BM25])]
    print("\ndifference | points | 95 % interval | p | p (Holm)")
    tests = compare(per_query, pairs, MEASURE, seed=1)
    for test in tests:
        if test["collection"] is None:
            low, high = (points(bound, signed=True) for bound in test["interval"])
            print(
                f"{test['a']} − {test['b']} | {points(test['difference'], signed=True)} | {low} to {high} | "
                f"{test['p_value']:.4f} | {test['p_value_holm']:.4f}"
            )
    record = {"means": means, "weights": together, "takes": takes, "tests": tests, "path": choice.path}
    (asked.out / "ensembles.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
