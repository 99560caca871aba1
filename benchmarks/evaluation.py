"""Exact ranking and nDCG@10 against sentence-transformers' evaluator: python benchmarks/evaluation.py [--quick]

200 queries and 1,000 documents of random words, with the two encoders of training_step.py (random weights, 128
dimensions) and a tokenizer trained on the documents, which have at most 180 tokens (105 on average). A query is
words of one document, the only relevant one, and some others. Both rank to depth 10, with their default batches,
and must come to the same nDCG@10. Then the small encoder ranks 4 and 16 times as many documents, to show what
memory does: the peak is what ranking adds to the model and the texts. The largest corpus is for us alone.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness import in_turn, measure, parse, parser_of, report, summary
from training_step import model_of, write_encoder

QUERIES, DEPTH, MEASURE = 200, 10, "nDCG@10"
TOLERATED = 1e-3
Texts = dict[str, str]


def texts(documents: int) -> tuple[Texts, Texts]:
    """Documents and queries by id; query qi is answered by document di. More documents only add to fewer."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(random.choice(letters, length)) for length in random.integers(3, 9, 3000)])
    frequency = 1 / np.arange(10, len(words) + 10)

    def draw(count: int) -> list[str]:
        return list(random.choice(words, count, p=frequency / frequency.sum()))

    corpus, queries = {}, {}
    for i in range(documents):
        found = draw(int(np.clip(random.normal(104, 38), 8, 178)))
        corpus[f"d{i}"] = " ".join(found)
        asked = [*random.choice(found, random.integers(4, 20)), *draw(random.integers(1, 8))]
        if i < QUERIES:
            queries[f"q{i}"] = " ".join(asked)
    return corpus, queries


def evaluator_of(contender: str, corpus: Texts, queries: Texts) -> Callable[[Any], float]:
    """The contender's nDCG@10 of a model."""
    answers = {query_id: query_id.replace("q", "d") for query_id in queries}
    if contender == "ours":
        from colbert_zero.data.collection import Collection
        from colbert_zero.evaluation.ranking import rank
        from colbert_zero.evaluation.runs import measure as measured

        qrels = {query_id: {answer: 1} for query_id, answer in answers.items()}
        collection = Collection.from_memory("random words", corpus, queries, qrels)
        return lambda model: measured(rank(model, collection, DEPTH), qrels, [MEASURE])[0][MEASURE]
    from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorInformationRetrievalEvaluator

    relevant = {query_id: {answer} for query_id, answer in answers.items()}
    # It always has all its measures; at one depth they cost least.
    measures = ("mrr_at_k", "ndcg_at_k", "accuracy_at_k", "precision_recall_at_k", "map_at_k")
    depths: dict[str, Any] = {name: [DEPTH] for name in measures}
    evaluator = MultiVectorInformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False, **depths)
    return lambda model: evaluator(model)[evaluator.primary_metric]


def child(contender: str, path: str, documents: int, repeats: int, **_: Any) -> dict[str, Any]:
    """One contender's measurement, in this process."""
    model = model_of(contender, path)
    # What is loaded once is no part of the peak.
    evaluator_of(contender, *texts(10))(model)
    evaluate, scores = evaluator_of(contender, *texts(documents)), []
    return {**measure(lambda: scores.append(evaluate(model)), repeats), MEASURE: scores[0]}


def cases_of(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Both encoders on the smallest corpus, several rounds; the small one on larger corpora, once."""
    smallest, rounds = (QUERIES, 1) if quick else (1000, rounds)
    both, us = ["ours", "sentence-transformers"], ["ours"]
    cases = [("small", 1, both, rounds), ("MiniLM-sized", 1, both, rounds), ("small", 4, both, 1), ("small", 16, us, 1)]
    keys = ("encoder", "documents", "contenders", "rounds", "repeats")
    return [dict(zip(keys, (name, n * smallest, *rest, 1), strict=True)) for name, n, *rest in cases]


def main() -> None:
    parser = parser_of(__doc__, "a fifth of the documents, one round")
    parser.add_argument("--rounds", type=int, default=3, help="on the smallest corpus")
    arguments = parse(parser, child)
    cases = cases_of(arguments.quick, arguments.rounds)
    print(f"{len(cases)} cases, on two cores about {2 if arguments.quick else 9} minutes", file=sys.stderr)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            path = write_encoder(Path(folder), case["encoder"], list(texts(1000)[0].values()))
            [(_, runs)] = in_turn(__file__, case["contenders"], [{**case, "path": path}], case["rounds"])
            scores = [run[MEASURE] for found in runs.values() for run in found]
            if max(scores) - min(scores) > TOLERATED:
                raise SystemExit(f"{case}: the contenders differ in {MEASURE}: {scores}")
            found = summary(runs)
            records.append({**case, "summary": found, "runs": runs})
            for contender, row in found.items():
                rate = 1e3 * case["documents"] / row["milliseconds"]
                rows.append([case["encoder"], case["documents"], contender, *row.values(), rate, scores[0]])
    columns = ["encoder", "documents", "contender", "ms", "peak MiB", "× time", "× memory", "disturbed", "documents/s"]
    report("evaluation", [*columns, MEASURE], rows, records)


if __name__ == "__main__":
    main()
