"""Collections in the layouts they come in: folders of BEIR, TREC and Parquet files, and data sets of the Hub."""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from colbert_zero.data import hub
from colbert_zero.data.collection import (
    DEFAULT_RULES,
    Collection,
    Judgement,
    Rules,
    Text,
    as_document,
    as_judgement,
    collect,
)
from colbert_zero.data.readers import parquet_rows
from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import (
    atomic_file,
    atomic_folder,
    file_state,
    parse_json,
    place_of,
    text_lines,
    to_json,
)

QRELS_HEADER = ["query-id", "corpus-id", "score"]

_TABLES = (".jsonl", ".jsonl.gz", ".parquet")
_QRELS = (".tsv", ".tsv.gz", ".txt", ".txt.gz", ".trec", ".trec.gz", *_TABLES)


def load_beir(
    path: str | Path, split: str = "test", name: str | None = None, rules: Rules = DEFAULT_RULES
) -> Collection:
    """A collection in a folder in BEIR layout, or in a Hub data set's with Parquet files, without its README.

    The folder has `corpus` and `queries`, each a file (.jsonl, .jsonl.gz, .parquet) or a folder of such files, and a
    folder `qrels` or `default` with the judgements of the split. Qrels in text (.tsv, .txt, .trec, also .gz) are
    BEIR's three columns under their header, three columns without one, or TREC's four.

    Args:
        path: The folder.
        split: Which qrels; and which files of a folder `corpus` or `queries`, where any begins with it.
        name: The folder's name unless given.
        rules: Where collections differ in what they mean.

    Raises:
        ColbertZeroError: A file is missing or a line is wrong; names file, line and mend.
    """
    folder = Path(path)
    corpus, queries = _text_files(folder, "corpus", split), _text_files(folder, "queries", split)
    return collect(
        name or folder.resolve().name,
        _unchanged(corpus),
        _texts(queries),
        _judgements(_qrels_files(folder, split)),
        rules,
    )


def load_hub(
    name: str, split: str | None = None, revision: str | None = None, rules: Rules = DEFAULT_RULES
) -> Collection:
    """A collection of the Hugging Face Hub in NanoBEIR or MTEB layout, or a local folder laid out so.

    The layout has the configurations `corpus` (_id, title, text), `queries` (_id, text) and `qrels`
    (query-id, corpus-id, score), called `default` in MTEB; without a score each judgement has grade 1.

    Args:
        name: Data set id on the Hub, or a folder.
        split: Split of each configuration that has it (`NanoMSMARCO`, `test`); a configuration that has
            only one split needs none.
        revision: Commit of the data set; a branch or tag may move.
        rules: Where collections differ in what they mean.

    Raises:
        ColbertZeroError: The data set, a configuration or a split cannot be read, or a row is wrong.
    """
    told, mend = f"cannot read the data set {name}", "; check its name, the revision and the network"
    names = hub.config_names(name, revision, told, mend)
    judged = "qrels" if "qrels" in names else "default"
    if missing := [config for config in ("corpus", "queries", judged) if config not in names]:
        raise ColbertZeroError(
            f"{name} has no configuration {' or '.join(missing)} but {', '.join(names)}; "
            "a collection needs corpus, queries and qrels (or default, with the qrels)"
        )
    corpus, queries, qrels = (
        _one_split(name, config, split, hub.load(name, config, None, revision, told, mend))
        for config in ("corpus", "queries", judged)
    )

    def rows(config: str, table: Any) -> Iterator[tuple[str, Any]]:
        return ((f"{name}, {config}, row {i}", row) for i, row in enumerate(hub.rows(table), 1))

    def texts(config: str, table: Any) -> Iterator[Text]:
        return (as_document(_readable(row, where), where) for where, row in rows(config, table))

    judgements = (_judged(_readable(row, where), where) for where, row in rows(judged, qrels))
    label = f"{name}/{split}" if split else name
    return collect(label, lambda: texts("corpus", corpus), texts("queries", queries), judgements, rules)


def load_collection(place: str, split: str | None = None, rules: Rules = DEFAULT_RULES) -> Collection:
    """A collection by its folder in BEIR layout (split `test`), or by its Hub id (split `train`)."""
    if os.path.isdir(place := place_of(place)):
        return load_beir(place, split or "test", rules=rules)
    return load_hub(place, split or "train", rules=rules)


def write_beir(collection: Collection, path: str | Path, split: str = "test") -> None:
    """Write a collection in BEIR layout, as a whole or not at all; a folder already there is replaced."""
    with atomic_folder(Path(path)) as folder:
        with atomic_file(folder / "corpus.jsonl") as file:
            for document_id, text in collection.documents():
                file.write(to_json({"_id": document_id, "text": text}) + "\n")
        with atomic_file(folder / "queries.jsonl") as file:
            for query_id, text in collection.queries.items():
                file.write(to_json({"_id": query_id, "text": text}) + "\n")
        with atomic_file(folder / "qrels" / f"{split}.tsv") as file:
            file.write("\t".join(QRELS_HEADER) + "\n")
            for query_id, grades in collection.qrels.items():
                for document_id, grade in grades.items():
                    file.write(f"{query_id}\t{document_id}\t{grade}\n")


# ---- The files of a folder


def _text_files(folder: Path, stem: str, split: str) -> list[Path]:
    """The file of the corpus or the queries, or those of its folder: of the split, if any is."""
    for suffix in _TABLES:
        if (file := folder / f"{stem}{suffix}").is_file():
            return [file]
    if files := _of_split(folder / stem, split, _TABLES) or _with_suffix(folder / stem, _TABLES):
        return files
    raise ColbertZeroError(
        f"{folder} has no {stem}.jsonl, {stem}.jsonl.gz or {stem}.parquet, nor such files in {stem}/; a collection is "
        "a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
    )


def _qrels_files(folder: Path, split: str) -> list[Path]:
    for place in ("qrels", "default"):
        for suffix in _QRELS:
            if (file := folder / place / f"{split}{suffix}").is_file():
                return [file]
        if files := _of_split(folder / place, split, _TABLES):
            return files
    found = (file for place in ("qrels", "default") for file in _with_suffix(folder / place, _QRELS))
    splits = sorted({re.split(r"-\d+-of-|\.", file.name)[0] for file in found})
    raise ColbertZeroError(
        f"{folder / 'qrels' / split}.tsv does not exist; the splits of this collection: {', '.join(splits) or 'none'}"
    )


def _with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    files = folder.glob("*") if folder.is_dir() else ()
    return sorted(file for file in files if file.is_file() and file.name.endswith(suffixes))


def _of_split(folder: Path, split: str, suffixes: tuple[str, ...]) -> list[Path]:
    """A split's file, or its shards, as test-00000-of-00002.parquet."""
    names = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?\.")
    return [file for file in _with_suffix(folder, suffixes) if names.match(file.name)]


def _unchanged(paths: list[Path]) -> Callable[[], Iterator[Text]]:
    """Rows of files as often as asked for, refused once one is no longer the one that was checked."""
    first = [file_state(path) for path in paths]

    def check() -> None:
        for path, state in zip(paths, first, strict=True):
            if not path.is_file() or file_state(path) != state:
                raise ColbertZeroError(
                    f"{path}: changed since it was first read; leave it as it is and start the run again"
                )

    def rows() -> Iterator[Text]:
        check()
        yield from _texts(paths)
        check()

    return rows


# ---- Their rows


def _texts(paths: list[Path]) -> Iterator[Text]:
    return (as_document(row, where) for path in paths for where, row in _rows(path))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from ((where, _readable(row, where)) for where, row in parquet_rows(path))
        return
    for where, line in text_lines(path):
        try:
            yield where, parse_json(line)
        except ValueError as error:
            raise ColbertZeroError(f"{where}: broken JSON ({error}); one object a line is expected") from None


def _judgements(paths: list[Path]) -> Iterator[Judgement]:
    for path in paths:
        if path.name.endswith(_TABLES):
            yield from (_judged(row, where) for where, row in _rows(path))
        else:
            yield from _read_qrels(path)


def _judged(row: Any, where: str) -> Judgement:
    """A judgement from an object; without a score it has grade 1."""
    if not isinstance(row, dict) or not {"query-id", "corpus-id"} <= row.keys():
        found = short(", ".join(map(repr, row))) if isinstance(row, dict) else short(repr(row))
        raise ColbertZeroError(f"{where}: no 'query-id' and 'corpus-id', only {found or 'nothing'}; rename the columns")
    return as_judgement([row["query-id"], row["corpus-id"], row.get("score", 1)], where)


def _read_qrels(path: Path) -> Iterator[Judgement]:
    """Qrels in text: BEIR's three columns under their header, three without one, or TREC's four."""
    lines = text_lines(path)
    where, first = next(lines, (f"{path}:1", ""))
    count = 3
    if first.split("\t") != QRELS_HEADER:
        count = len(_columns(first))
        if count not in (3, 4) or not re.fullmatch(r"-?\d+(\.0+)?", _columns(first)[-1]):
            raise ColbertZeroError(
                f"{where}: the first line is {short(repr(first))}; write {' TAB '.join(QRELS_HEADER)}, or "
                "TREC's query 0 document grade"
            )
        lines = itertools.chain([(where, first)], lines)
    for where, line in lines:
        columns = _columns(line)
        if len(columns) != count:
            wanted = "query-id TAB corpus-id TAB score" if count == 3 else "query 0 document grade"
            raise ColbertZeroError(f"{where}: {len(columns)} column(s), not {count}; write {wanted}")
        yield as_judgement([columns[0], *columns[-2:]], where)


def _columns(line: str) -> list[str]:
    """Cells between tabs; of a line without a tab, words: ids of TREC's have no white space."""
    return line.split("\t") if "\t" in line else line.split()


def _one_split(name: str, config: str, split: str | None, splits: Any) -> Any:
    """The wanted split of a configuration, or the only one."""
    if split in splits:
        return splits[split]
    if len(splits) == 1 and (split is None or config in ("corpus", "queries")):
        return next(iter(splits.values()))
    raise ColbertZeroError(
        f"{name}, {config}: the split {split!r} does not exist; there are {', '.join(map(repr, splits))}"
    )


def _readable(row: Any, where: str) -> Any:
    if isinstance(row, Exception):
        raise ColbertZeroError(f"{where}: cannot be read ({reason(row)}); mend the row")
    return row
