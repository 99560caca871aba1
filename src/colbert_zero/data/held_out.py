"""Pairs held out of training: which, and what leaves with them."""

import hashlib
import heapq
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import write_beir
from colbert_zero.data.rows import PAIRS
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.data import HeldOut


def hold_out(name: str, held: HeldOut, seed: int, folder: Path, parts: dict[str, int], dropped: Counter[str]) -> int:
    """Move pairs out of the parts into a BEIR folder; rows that share a text with them leave too.

    The choice goes by a hash of each row's texts, so that it stays nearly the same when other rows come or go.
    """
    files = {part: folder / f"{number}.arrow" for number, part in enumerate(parts)}
    tables = {part: pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for part, file in files.items()}
    if any(table.schema != PAIRS for table in tables.values()):
        raise ColbertZeroError(f"collections.{name}.source: only pairs can be held out, not scored candidates")
    chosen = _choose(held.documents, list(tables.values()), seed)
    if len(chosen) < held.documents:
        raise ColbertZeroError(
            f"collections.{name}.documents: {held.documents} pairs to hold out, but the source has only "
            f"{len(chosen)} with texts of their own; lower the number"
        )
    before = sum(parts.values())
    queries, documents = pa.array(list(chosen)), pa.array(list(chosen.values()))
    for part, table in tables.items():
        kept, parts[part] = files[part].with_suffix(".kept"), 0
        with pa.OSFile(str(kept), "wb") as file, pa.ipc.new_stream(file, PAIRS) as writer:
            for batch in table.to_batches():
                rows = batch.filter(pc.invert(_shared(batch, queries, documents)))
                writer.write_batch(rows)
                parts[part] += len(rows)
        os.replace(kept, files[part])
    if shared := before - sum(parts.values()) - len(chosen):
        dropped["shares a text with a held-out pair"] += shared
    identifiers = [f"{number:07d}" for number in range(len(chosen))]
    asked = dict(itertools.islice(zip(identifiers, chosen, strict=True), held.queries))
    corpus = dict(zip(identifiers, chosen.values(), strict=True))
    qrels = {identifier: {identifier: 1} for identifier in asked}
    write_beir(Collection.from_memory(name, corpus, asked, qrels), folder / f"held-out-{name}")
    return len(chosen)


def _shared(batch: pa.RecordBatch, queries: pa.Array, documents: pa.Array) -> pa.Array:
    """Which rows have a query, a document or a negative among these texts."""
    shared = pc.or_(pc.is_in(batch["query"], queries), pc.is_in(batch["document"], documents))
    negatives = batch["negatives"]
    owners = pc.list_parent_indices(negatives).filter(pc.is_in(pc.list_flatten(negatives), documents))
    return pc.or_(shared, pc.is_in(pa.array(range(len(batch)), owners.type), owners))


def _choose(count: int, tables: list[pa.Table], seed: int) -> dict[str, str]:
    """Query -> document of the pairs with the smallest hashes, no text twice."""
    looked_at = count
    while True:
        looked_at *= 2
        smallest = heapq.nsmallest(looked_at, _hashed(tables, seed))
        chosen: dict[str, str] = {}
        documents: set[str] = set()
        for _, query, document in smallest:
            if len(chosen) < count and query not in chosen and document not in documents:
                chosen[query] = document
                documents.add(document)
        if len(chosen) == count or len(smallest) < looked_at:
            return chosen


def _hashed(tables: Iterable[pa.Table], seed: int) -> Iterator[tuple[bytes, str, str]]:
    key = str(seed).encode()
    for table in tables:
        for batch in table.to_batches():
            for query, document in zip(batch["query"].to_pylist(), batch["document"].to_pylist(), strict=True):
                text = f"{query}\0{document}".encode()
                yield hashlib.blake2b(text, key=key, digest_size=16).digest(), query, document
