"""What candidates and quantisation cost on Qdrant's own engine: python benchmarks/qdrant_engine.py INDEX QUERIES

Qdrant's server is not needed: qdrant-edge-py is its storage and search in this process (`pip install qdrant-edge-py`).
The vectors of an index of files go into a shard with the settings of `serving/qdrant/changing`; answers are compared
with brute force over the same vectors: recall of the ten best, and of how many queries the ranking is the same.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from colbert_zero.cli.options import read_queries
from colbert_zero.evaluation.ranking import embed
from colbert_zero.serving.index.opened import Index

K, AT_ONCE = 10, 100
ROWS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("exact", None, {"ignore": True}),
    *((f"{n} candidates", n, {"rescore": True}) for n in (50, 100, 300)),
    *((f"300 candidates, oversampling {n}", 300, {"rescore": True, "oversampling": n}) for n in (2.0, 4.0, 8.0)),
    ("300 candidates, quantised scores", 300, {"rescore": False}),
]


def main() -> None:
    import qdrant_edge as qdrant

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", help="Of files, without passages.")
    parser.add_argument("queries", type=Path)
    parser.add_argument("--most", type=int, default=60, help="Queries.")
    asked = parser.parse_args()
    with Index.open(asked.index) as index:
        documents = []
        for segment in index.segments:
            vectors = segment.tokens(0, segment.entry.tokens).float()
            documents += vectors.split(segment.passages.lengths.tolist())
        texts = list(read_queries(asked.queries).values())[: asked.most]
        embedded = embed(index.encoder, texts, "query")
        dim = index.manifest.model.dim
    queries = embedded.values.float().split(embedded.lengths.tolist())
    together, lengths = torch.cat(documents), [len(document) for document in documents]
    best = []
    for query in queries:
        parts = (query @ together.T).split(lengths, 1)
        best.append(torch.stack([part.amax(1).sum() for part in parts]).topk(K).indices.tolist())
    print(f"{len(documents):,} documents, {len(together):,} vectors of {dim}, {len(queries)} queries")
    means = normalize(torch.stack([document.mean(0) for document in documents]), dim=1)
    for n in (50, 100, 300):
        similarities = torch.stack([query.mean(0) for query in queries]) @ means.T
        found = similarities.topk(min(n, len(means)), 1).indices.tolist()
        print(f"mean vectors without a graph, {n} candidates: {recall(found, best):.1%}")
    for kind in ("none", "scalar", "binary"):
        quantised = {
            "none": lambda: None,
            "scalar": lambda: qdrant.ScalarQuantizationConfig(qdrant.ScalarType.Int8, always_ram=True),
            "binary": lambda: qdrant.BinaryQuantizationConfig(always_ram=True),
        }[kind]()
        folder = Path(tempfile.mkdtemp())
        tokens = qdrant.EdgeVectorParams(
            dim,
            qdrant.Distance.Dot,
            on_disk=True,
            multivector_config=qdrant.MultiVectorConfig(qdrant.MultiVectorComparator.MaxSim),
            datatype=qdrant.VectorStorageDatatype.Float16,
            quantization_config=quantised,
            hnsw_config=qdrant.HnswIndexConfig(0, 100, 10_000),
        )
        pooled = qdrant.EdgeVectorParams(dim, qdrant.Distance.Cosine)
        settings = qdrant.EdgeConfig(
            vectors={"tokens": tokens, "pooled": pooled},
            on_disk_payload=True,
            optimizers=qdrant.EdgeOptimizersConfig(indexing_threshold=100),
        )
        shard = qdrant.EdgeShard.create(str(folder), settings)
        for start in range(0, len(documents), AT_ONCE):
            points = [
                qdrant.Point(start + n, {"tokens": some.tolist(), "pooled": some.mean(0).tolist()}, {})
                for n, some in enumerate(documents[start : start + AT_ONCE])
            ]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        while shard.optimize():
            pass
        for name, candidates, options in ROWS:
            found = []
            for query in queries:
                mean = qdrant.Query.Nearest(query.mean(0).tolist(), using="pooled")
                hits = shard.query(
                    qdrant.QueryRequest(
                        K,
                        query=qdrant.Query.Nearest(query.tolist(), using="tokens"),
                        prefetches=None if candidates is None else [qdrant.Prefetch(candidates, query=mean)],
                        params=qdrant.SearchParams(
                            exact=candidates is None, quantization=qdrant.QuantizationSearchParams(**options)
                        ),
                    )
                )
                found.append([hit.id for hit in hits])
            same = sum(mine == theirs for mine, theirs in zip(found, best, strict=True))
            print(f"{kind:7} {name:34} {recall(found, best):6.1%}, {same}/{len(best)} the same ranking")
        shard.close()
        shutil.rmtree(folder)


def recall(found: list[list[int]], best: list[list[int]]) -> float:
    return sum(len(set(mine) & set(theirs)) for mine, theirs in zip(found, best, strict=True)) / K / len(best)


if __name__ == "__main__":
    main()
