"""A source by what is typed: files of rows, or a data set of the Hub."""

import os
from typing import Literal

from pydantic import TypeAdapter

from colbert_zero.data.corpus import files_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.bases import is_hub_id
from colbert_zero.recipe.data import SourceSpec

KINDS = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet", ".tsv": "tsv", ".tsv.gz": "tsv"}
"""Of files of rows, by how their names end."""


def source_of(path: str, on_bad_rows: Literal["error", "skip"], whose: str) -> SourceSpec:
    """The entry that a recipe would have for it.

    Args:
        path: A file or glob, a Hub id, or a folder as the Hub's client loads it.
        on_bad_rows: What to do with rows that cannot be used.
        whose: What names it, for messages.

    Raises:
        ColbertZeroError: It is none of these.
    """
    folder = os.path.isdir(os.path.expanduser(path))
    kind = next((kind for suffix, kind in KINDS.items() if path.endswith(suffix) and not folder), "hub")
    if kind == "hub" and not folder and not is_hub_id(path):
        raise ColbertZeroError(
            f"{whose}: {path}: name files of rows ({', '.join(KINDS)}; globs allowed), or a data set of the Hub"
        )
    if kind != "hub":
        files_of(path, whose)
    entry: SourceSpec = TypeAdapter(SourceSpec).validate_python(
        {"kind": kind, "path": path, "on_bad_rows": on_bad_rows}
    )
    return entry
