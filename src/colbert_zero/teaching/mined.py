"""What mining gives: a Parquet file of pairs with their negatives, or a source of a recipe."""

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers.util import get_device_name

from colbert_zero.data.columns import peculiarities
from colbert_zero.data.corpus import corpus_files
from colbert_zero.data.prepared import DOCUMENTS, MINED, Source, arrow_file, is_made, open_source, source_folder
from colbert_zero.data.prepared import write_record as write_source
from colbert_zero.data.sources import file_fingerprints, folder_fingerprints
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_file, atomic_folder, fingerprint, place_of, read_json, write_json
from colbert_zero.maxsim.backends import backend_here
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.precision import Arithmetic, encoding_in
from colbert_zero.processes import agree, from_main, is_main, made_by_main
from colbert_zero.recipe.data import Mined
from colbert_zero.teaching.inputs import Inputs
from colbert_zero.teaching.mining import Bar, Mining, Row
from colbert_zero.training.machine import agreed_precision

_VERSION = 2

_SCORES = pa.list_(pa.float32())

NEGATIVES = pa.schema(
    [
        ("query", pa.string()),
        ("document", pa.string()),
        ("negative", pa.list_(pa.string())),
        ("pos_scores", _SCORES),
        ("neg_scores", _SCORES),
    ]
)
"""Columns of the file: pairs with negatives; with `columns: {scores: [pos_scores, neg_scores]}` scored candidates."""

_ROWS_AT_ONCE = 200

_OPTIONS = {"of": "--pairs", "negatives": "--negatives"}
"""What keys are called on the command line."""


def made_of(spec: Mined, seed: int, commits: Mapping[str, str | None], data: Path, whose: str) -> list[Any]:
    """What makes negatives, besides the pairs: for an id.

    Args:
        spec: What is asked for.
        seed: Of random documents.
        commits: Of models on the Hub, where they count; of phases their ids.
        data: Where fingerprints of files are kept.
        whose: What names the corpus, for messages.
    """
    resolved = spec.model_copy(update={"max_relative": spec.threshold})
    models: dict[str, Any] = {}
    for name in spec.models:
        place = place_of(name)
        here = name not in spec.phases and os.path.isdir(place)
        models[name] = folder_fingerprints(Path(place), data) if here else commits.get(name)
    files = corpus_files(spec.corpus, whose) if spec.corpus else []
    corpus = file_fingerprints(files, files[0].parent, data) if files else []
    return [_VERSION, resolved.asked(exclude={"of", "corpus"}), seed, models, [mark for _, mark in corpus]]


def _loader(
    commits: Mapping[str, str | None], phases: Mapping[str, Path], arithmetic: Arithmetic
) -> Callable[[str], Encoder]:
    def load(name: str) -> Encoder:
        found = load_model(phases[name]) if name in phases else load_model(place_of(name), revision=commits.get(name))
        return encoding_in(found, arithmetic)

    return load


def _computed(spec: Mined, work: Path) -> dict[str, Any]:
    """What models encode in and what computes MaxSim, if models take part: decided when mining begins.

    It is kept in mining's folder, for who goes on with it.
    """
    kept = work / "computed.json"
    found: dict[str, Any] = {"precision": agreed_precision(spec.precision, torch.device(get_device_name()))}
    found |= {"maxsim": backend_here()} if spec.models else {}
    if is_main():
        work.mkdir(parents=True, exist_ok=True)
        if kept.is_file():
            found = read_json(kept)
        elif (older := work / "precision.json").is_file():  # begun by an older version
            found["precision"] = read_json(older)
        else:
            write_json(kept, found)
    agreed: dict[str, Any] = from_main(found)
    return agreed


# ---- A file


def mine_file(
    spec: Mined, source: Source, out: Path, commits: dict[str, str | None], bar: Bar, seed: int = 1
) -> dict[str, Any]:
    """Mine hard negatives for pairs and write them to a Parquet file (`NEGATIVES`); returns its record.

    Every process of a launcher calls this. What a killed run left in `OUT.unfinished`, which must be the caller's
    alone, is gone on from; the folder is deleted at the end. The record is written to `OUT.json` as well.

    Args:
        spec: What is asked for; `of` names nothing here.
        source: Of pairs.
        out: The file.
        commits: Of each model on the Hub the commit to load.
        bar: Shows progress.
        seed: Of random documents.

    Raises:
        ColbertZeroError: The file is there and was made otherwise; there are too few documents, or no row is left.
    """
    work, kept, started = unfinished(out), out.with_name(f"{out.name}.json"), time.monotonic()
    made = from_main(made_of(spec, seed, commits, work / "data", "--corpus") if is_main() else None)
    identity = fingerprint(source.id, made)
    if agree(out.exists()):
        record: dict[str, Any] = from_main(_record_of(out, kept, identity) if is_main() else None)
    else:
        corpus = corpus_files(spec.corpus, "--corpus") if spec.corpus else None
        computed = _computed(spec, work / identity)
        load = _loader(commits, {}, computed["precision"])
        mining = Mining(spec, source, corpus, seed, work / identity, load, bar, _OPTIONS.__getitem__)
        mining.passes()
        read = {
            "dropped": source.record["dropped"] | mining.inputs.dropped,
            "held_out": source.record["held_out"],
            "read": peculiarities(source.record),
        }
        more = {"id": identity, **read, "models": commits, **computed, "seed": seed}
        made_by_main(partial(_write_file, mining, out, kept, more, started), lambda _: None)
        record = from_main(read_json(kept) if is_main() else None)
    if is_main() and work.is_dir():
        shutil.rmtree(work)
    return record


def unfinished(out: Path) -> Path:
    """The folder beside a file to be mined, where a killed run is gone on from."""
    return out.with_name(f"{out.name}.unfinished")


def _record_of(out: Path, kept: Path, identity: str) -> dict[str, Any]:
    """The record of a file that is there already and was made of the very same."""
    record: dict[str, Any] = read_json(kept) if kept.is_file() else {}
    if record.get("id") != identity:
        raise ColbertZeroError(f"--out {out}: is there, and was made of other things; delete it, or name another file")
    return record


def _write_file(mining: Mining, out: Path, kept: Path, more: dict[str, Any], started: float) -> Path:
    rows, count = mining.rows(), 0
    with atomic_file(out, "wb") as file, pq.ParquetWriter(file, NEGATIVES, compression="zstd") as writer:
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(_texts(mining.inputs, some), NEGATIVES))
            count += len(some)
        if not count:
            raise _none_left(mining, "--out")
        asked = mining.spec.model_dump(include={"skip", "depth"}) | {"max_relative": mining.spec.threshold}
        seconds = round(time.monotonic() - started, 3)
        write_json(kept, {**more, "rows": count, **asked, **mining.record(), "seconds": seconds})
    return out


def _texts(inputs: Inputs, rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "query": inputs.query_texts(row.query, row.query + 1)[0],
            "document": inputs.document_text(row.document),
            "negative": [inputs.document_text(number) for number in row.negatives],
            "pos_scores": [row.score],
            "neg_scores": row.negative_scores,
        }
        for row in rows
    ]


def _none_left(mining: Mining, whose: str) -> ColbertZeroError:
    counts = mining.record()
    return ColbertZeroError(
        f"{whose}: no row is left: for none of {counts['left_out']:,} were {counts['negatives']} negatives found "
        f"(left out: {counts['removed']}); raise `depth` or `max_relative`, or name another judge"
    )


# ---- A source of a recipe


def mine_source(
    name: str,
    spec: Mined,
    source: Source,
    seed: int,
    identity: str,
    data: Path,
    commits: dict[str, str | None],
    phases: Mapping[str, Path],
    bar: Bar,
) -> Source:
    """A source of kind `mined`, made once; every process calls this.

    Args:
        name: The source's.
        spec: Its entry.
        source: What it is mined from.
        seed: Of random documents.
        identity: Its id.
        data: The study's prepared sources.
        commits: Of each model on the Hub the commit to load; of each phase its id.
        phases: Where models lie that are phases.
        bar: Shows progress.

    Raises:
        ColbertZeroError: There are too few documents, or no row is left.
    """
    folder, started = source_folder(data, name, identity), time.monotonic()
    if not agree(is_made(folder)):
        work = data / f"{name}-{identity}.unfinished"
        corpus = corpus_files(spec.corpus, f"sources.{name}.corpus") if spec.corpus else None
        computed = _computed(spec, work)
        load = _loader(commits, phases, computed["precision"])
        mining = Mining(spec, source, corpus, seed, work, load, bar, f"sources.{name}.{{}}".format)
        mining.passes()
        more = {"models": commits, **computed}
        made_by_main(partial(_write_source, mining, source.name, folder, identity, more, started), lambda _: None)
        if is_main():
            shutil.rmtree(work)
    return made_by_main(lambda: folder, partial(open_source, name))


def _write_source(mining: Mining, of: str, folder: Path, identity: str, more: dict[str, Any], started: float) -> Path:
    parts: dict[str, int] = {}
    with atomic_folder(folder) as temporary:
        _write_documents(mining.inputs.every(), temporary)
        for part, rows in itertools.groupby(mining.rows(), attrgetter("part")):
            place, count = len(parts), 0
            with arrow_file(temporary / f"{place}.arrow", MINED) as write:
                for row in rows:
                    query = mining.inputs.query_texts(row.query, row.query + 1)[0]
                    write({"query": query, "document": row.document, "negatives": row.negatives})
                    count += 1
            parts[mining.inputs.parts[part]] = count
        if not parts:
            raise _none_left(mining, f"sources.{folder.name.rpartition('-')[0]}")
        record = {"kind": "mined", "of": of, "dropped": mining.inputs.dropped, **more, **mining.record()}
        write_source(temporary, identity, parts, started, **record)
    return folder


def _write_documents(texts: Iterable[str], folder: Path) -> None:
    with arrow_file(folder / "documents.arrow", DOCUMENTS) as write:
        for text in texts:
            write({"text": text})
