"""Rows of every kind, in files of every kind, and what becomes of them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colbert_zero.data.prepared import Source, open_source
from colbert_zero.data.sources import prepare_source
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.recipe.schema import Recipe

PAIRS = [{"query": f"question {n}", "document": f"answer {n}"} for n in range(30)]


SCORED = [{"query": f"q {n}", "documents": [f"a {n}", f"b {n}"], "scores": [1, n / 2]} for n in range(5)]


QUERIES = [{"query_id": n, "text": f"question {n}"} for n in range(4)]


DOCUMENTS = [{"document_id": f"d{n}", "text": f"document {n}"} for n in range(6)]


TRAIN = [{"query_id": str(n), "document_ids": ["d1", f"d{n + 2}"], "scores": [0.5, n]} for n in range(4)]


THREE = {"train": TRAIN, "queries": QUERIES, "documents": DOCUMENTS}


def recipe(spec: dict[str, Any], **held_out: Any) -> Recipe:
    scored = "train" in spec or spec.get("kind") == "hub"
    phase = {"representation": "multi-vector", "global_batch_size": 2, "learning_rate": 0.1, "sources": ["s"]}
    held = {"held": {"kind": "held-out", "source": "s", **held_out}} if held_out else {}
    return check_recipe(
        {
            "name": "tiny",
            "model": {"base": "x"},
            "sources": {"s": spec},
            "collections": held or {"c": {"kind": "beir", "path": "x"}},
            "phases": {"p": {**phase, "objective": "distillation" if scored else "contrastive"}},
            "pipelines": {"full": ["p"]},
        }
    )


def prepare(tmp_path: Path, spec: dict[str, Any], **held_out: Any) -> Source:
    return open_source("s", prepare_source("s", recipe(spec, **held_out), tmp_path / "data", tmp_path / "cache", None))


def refusal(tmp_path: Path, spec: dict[str, Any], **held_out: Any) -> str:
    """The message; nothing that could be taken for a prepared source may be left."""
    with pytest.raises(ColbertZeroError) as caught:
        prepare(tmp_path, spec, **held_out)
    assert not list(tmp_path.glob("data/*/source.json"))
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


def read(source: Source) -> dict[str, list[dict[str, Any]]]:
    """Rows of each part as dicts."""
    result = {}
    for name, part in source.parts.items():
        columns = part.read(range(len(part)))
        result[name] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return result


def jsonl(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(
        row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows for row in (row, b"\n")
    )
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def parquet(path: Path, rows: list[Any]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def as_pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"query": row["query"], "document": row["document"], "negatives": row.get("negatives", [])} for row in rows]


def hub_folder(folder: Path, tables: dict[str, list[Any]], write: Callable[..., str] = parquet) -> str:
    """A local folder laid out as on the Hub."""
    folder.mkdir()
    lines = ["---", "configs:"]
    for name, rows in tables.items():
        file = write(folder / f"{name}.{write.__name__}", rows)
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {Path(file).name}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# Data"]))
    return str(folder)
