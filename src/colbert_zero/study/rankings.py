"""Rankings that are kept: each belongs to a checkpoint and a collection, and systems' names point to it.

`runs/index.json` has {NAME.COLLECTION: key}. A key is made of what ranked, what was ranked and how deep, and never of a
name: a checkpoint under a second name finds the ranking made under the first.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from colbert_zero.data.collection import Collection
from colbert_zero.evaluation.ensembles import FUSION_DEPTH
from colbert_zero.evaluation.ranking import rank_bm25
from colbert_zero.evaluation.runs import PerQuery, Run, measure, read_run, write_run
from colbert_zero.files import atomic_file, fingerprint, read_json, write_json
from colbert_zero.processes import agree, from_main, is_main

DEPTH = 100
"""Documents kept per query in a run; R@100 needs as many."""

Ranker = Callable[[Collection, int], Run]
"""Ranks a collection to a depth; called by every process, and the main one's run counts."""


def bm25(collection: Collection, depth: int) -> Run:
    """BM25's run, made by the main process alone."""
    return rank_bm25(collection, depth) if is_main() else {}


class Rankings:
    """The rankings in a study's folder.

    Args:
        folder: The study's.
        version: Part of every key: rankings of another version are not found.

    Attributes:
        fusions: {what an ensemble's ranking is known by: the identities it is fused from}. These are ranked once, at
            the depth that the ensemble needs, as long as its own ranking is not there.
    """

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version
        self.fusions: dict[str, list[str]] = {}

    def scores(self, system: str, identity: str, collection: Collection, make: Ranker) -> PerQuery:
        """Each query's scores of a system; its run and its scores are written under its name.

        Args:
            system: The name.
            identity: What ranks: a phase's id, `bm25`, or the fingerprint of an ensemble.
            collection: What is ranked.
            make: Called only if no ranking of this identity is kept.
        """
        name, key = f"{system}.{collection.name}", self._key(identity, collection)
        kept = self._kept(key)
        if not agree(name in kept):
            if agree(bool(kept)):
                if is_main():
                    self._write(name, key, lambda: self._copy(kept[0], name, system))
            else:
                run = self._make(identity, collection, make)
                if is_main():
                    self._write(name, key, lambda: self._write_scores(name, system, collection, run))
        scores: PerQuery = from_main(read_json(self._scores_file(name)) if is_main() else None)
        return scores

    def deep(self, identity: str, collection: Collection, make: Ranker) -> Run:
        """A ranking of 1,000 documents a query, kept as runs/deep/IDENTITY.COLLECTION.trec; the main process has it."""
        name, key = f"deep/{identity}.{collection.name}", self._key(identity, collection, FUSION_DEPTH)
        if not agree(self._has_deep(identity, collection)):
            run = make(collection, FUSION_DEPTH)
            if is_main():
                self._write(name, key, lambda: write_run(self._run_file(name), run, identity))
        return read_run(self._run_file(name)) if is_main() else {}

    def _make(self, identity: str, collection: Collection, make: Ranker) -> Run:
        """A ranking that is not there yet: the beginning of a deeper one, where there is or will be one."""
        wanted = any(
            identity in parts and not self._kept(self._key(teacher, collection))
            for teacher, parts in self.fusions.items()
        )
        if agree(wanted or self._has_deep(identity, collection)):
            return self.deep(identity, collection, make)
        return make(collection, DEPTH)

    def _key(self, identity: str, collection: Collection, depth: int = DEPTH) -> str:
        return fingerprint(self.version, identity, collection.fingerprint, depth)

    def _run_file(self, name: str) -> Path:
        return self.folder / "runs" / f"{name}.trec"

    def _scores_file(self, name: str) -> Path:
        return self.folder / "per_query" / f"{name}.json"

    def _index(self) -> dict[str, str]:
        path = self.folder / "runs" / "index.json"
        return read_json(path) if path.is_file() else {}

    def _kept(self, key: str) -> list[str]:
        """The names under which a ranking and its scores are there."""
        names = [name for name, known in self._index().items() if known == key]
        return [name for name in names if self._run_file(name).is_file() and self._scores_file(name).is_file()]

    def _has_deep(self, identity: str, collection: Collection) -> bool:
        name, key = f"deep/{identity}.{collection.name}", self._key(identity, collection, FUSION_DEPTH)
        return self._index().get(name) == key and self._run_file(name).is_file()

    def _write(self, name: str, key: str, write: Callable[[], None]) -> None:
        """Write a name's files; while they change, the index does not know the name."""
        path, others = self.folder / "runs" / "index.json", self._index()
        if others.pop(name, None) is not None:
            write_json(path, others)
        write()
        write_json(path, others | {name: key})

    def _write_scores(self, name: str, system: str, collection: Collection, run: Run) -> None:
        run = {query_id: run.get(query_id, [])[:DEPTH] for query_id in collection.queries}
        write_run(self._run_file(name), run, system)
        write_json(self._scores_file(name), measure(run, collection.qrels)[1])

    def _copy(self, known: str, name: str, system: str) -> None:
        """Another name's ranking under this name, which is its tag too."""
        write_run(self._run_file(name), read_run(self._run_file(known)), system)
        with open(self._scores_file(known), "rb") as source, atomic_file(self._scores_file(name), "wb") as target:
            shutil.copyfileobj(source, target)
