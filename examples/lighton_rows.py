"""Rows for the recipes others/lateon and others/mlateon, from the three tables that LightOn publishes.

Their data sets hold texts apart from ids and scores, and their scripts choose the negatives before they train
(`KDToContrastive` in scripts/finetune/*_late_interaction.py of lightonai/mdenseon-mlateon@b0db47a). This makes the
same choice and writes one Parquet file a split, which the recipes read:

    hf download lightonai/nv-embed-supervised-distill-dedup --repo-type dataset --local-dir tables
    python examples/lighton_rows.py tables data/lateon --below 0.99 --keep 50

A row's negatives are its first KEEP documents that score less than BELOW times what its positive does; a row with fewer
is left out, and told. With --teacher the positive and its negatives become candidates with that column's scores:

    hf download lightonai/embeddings-fine-tuning-filtered-en --repo-type dataset --local-dir tables
    python examples/lighton_rows.py tables data/mlateon --below 0.95 --keep 10 --teacher rerank_scores
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1000
"""Read and written at once."""


def splits(tables: Path) -> list[str]:
    """The splits of a data set's folder: TABLE/SPLIT-SHARD-of-SHARDS.parquet."""
    return sorted({file.name.rsplit("-of-", 1)[0].rsplit("-", 1)[0] for file in tables.glob("scores/*.parquet")})


def read(tables: Path, table: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of one table of a split."""
    for file in sorted(tables.glob(f"{table}/{split}-[0-9]*-of-[0-9]*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(ROWS):
            yield from batch.to_pylist()


def chosen(row: dict[str, Any], documents: dict[Any, str], below: float, keep: int) -> list[int]:
    """Places of a row's positive and of its negatives; empty where it has too few."""
    ids, scores = row["document_ids"], row["scores"]
    negatives = [
        place
        for place in range(1, len(ids))
        if scores[place] < below * scores[0] and documents.get(ids[place], "").strip()
    ]
    positive = bool(ids) and bool(documents.get(ids[0], "").strip())
    return [0, *negatives[:keep]] if positive and len(negatives) >= keep else []


def write(tables: Path, split: str, out: Path, below: float, keep: int, teacher: str | None) -> tuple[int, int]:
    """Write a split's rows; returns how many were kept, of how many."""
    queries = {row["query_id"]: row["query"] for row in read(tables, "queries", split)}
    documents = {row["document_id"]: row["document"] for row in read(tables, "documents", split)}
    text = pa.string()
    fields = {"documents": pa.list_(text), "scores": pa.list_(pa.float32())}
    schema = pa.schema({"query": text} | (fields if teacher else {"document": text, "negative": pa.list_(text)}))
    kept = seen = 0
    unfinished = out / f".{split}.parquet"
    with pq.ParquetWriter(unfinished, schema) as writer:
        rows: list[dict[str, Any]] = []
        for row in read(tables, "scores", split):
            seen += 1
            query, places = queries.get(row["query_id"], ""), chosen(row, documents, below, keep)
            if not places or not query.strip():
                continue
            texts = [documents[row["document_ids"][place]] for place in places]
            if teacher:
                rows.append({"query": query, "documents": texts, "scores": [row[teacher][place] for place in places]})
            else:
                rows.append({"query": query, "document": texts[0], "negative": texts[1:]})
            kept += 1
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))
    if kept:
        os.replace(unfinished, out / f"{split}.parquet")
    else:
        unfinished.unlink()
    return kept, seen


def main() -> None:
    """Write every split of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="the data set's folder, with scores, queries and documents in it")
    parser.add_argument("out", type=Path, help="where the rows go")
    parser.add_argument("--below", type=float, required=True, help="share of the positive's score")
    parser.add_argument("--keep", type=int, required=True, help="negatives a row")
    parser.add_argument("--teacher", help="column of the scores to learn from; none for pairs")
    asked = parser.parse_args()
    if not (found := splits(asked.tables)):
        parser.error(f"{asked.tables}: no scores/SPLIT-00000-of-00001.parquet in it; download the data set there first")
    asked.out.mkdir(parents=True, exist_ok=True)
    for split in found:
        kept, seen = write(asked.tables, split, asked.out, asked.below, asked.keep, asked.teacher)
        print(f"{split}: {kept:,} of {seen:,} rows; the others have fewer than {asked.keep} negatives, or no text")


if __name__ == "__main__":
    main()
