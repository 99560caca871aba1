"""An exported graph that computes a model's vectors in PyTorch's place: by ONNX Runtime, or OpenVINO."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from sentence_transformers.base.modules import Dense, Normalize

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import file_fingerprint, parse_json
from colbert_zero.models.checkpoints import Encoder

MODEL, SETTINGS = "model.onnx", "onnx.json"
OUTPUT = "token_embeddings"

Runtime = Literal["onnxruntime", "openvino", "openvino-bfloat16"]

_LARGEST = 1 << 20
"""Characters of onnx.json; it has a thousandth of that."""

_Run = Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Graph:
    """A graph's file by `export`, and what runs it."""

    file: Path
    runtime: Runtime = "onnxruntime"

    @property
    def words(self) -> str:
        """What an index says computed its vectors."""
        return f"{self.file.name} ({file_fingerprint(self.file)[:12]}) by {self.runtime}"


def graph_at(place: Path, runtime: Runtime = "onnxruntime") -> Graph:
    """The graph at a place: a folder by `export`, for its float32 one, or a file in it.

    Raises:
        ColbertZeroError: There is none, or what runs it is not installed.
    """
    file = place / MODEL if place.is_dir() else place
    for needed in (file, file.parent / SETTINGS):
        if not needed.is_file():
            raise ColbertZeroError(
                f"--graph {place}: has no {needed.name}; name a folder by `colbert-zero export MODEL --to onnx`, or a "
                "graph in it"
            )
    check_runtime(runtime)
    return Graph(file, runtime)


def check_runtime(runtime: Runtime) -> None:
    """Refuse a runtime that is not installed."""
    package = runtime.removesuffix("-bfloat16")
    if find_spec(package) is None:
        raise ColbertZeroError(f"{package} is not installed; pip install 'colbert-zero[cpu]'")


def computed_by(encoder: Encoder, graph: Graph) -> Encoder:
    """The same model, computed by an exported graph.

    Args:
        encoder: What was exported; stays as it is.
        graph: By `export_onnx`.

    Raises:
        ColbertZeroError: The graph is another model's, or cannot be loaded.
    """
    if encoder.device.type != "cpu":
        raise ColbertZeroError(
            f"--graph: computes on the processor, and the model is on {encoder.device}; leave --graph out, or hide the "
            "device (CUDA_VISIBLE_DEVICES=)"
        )
    settings = _settings(graph.file.parent / SETTINGS)
    if settings.get("weights") != weights_digest(encoder):
        raise ColbertZeroError(f"{graph.file}: is not a graph of this model; export the model that the index has")
    if settings.get("graphs", {}).get(graph.file.name) != file_fingerprint(graph.file):
        raise ColbertZeroError(f"{graph.file}: is not as it was exported; export the model again")
    try:
        inputs, run = _RUNTIMES[graph.runtime](graph.file)
    except Exception as error:  # of the runtime, with a file that is no graph
        raise ColbertZeroError(f"{graph.file}: {graph.runtime} cannot load it ({reason(error)})") from None

    def forward(features: dict[str, Any], **_: Any) -> dict[str, Any]:
        try:
            found = run({name: features[name].numpy() for name in inputs})
        except Exception as error:  # of the runtime: memory, an operation it lacks
            raise ColbertZeroError(f"{graph.file}: {graph.runtime} cannot run it ({reason(error)})") from None
        return features | {OUTPUT: torch.from_numpy(found)}

    first = copy.copy(cast(Any, encoder)[0])
    first.forward = forward
    own = copy.copy(encoder)
    rest = [module for module in list(encoder)[1:] if not isinstance(module, Dense | Normalize)]
    own._modules = {str(place): module for place, module in enumerate([first, *rest])}
    return own


def _settings(file: Path) -> dict[str, Any]:
    """What `export` wrote beside its graphs.

    Raises:
        ColbertZeroError: It is not that.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            found = parse_json(opened.read(_LARGEST))
        if not isinstance(found, dict) or not isinstance(found.get("graphs", {}), dict):
            raise ValueError("no settings of an export")
    except (OSError, ValueError) as error:
        raise ColbertZeroError(f"{file}: cannot be read ({reason(error)}); export the model again") from None
    return found


def weights_digest(encoder: Encoder) -> str:
    """Digest of all weights of a model, wherever it was loaded from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weights in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
        digest.update(weights.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _onnxruntime(file: Path) -> tuple[list[str], _Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return [given.name for given in session.get_inputs()], lambda given: session.run([OUTPUT], given)[0]


def _openvino(file: Path, precision: str = "f32") -> tuple[list[str], _Run]:
    import openvino

    # Its own choice would be bfloat16 where the processor has it; where it has not, "bf16" is float32.
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(file), "CPU", options)
    # What it returns is its own memory, used again by the next call.
    return [given.any_name for given in compiled.inputs], lambda given: compiled(given)[0].copy()


_RUNTIMES: dict[Runtime, Callable[[Path], tuple[list[str], _Run]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-bfloat16": lambda file: _openvino(file, "bf16"),
}
