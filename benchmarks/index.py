"""Exact search in an index against the machine's floor: python benchmarks/index.py [--quick]

100,000 documents × 100 tokens × 128, random unit vectors in float16 (2.6 GB), in an index on disk that is in the page
cache; 1 and 32 queries of 32 tokens. What is found is compared with brute force: one product of all vectors with the
queries, in PyTorch, float32.

The floor is the largest of three, each measured here before: bytes of the vectors ÷ the bandwidth of reading them;
multiplications and additions ÷ those of a product whose operands stay in the cache; float16 numbers ÷ the rate of their
conversion to float32 in the cache. It is the least that any program of these instructions needs if all else is free.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.maxsim.packed import Packed
from colbert_zero.serving.index import Index
from colbert_zero.serving.manifest import Corpus, Manifest, ModelIdentity, write_manifest
from colbert_zero.serving.segments import Passages, SegmentWriter
from harness import parser_of, report, status

TOKENS, DIM, Q_TOKENS, K = 100, 128, 32, 10
SEGMENT = 20_000


def unit(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, DIM, generator=generator), dim=-1)


def write(folder: Path, documents: int) -> None:
    """An index of random vectors, without a model."""
    generator, entries = torch.Generator().manual_seed(0), []
    for number, first in enumerate(range(0, documents, SEGMENT), 1):
        name = f"{number:06d}"
        place = folder / "segments" / name
        place.mkdir(parents=True)
        with SegmentWriter(place, name, DIM, "float16") as writer:
            for begin in range(first, min(first + SEGMENT, documents), 1000):
                count = min(1000, documents - begin)
                each = np.arange(count)
                passages = Passages(np.full(count, TOKENS), each, 0 * each, 0 * each + 1)
                rows = [(f"{n:07d}", "{}", "x") for n in range(begin, begin + count)]
                writer.add(rows, passages, unit(count * TOKENS, generator).half().numpy(), None)
            entries.append(writer.finish())
    model = ModelIdentity(
        place="none", commit=None, contents="0" * 32, representation="multi-vector", dim=DIM, query_prompt="",
        document_prompt="", query_tokens=None, document_tokens=None,
    )  # fmt: skip
    corpus = Corpus(paths=[], documents=documents, digest="0" * 32)
    settings: dict[str, Any] = {"storage": "float16", "pool": 1, "passages": None, "segment_documents": SEGMENT}
    write_manifest(folder, Manifest(model=model, corpus=corpus, segments=entries, **settings))


def seconds(step: Callable[[], Any], repeats: int) -> float:
    """The median, after once to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def rates(repeats: int) -> dict[str, float]:
    """Bytes, operations and conversions a second."""
    large = torch.ones(1 << 26, dtype=torch.int64)
    a, b = torch.ones(2048, DIM), torch.ones(DIM, 1024)
    halves, floats = torch.ones(1 << 18, dtype=torch.float16), torch.ones(1 << 18)
    product = torch.empty(2048, 1024)
    return {
        "bytes": large.nbytes / seconds(large.sum, repeats),
        "operations": 50 * 2 * 2048 * DIM * 1024
        / seconds(lambda: [torch.mm(a, b, out=product) for _ in range(50)], repeats),
        "conversions": 200 * (1 << 18) / seconds(lambda: [floats.copy_(halves) for _ in range(200)], repeats),
    }  # fmt: skip


def brute_force(index: Index, queries: Packed) -> list[list[str]]:
    """The best ids of every query."""
    scores = []
    for segment in index._segments.values():
        for first in range(0, segment.entry.documents, 500):
            last = min(first + 500, segment.entry.documents)
            vectors = torch.from_numpy(segment.vectors[first * TOKENS : last * TOKENS]).float()
            products = queries.values @ vectors.T
            best = products.view(-1, Q_TOKENS, last - first, TOKENS).amax(3).sum(1)
            scores.append(best)
    together = torch.cat(scores, 1)
    return [[f"{n:07d}" for n in row.topk(K).indices.tolist()] for row in together]


def main() -> None:
    arguments = parser_of(__doc__, "4,000 documents, two repeats").parse_args()
    documents, repeats = (4000, 2) if arguments.quick else (100_000, 5)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), documents)
        start = time.perf_counter()
        index = Index.open(place)
        opening = time.perf_counter() - start
        can = rates(repeats)
        for count in (1, 32):
            values = unit(count * Q_TOKENS, torch.Generator().manual_seed(1))
            queries = Packed(values, torch.full((count,), Q_TOKENS))
            before = status("VmRSS")
            found = [[hit.id for _, hit in ranking] for ranking in index.search_vectors(queries, K)]
            same = found == brute_force(index, queries)
            numbers = documents * TOKENS * DIM
            floors = {
                "bytes": 2 * numbers / can["bytes"],
                "operations": 2 * numbers * count * Q_TOKENS / can["operations"],
                "conversions": numbers / can["conversions"],
            }
            taken = seconds(lambda batch=queries: index.search_vectors(batch, K), repeats)
            floor = max(floors.values())
            rows.append([documents, count, 1e3 * taken, *(1e3 * f for f in floors.values()), floor / taken, str(same)])
            records.append({"documents": documents, "queries": count, "seconds": taken, "floors": floors, "rates": can,
                            "identical": same, "opening_seconds": opening, "rss_before": before})  # fmt: skip
        index.close()
    columns = ["documents", "queries", "ms", "floor: bytes", "operations", "conversions", "of the floor", "identical"]
    report("index", columns, rows, records)
    print(f"opened in {1e3 * opening:.1f} ms")


if __name__ == "__main__":
    main()
