"""What scoring in bfloat16, then the best anew in float32, takes: python benchmarks/rescoring.py MODEL COLLECTION …

Of a multi-vector MODEL and the first 100 queries of each COLLECTION (a BEIR folder): how many documents would have to
be scored again so that the top k is that of float32 for sure. bfloat16 rounds a number by at most 2⁻⁸ of it: both
vectors and, since PyTorch's product in bfloat16 is that itself, the product. So the product of two unit vectors moves
by at most (1 + 2⁻⁸)³ − 1, and a score of n query tokens by n times that; whatever is within twice as much of the k-th
may belong to the top. Then how long the product with its maximum takes in both, 1,024 query tokens by 512 documents
of 128 tokens, one thread, medians of nine in turn, of the processor's time.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from colbert_zero.data.by_name import load_all
from colbert_zero.evaluation.ranking import embed
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.checkpoints import load_model
from harness import report

ROUNDING = (1 + 2**-8) ** 3 - 1
QUERIES = 100


def within(model: str, collection: str) -> list[list[str | float]]:
    """Of each k: documents that may belong to the top, median and mean over queries."""
    encoder, [of] = load_model(model), load_all([collection])
    queries = embed(encoder, [of.queries[name] for name in list(of.qrels)[:QUERIES]], "query")
    documents = embed(encoder, [text for _, text in of.documents()], "document")
    scores, tokens = packed_scores(queries, documents).numpy(), queries.lengths.numpy()
    rows: list[list[str | float]] = []
    for k in (10, 100):
        last = -np.sort(-scores, axis=1)[:, k - 1]
        counts = (scores >= (last - 2 * ROUNDING * tokens)[:, None]).sum(1)
        about: list[str | float] = [Path(collection).name, scores.shape[1], k, float(tokens.mean())]
        rows.append([*about, float(np.median(counts)), float(counts.mean())])
    return rows


def seconds() -> dict[str, float]:
    """Of the product with its maximum."""
    torch.set_num_threads(1)
    unit = partial(torch.nn.functional.normalize, dim=-1)
    q, d = unit(torch.randn(1024, 128)), unit(torch.randn(512 * 128, 128))
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for number in range(10):
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            queries, documents = q.to(dtype), d.to(dtype)
            started = time.process_time()
            (documents @ queries.T).view(512, 128, 1024).amax(1)
            if number:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("collections", nargs="+", metavar="COLLECTION")
    asked = parser.parse_args()
    rows = [row for collection in asked.collections for row in within(asked.model, collection)]
    took = seconds()
    print("product and maximum: " + ", ".join(f"{name} {1e3 * found:.0f} ms" for name, found in took.items()))
    columns = ["collection", "documents", "k", "query tokens", "within, median", "within, mean"]
    report("rescoring", columns, rows, {"seconds": took, "rows": rows})


if __name__ == "__main__":
    main()
