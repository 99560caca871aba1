"""Memory and time of mining as the corpus grows: python benchmarks/mining.py [--quick]

200 queries and 10,000 or 100,000 documents of random words (105 tokens on average), mined by BM25, and by a model: the
small encoder of training_step.py with random weights, 128 dimensions a token. Of each the whole command's work is
measured, in a process of its own: reading the corpus, passing over it, picking 20 of the best 100, writing the file.

Memory is the highest anonymous resident memory above that with libraries and model loaded; pages of memory-mapped files
are the kernel's and not counted. What it holds that grows with the corpus: 16 bytes' digest and a number of each
document while it is read, and BM25's index.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data import highest
from evaluation import texts
from harness import parse, parser_of, report
from training_step import model_of, write_encoder


def write_data(folder: Path, documents: int) -> None:
    """Pairs, and a corpus of so many documents, which has the pairs' first."""
    corpus, queries = texts(documents)
    with open(folder / "corpus.jsonl", "w") as file:
        file.writelines(json.dumps({"_id": key, "text": text}) + "\n" for key, text in corpus.items())
    with open(folder / "pairs.jsonl", "w") as file:
        for number, query in enumerate(queries.values()):
            file.write(json.dumps({"query": query, "document": corpus[f"d{number}"]}) + "\n")


def child(miner: str, path: str, folder: str, **_: Any) -> dict[str, Any]:
    """One measurement, in this process."""
    from colbert_zero.data.given import load_sources
    from colbert_zero.models.encoding import encode
    from colbert_zero.recipe.data import Mined
    from colbert_zero.teaching.mined import mine_file

    place = Path(folder)
    if miner == "model":
        model = model_of("ours", path)
        encode(model, ["what is loaded once is no part of the peak"], "document")
        model.save_pretrained(str(place / "model"), create_model_card=False)
        miner = str(place / "model")
    asked = {"kind": "mined", "of": "pairs", "miners": miner, "negatives": 20, "depth": 100, "corpus": [folder]}
    spec = Mined.model_validate(asked)
    pairs, shown = [str(place / "pairs.jsonl")], lambda title: nullcontext()
    [source] = load_sources(pairs, "--pairs", place / "prepared", print, shown)
    started = time.perf_counter()
    with highest("RssAnon") as peak:
        out = place / f"{Path(miner).name}.parquet"
        record = mine_file(spec, source, out, {}, lambda *_: nullcontext(lambda *_: None))
        return {"seconds": time.perf_counter() - started, "peak_bytes": peak(), "rows": record["rows"]}


def main() -> None:
    arguments = parse(parser_of(__doc__, "a tenth of the documents"), child)
    sizes = [1_000, 10_000] if arguments.quick else [10_000, 100_000]
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = write_encoder(Path(folder), "small", list(texts(1000)[0].values()))
        for documents in sizes:
            place = Path(folder) / str(documents)
            place.mkdir()
            write_data(place, documents)
            for miner in ("bm25", "model"):
                case = {"miner": miner, "path": path, "folder": str(place), "documents": documents}
                done = subprocess.run(
                    [sys.executable, __file__, "--child", json.dumps(case)], capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(f"{miner}, {documents} documents failed:\n{done.stderr}")
                found = json.loads(done.stdout.splitlines()[-1])
                records.append({**case, **found})
                mebibytes = found["peak_bytes"] / 2**20
                rows.append([miner, documents, found["seconds"], mebibytes, found["peak_bytes"] / documents])
    report("mining", ["miner", "documents", "seconds", "peak MiB", "bytes a document"], rows, records)


if __name__ == "__main__":
    main()
