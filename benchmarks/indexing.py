"""Making an index against encoding alone: python benchmarks/indexing.py [--quick] [--model MODEL --corpus PATH]

The same documents, once only read and encoded block by block, once made an index on disk: vectors, texts, metadata,
BM25's terms, mean vectors, checksums. Both load the model and read the corpus from its file. They take turns in one
process, after a run of each to warm up; ratios are of one round, and their median counts. The processor's time stands
beside the wall's: what waits for the disk is not in it.

Without --model, random words as in evaluation.py, with the two encoders of training_step.py (random weights).
"""

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from colbert_zero.data.documents import Documents, documents_of
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from colbert_zero.serving.index.building import build
from evaluation import texts
from harness import parser_of, report
from training_step import model_of, write_encoder

BLOCK = 2048


def encode_alone(model: str, documents: Documents) -> None:
    encoder, rows = load_model(model), documents.read(Counter())
    while block := [document.text for _, document in islice(rows, BLOCK)]:
        encode(encoder, block, "document")


def build_index(model: str, documents: Documents) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build(model, documents, Path(folder) / "index", tell=lambda _: None)


def seconds(work: Callable[[str, Documents], None], model: str, corpus: str) -> tuple[float, float]:
    start = time.perf_counter(), time.process_time()
    work(model, documents_of([corpus], "--corpus"))
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = parser_of(__doc__, "a tenth of the documents, one round")
    parser.add_argument("--model", help="a multi-vector model")
    parser.add_argument("--corpus", help="its documents")
    parser.add_argument("--documents", type=int, default=4000, help="how many; half of the larger encoder")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    count, rounds = (asked.documents // 10, 1) if asked.quick else (asked.documents, asked.rounds)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        cases = [(asked.model, asked.model, count)]
        if not asked.model:
            cases = [(name, str(Path(folder) / name), many) for name, many in
                     (("small", count), ("MiniLM-sized", count // 2))]  # fmt: skip
            for name, path, _ in cases:
                made = write_encoder(Path(folder), name, list(texts(1000)[0].values()))
                model_of("ours", made).save_pretrained(path, create_model_card=False)
        for name, model, many in cases:
            corpus = Path(folder) / "corpus.jsonl"
            if asked.corpus:
                found = [
                    {"_id": document.id, "text": document.text}
                    for _, document in islice(documents_of([asked.corpus], "--corpus").read(Counter()), many)
                ]
            else:
                found = [{"_id": key, "text": text} for key, text in texts(many)[0].items()]
            corpus.write_text("".join(json.dumps(row) + "\n" for row in found))
            times = []
            for _ in range(rounds + 1):
                times.append([seconds(work, model, str(corpus)) for work in (encode_alone, build_index)])
            for clock, at in (("wall", 0), ("processor", 1)):
                alone, whole = zip(*((a[at], b[at]) for a, b in times[1:]), strict=True)
                ratio = statistics.median(b / a for a, b in zip(alone, whole, strict=True))
                rows.append([name, len(found), clock, len(found) / statistics.median(alone),
                             len(found) / statistics.median(whole), ratio])  # fmt: skip
                print(*rows[-1], flush=True)
            records.append({"model": name, "documents": len(found), "times": times})
    columns = ["model", "documents", "clock", "encode, documents/s", "index, documents/s", "× time"]
    report("indexing", columns, rows, records)


if __name__ == "__main__":
    main()
