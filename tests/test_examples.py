"""The examples run as they are."""

import json
import subprocess
import sys
from typing import Any

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.serving.index.building import build
from helpers import DOCUMENTS, ROOT, environment

EXAMPLES = ROOT / "examples"


def run(name, *words, folder):
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_named_in_the_readme_and_run_here():
    readme, here = (ROOT / "README.md").read_text(), (ROOT / "tests" / "test_examples.py").read_text()
    recipes = (ROOT / "tests" / "recipe" / "test_paper_recipes.py").read_text()
    for example in EXAMPLES.iterdir():
        assert f"examples/{example.name}" in readme
        assert f'"{example.name}"' in here + recipes


@pytest.mark.slow
def test_a_phase_is_trained_from_python_and_its_checkpoint_trained_on_elsewhere(tmp_path):
    said = run("train_phase.py", "trained", folder=tmp_path)
    assert "20 steps" in said
    model = tmp_path / "trained" / "sums-0" / "model"
    said = run("losses_in_sentence_transformers.py", model, "losses", folder=tmp_path)
    losses = dict(line.split() for line in said.splitlines() if line.startswith(("contrastive", "distillation")))
    assert 0 < float(losses["contrastive"]) < 4
    assert 0 < float(losses["distillation"]) < 1
    assert (tmp_path / "losses" / "model" / "modules.json").is_file()


@pytest.mark.slow
def test_a_study_is_run_from_python_and_read_by_the_notebook(tmp_path):
    less = ["sources.scored.queries=48", "sources.hard.queries=200", "validation.layers=false"]
    less += [f"phases.{phase}.steps=4" for phase in load_recipe("smoke").phases]
    said = run("study.py", "study", *less, folder=tmp_path)
    assert "kd-only {'held-out'" in said
    assert (tmp_path / "study" / "report.html").is_file()
    notebook = json.loads((EXAMPLES / "read_a_study.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells[0] = cells[0].replace('"out/quickstart"', '"study"')
    script = tmp_path / "cells.py"
    script.write_text("import matplotlib\nmatplotlib.use('Agg')\n" + "\n".join(cells))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "full" in done.stdout
    assert "worst" in done.stdout


def test_the_notebook_searches_an_index_and_explains(tmp_path, monkeypatch, tiny_multi_vector):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    rows = [{"_id": name, "text": text, "part": "all"} for name, text in DOCUMENTS.items()]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = tmp_path / "out" / "demo" / "a.index"
    build(str(tmp_path / "model"), documents_of([str(tmp_path / "docs.jsonl")], "corpus"), index)
    notebook = json.loads((EXAMPLES / "search_an_index.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        exec("".join(cell["source"]), known)
    assert "<mark" in known["answer"]._repr_html_()
    assert known["best"].explanation.parts
    assert known["chosen"] == {"part": "all"}


@pytest.mark.parametrize("name", ["read_a_study.ipynb", "search_an_index.ipynb"])
def test_a_notebook_is_kept_without_outputs(name):
    notebook = json.loads((EXAMPLES / name).read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
