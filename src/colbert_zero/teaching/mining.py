"""Hard negatives: what BM25, models or chance find for a query, without what may be an answer.

    pairs, corpus ──▶ inputs       each text once, on disk
    miners        ──▶ passes       each query's best documents, a pass a miner
    judge         ──▶ last pass    scores of positives and of all candidates on one scale
                      picking      negatives by shares, filtered; counted by what removed them

Why this is not sentence-transformers' `mine_hard_negatives`: that holds the embeddings of the whole corpus in memory,
takes dense models alone, and mixes none. A test compares the two where both can.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colbert_zero.data.prepared import Source
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.files import atomic_file
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.processes import agree, appears, is_main, made_by_main
from colbert_zero.recipe.data import Mined
from colbert_zero.recipe.miners import BM25, RANDOM, judge_of
from colbert_zero.teaching.inputs import Inputs, open_inputs, write_inputs
from colbert_zero.teaching.passes import BM25_QUERIES, NOBODY, Found, Pass, by_bm25, by_model, of_keys
from colbert_zero.teaching.picking import MAX_RELATIVE, REASONS, Picker
from colbert_zero.watch import stop_if_asked

Bar = Callable[[str, int], AbstractContextManager[Callable[[int, dict[str, Any]], None]]]
"""Shows progress: see `Show.bar`."""

MUCH_REJECTED = 0.5
"""Share of candidates rejected by `max_relative` that is worth a warning."""

MUCH_RANDOM = 0.01
"""Share of negatives that are random for want of others that is worth one."""


class Row(NamedTuple):
    """A pair with its negatives, by number, and the judge's scores."""

    part: int
    query: int
    document: int
    negatives: list[int]
    score: float
    negative_scores: list[float]


class Mining:
    """Mining in a folder, by all processes together; what is there is not done again.

    Args:
        spec: What is asked for.
        source: Of pairs.
        corpus: Files of documents; None: the source's own.
        seed: Of random documents.
        folder: Where passes are kept; the caller's alone, and to be deleted by it.
        load: Loads a checkpoint of the spec.
        bar: Shows progress.
        place: What the user calls a key of the spec, for messages.

    Raises:
        ColbertZeroError: There are too few documents, or one cannot be used.
    """

    def __init__(
        self,
        spec: Mined,
        source: Source,
        corpus: list[Path] | None,
        seed: int,
        folder: Path,
        load: Callable[[str], Encoder],
        bar: Bar,
        place: Callable[[str], str],
    ) -> None:
        self.spec, self.seed, self.folder, self.bar = spec, seed, folder, bar
        write = partial(write_inputs, folder / "inputs", source, corpus, spec.queries, place("of"))
        self.inputs: Inputs = made_by_main(write, open_inputs)
        self.judge = judge_of(spec.shares, spec.judge)
        self.picker = Picker(spec, self.inputs.document_text)
        self._group = lru_cache(2)(self._read_group)
        index = cache(lambda: Bm25(self.inputs.corpus() if self.judge != BM25 else self.inputs.every()))
        self._scorers: dict[str, Pass] = {BM25: by_bm25(self.inputs, index)}
        for name in spec.models:
            self._scorers[name] = by_model(self.inputs, cache(partial(load, name)), f"the model {name}")
        if self.inputs.corpus_size <= spec.negatives:
            raise ColbertZeroError(
                f"{place('negatives')}: {spec.negatives} a query, but there are {self.inputs.corpus_size} documents to "
                "mine in; lower it"
            )

    def rows(self) -> Iterator[Row]:
        """Every row that gets its negatives, in the source's order; for the main process, after `passes`."""
        inputs = self.inputs
        with self.bar("picking negatives", len(inputs.rows)) as advance:
            for done, (query, document, part) in enumerate(inputs.rows.tolist(), 1):
                ranked, scores = self._candidates(query)
                negatives = self.picker.pick(query, document, inputs.answers_of(query), ranked, scores)
                if negatives is not None:
                    yield Row(part, query, document, negatives, scores[document], [scores[n] for n in negatives])
                if done % 1000 == 0 or done == len(inputs.rows):
                    stop_if_asked()
                    advance(done, {})

    def passes(self) -> None:
        """Run every pass that is not done, the judge's last; by all processes."""
        names = [name for name in self.spec.shares if name not in (RANDOM, self.judge)]
        for name in [*names, self.judge]:
            self._pass(name)

    def _pass(self, name: str) -> None:
        groups = self.inputs.groups()
        missing = [group for group in range(len(groups)) if not agree(self._file(name, group).is_file())]
        if not missing:
            return
        depth = self.spec.depth if name in self.spec.shares else 0
        title = f"{'judging' if not depth else 'mining'} with {name}"
        steps, done = sum(self._steps(name, *groups[group]) for group in missing), 0
        with self.bar(title, steps) as advance:

            def step() -> None:
                nonlocal done
                done += 1
                advance(done, {})

            for group in missing:
                wanted = self._wanted(group) if name == self.judge else np.empty((0, 2), np.int64)
                file = self._file(name, group)
                found = self._scorers[name](groups[group], depth, wanted, file, step)
                if is_main():
                    with atomic_file(file, "wb") as opened:
                        np.savez(opened, keys=found.keys, scores=found.scores)
                    for state in (*file.parent.glob(f"{file.stem}.process-*.npz"), file.with_suffix(".merged.npz")):
                        state.unlink(missing_ok=True)
                appears(file)

    def _steps(self, name: str, first: int, end: int) -> int:
        """Blocks of a group's pass: of documents, or, by BM25, of queries."""
        return -(-(end - first) // BM25_QUERIES) if name == BM25 else len(self.inputs.blocks) - 1

    def _file(self, name: str, group: int) -> Path:
        place = self.spec.models.index(name) if name != BM25 else BM25
        return self.folder / f"{place}-{group}.npz"

    def _read(self, name: str, group: int) -> Found:
        with np.load(self._file(name, group)) as arrays:
            return Found(arrays["keys"], arrays["scores"])

    def _wanted(self, group: int) -> np.ndarray:
        """Pairs that the judge scores: its group's answers, and candidates that others found; sorted by document."""
        first, end = self.inputs.groups()[group]
        rows = slice(*np.searchsorted(self.inputs.answers[:, 0], [first, end]))
        places, documents = [self.inputs.answers[rows, 0] - first], [self.inputs.answers[rows, 1]]
        for name in self.spec.shares:
            if name not in (RANDOM, self.judge):
                keys = self._read(name, group).keys
                here = np.nonzero(keys != NOBODY)
                places.append(here[0])
                documents.append(of_keys(keys[here])[0])
        drawn = [self._drawn(query) for query in range(first, end)]
        places.append(np.repeat(np.arange(end - first), [len(each) for each in drawn]))
        documents += drawn
        # One integer a pair sorts and is compared much faster than two.
        pairs = np.unique(np.concatenate(documents) * (end - first) + np.concatenate(places))
        return np.stack([pairs % (end - first), pairs // (end - first)], axis=1)

    def _drawn(self, query: int) -> np.ndarray:
        """Random documents of a query, twice as many as negatives, the same ones whenever asked."""
        random, wanted, size = (
            np.random.default_rng([self.seed, query]),
            2 * self.spec.negatives,
            self.inputs.corpus_size,
        )
        if size < 4 * wanted:
            return random.permutation(size)[:wanted]
        drawn = np.array(list(dict.fromkeys(random.integers(0, size, 2 * wanted).tolist())), np.int64)
        return drawn[:wanted]

    def _candidates(self, query: int) -> tuple[dict[str, list[int]], dict[int, float]]:
        """Candidates of each miner, best first, and scores by the judge of all and of the answers."""
        group = next(number for number, (_, end) in enumerate(self.inputs.groups()) if query < end)
        place, found = query - self.inputs.groups()[group][0], self._group(group)
        ranked: dict[str, list[int]] = {}
        scores: dict[int, float] = {}
        for name in [name for name in self.spec.shares if name != RANDOM]:
            keys = found.keys[name][place]
            documents, values = of_keys(keys[keys != NOBODY])
            ranked[name] = documents.tolist()
            if name == self.judge:
                scores = dict(zip(ranked[name], values.tolist(), strict=True))
        ranked[RANDOM] = self._drawn(query).tolist()
        here = found.by_query[found.starts[place] : found.starts[place + 1]]
        return ranked, scores | dict(zip(found.wanted[here, 1].tolist(), found.scores[here].tolist(), strict=True))

    def _read_group(self, group: int) -> "_Group":
        wanted, judged = self._wanted(group), self._read(self.judge, group)
        by_query = np.argsort(wanted[:, 0], kind="stable")
        first, end = self.inputs.groups()[group]
        starts = np.searchsorted(wanted[by_query, 0], np.arange(end - first + 1))
        keys = {name: self._read(name, group).keys for name in self.spec.shares if name != RANDOM}
        return _Group(keys, wanted, judged.scores, by_query, starts)

    # ---- What is told and kept

    def record(self) -> dict[str, Any]:
        """What was mined, kept and left out; after `rows`."""
        counts, inputs = self.picker.counts, self.inputs
        return {
            "miners": self.spec.shares,
            "judge": self.judge,
            "negatives": self.spec.negatives,
            "corpus": inputs.corpus_size,
            "queries": len(inputs.queries),
            **{f"corpus_{key}": inputs.told[key] for key in ("empty", "duplicates")},
            "own_negatives": inputs.told["own_negatives"],
            "looked_at": dict(counts.looked_at),
            "removed": {name: {r: n for r in REASONS if (n := removed[r])} for name, removed in counts.removed.items()},
            "kept": dict(counts.kept),
            "filled": dict(counts.filled),
            "filled_up": counts.filled_up,
            "random": counts.filled[RANDOM],
            "left_out": counts.left_out,
            "examples": [
                {
                    "reason": reason,
                    "query": inputs.queries[query]["text"],
                    "document": inputs.documents[document]["text"],
                    "candidate": inputs.documents[candidate]["text"],
                    "score": score,
                    "candidate_score": of_candidate,
                }
                for reason, found in counts.examples.items()
                for query, document, candidate, score, of_candidate in found
            ],
        }


class _Group(NamedTuple):
    """What all passes found for a group; `by_query` orders the wanted pairs, of query i from starts[i] on."""

    keys: dict[str, np.ndarray]
    wanted: np.ndarray
    scores: np.ndarray
    by_query: np.ndarray
    starts: np.ndarray


def told_of(record: dict[str, Any], spec: Mined) -> Iterator[str]:
    """What to tell of a mining, line by line: what each filter removed, what is short, and examples."""
    yield from (f"--pairs: {told}" for told in record.get("read", ()))
    for reason, count in record["dropped"].items():
        yield f"--pairs: {count:,} row{'s' * (count > 1)} left out: {reason}"
    if held_out := record["held_out"]:
        yield f"--pairs: {held_out:,} held-out pairs are not mined"
    if spec.precision != "float32" and spec.models:
        yield f"{', '.join(spec.models)}: encoded in {record['precision']}"
    if record["corpus_empty"] or record["corpus_duplicates"]:
        yield (
            f"corpus: {record['corpus']:,} documents; left out {record['corpus_duplicates']:,} equal to one before and "
            f"{record['corpus_empty']:,} without a text"
        )
    if record["own_negatives"]:
        yield f"{record['own_negatives']:,} rows had hard negatives of their own; the mined ones take their place"
    for name, looked_at in record["looked_at"].items():
        removed = record["removed"].get(name, {})
        words = {
            "positive": "known positives",
            "near_duplicate": "near-duplicates of positives",
            "skip": "skipped",
            "max_relative": f"at or above {spec.threshold or 0:g} of the positive's score by {record['judge']}",
        }
        reasons = ", ".join(f"{count:,} {words[reason]} ({count / looked_at:.0%})" for reason, count in removed.items())
        filled = f", {record['filled'][name]:,} of them in others' place" if record["filled"].get(name) else ""
        yield (
            f"{name}: {looked_at:,} candidates looked at, {record['kept'].get(name, 0):,} kept{filled}"
            f"{'; left out: ' + reasons if reasons else ''}"
        )
        if (share := removed.get(MAX_RELATIVE, 0) / looked_at) > MUCH_REJECTED:
            yield (
                f"warning: {share:.0%} of {name}'s candidates rejected by max_relative: {record['judge']} hardly tells "
                "positives from them. Look at the examples; name another judge, or raise max_relative"
            )
    random = record["random"]
    if RANDOM not in spec.shares and random > MUCH_RANDOM * sum(record["kept"].values()):
        yield (
            f"warning: {random:,} hard negatives are random documents, in {record['filled_up']:,} rows for which fewer "
            f"than {record['negatives']} were found; they teach little. Raise `depth`, or lower `negatives` or `skip`"
        )
    if record["left_out"]:
        yield (
            f"warning: {record['left_out']:,} rows are left out, for which fewer than {record['negatives']} negatives "
            "were found; raise `depth` or `max_relative`, or lower `negatives`"
        )
    for example in record["examples"]:
        yield (
            f"{example['reason']}: query {short(example['query'])!r}, positive {short(example['document'])!r} "
            f"({example['score']:.4g}), left out {short(example['candidate'])!r} ({example['candidate_score']:.4g})"
        )
