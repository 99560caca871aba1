import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import Alignment, read_alignment
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoders import assemble, save_model
from colbert_zero.models.scratch import check_architecture, train_tokenizer, write_scratch

ALIGNMENT = Alignment("search_query: ", "search_document: ", "[Q]", "[D]", 8, 12)
TEXTS = ["search_query: search_document: the lift of a wing", "drag of a body in a flow", "heat in the flow"] * 4
TINY = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch") / "start"
    write_scratch(folder, TINY, train_tokenizer(TEXTS, 400, ["[Q]", "[D]"], 64), seed=3)
    return str(folder)


def make(scratch, representation="multi-vector", alignment=ALIGNMENT, **options):
    return assemble(scratch, representation, alignment, **{"dim": 8, "seed": 1, "phase": "p"} | options)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 400, ["[Q]", "[D]"], 64)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_scratch(tmp_path / name, TINY, tokenizer, seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_markers_and_prompts_come_on_top_of_the_lengths(scratch):
    model = make(scratch)
    words = ["wing"] * 50
    ids = model.preprocess([" ".join(words)], prompt=model.prompts["query"], task="query")["input_ids"][0].tolist()
    tokens = model.tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:2] == ["[CLS]", "[Q]"]
    # query_tokens counts [CLS] and [SEP], so 6 of 8 are left for the text.
    assert tokens.count("wing") == 6
    plain = make(scratch, alignment=replace(ALIGNMENT, query_prompt="", query_marker=""))
    bare = plain.preprocess([" ".join(words)], prompt=plain.prompts["query"], task="query")["input_ids"][0]
    assert plain.tokenizer.convert_ids_to_tokens(bare.tolist()).count("wing") == 6


def test_dense_models_have_prompts_but_no_markers(scratch):
    assert make(scratch, "dense").prompts == {"query": "search_query: ", "document": "search_document: "}
    assert make(scratch).prompts["document"] == "[D] search_document: "


def test_a_saved_checkpoint_is_an_ordinary_one_with_prompts_and_lengths(scratch, tmp_path):
    model = make(scratch)
    save_model(model, tmp_path / "m", ALIGNMENT)
    assert not list((tmp_path / "m").rglob("*.bin"))
    plain = MultiVectorEncoder(str(tmp_path / "m"))
    for a, b in zip(model.encode_query(["lift of a wing"]), plain.encode_query(["lift of a wing"]), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    ours = load_model(tmp_path / "m")
    assert isinstance(ours, MultiVectorEncoder)
    assert ours.prompts == model.prompts
    assert (ours[0].query_length, ours[0].document_length) == (model[0].query_length, model[0].document_length)
    assert read_alignment(tmp_path / "m")["query_prompt"] == "search_query: "


def test_a_multi_vector_phase_takes_the_encoder_of_a_dense_start(scratch, tmp_path):
    dense = make(scratch, "dense")
    with torch.no_grad():
        for p in dense.parameters():
            p.add_(0.01)
    save_model(dense, tmp_path / "d", ALIGNMENT)
    assert isinstance(load_model(tmp_path / "d"), SentenceTransformer)
    multi = assemble(str(tmp_path / "d"), "multi-vector", ALIGNMENT, 8, 1, "p")
    for a, b in zip(dense[0].parameters(), multi[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert multi[1].linear.bias is None
    assert multi[1].linear.weight.shape == (8, 16)


def test_a_multi_vector_phase_keeps_the_projection_of_its_start(scratch, tmp_path):
    first = make(scratch)
    save_model(first, tmp_path / "m", ALIGNMENT)
    second = assemble(str(tmp_path / "m"), "multi-vector", ALIGNMENT, 8, 99, "p")
    assert torch.equal(first[1].linear.weight, second[1].linear.weight)
    with pytest.raises(ColbertZeroError, match=r"model.dim: 4.*token vectors of 8"):
        assemble(str(tmp_path / "m"), "multi-vector", ALIGNMENT, 4, 1, "p")


def test_a_start_with_other_prompts_is_refused_unless_allowed(scratch, tmp_path):
    save_model(make(scratch), tmp_path / "m", ALIGNMENT)
    other = replace(ALIGNMENT, query_prompt="ask: ")
    with pytest.raises(ColbertZeroError, match=r"phases.p.*'search_query: '.*'ask: '.*allow_prompt_mismatch"):
        assemble(str(tmp_path / "m"), "multi-vector", other, 8, 1, "p")
    assert assemble(str(tmp_path / "m"), "multi-vector", other, 8, 1, "p", True).prompts["query"] == "[Q] ask: "


def test_a_hub_style_base_with_prompts_of_its_own_is_compared_too(scratch, tmp_path):
    SentenceTransformer(modules=list(make(scratch, "dense")), prompts={"query": "q: ", "document": "d: "}).save(
        str(tmp_path / "m")
    )
    with pytest.raises(ColbertZeroError, match="'q: '"):
        assemble(str(tmp_path / "m"), "multi-vector", ALIGNMENT, 8, 1, "p")


def test_markers_unknown_to_a_base_become_tokens_of_their_own(tmp_path):
    write_scratch(tmp_path / "s", TINY, train_tokenizer(TEXTS, 400, [], 64), seed=3)
    model = make(str(tmp_path / "s"))
    ids = model.tokenizer("[Q] wing", add_special_tokens=False)["input_ids"]
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["[Q]", "wing"]
    assert model[0].model.get_input_embeddings().weight.shape[0] == len(model.tokenizer)
    assert model.encode_query(["wing"])[0].shape[1] == 8


def test_texts_longer_than_the_encoders_positions_are_refused(tmp_path):
    short = {**TINY, "max_position_embeddings": 16}
    write_scratch(tmp_path / "s", short, train_tokenizer(TEXTS, 400, [], 64), seed=3)
    with pytest.raises(ColbertZeroError, match=r"phases.p: document texts of \d+ tokens .* 16 positions"):
        make(str(tmp_path / "s"))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "brt"}, "'brt' is not a transformers architecture"),
        ({"model_type": "bert", "hiden_size": 3}, "hiden_size: unknown key of bert, did you mean hidden_size"),
    ],
)
def test_a_wrong_architecture_is_named(architecture, message):
    with pytest.raises(ColbertZeroError, match=message):
        check_architecture(architecture)


def test_pickled_weights_are_refused(scratch, tmp_path):
    save_model(make(scratch), tmp_path / "m", ALIGNMENT)
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(ColbertZeroError, match=r"pytorch_model.bin: a pickle"):
        load_model(tmp_path / "m")


def test_a_folder_without_a_model_is_one_clear_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ColbertZeroError, match="cannot be loaded as a dense or multi-vector checkpoint"):
        load_model(tmp_path)
    with pytest.raises(ColbertZeroError, match="cannot be loaded"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "mixed"])
@pytest.mark.parametrize("representation", ["dense", "multi-vector"])
def test_weights_are_float32_whatever_the_base_was_saved_in(backbone, tmp_path, representation, dtype):
    shutil.copytree(backbone, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    halves = {
        name: tensor.to(dtype if dtype != "mixed" else (torch.bfloat16, torch.float32)[number % 2])
        for number, (name, tensor) in enumerate(weights.items())
    }
    save_file(halves, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.") if dtype != "mixed" else "bfloat16"
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    alignment = Alignment("", "", "[Q]", "[D]", 16, 24)
    model = assemble(str(tmp_path / "base"), representation, alignment, 8, seed=0, phase="test")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.bfloat16()
    save_model(model, tmp_path / "saved", alignment)
    assert {p.dtype for p in load_model(tmp_path / "saved").parameters()} == {torch.float32}
    again = assemble(str(tmp_path / "saved"), representation, alignment, 8, seed=0, phase="test")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
