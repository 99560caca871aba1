"""Does `choose-base` order models as tuning does? python benchmarks/choosing.py MODEL DATA OUT [--sources A,B]

MODEL is a small dense encoder. Candidates are made of it: fewer layers (those that hurt least to leave out, and the
first half), half the neurons of each, layers of random weights; and --also other checkpoints, which must not have been
trained on the sources. Each is ordered twice, on each source (DATA/pairs/NAME.jsonl.gz):

    before    `choose_base` on a sample of the training pairs: recall@1, dense, and of token states by MaxSim
    after     one short multi-vector contrastive phase on the source (the recipe below, --steps of --batch, each seed),
              then nDCG@10 on held-out pairs of it, a query's score being the mean of the seeds

What is printed is Kendall's tau-b and Spearman's rho of both orders, tau's p-value, the middle 95 % of tau when the
queries of both are drawn anew, and the same of a control that encodes nothing: the number of parameters. The same
command goes on where it was stopped. Give it one thread (OMP_NUM_THREADS=1).
"""

import argparse
import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import nn

from colbert_zero.files import atomic_folder
from colbert_zero.models.alignment import read_alignment
from colbert_zero.models.axes import table_of
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.shrinking import Cuts, cut, encoder_of, kept_after, layers_in, removals, with_encoder
from colbert_zero.models.shrunk import sample_of
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.report.records import MEASURE
from colbert_zero.study.choosing import choose_base, pairs_in
from colbert_zero.study.study import Study
from harness import parser_of, report

Scores = dict[str, np.ndarray]


class Tuned(NamedTuple):
    """What tuning made of a candidate: each held-out query's nDCG@10, the mean of the seeds; processor seconds."""

    scores: np.ndarray
    seconds: float
    study: Study


def recipe_of(model: str, pairs: Path, dim: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A phase a seed, each from the model itself."""
    phase = {
        "representation": "multi-vector", "objective": "contrastive", "sources": ["pairs"], "temperature": 0.3,
        "global_batch_size": asked.batch, "learning_rate": 1e-4, "steps": asked.steps,
    }  # fmt: skip
    names = [f"seed-{seed}" for seed in range(1, asked.seeds + 1)]
    plain: dict[str, Any] = {"markers": {"query": "", "document": ""}, "prompts": {"query": "", "document": ""}}
    return {
        "name": "choosing",
        "model": {"base": model, "dim": dim, "start": "orthogonal"},
        **({} if read_alignment(model) else plain),  # one of ours is trained on with its own
        "query_tokens": 32,
        "document_tokens": asked.tokens,
        "sources": {"pairs": {"kind": "jsonl", "path": str(pairs)}},
        "collections": {"held-out": {"kind": "held-out", "source": "pairs", "documents": 200, "queries": 200}},
        "phases": {name: {**phase, "seed": seed} for seed, name in enumerate(names, 1)},
        "pipelines": {name: [name] for name in names},
        "validation": {"nanobeir": False, "layers": False},
        "leaks": False,
    }


def with_random_layers(model: Any, whose: str) -> Any:
    """The same embeddings below layers that nothing was learned in."""
    encoder = encoder_of(model, whose)
    other = type(encoder)(encoder.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other.apply(other._init_weights)
    [layers] = [m for name, m in encoder.named_modules() if isinstance(m, nn.ModuleList) and name.endswith("layer")]
    names = {f"{name}." for name, m in encoder.named_modules() if m is layers}
    kept = {k: v for k, v in encoder.state_dict().items() if not k.startswith(tuple(names))}
    other.load_state_dict(other.state_dict() | kept)
    return with_encoder(model, other)


def make_candidates(model: str, folder: Path, texts: list[str]) -> dict[str, str]:
    """Checkpoints made of a model, {name: folder}, written once; which layers hurt least is seen on these texts."""
    whole = load_model(model, device="cpu")
    encoder = encoder_of(whole, model)
    layers = layers_in(encoder, table_of(encoder, model))
    cuts = {f"first {layers // 2} layers": Cuts(tuple(range(layers // 2))), "half the neurons": Cuts(neurons=0.5)}
    if not (folder / "2-layers").exists():
        out = removals(whole, 2, texts, model)
        cuts |= {f"{layers - n} layers": Cuts(kept_after(layers, out[:n])) for n in range(2, layers - 1)}
    for name, asked in cuts.items():
        write(cut(whole, asked, model), folder / name.replace(" ", "-"))
    write(with_random_layers(whole, model), folder / "random-layers")
    return {"whole": model} | {place.name.replace("-", " "): str(place) for place in sorted(folder.iterdir())}


def write(model: Any, place: Path) -> None:
    if not place.exists():
        with atomic_folder(place) as temporary:
            model.save_pretrained(str(temporary), create_model_card=False)


def rows_of(file: Path, count: int) -> list[dict[str, str]]:
    """So many of a file's pairs, evenly spread."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return sample_of([json.loads(line) for line in lines], count)


def tuned(candidate: str, pairs: Path, out: Path, asked: argparse.Namespace) -> Tuned:
    """A candidate trained with each seed, and what comes of it."""
    dim = load_model(candidate, device="cpu")[0].get_embedding_dimension()
    recipe = check_recipe(recipe_of(candidate, pairs, dim, asked))
    study = Study(recipe, out)
    chains = {name: tuple(chain) for name, chain in recipe.pipelines.items()}
    study.prepare(list(chains.values()))
    [collection] = study.collections.values()
    found, seconds = [], 0.0
    for name, chain in chains.items():
        seconds += study.train(chain)["cpu_seconds"]
        scores = study.rankings.scores(name, study.phase_id(chain), collection, partial(study.rank, chain))
        found.append([one[MEASURE] for one in scores.values()])
    return Tuned(np.mean(found, axis=0), seconds, study)


def agreement(before: Scores, after: Scores, rounds: int = 2000, seed: int = 0) -> dict[str, Any]:
    """How two orders of the same candidates agree.

    Args:
        before: Of each candidate its queries' scores, (queries,).
        after: Likewise, of other queries.
        rounds: Of drawing both sides' queries anew.
        seed: Of the draws.
    """
    one, other = (np.stack([scores[name] for name in after]) for scores in (before, after))
    tau = kendalltau(one.mean(1), other.mean(1))
    drawn, generator = [], np.random.default_rng(seed)
    for _ in range(rounds):
        sides = [side[:, generator.integers(0, side.shape[1], side.shape[1])].mean(1) for side in (one, other)]
        drawn.append(kendalltau(*sides).statistic)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    rho = spearmanr(one.mean(1), other.mean(1)).statistic
    return {"candidates": len(one), "tau": float(tau.statistic), "p_value": float(tau.pvalue),
            "interval": [float(low), float(high)], "rho": float(rho)}  # fmt: skip


def compared(source: str, candidates: dict[str, str], found: dict[str, Tuned], asked: argparse.Namespace) -> Any:
    """Order the candidates by what they are before tuning, and print how that agrees with what they are after."""
    study = next(iter(found.values())).study
    rows, _ = pairs_in([study.sources["pairs"]], "pairs", 1)
    record = choose_base(list(candidates.values()), [pair for _, pair in rows], study.recipe, None, asked.pairs_of)
    about = {name: record["candidates"][place] for name, place in candidates.items()}
    after = {name: one.scores for name, one in found.items()}
    before = {
        "MaxSim": {name: np.array(one["hits"]) for name, one in about.items()},
        "dense": {n: np.array(one["other"]["dense"]["hits"]) for n, one in about.items() if "dense" in one["other"]},
        "parameters": {name: np.full(len(one["hits"]), one["parameters"]) for name, one in about.items()},
    }
    columns = ["", "recall@1 × 100, MaxSim", "dense", "without layers", "parameters", "tuned nDCG@10 × 100", "s"]
    lines = [
        [name, 100 * one["score"], 100 * one["other"]["dense"]["score"] if "dense" in one["other"] else "–",
         100 * one["without_layers"], one["parameters"], 100 * float(found[name].scores.mean()), found[name].seconds]
        for name, one in sorted(about.items(), key=lambda item: -item[1]["score"])
    ]  # fmt: skip
    print(f"\n{source}: {record['pairs']} pairs before, {len(next(iter(after.values())))} held-out queries after, "
          f"{asked.seeds} seeds; BM25 before: {100 * record['bm25']['score']:.1f}")  # fmt: skip
    orders = {by: agreement(scores, {n: after[n] for n in scores}) for by, scores in before.items()}
    records = {
        "rows": lines,
        "orders": orders,
        "bm25": record["bm25"],
        "asked": {k: str(v) for k, v in vars(asked).items()},
    }
    report(f"choosing-{source}", columns, lines, records)
    for by, one in orders.items():
        print(f"by {by}: tau {one['tau']:+.2f} (queries drawn anew: {one['interval'][0]:+.2f} to "
              f"{one['interval'][1]:+.2f}; p = {one['p_value']:.3f}), rho {one['rho']:+.2f}, "
              f"{one['candidates']} candidates")  # fmt: skip
    return orders


def main() -> None:
    parser = parser_of(__doc__, "one source, 4 steps of 8, one seed, 60 pairs: shows that it runs, and nothing else")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sources", default="powershell_docs,evidence_inference")
    parser.add_argument("--also", action="append", default=[], metavar="CHECKPOINT")
    parser.add_argument("--pairs-of", type=int, default=500, help="pairs of the sample")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="that are read of a document")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.quick:
        asked.sources, asked.steps, asked.batch = asked.sources.split(",")[0], 4, 8
        asked.seeds, asked.pairs_of = 1, 60
    files = {name: asked.data / "pairs" / f"{name}.jsonl.gz" for name in asked.sources.split(",")}
    texts = [pair["document"] for file in files.values() for pair in rows_of(file, 16)]
    (asked.out / "candidates").mkdir(parents=True, exist_ok=True)
    candidates = make_candidates(asked.model, asked.out / "candidates", texts)
    candidates |= {Path(place).parent.name if Path(place).name == "model" else Path(place).name: place
                   for place in asked.also}  # fmt: skip
    for source, file in files.items():
        found = {}
        for name, place in candidates.items():
            found[name] = tuned(place, file, asked.out / source / name.replace(" ", "-"), asked)
            mean, seconds = 100 * found[name].scores.mean(), found[name].seconds
            print(f"{source}, {name}: {mean:.2f} after {seconds:.0f} s of processor time", flush=True)
        compared(source, candidates, found, asked)


if __name__ == "__main__":
    main()
