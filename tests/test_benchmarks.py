"""Benchmarks that reach into the program's inside still run on it."""

import json
import subprocess
import sys

import pytest

from helpers import ROOT, environment

MEASURE = """
import importlib, json, sys
from pathlib import Path
import data
name, case, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
data.RESULTS = folder
data.source_of(10**5)
path = data.write_encoder(folder)
print(json.dumps(importlib.import_module(name).child(path=path, **case)))
"""
RATE = {"kind": "rate", "rows": 10**5, "batch": 128, "timed_rows": 1024, "repeats": 1}
PEER = "sentence-transformers"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"),
    [("data", {"contender": "ours", **RATE}), ("data", {"contender": PEER, **RATE}),
     ("resume", {"contender": "ours", "rows": 10**5, "step": 390}),
     ("resume", {"contender": PEER, "rows": 10**5, "step": 390})],
    ids=str,
)  # fmt: skip
def test_a_benchmark_of_the_loader_or_of_resuming_measures_a_case(name, case, tmp_path):
    command = [sys.executable, "-c", MEASURE, name, json.dumps(case), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if name == "resume":
        assert 0 < found["waited_seconds"] < found["seconds"]
    else:
        assert found["rows_per_second"] > 0
