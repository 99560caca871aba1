"""Collections in the layouts they come in: BEIR folders, and data sets of the Hub."""

import os
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
from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import (
    atomic_file,
    atomic_folder,
    file_state,
    parse_json,
    text_lines,
    to_json,
)

QRELS_HEADER = ["query-id", "corpus-id", "score"]


def load_beir(
    path: str | Path, split: str = "test", name: str | None = None, rules: Rules = DEFAULT_RULES
) -> Collection:
    """A collection in BEIR layout: corpus.jsonl, queries.jsonl (or .jsonl.gz) and qrels/SPLIT.tsv.

    Args:
        path: The folder.
        split: Which qrels.
        name: The folder's name unless given.
        rules: Where collections differ in what they mean.

    Raises:
        ColbertZeroError: A file is missing or a line is wrong; names file, line and mend.
    """
    folder = Path(path)
    corpus_path, queries_path = _jsonl_path(folder, "corpus"), _jsonl_path(folder, "queries")
    qrels_path = folder / "qrels" / f"{split}.tsv"
    if not qrels_path.is_file():
        splits = sorted(file.stem for file in qrels_path.parent.glob("*.tsv"))
        raise ColbertZeroError(
            f"{qrels_path} does not exist; the splits of this collection: {', '.join(splits) or 'none'}"
        )
    return collect(
        name or folder.resolve().name,
        _unchanged(corpus_path),
        _read_jsonl(queries_path),
        _read_qrels(qrels_path),
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

    def judgement(row: dict[str, Any], where: str) -> Judgement:
        return as_judgement([row.get("query-id"), row.get("corpus-id"), row.get("score", 1)], where)

    judgements = (judgement(_readable(row, where), where) for where, row in rows(judged, qrels))
    label = f"{name}/{split}" if split else name
    return collect(label, lambda: texts("corpus", corpus), texts("queries", queries), judgements, rules)


def load_collection(place: str, split: str | None = None, rules: Rules = DEFAULT_RULES) -> Collection:
    """A collection by its folder in BEIR layout (split `test`), or by its Hub id (split `train`)."""
    folder = Path(os.path.expanduser(place))
    if folder.is_dir():
        return load_beir(folder, split or "test", rules=rules)
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


def _jsonl_path(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"):
        if path.is_file():
            return path
    raise ColbertZeroError(
        f"{folder} has no {stem}.jsonl or {stem}.jsonl.gz; a BEIR collection is a folder with corpus.jsonl, "
        "queries.jsonl and qrels/SPLIT.tsv"
    )


def _unchanged(path: Path) -> Callable[[], Iterator[Text]]:
    """Rows of a file as often as asked for, refused once it is no longer the one that was checked."""
    first = file_state(path)

    def check() -> None:
        if not path.is_file() or file_state(path) != first:
            raise ColbertZeroError(
                f"{path}: changed since it was first read; leave it as it is and start the run again"
            )

    def rows() -> Iterator[Text]:
        check()
        yield from _read_jsonl(path)
        check()

    return rows


def _read_jsonl(path: Path) -> Iterator[Text]:
    for where, line in text_lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ColbertZeroError(f"{where}: broken JSON ({error}); one object a line is expected") from None
        yield as_document(row, where)


def _read_qrels(path: Path) -> Iterator[Judgement]:
    lines = text_lines(path)
    where, header = next(lines, (f"{path}:1", ""))
    if header.split("\t") != QRELS_HEADER:
        raise ColbertZeroError(f"{where}: the header is {short(repr(header))}; write {' TAB '.join(QRELS_HEADER)}")
    for where, line in lines:
        columns = line.split("\t")
        if len(columns) != 3:
            raise ColbertZeroError(f"{where}: {len(columns)} column(s), not 3; write query-id TAB corpus-id TAB score")
        yield as_judgement(columns, where)


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
