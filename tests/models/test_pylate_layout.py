"""Exports to PyLate's layout: they give the model's vectors, read here and by PyLate itself, or are not kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from colbert_zero.files import read_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.comparing import TEXTS, TOLERANCE, vectors_of
from colbert_zero.models.pylate import export_pylate
from example_bases import MULTI_VECTOR, multi_vector, normalize, projection, skips
from helpers import PROMPTS, succeed

PYTHON = os.environ.get("PYLATE_PYTHON")
FIXED = {"strategy": "fixed", "attend": False, "length": 14}
LAYOUTS = {
    "prompts after markers": MULTI_VECTOR["colbert-zero, multi-vector"],
    "skip list": multi_vector(projection, skips, normalize, prompts=PROMPTS, query_length=12, document_length=20),
    "queries filled up": multi_vector(
        projection,
        MultiVectorMask,
        normalize,
        prompts=PROMPTS,
        query_expansion=FIXED,
        query_length=14,
        document_length=20,
    ),
    "no marker": multi_vector(projection, normalize, query_length=12, document_length=20),
}
IN_PYLATE = """
import json, sys
import numpy as np
from pylate import models

model = models.ColBERT(sys.argv[1], device="cpu")
model.eval()
vectors = []
for task, texts in json.loads(sys.argv[2]).items():
    prompt = {"prompt_name": task} if model.prompts.get(task) else {}
    vectors += model.encode(texts, is_query=task == "query", **prompt)
np.savez(sys.argv[3], *vectors)
"""


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_export_gives_the_models_vectors(name, backbone, tmp_path):
    LAYOUTS[name](tmp_path / "model", backbone)
    assert export_pylate(tmp_path / "model", tmp_path / "out") <= TOLERANCE
    types = [module["type"] for module in read_json(tmp_path / "out" / "modules.json")]
    assert types == ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="PYLATE_PYTHON names no environment with PyLate")
@pytest.mark.parametrize("name", LAYOUTS)
def test_pylate_itself_gives_the_models_vectors(name, backbone, tmp_path):
    LAYOUTS[name](tmp_path / "model", backbone)
    export_pylate(tmp_path / "model", tmp_path / "out")
    environment = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    words = [str(PYTHON), "-c", IN_PYLATE, str(tmp_path / "out"), json.dumps(TEXTS), str(tmp_path / "found.npz")]
    succeed(words, tmp_path, **environment)
    expected = vectors_of(load_model(tmp_path / "model", device="cpu"))
    with np.load(tmp_path / "found.npz") as found:
        for one, other in zip(found.values(), expected, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other.numpy()).max() <= 1e-5


def test_what_the_layout_has_no_place_for_is_refused_and_nothing_written(command, backbone, tmp_path):
    MULTI_VECTOR["sentence-transformers, queries filled up at least, pooled tokens"](tmp_path / "model", backbone)
    code, _, err = command("export", tmp_path / "model", "--to", "pylate", "--out", tmp_path / "out")
    assert (code, "queries filled up at least" in err, "HierarchicalTokenPooling" in err) == (2, True, True), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "onnx"), "--collection goes with --to onnx"),
        (("--to", "pylate", "--collection", "x"), "--collection goes with --to onnx"),
        (("--to", "pylate", "--int8"), "--int8 goes with --to onnx"),
    ],
)
def test_options_that_do_not_go_together_are_told_at_once(command, tmp_path, words, message):
    code, _, err = command("export", "nowhere", *words, "--out", Path("out"))
    assert (code, message in err) == (2, True), err
