"""Training sources: docstrings, JSON lines, Parquet and Hub data sets, checked row by row and kept as Arrow files.

A source has parts (a package, a file, a configuration); a batch comes from one part. Prepared sources are
memory-mapped: a row is read where it lies, text never fills the memory. Streamed sources are not prepared
(data/streams).
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import HfApi

from colbert_zero.data.columns import Reading
from colbert_zero.data.docstrings import docstring_pairs, packages_fingerprint
from colbert_zero.data.folders import FOLDERS_VERSION, folder_files, folder_pairs
from colbert_zero.data.held_out import hold_out
from colbert_zero.data.prepared import DOCUMENTS, arrow_file, is_made, source_folder, write_record
from colbert_zero.data.readers import Rows, Table, input_files, tables
from colbert_zero.data.rows import (
    PAIRS,
    as_identifier,
    as_object,
    as_text,
    check_ids,
    check_row,
    left_out,
    mixed,
    unusable,
    value_of,
)
from colbert_zero.data.streams import is_streamed, look_up
from colbert_zero.errors import BadRow, ColbertZeroError, short
from colbert_zero.files import (
    Progress,
    atomic_folder,
    file_fingerprint,
    file_state,
    fingerprint,
    is_commit,
    place_of,
    read_json,
    write_json,
)
from colbert_zero.recipe.data import Docstrings, Folder, HeldOut, Hub, Jsonl, Parquet, SourceSpec, Tsv
from colbert_zero.recipe.schema import Recipe
from colbert_zero.report.card import is_card

_VERSION = 1


# ---- Fingerprints of what a source is made of


def source_id(name: str, recipe: Recipe, data: Path) -> str:
    """Fingerprint of a file, Hub or docstring source: its recipe entry, its input's content, what is held out of it.

    Raises:
        ColbertZeroError: An input does not exist or cannot be reached.
    """
    spec = recipe.sources[name]
    held_out = {c: s.asked() for c, s in recipe.collections.items()
                if isinstance(s, HeldOut) and s.source == name}  # fmt: skip
    inputs: object
    if isinstance(spec, Docstrings):
        inputs = packages_fingerprint(spec.packages)
    elif isinstance(spec, Hub):
        inputs = _hub_fingerprint(name, spec, data)
    elif isinstance(spec, Folder):
        root = Path(os.path.expanduser(spec.path))
        inputs = [FOLDERS_VERSION, file_fingerprints(folder_files(name, spec), root, data)]
    else:
        assert isinstance(spec, Jsonl | Parquet | Tsv)
        keys = ["path"] if spec.path else ["train", "queries", "documents"]
        files = {key: input_files(name, key, getattr(spec, key)) for key in keys}
        inputs = {key: file_fingerprints(found, found[0].parent, data) for key, found in files.items()}
    # Where the data lie is not what they are: a folder that moved is not prepared again.
    places = {"path"} if isinstance(spec, Hub | Folder) else {"path", "train", "queries", "documents"}
    if not is_streamed(spec):
        places |= {"streaming", "shuffle_buffer"}
    entry = spec.asked(exclude=places)
    return fingerprint(_VERSION, entry, inputs, held_out, recipe.seed if held_out else 0)


def file_fingerprints(files: list[Path], folder: Path, data: Path) -> list[list[str]]:
    """Each file's name in a folder and fingerprint; a file is read again only when its size or time changed.

    Raises:
        ColbertZeroError: A file cannot be read.
    """
    cache = data / "fingerprints.json"
    known, result, changed = _known(cache), [], False
    for file in files:
        try:
            key, state = os.path.realpath(file), file_state(file)
            if known.get(key, {}).get("state") != state:
                known[key], changed = {"state": state, "fingerprint": file_fingerprint(file)}, True
        except OSError as error:
            raise ColbertZeroError(f"{file}: cannot be read ({error.strerror}); mend it or its rights") from None
        result.append([os.path.relpath(file, folder), known[key]["fingerprint"]])
    if changed:
        write_json(cache, known)
    return result


def folder_fingerprints(folder: Path, data: Path) -> list[list[str]]:
    """Name and fingerprint of every file in a folder that is neither hidden nor a model's card of this program's.

    A card is written anew when its study has scored the model, which changes nothing of the model.
    """
    inside = (f for f in folder.rglob("*") if f.is_file() and not is_card(f))
    files = sorted(f for f in inside if not any(p.startswith(".") for p in f.relative_to(folder).parts))
    return file_fingerprints(files, folder, data)


def _known(cache: Path) -> dict[str, Any]:
    """The fingerprints written down; a cache that is damaged is made anew."""
    try:
        known = read_json(cache)
        return {k: v for k, v in known.items() if isinstance(v["state"], list) and isinstance(v["fingerprint"], str)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _hub_fingerprint(name: str, spec: Hub, data: Path) -> list[list[str]] | str | None:
    folder = Path(place_of(spec.path))
    if folder.is_dir():
        return folder_fingerprints(folder, data)
    if is_commit(spec.revision):
        return spec.revision
    try:
        return HfApi().dataset_info(spec.path, revision=spec.revision, timeout=20).sha
    except Exception as error:  # the Hub's client lets through the errors of its HTTP library, which changed
        raise ColbertZeroError(
            f"sources.{name}.path: {spec.path!r} is no folder here and cannot be found on the Hub "
            f"({type(error).__name__}). Check the name and the connection; with a full commit hash as `revision` "
            "and the data in the cache, no connection is needed"
        ) from None


# ---- Preparing


def prepare_source(name: str, recipe: Recipe, data: Path, docstring_cache: Path, progress: Progress | None) -> Path:
    """Read, check and keep a file, Hub or docstring source in the folder that is returned, if it is not there yet.

    The record counts every row read: rows + dropped + held_out. Rows after `limit` are not read; reasons that begin
    with `file:`, `queries:` or `documents:` count files, and rows of the three-table form's text tables.

    Raises:
        ColbertZeroError: A row cannot be used (with file, row and mend), or nothing is left.
    """
    identity = source_id(name, recipe, data)
    folder = source_folder(data, name, identity)
    if is_made(folder):
        return folder
    spec, started, dropped, reading = recipe.sources[name], time.monotonic(), Counter[str](), Reading()
    examples: dict[str, tuple[str, str]] = {}
    if is_streamed(spec):
        return _look_up(name, spec, identity, data)
    with atomic_folder(folder) as temporary:
        if isinstance(spec, Docstrings):
            parts = _write_docstrings(spec, temporary, docstring_cache, dropped, progress)
        elif isinstance(spec, Folder):
            pairs = folder_pairs(name, spec, dropped, progress)
            parts = _write_pairs(pairs, temporary)
            examples = {part: rows[len(rows) // 2] for part, rows in pairs.items()}
        else:
            assert isinstance(spec, Jsonl | Parquet | Tsv | Hub)
            parts = _write_tables(name, spec, temporary, dropped, reading)
            reading.check(name, spec.columns)
        held_out = 0
        for collection, held in recipe.collections.items():
            if isinstance(held, HeldOut) and held.source == name:
                held_out += hold_out(collection, held, recipe.seed, temporary, parts, dropped)
        parts = _without_empty(temporary, parts)
        if not sum(parts.values()):
            raise ColbertZeroError(f"sources.{name}: no usable row is left; left out: {dict(dropped)}")
        more = {"dropped": dict(dropped), "held_out": held_out, **reading.record()}
        if examples:
            more["examples"] = examples
        write_record(temporary, identity, parts, started, kind=spec.kind, **more)
        if _has_files(spec) and source_id(name, recipe, data) != identity:
            raise ColbertZeroError(
                f"sources.{name}: a file changed while it was read; leave the files as they are and start the run again"
            )
    return folder


def _look_up(name: str, spec: Parquet | Hub, identity: str, data: Path) -> Path:
    """A source of which nothing is copied: only what its parts are is looked up, once, and kept."""
    folder, started = source_folder(data, name, identity), time.monotonic()
    if isinstance(spec, Hub) and isinstance(commit := _hub_fingerprint(name, spec, data), str):
        spec = spec.model_copy(update={"revision": commit})  # a branch may move while training streams it
    reading = Reading()
    found = look_up(name, spec, reading)
    reading.check(name, spec.columns, "part's first row")
    rows = {part: count for part, (count, _) in found.items()}
    streamed = {part: first for part, (_, first) in found.items()}
    with atomic_folder(folder) as temporary:
        more = {"streamed": streamed, "revision": getattr(spec, "revision", None), **reading.record()}
        write_record(temporary, identity, rows, started, kind=spec.kind, **more)
    return folder


def _has_files(spec: SourceSpec) -> bool:
    """Whether a source is made of files of this machine."""
    return isinstance(spec, Jsonl | Parquet | Tsv | Folder) or (
        isinstance(spec, Hub) and os.path.isdir(place_of(spec.path))
    )


def _write_docstrings(
    spec: Docstrings, folder: Path, cache: Path, dropped: Counter[str], progress: Progress | None
) -> dict[str, int]:
    pairs, counts = docstring_pairs(spec.packages, cache, progress)
    dropped.update(counts.dropped)
    dropped.update({f"file: {reason}": count for reason, count in counts.passed_over.items()})
    small = [package for package, rows in pairs.items() if len(rows) < spec.min_rows]
    if len(small) > 1:
        pairs["others"] = [row for package in small for row in pairs.pop(package)]
    return _write_pairs({package: rows[: spec.limit] for package, rows in pairs.items()}, folder)


def _write_pairs(pairs: Mapping[str, list[tuple[str, str]]], folder: Path) -> dict[str, int]:
    """Pairs by part, a file each; returns the rows of each."""
    for number, rows in enumerate(pairs.values()):
        with arrow_file(folder / f"{number}.arrow", PAIRS) as write:
            for query, document in rows:
                write({"query": query, "document": document, "negatives": []})
    return {part: len(rows) for part, rows in pairs.items()}


def _without_empty(folder: Path, parts: dict[str, int]) -> dict[str, int]:
    """Leave out parts of which every row is held out or dropped; files are numbered anew."""
    left = [number for number, rows in enumerate(parts.values()) if rows]
    for new, old in enumerate(left):
        os.replace(folder / f"{old}.arrow", folder / f"{new}.arrow")
    return {part: rows for part, rows in parts.items() if rows}


def _write_tables(name: str, spec: Table, folder: Path, dropped: Counter[str], reading: Reading) -> dict[str, int]:
    """Rows of files or of a Hub data set; the three-table form resolves its ids to texts and row numbers."""
    check: Callable[[Any], tuple[pa.Schema, dict[str, Any]]]
    if spec.train is None:
        check = partial(check_row, columns=spec.columns, reading=reading, candidates=spec.candidates)
    else:
        queries = _write_texts(name, spec, "queries", folder / "queries.arrow", dropped)
        documents = _write_texts(name, spec, "documents", folder / "documents.arrow", dropped)
        texts = pa.ipc.open_stream(pa.memory_map(str(folder / "queries.arrow"))).read_all()["text"]
        check = partial(
            check_ids,
            query_numbers=queries,
            document_numbers=documents,
            queries=texts,
            candidates=spec.candidates,
        )
        (folder / "queries.arrow").unlink()
    parts: dict[str, int] = {}
    schema = None
    for part, where, rows in tables(name, spec, "path" if spec.train is None else "train"):
        checked = itertools.islice(_checked(name, spec, rows, check, dropped), spec.limit)
        first = next(checked, None)
        if first is None:
            raise unusable(where, name)
        schema = schema or first[1]
        with arrow_file(folder / f"{len(parts)}.arrow", schema) as write:
            parts[part] = 0
            for place, form, row in itertools.chain([first], checked):
                if form is not schema:
                    raise mixed(place)
                write(row)
                parts[part] += 1
    return parts


def _write_texts(name: str, spec: Table, table: str, path: Path, dropped: Counter[str]) -> dict[str, int]:
    """Write one text table of the three-table form; returns id -> row number."""
    key = "query_id" if table == "queries" else "document_id"
    numbers: dict[str, int] = {}

    def check(row: Any) -> tuple[str, str]:
        row = as_object(row)
        identifier, text = as_identifier(value_of(row, key), key), as_text(value_of(row, "text"), "text")
        if identifier in numbers:
            raise BadRow(f"`{key}` stands twice: {short(identifier)}")
        return identifier, text

    with arrow_file(path, DOCUMENTS) as write:
        for _, _, rows in tables(name, spec, table):
            for _, identifier, text in _checked(name, spec, rows, check, dropped, f"{table}: "):
                numbers[identifier] = len(numbers)
                write({"text": text})
    return numbers


def _checked(
    name: str, spec: Table, rows: Rows, check: Callable[[Any], tuple[Any, Any]], dropped: Counter[str], table: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(place, *checked) of the usable rows; the others are refused or counted."""
    for place, row in rows:
        try:
            schema, checked = check(row)
        except BadRow as error:
            dropped[table + left_out(error, place, name, spec)] += 1
        else:
            yield place, schema, checked
