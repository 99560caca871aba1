"""MaxSim and whole contrastive steps on a CUDA device: python benchmarks/gpu.py [--quick] [--interpret]

First the device's own matrix rate: a bf16 product of two 8192 × 8192 matrices; and whether every contender is right on
it: the largest difference of scores and of gradients from the definition in float64, as a share of the largest of them.
Then MaxSim, forward alone and with its backward, of equal batches of queries and documents: 39 × 187 tokens, on average
110 of the 187 real, dim 128, bf16; 1 % of the pairs have a gradient, as at temperature 0.02, or all. The roofline is
the FLOPs of the real tokens' products, once, at the device's rate; where the best tokens are known the backward pass
multiplies nothing. Then our Triton kernels with other tiles: the fastest is to be written into `triton_kernels.py`,
which looks for nothing while it runs. Then the whole step of a ModernBERT-base with random weights: `ContrastiveLoss`
forward and backward on random texts of those lengths, padded, unpadded, compiled; and the padded one by two processes
that share the device (gloo, since nccl wants one each), whose loss and gradient must be those of one.

Every case runs in a process of its own: its time is the median of three after one warm-up, its memory the most that
PyTorch's allocator held, inputs included. A case that runs out of memory or of time says so. Without a device the table
says "not measured"; --interpret runs tiny cases on the CPU, in Triton's interpreter, to show that the script works.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from colbert_zero.errors import ColbertZeroError
from harness import SOURCE, parse, parser_of, report

Q_TOKENS, D_TOKENS, MEAN_D_TOKENS, DIM = 39, 187, 110, 128
LIMIT_SECONDS = 300
TILES, GROUPS = (1 << 12, 1 << 13, 1 << 14), (8, 16, 32)
CONTENDERS = ["einsum", "late-interaction-kernels", "torch", "triton"]


def measure(step: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """seconds (median) and peak_bytes of a step, on the device if there is one."""
    cuda = torch.cuda.is_available()
    step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0}


def matrix_rate(size: int) -> dict[str, float]:
    """FLOP a second of a bf16 product, ten of them at a time so that starting them does not count."""
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    found = measure(lambda: [a @ a for _ in range(10)])
    return {**found, "flops_per_second": 10 * 2 * size**3 / found["seconds"]}


def document_lengths(batch: int) -> Tensor:
    """(batch,): between 33 and 187 tokens, evenly, so 110 on average."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2 * MEAN_D_TOKENS - D_TOKENS, D_TOKENS + 1, (batch,), generator=generator)


class Maxsim:
    """One contender's scores of equal batches of padded embeddings, packing a part of it, and weights of a gradient."""

    def __init__(self, contender: str, batch: int, gradient_share: float):
        from colbert_zero.maxsim.backends import BACKEND_VARIABLE, backend, refused

        self.contender, self.dtype = contender, torch.float32 if DEVICE == "cpu" else torch.bfloat16
        self.mask = (torch.arange(D_TOKENS) < document_lengths(batch)[:, None]).to(DEVICE)
        self.q, self.d = self._embeddings(batch, Q_TOKENS), self._embeddings(batch, D_TOKENS)
        self.weights = torch.randn(batch, batch, device=DEVICE)
        self.weights *= torch.rand(batch, batch, device=DEVICE) < gradient_share
        os.environ[BACKEND_VARIABLE] = "auto" if contender == "einsum" else contender
        # Another would take its place, and stand under its name.
        if contender != "einsum" and DEVICE == "cuda" and (used := backend(self.q.device)) != contender:
            raise ImportError(f"{used} in its place: {refused(self.q.device)[contender]}")

    def _embeddings(self, batch: int, tokens: int) -> Tensor:
        unit = torch.nn.functional.normalize(torch.randn(batch, tokens, DIM, device=DEVICE), dim=-1)
        return unit.to(self.dtype).requires_grad_()

    def scores(self) -> Tensor:
        from colbert_zero.maxsim.packed import pack
        from colbert_zero.maxsim.scores import _checked, packed_scores

        if self.contender == "einsum":
            return defined(self.q, self.d, self.mask)
        q, d = pack(self.q), pack(self.d, self.mask)
        if DEVICE == "cpu" and self.contender == "triton":
            from colbert_zero.maxsim.triton_kernels import scores as kernels

            return kernels(_checked(q), _checked(d))
        return packed_scores(q, d)

    def step(self) -> None:
        self.q.grad = self.d.grad = None
        self.scores().backward(self.weights)


def defined(q: Tensor, d: Tensor, mask: Tensor) -> Tensor:
    """MaxSim of all pairs, as it is defined."""
    products = torch.einsum("qid,kjd->qkij", q, d).masked_fill(~mask[:, None], float("-inf"))
    best = products.amax(3)
    return (best if best.dtype == torch.float64 else best.float()).sum(2)


def right_case(contender: str, batch: int) -> dict[str, float]:
    """How far scores and gradients are from the definition in float64, as a share of the largest of them."""
    of = Maxsim(contender, batch, 1.0)
    of.step()
    q, d = (x.detach().double().cpu().requires_grad_() for x in (of.q, of.d))
    exact = defined(q, d, of.mask.cpu())
    exact.backward(of.weights.double().cpu())
    pairs = [(of.scores(), exact), (of.q.grad, q.grad), (of.d.grad, d.grad)]
    off = [float((found.detach().double().cpu() - own).abs().max() / own.abs().max()) for found, own in pairs]
    return {"scores_off": off[0], "gradient_off": max(off[1:])}


def maxsim_case(contender: str, batch: int, gradient_share: float) -> dict[str, float]:
    """One forward pass of one contender, and one with its backward pass."""
    of = Maxsim(contender, batch, gradient_share)
    forward = measure(of.scores)
    return measure(of.step) | {"forward_seconds": forward["seconds"]}


def tiles_case(batch: int, elements: int, group: int) -> dict[str, float]:
    """Our Triton kernels with tiles of so many elements, and so many documents a program."""
    from colbert_zero.maxsim import triton_kernels

    width = 4 if DEVICE == "cpu" else 2
    triton_kernels.TILE_ELEMENTS[width], triton_kernels.GROUP = elements, group
    return maxsim_case("triton", batch, 0.01)


def modern_bert(folder: Path, unpad: bool, tiny: bool) -> Any:
    """A multi-vector ModernBERT-base with random weights."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from tokenizers import Tokenizer, models
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    names = {f"{name[1:-1].lower()}_token": name for name in vocabulary}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    special = {"pad_token_id": 1, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ModernBertModel(ModernBertConfig(**special, **(small if tiny else {}))).save_pretrained(folder)
    attention = "flash_attention_2" if unpad else "sdpa"
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    options = {"attn_implementation": attention, "dtype": dtype}
    transformer = Transformer(str(folder), model_kwargs=options, unpad_inputs=unpad)
    if unpad and getattr(transformer, "data_collator", None) is None:
        raise ImportError("flash attention is not installed")
    tokens = {"module_input_name": "token_embeddings"}
    dense = Dense(
        transformer.get_embedding_dimension(),
        DIM,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_output_name="token_embeddings",
        **tokens,
    ).to(dtype)
    return MultiVectorEncoder(modules=[transformer, dense, MultiVectorMask(), Normalize(**tokens)], device=DEVICE)


def step_case(
    batch: int, unpad: bool, mini_batch_tokens: int, tiny: bool = False, compiled: bool = False, shared: bool = False
) -> dict[str, float]:
    """Forward and backward of the contrastive loss of a whole batch, the optimiser not included.

    Where it is `shared`, this is one of several processes, each of which has its part of the batch.
    """
    from colbert_zero.processes import average_gradients, process_rank, sums, world_size
    from colbert_zero.training import execution
    from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
    from colbert_zero.training.objectives import Contrastive

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = modern_bert(Path(folder), unpad, tiny)
    if shared:  # only now, since transformers lets the first process alone write the folder
        torch.distributed.init_process_group("gloo")
    model = execution.compiled(model) if compiled else model
    objective, texts = Contrastive(temperature=0.02).to(DEVICE), []
    own = slice(process_rank(), None, world_size())
    for task, lengths in (("query", torch.full((batch,), Q_TOKENS)), ("document", document_lengths(batch))):
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.randint(5, 50_000, mask.shape)
        texts.append(
            TokenisedTexts(task, input_ids=(ids * mask + (1 - mask))[own], attention_mask=mask[own]).to(
                torch.device(DEVICE)
            )
        )

    def step() -> float:
        model.zero_grad()
        loss, _ = grad_cache(model, texts, objective.of(*texts), mini_batch_tokens)
        average_gradients(model.parameters())
        return float(loss)

    timed = measure(step, 1 if tiny else 3)
    found = torch.cat([weights.grad.flatten().float() for weights in model.parameters() if weights.grad is not None])
    along = torch.randn(len(found), generator=torch.Generator().manual_seed(1)).to(found.device)
    projected = float(found @ along / found.norm())  # of a gradient that points elsewhere it is another
    return timed | {"loss": sums(step())[0] / world_size(), "norm": float(found.norm()), "projected": projected}


def processes_case(**step: Any) -> dict[str, Any]:
    """The step by two processes that share the device, and how far loss and gradient are from those of one."""
    case = {"kind": "step", "shared": True, **step}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, __file__, "--child", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found, text, both = json.JSONDecoder(), done.stdout, []
    while "{" in text:  # both print, on one line at times
        one, end = found.raw_decode(text[text.index("{") :])
        both, text = [*both, one], text[text.index("{") + end :]
    if done.returncode or any("failure" in one for one in both):
        print(done.stderr, file=sys.stderr)
        return next((one for one in both if "failure" in one), {"failure": "failed, see above"})
    alone = step_case(**step)
    off = {"loss_off": abs(both[0]["loss"] / alone["loss"] - 1), "norm_off": abs(both[0]["norm"] / alone["norm"] - 1)}
    off["projected_off"] = abs(both[0]["projected"] - alone["projected"])
    return both[0] | off | {"peak_bytes": sum(one["peak_bytes"] for one in both)}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """A case in a process of its own: its figures, or why there are none."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    if case.get("interpret"):
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    elif not torch.cuda.is_available():
        return {"failure": "not measured"}
    command = [sys.executable, __file__, "--child", json.dumps(case)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            out, err = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:  # each in a session of its own
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            return {"failure": f"over {LIMIT_SECONDS} s"}
    if process.returncode:
        print(f"{case} failed:\n{err}", file=sys.stderr)
        return {"failure": "failed, see above"}
    return json.loads(out.splitlines()[-1])


def child(kind: str, interpret: bool = False, **case: Any) -> dict[str, Any]:
    """Run one case in this process."""
    try:
        return KINDS[kind](**case)
    except torch.OutOfMemoryError:
        return {"failure": "out of memory"}
    except (ImportError, ColbertZeroError) as error:
        return {"failure": f"not available: {error}"}


def cases(interpret: bool, quick: bool) -> list[dict[str, Any]]:
    """The measurements, smallest batches first."""
    if interpret:
        batches, contenders, budgets, extra = [2], ["einsum", "torch", "triton"], [512], {"interpret": True}
    else:
        batches, contenders, extra = [1024, 4096, 16384][: 1 if quick else 3], CONTENDERS, {}
        budgets = [32_768] if quick else [32_768, 65_536]
    found: list[dict[str, Any]] = [
        {"kind": "right", "contender": contender, "batch": min(64, batches[0]), **extra} for contender in contenders
    ]
    for batch in batches:
        for share in (0.01, 1.0):
            for contender in contenders:
                found.append(
                    {"kind": "maxsim", "contender": contender, "batch": batch, "gradient_share": share, **extra}
                )
    tiles = itertools.product(TILES, GROUPS) if not interpret else [(1 << 12, 16), (1 << 11, 8)]
    found += [{"kind": "tiles", "batch": batches[:2][-1], "elements": n, "group": m, **extra} for n, m in tiles]
    tiny = {"tiny": True} if interpret else {}
    hows: list[dict[str, bool]] = [{"unpad": False}, {"unpad": True}, {"unpad": False, "compiled": True}]
    for batch in batches:
        for budget in budgets:
            sizes = {"batch": batch, "mini_batch_tokens": budget, **tiny, **extra}
            found += [{"kind": "step", **sizes, **how} for how in (hows[:1] if interpret else hows)]
    sizes = {"batch": batches[0], "mini_batch_tokens": budgets[0], **tiny, **extra}
    return [*found, {"kind": "processes", **sizes, "unpad": False}]


def row(case: dict[str, Any], result: dict[str, Any], rate: float) -> list[Any]:
    """One line of the table."""
    floor: float | str = ""
    forward = 1e3 * result["forward_seconds"] if "forward_seconds" in result else ""
    if case["kind"] == "right":
        how = result.get("failure") or "off by {scores_off:.1e}, gradients {gradient_off:.1e}".format(**result)
        return [case["batch"], f"MaxSim, {case['contender']}", how, *[""] * 5]
    if case["kind"] == "tiles":
        what = ["MaxSim, triton", f"{case['elements']} elements, {case['group']} documents"]
    elif case["kind"] == "processes":
        told = "; off by: loss {loss_off:.1e}, gradient {norm_off:.1e} in length, {projected_off:.1e} in direction"
        off = told.format(**result) if "loss_off" in result else ""
        what = ["step, two processes", f"{case['mini_batch_tokens']} tokens a chunk{off}"]
    elif case["kind"] == "maxsim":
        what = [f"MaxSim, {case['contender']}", f"{case['gradient_share']:.0%} of pairs"]
        flops = 2 * DIM * case["batch"] * Q_TOKENS * int(document_lengths(case["batch"]).sum())
        floor = 1e3 * flops / rate if rate else ""
    else:
        kind = "compiled" if case.get("compiled") else "unpadded" if case["unpad"] else "padded"
        what = [f"step, {kind}", f"{case['mini_batch_tokens']} tokens a chunk"]
    if "failure" in result:
        return [case["batch"], *what, result["failure"], "", "", floor, ""]
    milliseconds = 1e3 * result["seconds"]
    times = milliseconds / floor if isinstance(floor, float) else ""
    return [case["batch"], *what, milliseconds, forward, result["peak_bytes"] / 1e9, floor, times]


def main() -> None:
    parser = parser_of(__doc__, "batch 1024 only")
    parser.add_argument("--interpret", action="store_true", help="tiny cases in Triton's interpreter, on the CPU")
    arguments = parse(parser, child)
    interpret = {"interpret": True} if arguments.interpret else {}
    speed = run({"kind": "rate", "size": 64 if interpret else 8192, **interpret})
    rate = speed.get("flops_per_second", 0.0)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(f"{name}; bf16 product: {f'{rate / 1e12:.3g} TFLOP/s' if rate else speed['failure']}")
    rows, records = [], [{"kind": "rate", "device": name, **speed}]
    for case in cases(arguments.interpret, arguments.quick):
        result = run(case)
        records.append({**case, **result})
        rows.append(row(case, result, rate))
    columns = ["batch", "what", "how", "ms", "forward ms", "peak GB", "roofline ms", "× roofline"]
    report("gpu-interpreted" if interpret else "gpu", columns, rows, records)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "rate": matrix_rate,
    "right": right_case,
    "maxsim": maxsim_case,
    "tiles": tiles_case,
    "step": step_case,
    "processes": processes_case,
}

if __name__ == "__main__":
    main()
