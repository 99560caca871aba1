"""Exact search in an index against the machine's floor: python benchmarks/index.py [--quick] [--memory]

100,000 documents × 100 tokens × 128, random unit vectors in float16 (2.6 GB), in an index on disk that is in the page
cache; 1 and 32 queries of 32 tokens. What is found is compared with brute force: one product of all vectors with the
queries, in PyTorch, float32.

The floor is the largest of three, each measured here before: bytes of the vectors ÷ the bandwidth of reading them;
multiplications and additions ÷ those of a product whose operands stay in the cache; float16 numbers ÷ the rate of their
conversion to float32 in the cache. It is the least that any program of these instructions needs if all else is free.
One thread; times and rates are of its processor alone, so that other programs on the machine disturb little; the wall's
clock stands beside.

Beside it, at 10,000 documents: qdrant-client's local mode (MAX_SIM in numpy, in memory) and LanceDB's flat multi-vector
search; one that is not installed is skipped, and told.

--memory: 1,000,000 documents × 32 tokens (8 GB, removed after), opened with 256 MB for vectors: resident memory of a
search, and how long opening takes.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.maxsim.packed import Packed
from colbert_zero.serving.index.manifest import Corpus, Manifest, ModelIdentity, write_manifest
from colbert_zero.serving.index.opened import Index
from colbert_zero.serving.index.segments import Passages, SegmentWriter
from harness import parser_of, report, status

TOKENS, DIM, Q_TOKENS, K = 100, 128, 32, 10
SEGMENT, BLOCK = 20_000, 1000
PEER_DOCUMENTS = 10_000


def unit(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, DIM, generator=generator), dim=-1)


def write(folder: Path, documents: int, tokens: int = TOKENS, again: bool = False) -> None:
    """An index of random vectors, without a model; with the same ones in every block where that is enough."""
    model = ModelIdentity(
        place="none", commit=None, contents="0" * 32, representation="multi-vector", dim=DIM, query_prompt="",
        document_prompt="", query_tokens=None, document_tokens=None,
    )  # fmt: skip
    manifest = Manifest(
        model=model, corpus=Corpus(paths=[], documents=documents, digest="0" * 32), storage="float16", pool=1,
        passages=None, segment_documents=SEGMENT,
    )  # fmt: skip
    generator, entries = torch.Generator().manual_seed(0), []
    vectors = unit(BLOCK * tokens, generator).half().numpy()
    for number, first in enumerate(range(0, documents, SEGMENT), 1):
        name = f"{number:06d}"
        place = folder / "segments" / name
        place.mkdir(parents=True)
        with SegmentWriter(place, name, manifest) as writer:
            for begin in range(first, min(first + SEGMENT, documents), BLOCK):
                count = min(BLOCK, documents - begin)
                each = np.arange(count)
                rows = [(f"{n:07d}", "{}", "x") for n in range(begin, begin + count)]
                writer.add(
                    rows,
                    Passages(np.full(count, tokens), each, 0 * each, 0 * each + 1),
                    vectors[: count * tokens],
                    None,
                )
                vectors = vectors if again else unit(BLOCK * tokens, generator).half().numpy()
            entries.append(writer.finish())
    write_manifest(folder, manifest.model_copy(update={"segments": entries}))


def seconds(step: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians of the processor's and the wall's clock, after once to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time(), time.perf_counter()
        step()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    own, wall = zip(*times[1:], strict=True)
    return statistics.median(own), statistics.median(wall)


def rates(repeats: int) -> dict[str, float]:
    """Bytes, operations and conversions a second."""
    large = torch.ones(1 << 26, dtype=torch.int64)
    a, b = torch.ones(2048, DIM), torch.ones(DIM, 1024)
    halves, floats = torch.ones(1 << 18, dtype=torch.float16), torch.ones(1 << 18)
    product = torch.empty(2048, 1024)
    return {
        "bytes": large.nbytes / seconds(large.sum, repeats)[0],
        "operations": 50 * 2 * 2048 * DIM * 1024
        / seconds(lambda: [torch.mm(a, b, out=product) for _ in range(50)], repeats)[0],
        "conversions": 200 * (1 << 18) / seconds(lambda: [floats.copy_(halves) for _ in range(200)], repeats)[0],
    }  # fmt: skip


def brute_force(index: Index, queries: Packed) -> list[list[str]]:
    """The best ids of every query."""
    scores = []
    for segment in index.segments:
        for first in range(0, segment.entry.documents, 500):
            last = min(first + 500, segment.entry.documents)
            vectors = torch.from_numpy(segment.vectors[first * TOKENS : last * TOKENS]).float()
            products = queries.values @ vectors.T
            best = products.view(-1, Q_TOKENS, last - first, TOKENS).amax(3).sum(1)
            scores.append(best)
    together = torch.cat(scores, 1)
    return [[f"{n:07d}" for n in row.topk(K).indices.tolist()] for row in together]


def exact(documents: int, repeats: int) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Rows and records of exact search beside its floor, and of the peers on fewer documents."""
    can, rows, records = rates(repeats), [], []
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), documents)
        start = time.perf_counter()
        index = Index.open(place)
        print(f"opened in {1e3 * (time.perf_counter() - start):.1f} ms")
        for count in (1, 32):
            queries = Packed(unit(count * Q_TOKENS, torch.Generator().manual_seed(1)), torch.full((count,), Q_TOKENS))
            found = [[hit.id for _, hit in ranking] for ranking in index.search_vectors(queries, K)]
            same = found == brute_force(index, queries)
            numbers = documents * TOKENS * DIM
            floors = {
                "bytes": 2 * numbers / can["bytes"],
                "operations": 2 * numbers * count * Q_TOKENS / can["operations"],
                "conversions": numbers / can["conversions"],
            }
            own, wall = seconds(lambda batch=queries: index.search_vectors(batch, K), repeats if count == 1 else 1)
            floor = max(floors.values())
            rows.append(["ours", documents, count, 1e3 * own, 1e3 * wall, *(1e3 * f for f in floors.values()),
                         floor / own, str(same)])  # fmt: skip
            records.append({"documents": documents, "queries": count, "seconds": own, "wall_seconds": wall,
                            "floors": floors, "rates": can, "identical": same})  # fmt: skip
            print(*rows[-1], flush=True)
        index.close()
    return rows, records


def beside(documents: int, repeats: int) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Ours and the peers with the same vectors and one query."""
    rows, records = [], []
    query = unit(Q_TOKENS, torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "index", documents)
        index = Index.open(Path(place) / "index")
        vectors = np.concatenate([segment.vectors for segment in index.segments]).reshape(documents, TOKENS, DIM)
        batch = Packed(query, torch.tensor([Q_TOKENS]))
        contenders: dict[str, Callable[[], list[str]]] = {
            "ours": lambda: [place.id for _, place in index.search_vectors(batch, K)[0]]
        }
        for name, package, make in (("qdrant local", "qdrant_client", qdrant), ("lancedb flat", "lancedb", lancedb)):
            if importlib.util.find_spec(package) is None:
                print(f"{name}: not measured, {package} is not installed")
            else:
                contenders[name] = make(vectors, query.numpy(), Path(place))
        wanted = contenders["ours"]()
        for name, search in contenders.items():
            own, wall = seconds(search, repeats)
            rows.append([name, documents, 1, 1e3 * own, 1e3 * wall, "", "", "", "", str(search() == wanted)])
            records.append({"name": name, "documents": documents, "seconds": own, "wall_seconds": wall})
            print(*rows[-1], flush=True)
        index.close()
    return rows, records


def qdrant(vectors: np.ndarray, query: np.ndarray, folder: Path) -> Callable[[], list[str]]:
    """qdrant-client without a server: everything in this process's memory."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    config = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    params = models.VectorParams(size=DIM, distance=models.Distance.DOT, multivector_config=config)
    client.create_collection("c", vectors_config=params)
    for begin in range(0, len(vectors), 500):
        block = vectors[begin : begin + 500].astype(np.float32)
        client.upsert(
            "c", [models.PointStruct(id=begin + n, vector=document.tolist()) for n, document in enumerate(block)]
        )
    return lambda: [f"{p.id:07d}" for p in client.query_points("c", query=query.tolist(), limit=K).points]


def lancedb(vectors: np.ndarray, query: np.ndarray, folder: Path) -> Callable[[], list[str]]:
    """LanceDB on disk without an index: every vector is read."""
    import lancedb as lance
    import pyarrow as pa

    kind = pa.schema({"id": pa.string(), "vector": pa.list_(pa.list_(pa.float32(), DIM))})
    table = lance.connect(folder / "lance").create_table("t", schema=kind)
    for begin in range(0, len(vectors), 500):
        block = vectors[begin : begin + 500].astype(np.float32)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), DIM)
        offsets = pa.array(np.arange(0, len(block) * TOKENS + 1, TOKENS, dtype=np.int32))
        ids = pa.array([f"{begin + n:07d}" for n in range(len(block))])
        table.add(pa.table({"id": ids, "vector": pa.ListArray.from_arrays(offsets, flat)}, schema=kind))
    return lambda: [row["id"] for row in table.search(query).distance_type("cosine").limit(K).to_list()]


def memory(documents: int) -> None:
    """Resident memory of a search in an index larger than it may hold."""
    allowed, tokens = 1 << 28, 32
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), documents, tokens, again=True)
        start = time.perf_counter()
        index = Index.open(place, memory_bytes=allowed)
        opening = time.perf_counter() - start
        queries = Packed(unit(Q_TOKENS, torch.Generator().manual_seed(1)), torch.tensor([Q_TOKENS]))
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        start = time.perf_counter()
        index.search_vectors(queries, K)
        taken, peak = time.perf_counter() - start, status("VmHWM")
        size = sum(segment.vectors.nbytes for segment in index.segments)
        print(f"{documents:,} documents, {size / 1e9:.1f} GB of vectors: opened in {1e3 * opening:.1f} ms; resident "
              f"{before / 1e6:,.0f} MB before a search, at most {peak / 1e6:,.0f} MB in it, "
              f"{status('VmRSS') / 1e6:,.0f} MB after; {taken:.1f} s")  # fmt: skip
        index.close()


def main() -> None:
    parser: argparse.ArgumentParser = parser_of(__doc__, "4,000 documents, 1,000 beside the peers, two repeats")
    parser.add_argument("--memory", action="store_true", help="measure resident memory alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        memory(20_000 if arguments.quick else 1_000_000)
        return
    documents, peers, repeats = (4000, 1000, 2) if arguments.quick else (100_000, PEER_DOCUMENTS, 3)
    rows, records = exact(documents, repeats)
    more_rows, more_records = beside(peers, repeats)
    columns = ["", "documents", "queries", "ms", "wall ms", "floor: bytes", "operations", "conversions", "of the floor",
               "identical"]  # fmt: skip
    report("index", columns, rows + more_rows, records + more_records)


if __name__ == "__main__":
    main()
