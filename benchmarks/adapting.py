"""Queries adapted to new domains in sequence: python benchmarks/adapting.py DATA MODEL [MODEL …] --new A,B --old C,D

DATA/pairs/NAME.jsonl.gz of each domain, N pairs evenly spread. Each MODEL is one seed: trainings of the same recipe, or
the same folder several times. The seed also says which fifth of a domain's documents is held out, and draws the
projection. Domains that the models did not know (`--new`) are added one after the other; those they were trained on
(`--old`) are never added, and show what is lost. Of each way (linear, projection, decorrelate), as differences of
nDCG@10 to the model as it is, in points, on held-out queries ranked among --documents of their domain:

    its own        an adapter each: a domain's own sums, λ and step
    after k        the sums of the first k new domains, λ and step chosen on the k-th, scored on every domain
    all at once    the sums of all new domains, λ and step chosen on all: one adapter for all
    by the query   of the adapters of their own that whose fitted queries' mean vector is nearest to the query's; an old
                   domain's has none. So one index of all domains is searched

Queries are judged by what the other half of the held-out pairs chooses (cross-fitted). The control is `fine-tuning`:
contrastive training of the whole model on the fitted pairs of one new domain after the other (AdamW, in-batch
negatives, --steps of --batch pairs a domain, at --rate), after which every document is encoded anew.

Intervals are 95 %, by a bootstrap over queries within domains, each query's difference being its mean over the seeds
that held it out; a domain counts once. p-values by randomisation of the mean over new domains, corrected by Holm over
all of them. Of the old ones: within how many points they are shown to be equal (two one-sided tests).

What is measured of a way and a seed is kept in --keep, so several processes may share the work (--ways, --only-seed);
the last call, without them, reads it all, prints the tables and writes results/adapting.json. With --measured it takes
what there is, and compares with the control on the seeds that both have.
"""

import argparse
import gzip
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import count, islice
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder

from colbert_zero import Contrastive
from colbert_zero.evaluation.adapting import Choices, Domain, Judges, Split, choose, hold, split, sums_of
from colbert_zero.evaluation.significance import (
    bootstrap_means,
    equal_within,
    holm,
    percentile_interval,
    stratified_randomisation,
)
from colbert_zero.files import fingerprint, read_json, write_json
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.adapting import Statistics, Way, form_of
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.contents import contents_of
from colbert_zero.models.encoders import tokeniser
from colbert_zero.models.encoding import concatenate, encode, reorder
from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
from harness import report

CLOSED: tuple[Way, ...] = ("linear", "projection", "decorrelate")
CONTROL = "fine-tuning"
OWN, ALL, BY_QUERY = "its own", "all at once", "by the query"

Found = dict[str, dict[str, dict[str, float]]]
"""{adapter: {domain: {query: difference}}} of one way and seed."""


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
    keep.mkdir(parents=True, exist_ok=True)
    for side, task in enumerate(("query", "document")):
        parts, texts = [], list[str]()
        for domain in domains:
            own = list(dict.fromkeys(pair[side] for pair in domain.pairs))
            file = keep / f"{domain.name}-{domain.digest}-{task}.safetensors"
            if not file.exists():
                found = encode(model, own, task)
                save_file({"values": found.values, "lengths": found.lengths}, file)
            parts.append(Packed(**load_file(file)))
            texts += own
        tables[task], packed[task] = {text: i for i, text in enumerate(texts)}, concatenate(parts)

    def embed(texts: list[str], task: str) -> Packed:
        return reorder(packed[task], torch.tensor([tables[task][text] for text in texts]))

    return embed


class Seed:
    """A model, and the domains as its seed splits them."""

    def __init__(self, number: int, folder: str, domains: list[Domain], new: list[str], asked: Any) -> None:
        self.number, self.domains, self.new, self.asked = number, domains, new, asked
        self.parts: dict[str, Split] = {domain.name: split(domain, number) for domain in domains}
        self.queries = {name: list(dict.fromkeys(q for q, _ in part.held_out)) for name, part in self.parts.items()}
        self.names, self.folder = list(self.parts), folder
        self.own = asked.keep / str(contents_of(folder))[:8]
        given = [d.digest for d in domains], new, number, asked.documents
        self.key = fingerprint(*given)
        self.control_key = fingerprint(*given, asked.steps, asked.batch, asked.rate)

    def prepare(self) -> None:
        """Load the model, and encode."""
        model = load_model(self.folder, device="cpu")
        assert isinstance(model, MultiVectorEncoder)
        self.model, self.embed = model, encoded_once(model, self.domains, self.own)
        self.held = {d.name: self.holding(self.embed, d) for d in self.domains}

    def holding(self, embed: Callable[[list[str], str], Packed], domain: Domain) -> Judges:
        return hold(embed, None, domain, self.parts[domain.name], self.number, self.asked.documents)

    def file_of(self, way: str) -> Path:
        """Where what is measured of a way is kept."""
        more = f"{self.asked.features}-{self.key}" if way != CONTROL else self.control_key
        file: Path = self.own / f"{way}-{self.number}-{more}.json"
        return file

    def found(self, way: str) -> Found:
        """What the way does, measured now or before."""
        file = self.file_of(way)
        if not file.exists():
            started = time.process_time()
            if not hasattr(self, "held"):
                self.prepare()
            found: Found = defaultdict(dict)
            for adapter, name, scores in self.tuned() if way == CONTROL else self.adapted(way):
                differences = 100 * (scores - self.held[name].before)
                found[adapter][name] = dict(zip(self.queries[name], differences.tolist(), strict=True))
            before = {name: 100 * float(one.before.mean()) for name, one in self.held.items()}
            seconds = time.process_time() - started
            write_json(file, {"found": found, "before": before, "cpu_seconds": seconds})
            print(f"{way}, seed {self.number}: {seconds:.0f} s of processor time", flush=True)
        read = read_json(file)
        self.before, self.seconds = read["before"], read["cpu_seconds"]
        return dict(read["found"])

    def adapted(self, way: Any) -> Iterator[tuple[str, str, np.ndarray]]:
        """(adapter, domain, nDCG@10 of each query) of every adapter in closed form."""
        form = form_of(self.model, way, self.asked.features, self.number)
        sums: dict[str, Statistics] = {
            d.name: reduce(add, [s for s, _ in sums_of(self.embed, form, d, self.parts[d.name], self.number)])
            for d in self.domains
        }

        def chosen(over: list[str], on: list[str]) -> Choices:
            return choose(form, reduce(add, [sums[name] for name in over]), {name: self.held[name] for name in on})

        own = {name: chosen([name], [name]) for name in self.names}
        for name in self.names:
            yield OWN, name, self.held[name].judged(form, own[name])
        for k, last in enumerate(self.new, 1):
            choices = own[last] if k == 1 else chosen(self.new[:k], [last])
            yield from ((f"after {last}", name, self.held[name].judged(form, choices)) for name in self.names)
        choices = chosen(self.new, self.new)
        yield from ((ALL, name, self.held[name].judged(form, choices)) for name in self.names)
        routes = self.routes()
        for name in self.names:
            scores = self.held[name].before.copy()
            for other in set(routes[name]) & set(self.new):
                rows = np.array(routes[name]) == other
                scores[rows] = self.held[name].judged(form, own[other])[rows]
            yield BY_QUERY, name, scores

    def routes(self) -> dict[str, list[str]]:
        """{domain: the domain that each held-out query is taken to be of}."""
        centres = torch.stack([means_of(self.embed([q for q, _ in self.parts[n].fitted], "query")) for n in self.names])
        found = {}
        for name in self.names:
            packed = self.embed(self.queries[name], "query")
            means = torch.stack([tokens.mean(0) for tokens in packed.values.split(packed.lengths.tolist())])
            near = torch.nn.functional.normalize(means, dim=1) @ torch.nn.functional.normalize(centres, dim=1).T
            found[name] = [self.names[i] for i in near.argmax(1).tolist()]
        return found

    def tuned(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """The same of the whole model, trained on one new domain after the other."""
        model = load_model(self.folder, device="cpu")
        for last in self.new:
            train(model, self.parts[last].fitted, self.asked, self.number)
            for domain in self.domains:
                yield f"after {last}", domain.name, self.holding(partial(encode, model), domain).before


def means_of(packed: Packed) -> torch.Tensor:
    """The mean over texts of the mean of their vectors."""
    return torch.stack([tokens.mean(0) for tokens in packed.values.split(packed.lengths.tolist())]).mean(0)


def train(model: Any, pairs: list[tuple[str, str]], asked: Any, seed: int) -> None:
    """Contrastive training on pairs, pass after pass in another order, as a phase of a study computes it."""
    tokenise, objective = tokeniser(model), Contrastive(temperature=0.3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=asked.rate, weight_decay=0.01)
    dice = np.random.default_rng(seed)
    shuffled = (pairs[i] for _ in count() for i in dice.permutation(len(pairs)))
    torch.manual_seed(seed)
    model.train()
    for _ in range(asked.steps):
        batch = list(islice(shuffled, asked.batch))
        sides = [
            TokenisedTexts(task, **tokenise([pair[side] for pair in batch], task))
            for side, task in enumerate(("query", "document"))
        ]
        grad_cache(model, sides, objective.of(*sides, None), 1 << 20)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def joined(founds: list[Found], adapter: str, names: list[str]) -> list[np.ndarray]:
    """Of each domain each query's difference, its mean over the seeds that held it out."""
    strata = []
    for name in names:
        values: dict[str, list[float]] = defaultdict(list)
        for found in founds:
            # "Just added": each domain right after it was.
            for query, difference in found[f"after {name}" if adapter == JUST else adapter][name].items():
                values[query].append(difference)
        strata.append(np.array([np.mean(one) for one in values.values()]))
    return strata


JUST = "when just added"


def told(strata: list[np.ndarray]) -> dict[str, Any]:
    drawn = bootstrap_means(strata).mean(axis=0)
    return {
        "difference": float(np.mean([one.mean() for one in strata])),
        "interval": list(percentile_interval(drawn)),
        "equal_within": equal_within(drawn),
        "p_value": stratified_randomisation(strata),
        "queries": sum(map(len, strata)),
    }


def cell(one: dict[str, Any]) -> str:
    return f"{one['difference']:+.1f} ({one['interval'][0]:+.1f} to {one['interval'][1]:+.1f})"


def tables(founds: dict[str, dict[int, Found]], new: list[str], old: list[str]) -> list[dict[str, Any]]:
    """Print a matrix a way, and the tests; give the records."""
    records, tested = [], []
    for way, by_seed in founds.items():
        of_seeds = list(by_seed.values())
        adapters = [*of_seeds[0], JUST]
        rows = []
        for adapter in adapters:
            cells = {name: told(joined(of_seeds, adapter, [name])) for name in new + (old if adapter != JUST else [])}
            of_new, of_old = joined(of_seeds, adapter, new), joined(of_seeds, adapter, old) if adapter != JUST else None
            record = {"way": way, "adapter": adapter, "domains": cells, "new": told(of_new),
                      "old": told(of_old) if of_old else None}  # fmt: skip
            records.append(record)
            last = f"after {new[-1]}"
            if adapter in {OWN, ALL, BY_QUERY, last} or (way == CONTROL and adapter == JUST):
                tested.append(record["new"])
            rows.append([adapter, *(cell(cells[name]) if name in cells else "" for name in new + old),
                         cell(record["new"]), cell(record["old"]) if of_old else "",
                         f"{record['old']['equal_within']:.1f}" if of_old else ""])  # fmt: skip
        print(f"\n{way}, {len(of_seeds)} seeds")
        show([["", *new, *old, "mean, new", "mean, old", "old equal within"], *rows])
    if CONTROL in founds:
        last = f"after {new[-1]}"
        for way in [way for way in founds if way != CONTROL]:
            both = sorted(founds[way].keys() & founds[CONTROL].keys())
            control = joined([founds[CONTROL][seed] for seed in both], last, new)
            for adapter in (OWN, ALL):
                pairs = zip(joined([founds[way][seed] for seed in both], adapter, new), control, strict=True)
                one = told([a - b for a, b in pairs])
                records.append({"way": way, "adapter": f"{adapter} − fine-tuning, {last}", "new": one})
                tested.append(one)
    for one, adjusted in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
        one["p_value_holm"] = adjusted
    print(f"\nmean over new domains, {len(tested)} tests")
    show([["way", "adapter", "difference", "p", "p, Holm"]] + [
        [r["way"], r["adapter"], cell(r["new"]), f"{r['new']['p_value']:.4f}", f"{r['new']['p_value_holm']:.4f}"]
        for r in records if "p_value_holm" in r["new"]
    ])  # fmt: skip
    return records


def show(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--new", default="powershell_docs,evidence_inference,skeptics_se,pubmedqa")
    parser.add_argument("--old", default="medquad,cpp_docs,openstax")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=300, help="that held-out queries are ranked among")
    parser.add_argument("--features", type=int, default=1000, help="of the projection")
    parser.add_argument("--ways", default=",".join([*CLOSED, CONTROL]))
    parser.add_argument("--steps", type=int, default=30, help="of fine-tuning, a domain")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a step")
    parser.add_argument("--rate", type=float, default=5e-5, help="of learning")
    parser.add_argument("--only-seed", type=int, help="measure this one alone, from 1, and print no table")
    parser.add_argument("--measured", action="store_true", help="measure nothing: tables of what there is")
    parser.add_argument("--keep", type=Path, default=Path("encoded"), help="where vectors and measures are kept")
    asked = parser.parse_args()
    new, old = asked.new.split(","), asked.old.split(",")
    ways = [way for way in (*CLOSED, CONTROL) if way in asked.ways.split(",")]
    domains = [domain_of(asked.data, name, asked.pairs) for name in new + old]
    seeds = [Seed(number, folder, domains, new, asked) for number, folder in enumerate(asked.models, 1)]
    founds: dict[str, dict[int, Found]] = {way: {} for way in ways}
    spent = 0.0
    for seed in seeds if asked.only_seed is None else [seeds[asked.only_seed - 1]]:
        for way in ways:
            if not asked.measured or seed.file_of(way).exists():
                founds[way][seed.number] = seed.found(way)
                spent += seed.seconds
    if asked.only_seed is not None:
        return
    founds = {way: by_seed for way, by_seed in founds.items() if by_seed}
    seeds = [seed for seed in seeds if any(seed.number in by_seed for by_seed in founds.values())]
    before = {name: float(np.mean([seed.before[name] for seed in seeds])) for name in new + old}
    counts = {name: "+".join(str(len(seed.queries[name])) for seed in seeds) for name in new + old}
    print(f"{len(seeds)} seeds, {spent / 60:.0f} minutes of processor time; held-out queries: {counts}")
    print("as it is: " + ", ".join(f"{name} {score:.1f}" for name, score in before.items()))
    wins = {way: [np.mean(list(found[OWN][name].values())) > 0 for found in of.values() for name in new]
            for way, of in founds.items() if way != CONTROL}  # fmt: skip
    for way, gains in wins.items():
        print(f"{way}: the command would write {sum(gains)} of {len(gains)} adapters of one new domain each")
    records = tables(founds, new, old)
    said = {key: str(value) for key, value in vars(asked).items() if key not in ("data", "keep", "models")}
    written = {way: [bool(gain) for gain in gains] for way, gains in wins.items()}
    report("adapting", [], [], {"asked": said, "before": before, "written": written, "records": records})


if __name__ == "__main__":
    main()
