"""The options of `index`, `search` and `serve` that let an exported graph encode in PyTorch's place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from colbert_zero.errors import ColbertZeroError

if TYPE_CHECKING:
    from colbert_zero.models.graphs import Graph

GraphOption = Annotated[
    Path | None,
    typer.Option(
        "--graph",
        metavar="PATH",
        help="Encode by a graph of the same model, in place of PyTorch: a folder by `export --to onnx`, or its "
        "model_int8.onnx.",
    ),
]
RuntimeOption = Annotated[
    Literal["onnxruntime", "openvino", "openvino-bfloat16"], typer.Option(help="Of --graph: what runs it.")
]


def graph_of(
    graph: Path | None, runtime: Literal["onnxruntime", "openvino", "openvino-bfloat16"], on_qdrant: object = None
) -> "Graph | None":
    """The graph that is asked for.

    Args:
        graph: Where it is.
        runtime: What is to run it.
        on_qdrant: Where documents are to be added on Qdrant, whose index does not say what encoded it.

    Raises:
        ColbertZeroError: It is not there, its runtime not installed, or the options do not go together.
    """
    if graph is None:
        if runtime != "onnxruntime":
            raise ColbertZeroError("--runtime: runs a graph; name that too (--graph FOLDER)")
        return None
    if on_qdrant is not None:
        raise ColbertZeroError("--graph: encodes documents of an index of files; on Qdrant it is for search and serve")
    from colbert_zero.models.graphs import graph_at

    return graph_at(graph, runtime)
