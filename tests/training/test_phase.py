"""The training loop: its plain version, its precision, what it records of itself."""

import json

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from torch.utils._python_dispatch import TorchDispatchMode

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.maxsim.backends import BACKEND_VARIABLE, wanted
from colbert_zero.models.cross_encoders import assemble_cross_encoder, pair_tokeniser
from colbert_zero.models.encoders import assemble, tokeniser
from colbert_zero.models.encoding import forward, scored_type
from colbert_zero.models.precision import attend_fast
from colbert_zero.training import gradcache, phase
from colbert_zero.training.batches import Batches
from colbert_zero.training.machine import going_on, machine_of, tell_tf32
from colbert_zero.training.objectives import Contrastive, objective_of
from colbert_zero.training.record import PhaseRecord
from helpers import TOPICS, data, processor_with, rows, study, with_cross_encoder, write_rows
from oracles import train

SMALL = {"mini_batch_tokens": 150}
CASES = {
    "dense": ("dense", {"schedule": "cosine", "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "multi-vector": ("unsupervised", {"schedule": "constant", "warmup": 0.4, "max_gradient_norm": 0.2}),
    "multi-vector, cached, dropout": ("unsupervised", SMALL),
    "a learned temperature": ("unsupervised", {"temperature": {"initial": 0.5, "learnable": True}}),
    "bfloat16": ("unsupervised", {"precision": "bfloat16", **SMALL}),
    "hard negatives": ("supervised", {}),
    "distillation": ("distillation", {"temperature": 0.25}),
}


@pytest.mark.parametrize(("name", "changes"), CASES.values(), ids=CASES)
def test_a_phase_is_trained_as_the_plain_loop_trains_it_to_the_bit(tmp_path, name, changes, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path, teachers={"blend": {"bm25_weight": 1.0}})
    recipe["phases"][name] |= {**changes, "steps": 4}
    if changes is SMALL:
        recipe["model"]["architecture"]["hidden_dropout_prob"] = 0.1
    seen = {}

    def observed(training, parts, folder, *rest):
        seen.update(training=training, parts=parts)
        return phase.train_phase(training, parts, folder, *rest)

    monkeypatch.setattr("colbert_zero.study.study.train_phase", observed)
    one = study(tmp_path, recipe)
    one.prepare([(name,)])
    record = one.train((name,))
    training, spec = seen["training"], seen["training"].spec
    model = assemble(training.start, spec.representation, training.alignment, training.dim, training.seed, name)
    attend_fast(model, spec.precision)
    batches = Batches(seen["parts"], training.order, tokeniser(model), training.steps, spec.hard_negatives)
    losses = train(model, objective_of(spec), batches, spec, training.seed)
    assert [entry["loss"] for entry in record["losses"]] == losses
    written = load_file(one.phase_folder((name,)) / "model" / "model.safetensors")
    trained = model[0].get_submodule("model").state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in written.items())


def test_a_contrastive_phase_takes_negatives_from_scored_candidates_below_max_relative(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    pairs = list(rows(64))
    with open(tmp_path / "scored.jsonl", "w") as file:
        for n, row in enumerate(pairs):
            documents = [row["document"], *(pairs[(n + k) % 64]["document"] for k in (1, 2, 3))]
            scores = [1.0, 0.99 if n < 32 else 0.5, 0.98, 0.2]
            file.write(json.dumps({"query": row["query"], "documents": documents, "scores": scores}) + "\n")
    recipe = data(tmp_path)
    recipe["sources"]["own"] = {"kind": "jsonl", "path": str(tmp_path / "scored.jsonl")}
    recipe["phases"]["supervised"] |= {"sources": ["own"], "max_relative": 0.95}
    one = study(tmp_path, recipe)
    one.prepare([("supervised",)])
    record = one.train(("supervised",))
    [near] = record["near"].values()
    assert near == {"rows": 64, "candidates": 192, "left_out": 96, "fewer": 32, "without_shares": 0}
    [source] = record["sources"].values()
    assert source["negatives"] == 2
    assert record["texts"] == 3 * 8 * 4


def test_a_cross_encoder_is_trained_as_the_plain_loop_trains_it_to_the_bit(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = with_cross_encoder(tmp_path, {**SMALL, "sources": ["hard"], "temperature": {"initial": 0.5}})
    recipe["model"]["architecture"]["hidden_dropout_prob"] = 0.1
    training, parts, one = observed_training(tmp_path, recipe, ("reranker",))
    spec, record = training.spec, read_json(one.phase_folder(("reranker",)) / "phase.json")
    model = assemble_cross_encoder(training.start, training.alignment, training.seed, "reranker")
    batches = Batches(
        parts, training.order, pair_tokeniser(model), training.steps, spec.hard_negatives, pairs=True
    )  # fmt: skip
    assert [entry["loss"] for entry in record["losses"]] == train(
        model, objective_of(spec), batches, spec, training.seed
    )
    written = load_file(one.phase_folder(("reranker",)) / "model" / "model.safetensors")
    trained = model[0].get_submodule("model").state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in written.items())


def observed_training(folder, recipe, chain):
    """A phase trained by a study: what was trained, on which parts, and the study."""
    seen = {}

    def observed(training, parts, place, *rest):
        seen.update(training=training, parts=parts)
        return phase.train_phase(training, parts, place, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("colbert_zero.study.study.train_phase", observed)
        one = study(folder, recipe)
        one.prepare([chain])
        one.train(chain)
    return seen["training"], seen["parts"], one


def trained_on(folder, lines, phase):
    """A study with a cross-encoder that starts its pipeline and is trained on these rows."""
    write_rows(folder / "pairs.jsonl")
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = with_cross_encoder(folder, {"sources": ["own"]} | phase, {"pipeline": ["reranker"]})
    recipe["sources"]["own"] = {"kind": "jsonl", "path": str(folder / "own.jsonl")}
    return study(folder, recipe)


@pytest.mark.parametrize("objective", ["listwise", "binary"])
def test_a_cross_encoder_learns_to_put_answers_before_their_negatives(tmp_path, objective):
    words = TOPICS[0].split()
    lines = [
        {
            "query": f"{words[n % 8]} {n}",
            "document": f"{words[n % 8]} {words[n % 7]} answers",
            "negatives": [f"{words[n % 8]} {words[(n + k) % 5]} asks" for k in (1, 2, 3)],
        }
        for n in range(64)
    ]
    rate = {"global_batch_size": 32, "steps": 30, "learning_rate": 5e-3}
    one = trained_on(tmp_path, lines, {"objective": objective} | rate)
    one.prepare([("reranker",)])
    losses = [entry["loss"] for entry in one.train(("reranker",))["losses"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    scorer = CrossEncoder(str(one.phase_folder(("reranker",)) / "model"))
    first = sum(
        int(scorer.predict([(line["query"], text) for text in (line["document"], *line["negatives"])]).argmax() == 0)
        for line in lines
    )
    assert first > 0.9 * len(lines)


def test_a_cross_encoders_record_tells_of_pairs(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = with_cross_encoder(tmp_path, {"negatives": 2, "query_tokens": 8, "document_tokens": 9, **SMALL})
    _, _, one = observed_training(tmp_path, recipe, ("reranker",))
    record = read_json(one.phase_folder(("reranker",)) / "phase.json")
    record.pop("schema")
    assert PhaseRecord.model_validate(record).representation == "cross-encoder"
    assert list(record["sampled"]) == ["pair"]
    sample = record["sampled"]["pair"]
    assert (sample["texts"], sample["cut"] > 0, sample["lost"] > 0) == (3 * 64, True, True)
    assert record["texts"] == record["steps"] * record["global_batch_size"] * 3
    assert record["tokens"] <= record["texts"] * 16
    assert record["second_pass_tokens"] == record["tokens"] + record["padding_tokens"]
    assert record["layers"] is None
    assert record["prompts"] == {"query": "", "document": ""}
    assert not (one.phase_folder(("reranker",)) / "model" / "colbert_zero.json").exists()


def test_a_cross_encoders_negatives_are_drawn_anew_at_each_step_and_each_stands_with_its_query(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = with_cross_encoder(tmp_path, {"negatives": "2 of 3", "steps": 17})
    training, parts, _ = observed_training(tmp_path, recipe, ("reranker",))
    seen, drawn = [], {}

    def remember(pairs, task):
        seen.append((task, pairs))
        return {"input_ids": torch.ones(len(pairs), 1, dtype=torch.int64),
                "attention_mask": torch.ones(len(pairs), 1, dtype=torch.int64)}  # fmt: skip

    batches = Batches(parts, training.order, remember, 17, training.spec.hard_negatives, pairs=True)
    table = {}
    for part in parts.values():
        columns = part.read(range(len(part)))
        pairs = zip(columns["document"], columns["negatives"], strict=True)
        table |= dict(zip(columns["query"], pairs, strict=True))
    for step in range(17):
        batches[step]
        (_, answers), (_, others) = seen[-2:]
        assert (len(answers), len(others)) == (8, 16)
        for place, (query, document) in enumerate(answers):
            assert document == table[query][0]
            taken = tuple(others[column * 8 + place] for column in (0, 1))
            assert {q for q, _ in taken} == {query}
            assert {text for _, text in taken} < set(table[query][1])
            drawn.setdefault(query, set()).add(frozenset(text for _, text in taken))
    assert any(len(sets) > 1 for sets in drawn.values())


NO_GOOD = {
    "no negatives": ({}, 3, "sources: own/own has a row without hard negatives, and a cross-encoder learns from them"),
    "too few": ({"negatives": ["e"]}, 3, "negatives: 3, but own/own has rows with only 1"),
    "equal documents": (
        {"document": "same", "negatives": ["same"]}, 1, "sources: all 160 documents looked at are the same text (own",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "negatives", "message"), NO_GOOD.values(), ids=NO_GOOD)
def test_data_that_a_cross_encoder_cannot_learn_from_are_refused(tmp_path, row, negatives, message):
    lines = [{"query": f"q {n}", "document": f"d {n}"} | row for n in range(80)]
    one = trained_on(tmp_path, lines, {"negatives": negatives})

    def prepare_and_train():
        one.prepare([("reranker",)])
        one.train(("reranker",))

    with pytest.raises(ColbertZeroError) as error:
        prepare_and_train()
    assert f"phases.reranker.{message}" in str(error.value)
    assert not one.is_done(("reranker",))


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast."""

    def __init__(self, model):
        super().__init__()
        self.weights = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.counts = dict.fromkeys(self.weights.values(), 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and (name := self.weights.get(args[0].data_ptr())):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["tiny_multi_vector", "tiny_dense"])
def test_mixed_precision_casts_a_weight_once_a_pass_and_both_passes_see_it_alike(kind, request, tmp_path, monkeypatch):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = request.getfixturevalue(kind).to(device).train()
    texts = {
        task: gradcache.TokenisedTexts(
            task, **tokeniser(model)([f"lift of wing {n} " * (n + 1) for n in range(6)], task)
        ).to(device)
        for task in ("query", "document")
    }
    sides, precision = tuple(texts.values()), lambda: torch.autocast(device.type, torch.bfloat16)
    passes, scored = [], []
    monkeypatch.setattr(gradcache, "forward", lambda m, f, task: passes.append(found := forward(m, f, task)) or found)
    loss_of = Contrastive().of(*sides)

    def loss(*embeddings):
        scored.extend(e.values.dtype for e in embeddings)
        return loss_of(*embeddings)

    with Casts(model) as casts:
        _, work = gradcache.grad_cache(model, sides, loss, 60, precision)
    assert work.repeated > 0
    with precision():
        assert set(scored) == {scored_type(device)}
    half = len(passes) // 2
    assert len(passes) > 4
    for first, second in zip(passes[:half], passes[half:], strict=True):
        assert torch.equal(first.values, second.values.detach())
    cast = {name: count for name, count in casts.counts.items() if count}
    assert set(cast.values()) == {2}, cast


def test_a_backend_that_is_none_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "cuda")
    one = study(tmp_path, data(tmp_path))  # pairs.jsonl is not there either
    with pytest.raises(ColbertZeroError, match="COLBERT_ZERO_MAXSIM='cuda' is none of auto, torch, triton"):
        one.prepare([("unsupervised",)])
    monkeypatch.setenv(BACKEND_VARIABLE, "late-interaction-kernels")
    monkeypatch.setattr("colbert_zero.maxsim.backends.find_spec", lambda name: None)
    with pytest.raises(ColbertZeroError, match=r"not installed; pip install colbert-zero\[gpu\]"):
        wanted(torch.device("cuda"))


@pytest.mark.parametrize(
    ("units", "arithmetic", "attention"), [(True, "bfloat16", "eager"), (False, "float32", "sdpa")]
)
def test_auto_is_decided_by_the_device_and_trains_as_if_that_had_been_asked_for(
    tmp_path, monkeypatch, units, arithmetic, attention
):
    processor_with(monkeypatch, bfloat16=units)
    write_rows(tmp_path / "pairs.jsonl")
    records, weights, ids = {}, {}, {}
    for asked in ("auto", arithmetic):
        recipe = data(tmp_path)
        recipe["phases"]["unsupervised"] |= {**SMALL, "precision": asked, "steps": 3}
        one = study(tmp_path, recipe)
        one.prepare([("unsupervised",)])
        records[asked] = one.train(("unsupervised",))
        ids[asked] = one.phase_id(("unsupervised",))
        weights[asked] = (one.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes()
    machine = records["auto"]["machine"]
    assert (machine["precision"], machine["attention"]) == (arithmetic, attention)
    assert (records["auto"]["precision"], records[arithmetic]["machine"]["precision"]) == ("auto", arithmetic)
    assert weights["auto"] == weights[arithmetic]
    assert ids["auto"] != ids[arithmetic]
    assert [f"precision: auto, which is {arithmetic} here" in text for text in records["auto"]["told"]] == [True]


def test_a_resumed_training_keeps_the_arithmetic_that_auto_came_to(tiny_multi_vector, monkeypatch):
    processor_with(monkeypatch, bfloat16=False)
    own, said = machine_of(tiny_multi_vector, "float32"), []
    assert going_on(tiny_multi_vector, own | {"precision": "bfloat16"}, own, said.append)["precision"] == "bfloat16"
    assert said == ["goes on in bfloat16, as it began, though this host is faster in float32"]
    older = {key: value for key, value in own.items() if key != "precision"}
    assert going_on(tiny_multi_vector, older, own, said.append) == own
    assert len(said) == 1


def test_a_resumed_training_keeps_what_it_began_with_and_says_what_this_host_cannot(tiny_multi_vector):
    own, said = machine_of(tiny_multi_vector), []
    assert own["maxsim"] == "torch"
    assert going_on(tiny_multi_vector, own, own, said.append) == own
    assert not said
    eager = {**own, "attention": "eager"}
    try:
        assert going_on(tiny_multi_vector, eager, own, said.append) == eager
        assert machine_of(tiny_multi_vector)["attention"] == "eager"
        assert not said
    finally:
        going_on(tiny_multi_vector, own, eager, said.append)
    other = {**own, "device": "cuda:0", "maxsim": "triton", "attention": "flash_attention_2", "torch": "2.11.0"}
    assert going_on(tiny_multi_vector, other, own, said.append) == own
    for text in ("device cuda → cpu", "maxsim triton → torch", f"attention flash_attention_2 → {own['attention']}"):
        assert text in said[-1]


@pytest.mark.parametrize("name", ["NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"])
def test_tf32_of_the_environment_is_recorded_and_told_on_cuda(tiny_multi_vector, monkeypatch, name):
    assert machine_of(tiny_multi_vector)["tf32"] == {}
    monkeypatch.setenv(name, "1")
    machine, said = machine_of(tiny_multi_vector), []
    assert machine["tf32"] == {name: "1"}
    tell_tf32(machine, said.append)
    assert not said
    for device in ("cuda:0", "cuda:0"):
        tell_tf32(machine | {"device": device}, said.append)
    assert [f"{name}=1; unset it" in text for text in said] == [True]
    tell_tf32(machine | {"device": "cuda:0", "tf32": {name: "0"}}, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("new_interface", [True, False])
def test_tf32_of_torchs_flags_is_recorded(tiny_multi_vector, new_interface):
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        if new_interface:
            products.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        assert machine_of(tiny_multi_vector)["tf32"] == {"torch.backends.cuda.matmul.fp32_precision": "tf32"}
    finally:
        if not new_interface:
            torch.set_float32_matmul_precision("highest")
        products.fp32_precision = before
    assert machine_of(tiny_multi_vector)["tf32"] == {}


def test_a_resumed_training_says_that_tf32_changed_and_asks_nothing_of_an_older_checkpoint(tiny_multi_vector):
    own, said = machine_of(tiny_multi_vector), []
    older = {key: value for key, value in own.items() if key != "tf32"}
    assert going_on(tiny_multi_vector, older, own, said.append) == own
    assert not said
    going_on(tiny_multi_vector, own | {"tf32": {"NVIDIA_TF32_OVERRIDE": "1"}}, own, said.append)
    assert "tf32 NVIDIA_TF32_OVERRIDE=1 → unset" in said[0]


def test_a_record_counts_what_was_computed_also_through_a_resume(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["unsupervised"] |= SMALL
    one = study(tmp_path, recipe)
    one.prepare([("unsupervised",)])
    record = one.train(("unsupervised",))
    assert record["machine"]["maxsim"] == "torch"
    assert record["second_pass_tokens"] == record["tokens"] + record["padding_tokens"]
    model = one.phase_folder(("unsupervised",)) / "model"
    weights = load_file(model / "model.safetensors")
    embedded = next(t.numel() for name, t in weights.items() if "word_embeddings" in name)
    per_token = record["parameters"] - embedded
    assert record["padding_flops"] == 6 * per_token * record["padding_tokens"]
    assert record["second_pass_flops"] == 2 * per_token * record["second_pass_tokens"]
    assert record["flops"] == 6 * per_token * record["tokens"] + record["padding_flops"] + record["second_pass_flops"]
    assert record["cpu_seconds"] > 0
    assert record["device_seconds"] == record["wall_seconds"]
    assert {key: record[key] for key in ("warmup", "weight_decay", "max_gradient_norm")} == {
        "warmup": 0.05, "weight_decay": 0.01, "max_gradient_norm": 1.0,
    }  # fmt: skip


def test_all_processes_score_with_what_is_right_on_every_ones_device(tiny_multi_vector, monkeypatch):
    of_two = [{}, {"torch": "fails with RuntimeError: no code for this device"}]
    monkeypatch.setattr("colbert_zero.training.machine.gather_objects", lambda own: of_two)
    machine = machine_of(tiny_multi_vector)
    assert (machine["maxsim"], machine["maxsim_refused"]) == ("plain", of_two[1])
