"""A step in bfloat16 against the same in float32, by every kind of product that this processor has."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from colbert_zero.models.encoders import tokeniser
from colbert_zero.models.encoding import forward
from helpers import DOCUMENTS, environment

SCRIPT = """
import json, sys, torch
from colbert_zero.models.encoders import tokeniser
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.precision import attend_fast
from colbert_zero.training.execution import autocast_of
from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
from colbert_zero.training.objectives import Contrastive

def gradient(arithmetic, tokens):
    model = load_model(sys.argv[1], device="cpu").eval()  # no dropout, which both ways of attending draw otherwise
    attend_fast(model, arithmetic)
    columns = json.loads(sys.argv[2])
    sides = [TokenisedTexts(task, **tokeniser(model)(texts, task)) for task, texts in columns.items()]
    loss, work = grad_cache(model, sides, Contrastive().of(*sides), tokens, autocast_of(arithmetic, model.device))
    assert (work.repeated > 0) == (tokens == 60)
    return torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.grad is not None]), loss

found = {}
for tokens in (60, 10_000):
    (own, loss), (half, other) = (gradient(arithmetic, tokens) for arithmetic in ("float32", "bfloat16"))
    found[tokens] = [float((half - own).norm() / own.norm()), abs(float(other / loss) - 1)]
print(json.dumps(found))
"""

KINDS = {
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512_CORE": torch.cpu._is_avx512_supported,
    "AVX512_CORE_BF16": torch.cpu._is_avx512_bf16_supported,
    "AVX512_CORE_AMX": torch.cpu._is_amx_tile_supported,
}
"""As oneDNN names them, by which PyTorch multiplies, and whether this processor has them."""

SHOWN = {"AVX512_CORE_BF16": "avx512_core_bf16", "AVX512_CORE_AMX": "amx"}
"""What stands in oneDNN's account of a product in bfloat16 by units for it."""


@pytest.mark.parametrize("of", ["tiny_dense", "tiny_multi_vector"])
def test_plain_attention_has_fused_attentions_vectors_and_gradient_in_float32(of, request):
    model, found = copy.deepcopy(request.getfixturevalue(of)).eval(), {}
    for attention in ("sdpa", "eager"):
        model[0].get_submodule("model").set_attn_implementation(attention)
        model.zero_grad()
        values = forward(model, tokeniser(model)(list(DOCUMENTS.values()), "document"), "document").values
        (values * torch.linspace(-1, 1, values.shape[-1])).sum().backward()
        gradient = torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.grad is not None])
        found[attention] = values.detach(), gradient
    for fused, plain in zip(found["sdpa"], found["eager"], strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_bfloat16_has_nearly_float32s_loss_and_gradient_in_one_chunk_and_in_several(
    kind, tiny_dense, tmp_path
):
    # Of a dense model: with random weights MaxSim has near ties, whose turning over moves a fifth of its gradient.
    if not KINDS[kind]():
        pytest.skip(f"this processor has no {kind}")
    tiny_dense.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    texts = {"query": [" ".join(text.split()[-3:]) for text in DOCUMENTS.values()], "document": [*DOCUMENTS.values()]}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), json.dumps(texts)],
        capture_output=True,
        text=True,
        env=environment(
            ONEDNN_VERBOSE=1, ONEDNN_MAX_CPU_ISA=kind, **({"ATEN_CPU_CAPABILITY": "avx2"} if kind == "AVX2" else {})
        ),
    )
    assert done.returncode == 0, done.stderr
    products = {line.split(",")[6] for line in done.stdout.splitlines() if ",exec,cpu,matmul," in line}
    for one, mark in SHOWN.items():
        assert any(mark in product for product in products) == (one == kind), products
    for gradient, loss in json.loads(done.stdout.splitlines()[-1]).values():
        assert 0 < gradient < 0.05
        assert loss < 0.01
