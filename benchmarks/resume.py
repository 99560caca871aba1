"""Time to the first step of a resumed phase, against transformers' trainer: python benchmarks/resume.py [--quick]

One epoch of the 10^7 pairs of data.py in batches of 128, resumed after its first step (0 %), in the middle (50 %) and
near its end (99 %). The encoder is tiny, so that the first step takes milliseconds. Ours is `train_phase`; the peer is
sentence-transformers' trainer, which is transformers', on the same Arrow files as a DatasetDict with its default
samplers, resuming as it does by default: the sampler draws and drops the numbers of rows trained before. An iterable
data set, as streaming needs, has no such sampler: there it reads and tokenises them; that is measured with 10^5 rows.
All have the same model, batch size and one process; each its own contrastive loss.

The checkpoints are each trainer's own, saved after one step. To stand for a later step, they get what training until
there would have left in them besides other weights: the step, the epoch, the schedule's step, and the log with an entry
for each logged step: at most 10,000 of them for us, every 500th for the peer, whose default that is.

Two times: from the call, which loads the model and the checkpoint, to the first step's optimiser step; and that part of
it in which training waited for its first batch, read and tokenised. Imports, opening the Arrow files and a first short
phase, which loads what is loaded once, come before both. Tensors are so small that one thread is fastest.
"""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import alignment, source_of, their_trainer, write_encoder
from harness import calibrate, in_turn, parse, parser_of, report

BATCH, DIM, WARM_ROWS, LOGGED = 128, 16, 10**5, 500
PERCENT = [0, 50, 99]


class FirstStep(BaseException):
    """Ends training after its first step; no error, so that nothing handles it."""


def steps_of(rows: int) -> int:
    """Steps of one epoch, a batch from one part."""
    from colbert_zero.data.prepared import open_source

    return sum(len(part) // BATCH for part in open_source("rows", source_of(rows)).parts.values())


def log_until(log: list[dict[str, Any]], step: int, steps: int, every: int, own: bool) -> list[dict[str, Any]]:
    """The log after step 1 as it would be after `step`, with an entry every so many steps and one of its own."""
    [entry] = log
    logged = [*range(every, step, every), *([step] if own else [])]
    return [{**entry, "step": s, "epoch": s / steps} for s in logged]


class Ours:
    """`train_phase`, as a recipe's phase calls it."""

    def __init__(self, start: str, rows: int, folder: Path):
        from colbert_zero.data.prepared import open_source
        from colbert_zero.recipe.schema import Phase

        spec = {"representation": "multi-vector", "objective": "contrastive", "sources": ["rows"]}
        self.spec = Phase(**spec, global_batch_size=BATCH, learning_rate=1e-4, checkpoint_every=1)
        self.start, self.folder, self.steps = start, folder / f"ours-{rows}", steps_of(rows)
        self.parts, self.waited, self.prepared = open_source("rows", source_of(rows)).parts, 0.0, False

    def train(self, stop_at: int) -> dict[str, float]:
        """Train, or go on, until a step is done; its seconds from the call, and those waited for its batch."""
        from colbert_zero.training.phase import order_of_parts, train_phase
        from colbert_zero.training.training import Training

        run = Training(
            name="benchmark",
            id="0",
            chain=("benchmark",),
            parent=None,
            start=self.start,
            spec=self.spec,
            alignment=alignment(),
            seed=1,
            order=order_of_parts(self.spec, self.parts, 1, "benchmark"),
            steps=self.steps,
            dim=DIM,
        )
        times = {}

        def progress(log: dict[str, Any]) -> None:
            if self.prepared and log["step"] < stop_at:
                raise SystemExit(f"step {log['step']} was trained: the checkpoint before step {stop_at} was not taken")
            if log["step"] == stop_at:
                times["seconds"] = time.perf_counter() - called
                times["waited_seconds"] = log["waited_seconds"] - self.waited
                raise FirstStep

        called = time.perf_counter()
        try:
            train_phase(run, self.parts, self.folder, (progress,))
        except FirstStep:
            return times
        raise SystemExit("training ended before its first step")

    def prepare(self, step: int) -> None:
        """A checkpoint after `step` steps."""
        from colbert_zero.files import read_json, write_checksums, write_json
        from colbert_zero.training.log import LOG_ENTRIES

        self.train(stop_at=2)
        work = self.folder.with_name(self.folder.name + ".unfinished")
        checkpoint = (work / "step-1").rename(work / f"step-{step}")
        every = math.ceil(self.steps / LOG_ENTRIES)
        state = read_json(checkpoint / "state.json")
        log = log_until(state["log"]["entries"], step, self.steps, every, own=True)
        self.waited = log[-1]["waited_seconds"]
        state["log"] |= {"step": step, "entries": log}
        write_json(checkpoint / "state.json", {**state, "step": step})
        schedule = read_json(checkpoint / "schedule.json")
        schedule["schedule"] |= {"last_epoch": step, "_step_count": step + 1}
        write_json(checkpoint / "schedule.json", schedule)
        (checkpoint / "checksums.json").unlink()
        write_checksums(checkpoint)
        self.prepared = True


class Theirs:
    """sentence-transformers' trainer."""

    streamed = False

    def __init__(self, start: str, rows: int, folder: Path):
        self.start, self.rows, self.output, self.steps = start, rows, folder / f"theirs-{rows}", steps_of(rows)
        self.checkpoint: Path | None = None

    def train(self, stop_at: int, save: bool = False) -> dict[str, float]:
        """Train, or go on, until a step is done; its seconds from the call, and those waited for its batch."""
        from transformers import TrainerCallback

        from colbert_zero.models.encoders import assemble

        times: dict[str, float] = {}

        class Clock(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                times["begun"] = time.perf_counter()

            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                times.setdefault("in_hand", time.perf_counter())

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == stop_at:
                    times["ended"] = time.perf_counter()
                    if not save:
                        raise FirstStep
                    control.should_training_stop = control.should_log = control.should_save = True

        called = time.perf_counter()
        model = assemble(self.start, "multi-vector", alignment(), DIM, 1, "benchmark")
        arguments = {"max_steps": self.steps, "logging_steps": LOGGED, "save_steps": 10**9, "learning_rate": 1e-4}
        trainer = their_trainer(model, self.rows, BATCH, str(self.output), None, self.streamed, **arguments)
        trainer.add_callback(Clock())
        try:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        except FirstStep:
            assert trainer.state.global_step == stop_at
        return {"seconds": times["ended"] - called, "waited_seconds": times["in_hand"] - times["begun"]}

    def prepare(self, step: int) -> None:
        """A checkpoint after `step` steps."""
        import torch

        self.train(stop_at=1, save=True)
        self.checkpoint = (self.output / "checkpoint-1").rename(self.output / f"checkpoint-{step}")
        path = self.checkpoint / "trainer_state.json"
        state = json.loads(path.read_text())
        log = log_until(state["log_history"], step, self.steps, LOGGED, own=False)
        moved = {"global_step": step, "epoch": step / self.steps, "log_history": log}
        path.write_text(json.dumps({**state, **moved}, indent=2))
        schedule = torch.load(self.checkpoint / "scheduler.pt", weights_only=True)
        torch.save({**schedule, "last_epoch": step, "_step_count": step + 1}, self.checkpoint / "scheduler.pt")


class TheirsStreamed(Theirs):
    """The same on an iterable data set, which has no sampler that could skip: it reads and tokenises what it drops."""

    streamed = True


CONTENDERS: dict[str, Callable[..., Any]] = {
    "ours": Ours, "sentence-transformers": Theirs, "sentence-transformers, streamed": TheirsStreamed,
}  # fmt: skip


def child(contender: str, path: str, rows: int, step: int) -> dict[str, Any]:
    """One contender's measurement, in this process."""
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # A short phase of fewer rows first: what is loaded once is no part of the times.
        CONTENDERS[contender](path, WARM_ROWS, Path(folder)).train(stop_at=2)
        phase = CONTENDERS[contender](path, rows, Path(folder))
        phase.prepare(step)
        before = calibrate()
        times = phase.train(stop_at=step + 1)
        return {**times, "calibration_seconds": max(before, calibrate())}


def main() -> None:
    parser = parser_of(__doc__, "10^6 rows, one round")
    parser.add_argument("--rows", type=int, nargs="+", help="only these sizes")
    arguments = parse(parser, child)
    # The streamed peer reads and tokenises what it skips, so only the smallest size can be waited for.
    sizes = [WARM_ROWS, 10**6] if arguments.quick else [WARM_ROWS, 10**6, 10**7]
    sizes = arguments.rows or sizes
    print(f"{3 * len(sizes)} cases, on two cores about {5 if arguments.quick else 20} minutes", file=sys.stderr)
    source_of(WARM_ROWS)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = write_encoder(Path(folder))
        for size in sizes:
            source_of(size)
            for percent in PERCENT:
                step = max(1, steps_of(size) * percent // 100)
                case = {"path": path, "rows": size, "step": step}
                contenders = [name for name in CONTENDERS if size == WARM_ROWS or "streamed" not in name]
                rounds = 1 if arguments.quick or size == WARM_ROWS else 3
                [(_, runs)] = in_turn(__file__, contenders, [case], rounds)
                records.append({"rows": size, "percent": percent, "step": step, "runs": runs})
                for contender, found in runs.items():
                    line: list[Any] = [size, f"{percent} %", step, contender]
                    for key in ("seconds", "waited_seconds"):
                        pairs = zip(found, runs["ours"], strict=True)
                        line.append(1e3 * statistics.median(run[key] for run in found))
                        line.append(statistics.median(run[key] / ours[key] for run, ours in pairs))
                    rows.append(line)
    columns = ["rows", "at", "step", "contender", "ms to the first step", "× time", "ms to its batch", "× time"]
    report("resume", columns, rows, records)


if __name__ == "__main__":
    main()
