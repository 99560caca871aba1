"""Checkpoints that PyLate itself writes, and what it makes of others, against the vectors that this program scores.

PyLate wants older releases of its libraries, so it runs in an environment of its own:

    python -m venv pylate && pylate/bin/pip install pylate==1.6.0
    PYLATE_PYTHON=pylate/bin/python python -m pytest -m slow tests/models/test_pylate.py
"""

import json
import os
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from test_layouts import TEXTS, assert_same_vectors, one_phase, their_vectors, train, vectors

from colbert_zero.models.checkpoints import load_model
from example_bases import stanford

PYTHON = os.environ.get("PYLATE_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="PYLATE_PYTHON names no environment with PyLate"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "without query expansion": {"do_query_expansion": False},
    "lengths, prefixes and skip list of its own": {
        "query_length": 12, "document_length": 20, "query_prefix": "ask: ", "document_prefix": "",
        "skiplist_words": ["."],
    },
    "filled up, and attended to": {"attend_to_expansion_tokens": True, "query_length": 16},
}  # fmt: skip

IN_PYLATE = """
import json, sys
import numpy as np
from pylate import models

order = json.load(open(sys.argv[1]))
for number, (start, settings, out) in enumerate(order["models"]):
    model = models.ColBERT(start, device="cpu", embedding_size=16, **settings)
    model.eval()
    vectors = [
        vector for task, texts in order["texts"].items() for vector in model.encode(texts, is_query=task == "query")
    ]
    np.savez(out + ".npz", *vectors)
    if start != out:
        model.save_pretrained(out)
"""


def by_pylate(folder, models):
    """Load or make models in PyLate, save those that are new; the vectors of the texts by each.

    Args:
        folder: For what goes to and fro.
        models: What each starts from, its settings, and the folder it is saved to.
    """
    texts = {task: list(of_task.values()) for task, of_task in TEXTS.items()}
    order = {"texts": texts, "models": [[str(start), settings, str(out)] for start, settings, out in models]}
    (folder / "order.json").write_text(json.dumps(order))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([str(PYTHON), "-c", IN_PYLATE, str(folder / "order.json")], check=True, env=environment, timeout=250)
    found = []
    for _, _, out in models:
        with np.load(f"{out}.npz") as arrays:
            found.append([torch.from_numpy(array) for array in arrays.values()])
    return found


@pytest.fixture(scope="module")
def written(backbone, tmp_path_factory):
    """Of each settings, the folder that PyLate wrote and its vectors."""
    root = tmp_path_factory.mktemp("pylate")
    folders = [root / str(number) for number in range(len(SETTINGS))]
    found = by_pylate(root, [(backbone, *pair) for pair in zip(SETTINGS.values(), folders, strict=True)])
    return dict(zip(SETTINGS, zip(folders, found, strict=True), strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_what_pylate_writes_gives_its_vectors_here_as_a_base_and_after_a_phase_of_learning_rate_0(
    written, name, tmp_path
):
    folder, expected = written[name]
    assert_same_vectors(vectors(load_model(folder)), expected)
    trained = train(one_phase(tmp_path, folder, "multi-vector"))
    assert_same_vectors(vectors(load_model(trained)), expected)
    assert_same_vectors(their_vectors(trained, "multi-vector"), expected)


def test_pylate_and_this_program_read_a_stanford_checkpoint_alike(backbone, tmp_path):
    stanford(tmp_path / "base", backbone)
    [expected] = by_pylate(tmp_path, [(tmp_path / "base", {}, tmp_path / "base")])
    assert_same_vectors(vectors(load_model(tmp_path / "base")), expected)
