"""What an index's economies cost on real vectors: python benchmarks/index_quality.py MODEL DATA FOLDER

The documents of 42,230 pairs (DATA/pairs/mdn_archived.jsonl.gz: heading → section; the first 26,000 of arxiv: title →
abstract), indexed in float32 in FOLDER; the pairs' queries, evenly sampled, each with its pair's document as the one
that is relevant. Beside float32: float16, int8 and pooled tokens (made of the same vectors, not encoded again), and
first stages over float16. Of each: nDCG@10 and its difference to float32 with a 95 % interval (bootstrap over queries),
the share of float32's ten best that it finds, bytes on disk, and the median time of one query that is encoded already.

It goes on where it was stopped, encoding and all. `--as-it-is` measures on the documents that are encoded so far.
"""

import gzip
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from colbert_zero.evaluation.ranking import embed
from colbert_zero.evaluation.runs import Run, measure
from colbert_zero.evaluation.significance import bootstrap_means, percentile_interval
from colbert_zero.files import atomic_file, atomic_folder
from colbert_zero.maxsim.packed import Packed
from colbert_zero.serving.index.building import Settings
from colbert_zero.serving.index.first_stage import first_stage_of
from colbert_zero.serving.index.manifest import NAME, Manifest, Storage, changed, write_manifest
from colbert_zero.serving.index.opened import Index
from colbert_zero.serving.index.segments import Segment, SegmentWriter
from colbert_zero.serving.index.storage import to_stored
from harness import parser_of, report

TAKEN = {"mdn_archived": 16_230, "arxiv": 26_000}
VARIANTS: dict[str, tuple[Storage, float]] = {
    "float32": ("float32", 1), "float16": ("float16", 1), "int8": ("int8", 1),
    "float16, pool 2": ("float16", 2), "float16, pool 3": ("float16", 3),
}  # fmt: skip
FIRSTS = [f"{kind}:{count}" for kind in ("pooled", "bm25") for count in (100, 300, 1000, 3000)]
SEGMENT, BLOCK, K, TIMED = 4096, 1024, 10, 30


def pairs(data: Path) -> Iterator[tuple[str, str, str]]:
    """(id, query, document) of each."""
    for name, count in TAKEN.items():
        with gzip.open(data / "pairs" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for number, line in zip(range(count), file, strict=False):
                row = json.loads(line)
                yield f"{name}-{number}", row["query"], row["document"]


def base(model: str, data: Path, folder: Path, as_it_is: bool) -> Index:
    """The index in float32; a killed run's goes on."""
    corpus, out = folder / "corpus.jsonl", folder / "float32.index"
    if not corpus.exists():
        with atomic_file(corpus) as file:
            for identifier, _, document in pairs(data):
                file.write(json.dumps({"_id": identifier, "text": document}) + "\n")
    if as_it_is:
        return Index.open(out)
    return Index.build(model, corpus, out, Settings("float32", pool=1, segment_documents=SEGMENT))


def derived(index: Index, out: Path, storage: Storage, pool: float) -> Index:
    """An index of the same documents whose vectors are kept in another way."""
    if (out / NAME).is_file():
        there = Index.open(out)
        if len(there) == len(index):
            return there
        there.close()
    manifest = index.manifest.model_copy(update={"storage": storage, "pool": pool, "segments": []})
    for segment in index.segments:
        with (
            atomic_folder(out / "segments" / segment.name) as folder,
            SegmentWriter(folder, segment.name, manifest) as writer,
        ):
            for begin in range(0, segment.entry.documents, BLOCK):
                write(segment, begin, min(begin + BLOCK, segment.entry.documents), writer, manifest)
            manifest = changed(manifest, segments=[*manifest.segments, writer.finish()])
    write_manifest(out, manifest)
    return Index.open(out)


def write(segment: Segment, begin: int, end: int, writer: SegmentWriter, manifest: Manifest) -> None:
    """Documents of a segment, of one passage each, whose vectors are in float32."""
    rows = [segment.texts.row(number) for number in range(begin, end)]
    lengths = segment.passages.lengths[begin:end].astype(int)
    vectors = segment.tokens(int(segment.starts[begin]), int(segment.starts[end]))
    if manifest.pool > 1:
        pooled = HierarchicalTokenPooling(manifest.pool).pool(list(vectors.split(lengths.tolist())))
        lengths, vectors = np.array([len(document) for document in pooled]), torch.cat(pooled)
    stored, scales = to_stored(vectors, manifest.storage)
    passages = segment.passages._replace(
        lengths=lengths, documents=np.arange(end - begin), begins=segment.passages.begins[begin:end],
        ends=segment.passages.ends[begin:end],
    )  # fmt: skip
    writer.add([(row.id, row.metadata, row.text) for row in rows], passages, stored, scales)


def ranked(index: Index, queries: dict[str, str], vectors: list[torch.Tensor], first: str | None) -> tuple[Run, float]:
    """The best documents of each query, and the median milliseconds of one."""
    stage = first_stage_of(first, index.manifest) if first else None
    run, times = {}, []
    for (name, text), query in zip(queries.items(), vectors, strict=True):
        start = time.perf_counter()
        [found] = index._best([text], Packed(query, torch.tensor([len(query)])), K, None, stage)
        times.append(time.perf_counter() - start)
        run[name] = [(place.id, score) for score, place in found]
    return run, 1e3 * statistics.median(times)


def main() -> None:
    parser = parser_of(__doc__, "20 queries")
    for name, described in (
        ("model", "multi-vector, any folder or Hub id"),
        ("data", "has pairs/"),
        ("folder", "for its files"),
    ):
        parser.add_argument(name, help=described)
    parser.add_argument("--as-it-is", action="store_true", help="with the documents that are encoded so far")
    parser.add_argument("--queries", type=int, default=300, help="how many, 300 by default")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    index = base(arguments.model, Path(arguments.data), folder, arguments.as_it_is)
    there = {identifier for segment in index.segments for _, identifier in segment.ids()}
    known = [(identifier, query) for identifier, query, _ in pairs(Path(arguments.data)) if identifier in there]
    wanted = min(20 if arguments.quick else arguments.queries, len(known))
    queries = dict(known[place] for place in np.linspace(0, len(known) - 1, wanted).astype(int))
    qrels = {identifier: {identifier: 1} for identifier in queries}
    embedded = embed(index.encoder, list(queries.values()), "query")
    vectors = list(embedded.values.split(embedded.lengths.tolist()))
    print(
        f"{len(there):,} documents, {index.manifest.tokens:,} vectors of {index.manifest.model.dim}, {wanted} queries"
    )

    rows: list[list[Any]] = []
    exact: Run = {}
    scores: dict[str, np.ndarray] = {}

    def measured(name: str, opened: Index, first: str | None) -> None:
        run, milliseconds = ranked(opened, queries, vectors, first)
        _, per_query = measure(run, qrels, ["nDCG@10"])
        scores[name] = np.array([per_query[query]["nDCG@10"] for query in queries])
        exact.update({} if exact else run)
        same = [len({d for d, _ in run[q]} & {d for d, _ in exact[q]}) / len(exact[q]) for q in queries]
        difference = scores[name] - scores["float32"]
        low, high = percentile_interval(bootstrap_means([difference]))
        size = sum(file.stat().st_size for file in (opened.path / "segments").rglob("*") if file.is_file())
        rows.append([name, f"{scores[name].mean():.4f}", f"{difference.mean():+.4f}", f"{low:+.4f} … {high:+.4f}",
                     f"{statistics.mean(same):.3f}", f"{size / 1e6:,.0f}", milliseconds])  # fmt: skip
        print(*rows[-1], sep="  ", flush=True)

    for name, (storage, pool) in VARIANTS.items():
        kept = index if name == "float32" else derived(index, folder / f"{storage}-{pool:g}.index", storage, pool)
        measured(name, kept, None)
    halves = derived(index, folder / "float16-1.index", "float16", 1)
    for first in FIRSTS:
        measured(first, halves, first)
    columns = ["", "nDCG@10", "difference", "95 %", "of the 10 best", "MB", "ms a query"]
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    report("index_quality", columns, rows, {"documents": len(there), "queries": wanted, "rows": records})


if __name__ == "__main__":
    main()
