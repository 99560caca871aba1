"""A teacher's scores of candidates, as the three tables that distillation reads (`lightonai/ms-marco-en-bge-gemma`).

FOLDER/train               query_id, document_ids, scores: normalised, (s − min) / (max − min) over a query's
                           candidates, 0 where all are equal
FOLDER/train_unnormalized  the same ids, the teacher's own scores; of a mix the weighted sum of its members' normalised
                           ones
FOLDER/queries             query_id, text
FOLDER/documents           document_id, text
FOLDER/README.md           names these configurations, so that `datasets.load_dataset(FOLDER, "train")` reads them
FOLDER/teach.json          what scored, and the report

Ids are those of a TREC run, as text; the queries and documents of rows are numbered.

Queries are scored 64 at a time, a unit; a unit's scores are a file of their own, so what was killed goes on and scores
none again but those of the unit that it was in, and several processes share the units. What a unit holds does not
depend on who scored it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import kendalltau

from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import atomic_file, atomic_folder, fingerprint, read_json, write_json, writing
from colbert_zero.maxsim.scores import min_max
from colbert_zero.processes import is_main, process_rank, wait, world_size
from colbert_zero.teaching.candidates import Candidates
from colbert_zero.teaching.scorers import Scorer
from colbert_zero.training.losses import entropies
from colbert_zero.training.saturation import saturated
from colbert_zero.watch import stop_if_asked

UNIT = 64
"""Queries."""

_CARD = """---
configs:
{configs}
---
Scores of {queries} queries' {ways} candidates by {teacher}, made by `colbert-zero teach`.
`train` is normalised to [0, 1] a query.
"""

Members = Mapping[str, float]
"""Weights by what scores: `bm25`, a folder, a Hub id."""


def teach(
    candidates: Candidates,
    members: Members,
    ids: Mapping[str, str],
    scorer_of: Callable[[str], Scorer],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    maxsim: str | None = None,
) -> Path:
    """Score candidates and write the tables.

    Args:
        candidates: What is scored.
        members: Of the mix; one alone is no mix.
        ids: Fingerprint or commit of each.
        scorer_of: Makes one; asked only if there is something to score.
        folder: Appears whole.
        progress: Called with queries done and all.
        maxsim: What computes it, for the record; None if no member is an encoder.

    Raises:
        ColbertZeroError: The folder, or what was begun of it, is of other candidates or another teacher.
    """
    folder = Path(os.path.abspath(folder))
    members = dict(sorted(members.items()))  # however they were written, each has its files
    asked = {"id": fingerprint(candidates.id, sorted(ids.items()), UNIT), "members": members}
    if (folder / "teach.json").is_file():
        if read_record(folder)["asked"] != asked:
            raise ColbertZeroError(
                f"--out {folder}: has another teacher's scores, or of other candidates; name another"
            )
        return folder
    check_out(folder)
    work = folder.with_name(folder.name + ".unfinished")
    with writing(work) if is_main() else nullcontext():
        if is_main():
            _begin(work, asked)
        wait()
        _score(candidates, members, scorer_of, work, progress)
        wait()
        if is_main():
            own = {name: _all_of(work, place) for place, name in enumerate(members)}
            _write(folder, candidates, members, own, {"asked": asked, "teacher": ids, "maxsim": maxsim})
    if is_main():
        shutil.rmtree(work)
    wait()
    return folder


def check_out(folder: Path) -> None:
    """Refuse a place where no tables can be put, before anything is read.

    Raises:
        ColbertZeroError: It is a file, a folder of something else, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    other = folder.is_dir() and any(folder.iterdir()) and not (folder / "teach.json").is_file()
    if other or (folder.exists() and not folder.is_dir()):
        raise ColbertZeroError(f"--out {folder}: is a file, or a folder with something else in it; name a new folder")
    there = next(path for path in folder.parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ColbertZeroError(f"--out {folder}: {there} cannot be written; name another folder")


def read_record(folder: Path) -> dict[str, Any]:
    """teach.json.

    Raises:
        ColbertZeroError: There is none, or it is damaged.
    """
    file = folder / "teach.json"
    if not file.is_file():
        raise ColbertZeroError(f"--out {folder}: holds no teacher's scores; make them with --candidates and --teacher")
    try:
        record: dict[str, Any] = read_json(file)
        missing = [key for key in ("asked", "queries", "ways", "left_out", "report") if key not in record]
    except (ValueError, TypeError) as error:
        raise ColbertZeroError(f"{file}: damaged ({reason(error)}); delete {folder} and score again") from None
    if missing:
        raise ColbertZeroError(f"{file}: damaged (it lacks {missing[0]}); delete {folder} and score again")
    return record


def _score(
    candidates: Candidates,
    members: Members,
    scorer_of: Callable[[str], Scorer],
    work: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Score what is not scored yet, each process its units."""
    scorers: dict[str, Scorer] = {}
    for number, rows in list(_units(candidates))[process_rank() :: world_size()]:
        stop_if_asked()
        for place, name in enumerate(members):
            file = work / f"{number:06d}-{place}.npy"
            if not file.is_file():
                scorer = scorers.get(name) or scorers.setdefault(name, scorer_of(name))
                ranked = np.asarray(candidates.ranked[rows], np.int64)
                found = scorer.scores(candidates.queries[rows], ranked, candidates.documents)
                if not np.isfinite(found).all():
                    query = candidates.queries[rows][int(np.argmax(~np.isfinite(found).all(1)))]
                    raise ColbertZeroError(f"--teacher {name}: a score that is no finite number, for {short(query)}")
                with atomic_file(file, "wb") as written:
                    np.save(written, found.astype(np.float32))
        if progress:
            progress(min(rows.stop, len(candidates.queries)), len(candidates.queries))


def _all_of(work: Path, place: int) -> np.ndarray:
    """A member's scores of all units, (queries, n_ways)."""
    return np.concatenate([np.load(file) for file in sorted(work.glob(f"*-{place}.npy"))])


def _begin(work: Path, asked: dict[str, Any]) -> None:
    begun = work / "asked.json"
    if begun.is_file() and read_json(begun) != asked:
        raise ColbertZeroError(
            f"{work}: was begun with other candidates or another teacher; delete it, or name another --out"
        )
    write_json(begun, asked)


def _units(candidates: Candidates) -> Iterator[tuple[int, slice]]:
    for number, start in enumerate(range(0, len(candidates.queries), UNIT)):
        yield number, slice(start, start + UNIT)


def _write(
    folder: Path, candidates: Candidates, members: Members, own: Mapping[str, np.ndarray], more: dict[str, Any]
) -> None:
    """The tables, all at once."""
    raw = next(iter(own.values())).astype(np.float64)
    if len(members) > 1:
        raw = np.sum([weight * _normalised(own[name]) for name, weight in members.items()], axis=0)
    queries: Sequence[str | int] = candidates.query_ids or range(len(candidates.queries))
    documents: Sequence[str | int] = candidates.document_ids or range(len(candidates.documents))
    ranked = [[documents[number] for number in row] for row in candidates.ranked]
    tables = {
        name: pa.table({"query_id": queries, "document_ids": ranked, "scores": scores.tolist()})
        for name, scores in (("train", _normalised(raw)), ("train_unnormalized", raw))
    } | {
        "queries": pa.table({"query_id": queries, "text": candidates.queries}),
        "documents": pa.table({"document_id": documents, "text": candidates.documents}),
    }
    configs = "\n".join(f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in tables)
    teacher = " + ".join(f"{weight:g} × {name}" if len(members) > 1 else name for name, weight in members.items())
    with atomic_folder(folder) as temporary:
        for name, table in tables.items():
            (temporary / name).mkdir()
            pq.write_table(table, temporary / name / "0.parquet")
        card = _CARD.format(configs=configs, queries=len(candidates.queries), ways=candidates.ways, teacher=teacher)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        found = report(raw, own, candidates.answered)
        record = {**more, "queries": len(candidates.queries), "ways": candidates.ways,
                  "left_out": dict(candidates.left_out), "same_text": candidates.same_text,
                  "report": found}  # fmt: skip
        write_json(temporary / "teach.json", record)


def _normalised(scores: np.ndarray) -> np.ndarray:
    found: np.ndarray = min_max(torch.from_numpy(np.asarray(scores, np.float64))).numpy()
    return found


# ---- What a teacher's scores are like


TEMPERATURES = (0.1, 0.25, 0.5, 1.0)


def report(raw: np.ndarray, own: Mapping[str, np.ndarray], answered: bool) -> dict[str, Any]:
    """How a teacher's scores lie.

    Args:
        raw: (queries, n_ways), as they are.
        own: Of each member of a mix.
        answered: Whether the first candidate is the answer.

    Returns:
        `histogram`: how many normalised scores lie in each tenth. `answer_not_first`: share of queries whose answer the
        teacher does not put first; None where none is marked. `softmax`: by temperature, shares of queries whose
        softmax is nearly `one-hot`, or nearly `flat`. `agreement`: Kendall's tau-b of every two members, the mean over
        queries.
    """
    normalised = _normalised(raw)
    counts, _ = np.histogram(normalised, 10, (0, 1))
    softmax = {
        f"{temperature:g}": saturated(entropies(torch.from_numpy(normalised) / temperature))
        for temperature in TEMPERATURES
    }
    agreement = {}
    for a, b in combinations(own, 2):
        taus = [kendalltau(x, y).statistic for x, y in zip(own[a], own[b], strict=True)]
        agreement[f"{a}, {b}"] = float(np.nanmean(taus)) if not np.all(np.isnan(taus)) else None
    return {
        "histogram": counts.tolist(),
        "answer_not_first": float((raw.argmax(1) != 0).mean()) if answered else None,
        "softmax": softmax,
        "agreement": agreement,
    }


def in_words(record: Mapping[str, Any]) -> list[str]:
    """A report for the terminal, from teach.json."""
    found, said = record["report"], [f"{record['queries']:,} queries, {record['ways']} candidates each"]
    said += [f"{count:,} left out: {reason}" for reason, count in record["left_out"].items()]
    if same := record.get("same_text"):
        said.append(f"{same:,} of the run's documents have the text of another, and go by its id")
    most = max(found["histogram"]) or 1
    for tenth, count in enumerate(found["histogram"]):
        said.append(f"  {tenth / 10:.1f} to {(tenth + 1) / 10:.1f}  {'█' * round(30 * count / most):30} {count:,}")
    if found["answer_not_first"] is not None:
        said.append(f"the answer is not the teacher's first for {found['answer_not_first']:.1%} of queries")
    for temperature, shares in found["softmax"].items():
        said.append(
            f"at temperature {temperature} its softmax is nearly one-hot for {shares['one-hot']:.1%} of queries, "
            f"nearly flat for {shares['flat']:.1%}"
        )
    for pair, tau in found["agreement"].items():
        said.append(f"agreement of {pair}: Kendall's tau {'–' if tau is None else f'{tau:.3f}'}")
    return said
