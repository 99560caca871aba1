"""Queries adapted to domains in sequence: python benchmarks/adapting.py MODEL DATA [--domains A,B,…] [--pairs N]

DATA/pairs/NAME.jsonl.gz of each domain, N pairs evenly spread, each text encoded once. A seed says which fifth of
a domain's documents is held out, and draws the projection. Of each way (linear, projection, decorrelate), as
differences of nDCG@10 to the model as it is, in points, on held-out queries ranked among --documents of their domain:

    after k        the sums of the first k domains, λ and step chosen on the k-th, scored on every domain
    all at once    the sums of all, λ and step chosen on all: one adapter for all
    its own        an adapter each: a domain's own sums, λ and step

Queries are judged by what the other half of the held-out pairs chooses (cross-fitted). Intervals are 95 %, by a
bootstrap over queries, each query's difference being its mean over the seeds that held it out.
"""

import argparse
import gzip
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder

from colbert_zero.evaluation.adapting import Domain, Judges, Split, choose, hold, split, sums_of
from colbert_zero.evaluation.significance import bootstrap_means, percentile_interval
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.adapting import Form, Statistics, Way, form_of
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import concatenate, encode, reorder

WAYS: tuple[Way, ...] = ("linear", "projection", "decorrelate")

Differences = dict[tuple[str, str], dict[str, list[float]]]
"""{(adapter, domain): {query: a difference each seed}}."""


def domain_of(data: Path, name: str, count: int) -> Domain:
    """So many of a file's pairs, evenly spread."""
    with gzip.open(data / "pairs" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = file.readlines()
    rows = [json.loads(line) for line in lines[:: max(1, len(lines) // count)][:count]]
    return Domain(name, [(row["query"], row["document"]) for row in rows])


def encoded_once(model: MultiVectorEncoder, domains: list[Domain], keep: Path) -> Callable[[list[str], str], Packed]:
    """A function that gives vectors of the domains' texts, which are encoded here, or were before."""
    tables: dict[str, dict[str, int]] = {}
    packed: dict[str, Packed] = {}
    for side, task in enumerate(("query", "document")):
        parts, texts = [], list[str]()
        for domain in domains:
            own = list(dict.fromkeys(pair[side] for pair in domain.pairs))
            file = keep / f"{domain.name}-{domain.digest}-{task}.safetensors"
            if not file.exists():
                found = encode(model, own, task)
                keep.mkdir(parents=True, exist_ok=True)
                save_file({"values": found.values, "lengths": found.lengths}, file)
            parts.append(Packed(**load_file(file)))
            texts += own
        tables[task], packed[task] = {text: i for i, text in enumerate(texts)}, concatenate(parts)

    def embed(texts: list[str], task: str) -> Packed:
        return reorder(packed[task], torch.tensor([tables[task][text] for text in texts]))

    return embed


def measure(held: dict[str, Judges], queries: dict[str, list[str]], form: Form, sums: dict[str, Statistics]):
    """Yield (adapter, domain, {query: difference}) of every adapter on every domain that it is asked about."""
    names = list(held)

    def scored(adapter: str, over: list[str], chosen_on: list[str], on: list[str]):
        choices = choose(form, reduce(add, [sums[name] for name in over]), {name: held[name] for name in chosen_on})
        for name in on:
            found = 100 * (held[name].judged(form, choices) - held[name].before)
            yield adapter, name, dict(zip(queries[name], found.tolist(), strict=True))

    for k, name in enumerate(names):
        yield from scored(f"after {name}", names[: k + 1], [name], names)
        yield from scored("its own", [name], [name], [name])
    yield from scored("all at once", names, names, names)


def table(domains: list[str], found: Differences, before: dict[str, float]) -> None:
    """Print differences with intervals; a column a domain, and the mean over domains."""
    print(f"{'':18}" + "".join(f"{name:>24}" for name in domains) + f"{'mean':>24}")
    print(f"{'as it is':18}" + "".join(f"{before[name]:24.1f}" for name in domains))
    for adapter in dict.fromkeys(adapter for adapter, _ in found):
        strata = [np.array([np.mean(d) for d in found[adapter, name].values()]) for name in domains]
        drawn = bootstrap_means(strata)
        cells = [(one.mean(), percentile_interval(rows)) for one, rows in zip(strata, drawn, strict=True)]
        cells.append((np.mean([one.mean() for one in strata]), percentile_interval(drawn.mean(axis=0))))
        print(f"{adapter:18}" + "".join(f"{f'{m:+.1f} ({low:+.1f} to {high:+.1f})':>24}" for m, (low, high) in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--domains", default="medquad,cpp_docs,tldr,openstax")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=300, help="that held-out queries are ranked among")
    parser.add_argument("--features", type=int, default=1000, help="of the projection")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument(
        "--keep", type=Path, default=Path("encoded"), help="where vectors are kept, of this model alone"
    )
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    started = time.monotonic()
    model, names = load_model(asked.model, device="cpu"), asked.domains.split(",")
    ways = [way for way in WAYS if way in asked.ways.split(",")]
    assert isinstance(model, MultiVectorEncoder)
    domains = [domain_of(asked.data, name, asked.pairs) for name in names]
    embed = encoded_once(model, domains, asked.keep)
    print(f"encoded after {time.monotonic() - started:.0f} s", flush=True)
    found: dict[str, Differences] = {way: defaultdict(lambda: defaultdict(list)) for way in ways}
    before: dict[str, list[float]] = defaultdict(list)
    for seed in range(1, asked.seeds + 1):
        parts: dict[str, Split] = {domain.name: split(domain, seed) for domain in domains}
        held = {d.name: hold(embed, None, d, parts[d.name], seed, asked.documents) for d in domains}
        queries = {name: list(dict.fromkeys(q for q, _ in part.held_out)) for name, part in parts.items()}
        for name, one in held.items():
            before[name].append(100 * float(one.before.mean()))
        for way in ways:
            form = form_of(model, way, asked.features, seed)
            sums = {d.name: reduce(add, [s for s, _ in sums_of(embed, form, d, parts[d.name], seed)]) for d in domains}
            for adapter, name, differences in measure(held, queries, form, sums):
                for query, difference in differences.items():
                    found[way][adapter, name][query].append(difference)
            counts = ", ".join(f"{name} {len(queries[name])}" for name in names)
            print(f"\n{way}, {seed} seeds, {time.monotonic() - started:.0f} s; held-out queries: {counts}")
            table(names, found[way], {name: float(np.mean(values)) for name, values in before.items()})
            print(flush=True)


if __name__ == "__main__":
    main()
