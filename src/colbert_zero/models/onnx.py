"""A checkpoint as an ONNX graph, with all that computes inside: encoder, projection, normalisation.

sentence-transformers' own ONNX backend stands on optimum-onnx, whose newest release (0.1.0) wants transformers before
4.58, while the checkpoints here are written and read by transformers 5: the two cannot be installed together. So the
graph is exported by PyTorch's own exporter. It ends in the vectors that are scored, so that an engine without PyTorch
needs nothing more than the tokenizer; which tokens are scored is a matter of ids, and stands in `onnx.json`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch import Tensor, nn

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import file_fingerprint, write_json
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.comparing import unknown_modules
from colbert_zero.models.encoding import evaluating, prompt_of
from colbert_zero.models.graphs import MODEL, OUTPUT, SETTINGS, weights_digest
from colbert_zero.models.scored_tokens import scored_in_words

INT8 = "model_int8.onnx"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TEXTS = ["The lift of a wing.", "Drag of a thin wing, measured in a wind tunnel."]


def check_installed() -> None:
    """Refuse to begin without the packages of the extra `cpu`."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise ColbertZeroError(f"export: {package} is not installed; pip install 'colbert-zero[cpu]'")


class _Graph(nn.Module):
    """What is exported: token ids to the vectors that are scored."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = cast(Any, encoder)[0].get_submodule("model")
        self.heads = nn.ModuleList(module for module in encoder if isinstance(module, Dense | Normalize))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(texts, tokens, dim) of ids and mask, (texts, tokens)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        features: dict[str, Tensor] = {OUTPUT: states, "attention_mask": attention_mask}
        for head in self.heads:
            features = head(features)
        return features[OUTPUT]


def export_onnx(encoder: Encoder, folder: Path, int8: bool) -> list[Path]:
    """Write a multi-vector model as ONNX, its tokenizer, and what stands around the graph.

    Args:
        encoder: Multi-vector, on the CPU.
        folder: Is there, and empty.
        int8: Write a second graph, its weights in int8, quantised by onnxruntime without any data.

    Returns:
        The graphs.

    Raises:
        ColbertZeroError: The model has parts that this export does not know, or PyTorch cannot export it.
    """
    _check(encoder)
    features = cast(Any, encoder).preprocess(_TEXTS, prompt=prompt_of(encoder, "document"), task="document")
    inputs = [name for name in _INPUTS if name in features]
    texts, tokens = torch.export.Dim("texts", min=1), torch.export.Dim("tokens", min=2)
    try:
        with evaluating(encoder), torch.no_grad(), _quiet():
            torch.onnx.export(
                _Graph(encoder).eval(), tuple(features[name] for name in inputs), str(folder / MODEL), dynamo=True,
                input_names=inputs, output_names=[OUTPUT], external_data=False, verbose=False,
                dynamic_shapes={name: {0: texts, 1: tokens} for name in inputs},
            )  # fmt: skip
    except Exception as error:  # of the exporter, with any architecture
        raise ColbertZeroError(f"MODEL: PyTorch cannot export this architecture to ONNX: {reason(error)}") from None
    graphs = [folder / MODEL]
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # A scale for each output: with one for a whole matrix, vectors of MiniLM kept a cosine of .95, with these .98.
        with _quiet():
            quantize_dynamic(str(folder / MODEL), str(folder / INT8), weight_type=QuantType.QInt8, per_channel=True)
        graphs.append(folder / INT8)
    encoder.tokenizer.save_pretrained(str(folder))
    cast(Any, encoder)[0].get_submodule("model").config.save_pretrained(str(folder))
    digests = {graph.name: file_fingerprint(graph) for graph in graphs}
    write_json(folder / SETTINGS, _settings(encoder, inputs) | {"graphs": digests})
    return graphs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of packages and steps that are nothing to the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check(encoder: Encoder) -> None:
    if not isinstance(encoder, MultiVectorEncoder):
        raise ColbertZeroError("export: for multi-vector models; sentence-transformers exports dense ones itself")
    if unknown := unknown_modules(encoder):
        raise ColbertZeroError(f"MODEL: has {', '.join(unknown)}, which this export does not know; `evaluate --pool 1` "
                               "shows what a model scores without pooling")  # fmt: skip


def _settings(encoder: Encoder, inputs: list[str]) -> dict[str, Any]:
    """What stands around the graph, for engines that read no sentence-transformers checkpoint."""
    transformer: Any = cast(Any, encoder)[0]
    mask = next((module for module in encoder if isinstance(module, MultiVectorMask)), None)
    skipped, filled = scored_in_words(encoder)
    ids = encoder.tokenizer.convert_tokens_to_ids(skipped) if skipped else []
    return {
        "inputs": inputs,
        "output": OUTPUT,
        "dim": encoder.get_embedding_dimension(),
        "query": {"prompt": prompt_of(encoder, "query") or "", "tokens": getattr(transformer, "query_length", None)},
        "document": {
            "prompt": prompt_of(encoder, "document") or "", "tokens": getattr(transformer, "document_length", None),
        },
        "query_expansion": filled,
        "expansion": transformer.query_expansion,
        "skip_list": skipped,
        "skip_ids": ids,
        "skipped_in": list(mask.skiplist_tasks) if mask else [],
        "only_ids": mask.keep_only_token_ids if mask else None,
        "score": encoder.similarity_fn_name,
        "weights": weights_digest(encoder),
    }  # fmt: skip
