"""A corpus to mine in: the texts of documents, one after the other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colbert_zero.data.columns import missing
from colbert_zero.data.readers import input_files, parquet_rows
from colbert_zero.data.rows import as_object, as_text, titled
from colbert_zero.errors import BadRow, ColbertZeroError
from colbert_zero.files import read_lines

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def corpus_files(paths: list[str], whose: str) -> list[Path]:
    """The files of a corpus: these, globs resolved; of a folder in BEIR layout its corpus.

    Args:
        paths: Files, globs or folders.
        whose: What names them, for messages.

    Raises:
        ColbertZeroError: There is none, or it is no JSON lines or Parquet.
    """
    found: list[Path] = []
    for path in paths:
        folder = Path(os.path.expanduser(path))
        if folder.is_dir():
            of_folder = [folder / f"corpus{suffix}" for suffix in _SUFFIXES if (folder / f"corpus{suffix}").is_file()]
            if not of_folder:
                raise ColbertZeroError(f"{whose}: {path} is a folder without corpus.jsonl; name its files, {path}/*")
            found.append(of_folder[0])
            continue
        found += files_of(path, whose)
    for file in found:
        if not file.name.endswith(_SUFFIXES):
            raise ColbertZeroError(f"{whose}: {file}: not one of {', '.join(_SUFFIXES)}; convert it to one of these")
    return list(dict.fromkeys(found))


def files_of(path: str, whose: str) -> list[Path]:
    """The files of a path or glob, for messages called what the user gave it to; raises as `input_files` does."""
    try:
        return input_files("given", "path", [path])
    except ColbertZeroError as error:
        raise ColbertZeroError(f"{whose}: {str(error).removeprefix('sources.given.path: ')}") from None


def corpus_texts(files: list[Path]) -> Iterator[str | None]:
    """The text of every document, its title first; None of one without a text.

    Raises:
        ColbertZeroError: A row cannot be used; names file, row and mend.
    """
    for file in files:
        for place, row in corpus_rows(file):
            try:
                yield text_of(as_object(row))
            except BadRow as error:
                raise ColbertZeroError(f"{place}: {error}; mend the row, or take it out of the corpus") from None


def corpus_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of each row of a file of JSON lines or Parquet; a line of JSON is still to be parsed."""
    if file.suffix == ".parquet":
        return parquet_rows(file)
    return ((f"{file}, line {number}", line) for number, line in read_lines(file))


def text_of(row: dict[str, Any]) -> str | None:
    """The text of a row, its title first; None where there is none.

    Raises:
        BadRow: It has no `text` or `document`, or one that is no text.
    """
    key = "text" if "text" in row or "document" not in row else "document"
    if key not in row:
        raise BadRow(missing(key, key, row))
    text = titled({"title": row.get("title"), "text": row[key]}) if isinstance(row[key], str) else row[key]
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    if isinstance(text, dict):
        raise BadRow("`title` is not text")
    return as_text(text, key)
