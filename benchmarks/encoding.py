"""Encoding by PyTorch and by exported graphs: python benchmarks/encoding.py [--quick] [--model MODEL]

Documents a second (as long as the model reads), and the time of one query, of the MiniLM-sized encoder of
training_step.py with random weights, or of --model; the same texts for all. In turn, in one process, after one of each
to warm up; medians of the rounds, and of the ratios within a round. Beside it the least cosine of a token's vector with
PyTorch's; what int8 costs in nDCG@10 `colbert-zero export --to onnx --int8` finds on a collection. Needs the extra cpu.

On a processor with units for bfloat16 (AMX, or AVX-512's) there are also PyTorch, by a copy of the weights, and
OpenVINO in bfloat16.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.graphs import MODEL, Graph, check_runtime, computed_by
from colbert_zero.models.onnx import INT8, check_installed, export_onnx
from colbert_zero.models.precision import encoding_in, faster
from evaluation import texts
from harness import parser_of, report
from training_step import model_of, write_encoder


def seconds(step: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    step(*given)
    return time.perf_counter() - start


def main() -> None:
    parser = parser_of(__doc__, "a quarter of the texts, two rounds")
    parser.add_argument("--model", help="a multi-vector model, in place of random weights")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    check_installed()
    check_runtime("openvino")
    count, rounds = (16, 2) if asked.quick else (64, asked.rounds)
    corpus, queries = (list(found.values()) for found in texts(count))
    documents = [f"{text} {text}" for text in corpus]  # as long as the model reads
    with tempfile.TemporaryDirectory() as folder:
        if asked.model:
            model = load_model(asked.model, device="cpu")
        else:
            model = model_of("ours", write_encoder(Path(folder), "MiniLM-sized", corpus))
        out = Path(folder) / "onnx"
        out.mkdir()
        export_onnx(model, out, int8=True)
        contenders: dict[str, Encoder] = {"PyTorch": model}
        if faster(torch.device("cpu")) == "bfloat16":
            contenders["PyTorch, bfloat16"] = encoding_in(model, "bfloat16")
            contenders["OpenVINO, bfloat16"] = computed_by(model, Graph(out / MODEL, "openvino-bfloat16"))
        for name, file, runtime in (
            ("ONNX Runtime", MODEL, "onnxruntime"), ("ONNX Runtime, int8", INT8, "onnxruntime"),
            ("OpenVINO", MODEL, "openvino"), ("OpenVINO, int8", INT8, "openvino"),
        ):  # fmt: skip
            contenders[name] = computed_by(model, Graph(out / file, runtime))

        def encoded(name: str, rows: list[str], task: str) -> torch.Tensor:
            return encode(contenders[name], rows, task).values

        wanted = encoded("PyTorch", documents, "document")
        nearest = {name: (encoded(name, documents, "document") * wanted).sum(1).min().item() for name in contenders}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name in contenders:
                some = queries[10 * number % len(queries) :][:10]
                one = statistics.median(seconds(encoded, name, [query], "query") for query in some)
                times[name].append((seconds(encoded, name, documents, "document") / count, one))
    rows, records = [], []
    for name, found in times.items():
        (documents_s, query_s), own = zip(*found[1:], strict=True), times["PyTorch"][1:]
        ratios = [statistics.median(a[at] / b[at] for a, b in zip(own, found[1:], strict=True)) for at in (0, 1)]
        rows.append([name, 1 / statistics.median(documents_s), ratios[0], 1e3 * statistics.median(query_s), ratios[1],
                     f"{nearest[name]:.4f}"])  # fmt: skip
        records.append({"name": name, "times": found, "cosine": nearest[name]})
    columns = ["", "documents/s", "× PyTorch", "ms a query", "× PyTorch", "least cosine"]
    report("encoding", columns, rows, {"model": asked.model, "threads": torch.get_num_threads(), "records": records})


if __name__ == "__main__":
    main()
