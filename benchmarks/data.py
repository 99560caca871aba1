"""The loader against sentence-transformers' own, and the plan of 10^8 rows: python benchmarks/data.py [--quick]

The rows are pairs of random words in 8 parts, the largest 8 times the smallest: queries of 4 to 10 words, documents of
12 to 28, two tokens a word. Reading the drawn rows and tokenising them, with prompts and markers, is measured; the
consumer does nothing with a batch. sentence-transformers' loader is its trainer's for a DatasetDict of the same Arrow
files, with its own collator and default samplers, in the training process and with two worker processes. Both must
turn the same rows into the same token ids; else there is no comparison.

Memory is the highest anonymous resident memory while the source is opened and 300 batches of 128 are drawn, above that
after imports and with the model loaded; pages of the memory-mapped files are the kernel's and not counted.

The plan is that of 10^8 rows in 29 sources of 10^5 to 10^7 rows, in batches of 16,384. A source's share of 10^5 batches
at random steps is compared with its share of the rows, in standard deviations of independent draws.
"""

import gc
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from harness import RESULTS, calibrate, in_turn, parse, parser_of, report, status

CONTENDERS = ["ours", "sentence-transformers", "sentence-transformers, 2 workers"]
PARTS, WORDS, VOCABULARY, QUERY_TOKENS, DOCUMENT_TOKENS = 8, 3000, 2000, 32, 64
WRITTEN_ROWS, ARROW_ROWS = 50_000, 1000
MADE_AHEAD, PAUSE_SECONDS = 4, 2.0
MEMORY_BATCHES, SAMPLE_SECONDS = 300, 0.005
PLAN_ROWS, PLAN_SOURCES, PLAN_BATCH, PLAN_STEPS = 10**8, 29, 16_384, 10**6
ENCODER = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def shares(rows: int, parts: int) -> list[int]:
    """Rows of each part, in proportion to 1, 2, 3, …; the last one takes what is left."""
    sizes = [2 * rows * (k + 1) // (parts * (parts + 1)) for k in range(parts)]
    return [*sizes[:-1], rows - sum(sizes[:-1])]


def source_of(rows: int) -> Path:
    """The folder of a prepared source of so many pairs, made once and kept: 190 bytes a row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from colbert_zero.data.rows import PAIRS
    from colbert_zero.files import atomic_folder, write_json

    folder = RESULTS / "sources" / str(rows)
    if (folder / "source.json").is_file():
        return folder
    random, words = np.random.default_rng(0), pa.array(vocabulary())

    def texts(count: int, shortest: int, longest: int) -> pa.Array:
        ends = np.concatenate([[0], np.cumsum(random.integers(shortest, longest + 1, count))]).astype(np.int32)
        drawn = words.take(pa.array(random.integers(0, WORDS, ends[-1])))
        return pc.binary_join(pa.ListArray.from_arrays(ends, drawn), " ")

    parts = {f"part-{k}": size for k, size in enumerate(shares(rows, PARTS))}
    with atomic_folder(folder) as temporary:
        for number, size in enumerate(parts.values()):
            path = str(temporary / f"{number}.arrow")
            with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, PAIRS) as writer:
                for start in range(0, size, WRITTEN_ROWS):
                    count = min(WRITTEN_ROWS, size - start)
                    nothing = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.string()))
                    columns = [texts(count, 4, 10), texts(count, 12, 28), nothing]
                    # In batches as large as those that `sources.arrow_file` writes.
                    writer.write_table(pa.Table.from_arrays(columns, schema=PAIRS), max_chunksize=ARROW_ROWS)
        write_json(temporary / "source.json", {"id": str(rows), "kind": "jsonl", "parts": parts, "rows": rows})
    return folder


def vocabulary() -> list[str]:
    """Random words of 3 to 8 letters."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return ["".join(random.choice(letters, length)) for length in random.integers(3, 9, WORDS)]


def write_encoder(folder: Path) -> str:
    """Write a tiny encoder with random weights, and a tokenizer trained on the words; returns its path."""
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero.models.scratch import train_tokenizer, write_scratch

    disable_progress_bar()
    tokenizer = train_tokenizer(vocabulary(), VOCABULARY, ["[Q]", "[D]"], DOCUMENT_TOKENS + 16)
    write_scratch(folder / "encoder", {**ENCODER, "vocab_size": len(tokenizer)}, tokenizer, seed=0)
    return str(folder / "encoder")


def alignment() -> Any:
    """Prompts and markers as in a real phase, and lengths that cut no text."""
    from colbert_zero.models.alignment import Alignment

    return Alignment("search_query: ", "search_document: ", "[Q]", "[D]", QUERY_TOKENS, DOCUMENT_TOKENS)


def our_batches(model: Any, rows: int, batch: int) -> Any:
    """One epoch of our batches."""
    from colbert_zero.data.order import Order
    from colbert_zero.data.prepared import open_source
    from colbert_zero.models.encoders import tokeniser
    from colbert_zero.recipe.schema import Negatives
    from colbert_zero.training.batches import Batches

    parts = open_source("rows", source_of(rows)).parts
    order = Order({name: len(part) for name, part in parts.items()}, batch, seed=1)
    return Batches(parts, order, tokeniser(model), order.batches_per_epoch, negatives=Negatives(0, None))


def their_trainer(
    model: Any, rows: int, batch: int, output: str, loss: Any = None, streamed: bool = False, **arguments: Any
) -> Any:
    """sentence-transformers' trainer on the same rows, at its defaults where none are given; streamed, all as one."""
    from datasets import DatasetDict, concatenate_datasets
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    from colbert_zero.data.prepared import open_source

    parts = open_source("rows", source_of(rows)).parts
    tables = {name: part.rows.select_columns(["query", "document"]) for name, part in parts.items()}
    chosen = MultiVectorEncoderTrainingArguments(
        output_dir=output,
        per_device_train_batch_size=batch,
        prompts={task: model.prompts[task] for task in ("query", "document")},
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        seed=1,
        **arguments,
    )
    data: Any = concatenate_datasets(list(tables.values())).to_iterable_dataset() if streamed else DatasetDict(tables)
    return MultiVectorEncoderTrainer(model=model, args=chosen, train_dataset=data, loss=loss)


def check_same_ids(batches: Any, trainer: Any) -> None:
    """Refuse to compare loaders that make different inputs of the same rows."""
    name, numbers = batches.order.batch(0)
    theirs = trainer.data_collator(trainer.train_dataset[name].__getitems__(numbers.tolist()))
    queries, documents, _ = batches[0]
    for column, ours in (("query", queries), ("document", documents)):
        for key in ("input_ids", "attention_mask"):
            if not np.array_equal(ours.inputs[key], theirs[f"{column}_{key}"]):
                raise SystemExit(f"{column}_{key} of the first batch differ between the loaders")


def loader_of(contender: str, model: Any, rows: int, batch: int, output: str) -> Iterator[Any]:
    """The contender's batches."""
    if contender == "ours":
        from colbert_zero.training.batches import Prefetched

        return iter(Prefetched(our_batches(model, rows, batch), 0))
    workers = 2 if "workers" in contender else 0
    trainer = their_trainer(model, rows, batch, output, dataloader_num_workers=workers)
    return iter(trainer.get_train_dataloader())


def rate(
    contender: str, model: Any, output: str, rows: int, batch: int, timed_rows: int, repeats: int
) -> dict[str, Any]:
    """Rows a second once the loader runs evenly, a median."""
    check_same_ids(our_batches(model, rows, batch), their_trainer(model, rows, batch, output))
    loader, count = loader_of(contender, model, rows, batch, output), timed_rows // batch

    def draw(batches: int) -> float:
        start = time.perf_counter()
        drawn = list(itertools.islice(loader, batches))
        assert len(drawn) == batches, "the epoch is too short"
        return time.perf_counter() - start

    draw(count)
    rates, calibrations = [], []
    for _ in range(repeats):
        # Until what is made ahead is made, the machine is not free; it is drawn before the clock starts.
        time.sleep(PAUSE_SECONDS)
        calibrations.append(calibrate())
        draw(MADE_AHEAD + 2)
        rates.append(count * batch / draw(count))
    return {"rows_per_second": statistics.median(rates), "calibration_seconds": min(calibrations)}


@contextmanager
def highest(field: str) -> Iterator[Callable[[], int]]:
    """Sample a field of /proc/self/status; the callable gives the highest value above that at the start."""
    gc.collect()
    before = status(field)
    values, stop = [before], threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            values.append(status(field))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: max(*values, status(field)) - before
    finally:
        stop.set()
        thread.join()


def memory(contender: str, model: Any, output: str, rows: int, batch: int) -> dict[str, Any]:
    """Anonymous resident memory of the loader."""
    with highest("RssAnon") as peak:
        for _ in itertools.islice(loader_of(contender, model, rows, batch, output), MEMORY_BATCHES):
            pass
        return {"peak_bytes": peak(), "calibration_seconds": calibrate()}


def plan_rows() -> dict[str, int]:
    """Rows of the plan's sources: from 10^5 to 10^7, each the same factor larger than the one before."""
    weights = np.geomspace(1, 150, PLAN_SOURCES)
    sizes = (PLAN_ROWS * weights / weights.sum()).astype(int)
    return {f"source-{k}": int(size) for k, size in enumerate(sizes)}


def plan(draws: int) -> dict[str, Any]:
    """Build the order of 10^8 rows and draw from it."""
    from colbert_zero.data.order import Order

    rows = plan_rows()
    Order({"a": PLAN_BATCH}, PLAN_BATCH, seed=0).batch(0)
    with highest("RssAnon") as peak:
        start = time.perf_counter()
        order = Order(rows, PLAN_BATCH, seed=1)
        order.batch(0)
        build_seconds = time.perf_counter() - start
        steps = np.random.default_rng(0).integers(0, PLAN_STEPS, draws).tolist()
        start = time.perf_counter()
        drawn = Counter(order.source(step)[0] for step in steps)
        draws_seconds = time.perf_counter() - start
        times = []
        for step in steps[:100]:
            start = time.perf_counter()
            order.batch(step)
            times.append(time.perf_counter() - start)
        peak_bytes = peak()
    deviations = {}
    for name, count in rows.items():
        share = count / sum(rows.values())
        deviations[name] = (drawn[name] - draws * share) / (draws * share * (1 - share)) ** 0.5
    return {
        "build_seconds": build_seconds,
        "peak_bytes": peak_bytes,
        "draws": draws,
        "draws_seconds": draws_seconds,
        "batch_seconds": statistics.median(times),
        "largest_deviation": max(map(abs, deviations.values())),
        "calibration_seconds": calibrate(),
    }


def child(contender: str, kind: str, **case: Any) -> dict[str, Any]:
    """One contender's measurement, in this process."""
    if kind == "plan":
        return plan(**case)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # What is imported once is no part of the peak.
    import sentence_transformers.multi_vector_encoder.losses  # noqa: F401

    import colbert_zero.training.batches  # noqa: F401
    from colbert_zero.models.encoders import assemble

    with tempfile.TemporaryDirectory() as output:
        model = assemble(case.pop("path"), "multi-vector", alignment(), 16, seed=0, phase="benchmark").cpu()
        return {"rate": rate, "memory": memory}[kind](contender, model, output, **case)


def cases_of(quick: bool, rounds: int) -> list[tuple[list[str], int, dict[str, Any]]]:
    """Contenders, rounds and case of every measurement."""
    most, rounds, timed_rows, repeats = (10**5, 1, 8192, 1) if quick else (10**6, rounds, 40_960, 3)
    rates = [{"kind": "rate", "rows": most, "batch": b, "timed_rows": timed_rows, "repeats": repeats}
             for b in (128, 2048)]  # fmt: skip
    sizes = [10**5, 10**6] if quick else [10**5, 10**6, 10**7]
    memories = [{"kind": "memory", "rows": rows, "batch": 128} for rows in sizes]
    plans = [{"kind": "plan", "draws": 10**4 if quick else 10**5}]
    return [
        *((CONTENDERS, rounds, case) for case in rates),
        *((CONTENDERS[:2], 1, case) for case in memories),
        *((CONTENDERS[:1], 1, case) for case in plans),
    ]


def lines(case: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> Iterator[list[Any]]:
    """The table's lines for one case."""
    key = {"rate": "rows_per_second", "memory": "peak_bytes"}.get(case["kind"])
    for contender, found in runs.items():
        if key is None:
            [run], place = found, [PLAN_ROWS, PLAN_BATCH, contender]
            yield ["plan: built, first batch drawn", *place, 1e3 * run["build_seconds"], "ms", ""]
            yield ["plan: peak memory", *place, run["peak_bytes"] / 2**20, "MiB", ""]
            yield ["plan: one batch at a random step", *place, 1e3 * run["batch_seconds"], "ms", ""]
            yield [f"plan: sources of {run['draws']:,} random batches", *place, run["draws_seconds"], "s", ""]
            yield ["plan: largest deviation of a share", *place, run["largest_deviation"], "σ", ""]
            continue
        place = [case["rows"], case["batch"], contender]
        value = statistics.median(run[key] for run in found)
        times = statistics.median(run[key] / ours[key] for run, ours in zip(found, runs["ours"], strict=True))
        if case["kind"] == "rate":
            yield ["rows delivered", *place, value, "rows/s", times]
        else:
            yield ["peak memory", *place, value / 2**20, "MiB", times]


def main() -> None:
    parser = parser_of(__doc__, "10^5 and 10^6 rows, one round")
    parser.add_argument("--rounds", type=int, default=3, help="of the rates")
    arguments = parse(parser, child)
    cases = cases_of(arguments.quick, arguments.rounds)
    print(f"{len(cases)} cases, on two cores about {2 if arguments.quick else 12} minutes", file=sys.stderr)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = write_encoder(Path(folder))
        for contenders, rounds, case in cases:
            located = case
            if case["kind"] != "plan":
                source_of(case["rows"])
                located = {**case, "path": path}
            [(_, runs)] = in_turn(__file__, contenders, [located], rounds)
            records.append({**case, "runs": runs})
            rows += lines(case, runs)
    report("data", ["what", "rows", "batch", "contender", "value", "unit", "× ours"], rows, records)


if __name__ == "__main__":
    main()
