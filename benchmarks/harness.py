"""What the benchmarks share: fair timings on a busy machine, peak memory, one table, one JSON file.

Every contender runs in a process of its own, in turn with the others, several rounds. A process times a
fixed matrix product (the calibration) around each of its steps; a step whose calibration is more than 20 %
slower than the best seen was disturbed and is repeated, visibly. Ratios are medians over the rounds of the
ratios within a round.
Peak memory is the process's high-water mark above its resident inputs.
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from peers import python_of

TOLERANCE = 1.2
RESULTS = Path(__file__).parent / "results"
SOURCE = Path(__file__).parent.parent / "src"


def calibrate() -> float:
    """Seconds of a fixed product, best of three: what the machine can do now."""
    a = torch.ones(768, 768)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found.group(1)) * 1024


def measure(step: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Peak memory of one step, then the least disturbed time of `repeats` more; of 0, that one step's.

    Returns:
        seconds (median), calibration_seconds (best), disturbed (steps thrown away), peak_bytes.
    """
    calibrate()
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    seconds = _seconds(step)
    peak = status("VmHWM") - before
    first = calibrate(), seconds
    runs = [] if repeats else [first]
    best, clean = first[0], [first[1]]
    for _ in range(4 * repeats):
        runs.append(_timed(step))
        best = min(calibration for calibration, _ in runs)
        clean = [seconds for calibration, seconds in runs if calibration <= TOLERANCE * best]
        if len(clean) >= repeats:
            break
    return {
        "seconds": statistics.median(clean),
        "calibration_seconds": best,
        "disturbed": len(runs) - len(clean),
        "peak_bytes": peak,
    }


def _timed(step: Callable[[], Any]) -> tuple[float, float]:
    """The calibration around one step, the slower of before and after, and the step's seconds."""
    before = calibrate()
    seconds = _seconds(step)
    return max(before, calibrate()), seconds


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turn(
    script: str, contenders: list[str], cases: list[dict[str, Any]], rounds: int
) -> Iterator[tuple[dict[str, Any], dict[str, list[dict[str, float]]]]]:
    """Run every contender on every case, alternating, each in its own process; yields case and its runs."""
    pythons = {}
    for contender in contenders:
        python, note = python_of(contender)
        if python is None:
            print(f"{contender}: not available, {note}", file=sys.stderr)
        else:
            pythons[contender] = python
    for case in cases:
        runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in pythons}
        for _ in range(rounds):
            for contender, python in pythons.items():
                runs[contender].append(_gated_run(script, contender, python, case, runs))
        yield case, runs


def _gated_run(
    script: str, contender: str, python: str, case: dict[str, Any], runs: dict[str, list[dict[str, float]]]
) -> dict[str, float]:
    """One process; repeated, at most twice, while its calibration is 20 % off the best of the case."""
    environment = {"GOMP_SPINCOUNT": "20000", **os.environ, "PYTHONPATH": str(SOURCE)}
    for attempt in range(3):
        done = subprocess.run(
            [python, script, "--child", json.dumps({"contender": contender, **case})],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode:
            raise SystemExit(f"{contender} on {case} failed:\n{done.stderr}")
        run = json.loads(done.stdout.splitlines()[-1])
        best = min([r["calibration_seconds"] for rs in runs.values() for r in rs] + [run["calibration_seconds"]])
        if run["calibration_seconds"] <= TOLERANCE * best:
            break
        print(f"{contender} on {case}: machine busy, attempt {attempt + 1}", file=sys.stderr)
    return run


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of each contender, and how many times slower and larger it is than `ours`."""
    rows = {}
    for contender, found in runs.items():
        pairs = list(zip(found, runs["ours"], strict=True))
        rows[contender] = {
            "milliseconds": 1e3 * statistics.median(run["seconds"] for run in found),
            "peak_mebibytes": statistics.median(run["peak_bytes"] for run in found) / 2**20,
            "times_slower": statistics.median(run["seconds"] / ours["seconds"] for run, ours in pairs),
            "times_memory": statistics.median(run["peak_bytes"] / ours["peak_bytes"] for run, ours in pairs),
            "disturbed": sum(run["disturbed"] for run in found),
        }
    return rows


def host() -> dict[str, str]:
    """The processor, and the instructions it has that arithmetic is chosen by."""
    from colbert_zero.study.host import cpu_features, processor  # a peer's Python, which imports this file, lacks it

    return {"processor": processor(), "cpu_features": " ".join(cpu_features())}


def report(name: str, columns: list[str], rows: list[list[Any]], records: Any) -> None:
    """Print one table and write the records to results/<name>.json."""
    cells = [
        columns,
        *[[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows],
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **host(),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


def parser_of(doc: str, quick: str) -> argparse.ArgumentParser:
    """A benchmark's options: what `--quick` means, and `--child`, a case that this process measures."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser, child: Callable[..., dict[str, Any]]) -> argparse.Namespace:
    """The options; a child prints its measurement and ends here."""
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(**arguments.child)))
        raise SystemExit
    return arguments
