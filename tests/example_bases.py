"""Checkpoints in the layouts that exist, each with something of its own that training must keep."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling

from colbert_zero.models.alignment import Alignment
from colbert_zero.models.encoders import assemble, save_model

TOKENS = {"module_input_name": "token_embeddings"}
Make = Callable[[Path, Path], None]
"""Writes a checkpoint to the first folder, made from the plain encoder in the second."""


def sentence_transformers(kind, *head, prompts=None, similarity=None, **transformer) -> Make:
    def make(folder, backbone):
        torch.manual_seed(5)
        modules = [Transformer(str(backbone), **transformer), *(module() for module in head)]
        model = kind(modules=modules, prompts=prompts, similarity_fn_name=similarity, device="cpu")
        model.save_pretrained(str(folder), create_model_card=False)

    return make


dense, multi_vector = (partial(sentence_transformers, kind) for kind in (SentenceTransformer, MultiVectorEncoder))


def projection(width=32, dim=16, activation=torch.nn.Identity, **more):
    return Dense(width, dim, False, activation(), **TOKENS, **more)


def pylate(**config) -> Make:
    """PyLate 1.x: two modules, the rest in the configuration."""

    def make(folder, backbone):
        multi_vector(projection)(folder, backbone)
        tokenizer = Transformer(str(backbone)).tokenizer
        tokenizer.add_tokens(["[Q] ", "[D] "])
        tokenizer.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        name = "embeddings.word_embeddings.weight"
        weights[name] = torch.cat([weights[name], torch.randn(2, 32) / 3])
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        _change(folder / "config.json", vocab_size=len(tokenizer))
        modules = json.loads((folder / "modules.json").read_text())[:2]
        modules[0]["type"], modules[1]["type"] = "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"
        settings = {"max_seq_length": 20, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
        (folder / "modules.json").write_text(json.dumps(modules))
        written = {
            "__version__": {"sentence_transformers": "4.0.2"}, "prompts": {}, "default_prompt_name": None,
            "similarity_fn_name": "MaxSim", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 14,
            "document_length": 20, "attend_to_expansion_tokens": False, "skiplist_words": [".", ","],
            "do_query_expansion": True,
        }  # fmt: skip
        (folder / "config_sentence_transformers.json").write_text(json.dumps(written | config))

    return make


def stanford(folder, backbone):
    """One file of weights with the projection inside, settings in artifact.metadata."""
    multi_vector(projection)(folder, backbone)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(16, 32) / 6
    for path in (*folder.rglob("*Dense*/*"), folder / "modules.json", folder / "config_sentence_transformers.json"):
        path.unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _change(folder / "config.json", architectures=["HF_ColBERT"])
    settings = {
        "query_token_id": "[Q]", "doc_token_id": "[D]", "query_maxlen": 12, "doc_maxlen": 20, "dim": 16,
        "similarity": "cosine", "mask_punctuation": True, "attend_to_mask_tokens": False,
    }  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(settings))


def ours(representation) -> Make:
    def make(folder, backbone):
        alignment = Alignment("q: ", "d: ", "[Q]", "[D]", 10, 20)
        save_model(assemble(str(backbone), representation, alignment, 16, 5, "one"), folder, alignment)

    return make


def plain(folder, backbone):
    """An encoder of transformers."""
    transformer = Transformer(str(backbone))
    transformer.model.save_pretrained(folder)
    transformer.tokenizer.save_pretrained(folder)


def _change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def normalize():
    return Normalize(**TOKENS)


def skips():
    return MultiVectorMask(skiplist_words=["wing", "body"])


PROMPTS = {"query": "query: ", "passage": "passage: ", "clustering": "cluster: "}
FIXED = {"strategy": "fixed", "attend": False, "length": 14}
AT_LEAST = {"strategy": "min", "attend": True, "length": 10}

DENSE: dict[str, Make] = {
    "sentence-transformers, mean": dense(lambda: Pooling(32, pooling_mode="mean")),
    "sentence-transformers, cls, dense head, dot product": dense(
        lambda: Pooling(32, pooling_mode="cls"), lambda: Dense(32, 8), similarity="dot"
    ),
    "sentence-transformers, weighted mean, prompts, 18 tokens, lower-cased": dense(
        lambda: Pooling(32, pooling_mode="weightedmean"), Normalize, prompts=PROMPTS, max_seq_length=18,
        do_lower_case=True,
    ),
    "sentence-transformers, mean of the text without its prompt": dense(
        lambda: Pooling(32, pooling_mode="mean", include_prompt=False), Normalize, prompts=PROMPTS
    ),
    "colbert-zero, dense": ours("dense"),
}  # fmt: skip
MULTI_VECTOR: dict[str, Make] = {
    "sentence-transformers, skip list, prompts": multi_vector(
        projection, skips, normalize, prompts={"query": "[Q] ", "document": "[D] "}, query_length=12,
        document_length=20,
    ),
    "sentence-transformers, two projections, residual, not normalised, mean of maxima": multi_vector(
        lambda: projection(32, 24, torch.nn.GELU, use_residual=True), lambda: projection(24, 8), MultiVectorMask,
        similarity="meanmaxsim",
    ),
    "sentence-transformers, queries filled up": multi_vector(
        projection, MultiVectorMask, normalize, query_expansion=FIXED
    ),
    "sentence-transformers, queries filled up at least, pooled tokens": multi_vector(
        projection, MultiVectorMask, normalize, lambda: HierarchicalTokenPooling(2.0), query_expansion=AT_LEAST
    ),
    "PyLate": pylate(model_type="ColBERT"),
    "PyLate without model_type": pylate(),
    "PyLate without query expansion": pylate(model_type="ColBERT", do_query_expansion=False),
    "Stanford ColBERT": stanford,
    "colbert-zero, multi-vector": ours("multi-vector"),
}  # fmt: skip
PLAIN: dict[str, Make] = {"transformers": plain}
