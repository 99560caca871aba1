"""Benchmarks that reach into the program's inside still run on it."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from colbert_zero.evaluation.significance import compare, holm
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.report.records import MEASURE
from helpers import ROOT, environment

CHILD = """
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
    command = [sys.executable, "-c", CHILD, name, json.dumps(case), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if name == "resume":
        assert 0 < found["waited_seconds"] < found["seconds"]
    else:
        assert found["rows_per_second"] > 0


@pytest.mark.parametrize("name", ["healing", "merging", "upstream"])
def test_a_benchmark_that_is_a_study_has_a_recipe_with_every_system_that_it_tells(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    study = importlib.import_module(name)
    recipe = check_recipe(study.recipe_of(tmp_path, "sentence-transformers/all-MiniLM-L6-v2"))
    told = {system.partition("@")[0] for systems in study.SYSTEMS.values() for system in systems}
    assert told - {"bm25"} <= {*recipe.pipelines, *recipe.ensembles}
    assert {one for question in study.QUESTIONS for one in question} <= set(study.SYSTEMS)


def test_of_cuts_that_fit_those_are_tried_of_which_no_other_has_more_of_everything(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    dominance = importlib.import_module("dominance")
    check_recipe(dominance.recipe_of(tmp_path, "sentence-transformers/all-MiniLM-L6-v2", 24))
    narrow, deep, grid, less = (dominance.Way(*of) for of in ((3, 1.0, None, True), (4, 0.5, None, True),
                                                               (6, 1.0, 8, True), (3, 0.5, 8, True)))  # fmt: skip
    assert dominance.most_of([narrow, deep, grid, less]) == [narrow, deep, grid]


def test_what_is_asked_of_several_parts_is_corrected_over_all_of_them(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    show_tests = importlib.import_module("healing").show_tests
    dice = np.random.default_rng(1)

    def system(more):
        return {str(query): {MEASURE: float(score)} for query, score in enumerate(more + dice.normal(0, 0.1, 40))}

    scores = {name: {"a": system(0.04), "b": system(0.0)} for name in ("one", "other")}
    parts = {"first": ["one"], "second": ["other"]}
    show_tests(scores, [("a", "b")], parts)
    shown = [line.split(" | ")[3] for line in capsys.readouterr().out.splitlines() if " − " in line]
    alone = [compare({name: scores[name]}, [("a", "b")], MEASURE)[0]["p_value"] for name in scores]
    assert max(alone) < 1
    assert shown == [f"{p:.3f}" for p in holm(alone)] != [f"{p:.3f}" for p in alone]
