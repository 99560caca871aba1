"""A cut model: fewer layers, neurons, tokens, zeros, weights on a grid; an ordinary checkpoint each time."""

import json
import re
from pathlib import Path

import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import AutoConfig, AutoModel, AutoTokenizer

import oracles
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import META, Alignment
from colbert_zero.models.axes import pick_layers, table_of
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoders import save_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.kept_zeros import RECORD
from colbert_zero.models.shrinking import (
    Cuts,
    cut,
    deviation,
    encoder_of,
    keep_layers,
    keep_neurons,
    kept_after,
    on_grid,
    packed_bytes,
    parameters,
    removals,
    with_zeros,
    zeros_in,
)
from colbert_zero.models.shrunk import Texts, Uncut, folder_bytes, write_shrunk
from colbert_zero.models.vocabulary import check_tokenizer, check_vocabulary, vocabulary_of
from helpers import DOCUMENTS, PROMPTS

TEXTS = list(DOCUMENTS.values())
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 36,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
TYPES = {
    "bert": SIZES,
    "modernbert": SIZES | {"cls_token_id": 2, "sep_token_id": 3, "mlp_bias": True},
    "distilbert": {"vocab_size": 40, "dim": 24, "n_layers": 4, "n_heads": 2, "hidden_dim": 36,
                   "max_position_embeddings": 64},
    "electra": SIZES | {"embedding_size": 16},
}  # fmt: skip
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


def encoder(kind, **changes):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**TYPES[kind], **changes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def states(model):
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def vectors(model, texts=TEXTS):
    return [encode(model, texts, task).values for task in ("query", "document")]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def saved(tiny_multi_vector, tmp_path):
    folder = tmp_path / "model"
    save_model(tiny_multi_vector, folder, Alignment("search_query: ", "search_document: ", "[Q]", "[D]", 40, 40))
    return folder


def written(folder, out, cuts=None, corpus=None, texts=None):
    record = write_shrunk(Uncut(str(folder)), out, cuts or Cuts(), corpus, texts, lambda _: None)
    return record, load_model(out, device="cpu")


CUTS = {
    "nothing": Cuts(),
    "layers": Cuts(layers=(1,)),
    "neurons": Cuts(neurons=0.5),
    "zeros": Cuts(zeros=0.5),
    "bits": Cuts(bits=8),
    "all": Cuts((0,), 0.75, 0.25, 4),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("kind", ["tiny_multi_vector", "tiny_dense"])
def test_stock_libraries_load_what_is_written_and_give_the_vectors_of_the_cut_model(kind, name, request, tmp_path):
    model = request.getfixturevalue(kind)
    before = vectors(model)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    record, found = written(tmp_path / "model", tmp_path / "out", CUTS[name])
    stock = type(model)(str(tmp_path / "out"), device="cpu")
    assert isinstance(stock, MultiVectorEncoder if kind == "tiny_multi_vector" else SentenceTransformer)
    wanted = cut(model, CUTS[name], "tiny")
    assert same(vectors(stock), vectors(wanted))
    assert same(vectors(found), vectors(wanted))
    plain = AutoModel.from_pretrained(tmp_path / "out")
    assert plain.config.num_hidden_layers == len(record["layers_kept"])
    assert torch.equal(plain.eval()(input_ids=IDS).last_hidden_state, encoder_of(wanted, "")(IDS).last_hidden_state)
    assert same(vectors(model), before), "the model that is cut stays as it is"


def test_cutting_nothing_changes_no_weight_to_the_bit(saved, tmp_path, tiny_multi_vector):
    record, found = written(saved, tmp_path / "out")
    for name, tensor in tiny_multi_vector.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert record["parameters"] == record["parameters_before"]
    assert record["deviation"]["cosine"] == pytest.approx(1)
    every = cut(tiny_multi_vector, Cuts((0, 1), 1.0, 0.0, None), "tiny")
    assert same(vectors(every), vectors(tiny_multi_vector))
    assert json.loads((tmp_path / "out" / META).read_text()) == json.loads((saved / META).read_text())


@pytest.mark.parametrize("kind", TYPES)
def test_a_layer_that_is_left_out_is_as_if_its_states_went_by(kind):
    """A plain loop over the layers that stay, each with what its own place in the model says of it."""
    model = encoder(kind)
    smaller = keep_layers(model, [0, 2], "mine")
    table = table_of(model, "mine")
    begin = table.layer.split(".{}")[0]
    layers = model.get_submodule(begin)
    stay = torch.nn.ModuleList([layers[0], layers[2]])
    parent, _, name = begin.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, stay)
    if kind == "modernbert":
        types = model.config.layer_types
        assert smaller.config.layer_types == [types[0], types[2]]
        assert types[0] != types[1]
    model.config.num_hidden_layers = 2
    assert torch.equal(states(smaller), states(model))


def test_layer_types_of_modernbert_follow_their_layers():
    model = encoder("modernbert", num_hidden_layers=6, local_attention=4, global_attn_every_n_layers=3)
    assert model.config.layer_types == [
        f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "sliding", "sliding")
    ]
    smaller = keep_layers(model, [0, 1, 3], "mine")
    assert smaller.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize("kind", TYPES)
def test_neurons_that_stay_are_those_of_a_plain_loop(kind):
    model = encoder(kind)
    smaller = keep_neurons(model, 0.5, "mine")
    table = table_of(model, "mine")
    assert getattr(smaller.config, table.keys["neurons"]) == 18
    for layer in range(4):
        begin = table.layer.format(layer)
        before, after = model.state_dict(), smaller.state_dict()
        names = [f"{begin}{table.into}.weight", f"{begin}{table.into}.bias", f"{begin}{table.out_of}.weight"]
        wanted = oracles.fewer_neurons(*(before.get(name) for name in names), keep=18)
        for name, tensor in zip(names, wanted, strict=True):
            assert torch.equal(after[name], tensor)


def test_a_neuron_that_does_nothing_goes_first_and_is_not_missed():
    for kind in TYPES:
        model = encoder(kind)
        table, state = table_of(model, "mine"), model.state_dict()
        with torch.no_grad():
            for layer in range(4):
                state[f"{table.layer.format(layer)}{table.out_of}.weight"][:, ::2] = 0
        assert torch.allclose(states(keep_neurons(model, 0.5, "mine")), states(model), atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_as_many_zeros_as_were_asked_for_are_in_each_matrix_and_they_were_the_smallest(kind, share):
    model = encoder(kind)
    table = table_of(model, "mine")
    smaller = with_zeros(model, share, "mine")
    before, after = model.state_dict(), smaller.state_dict()
    for name, tensor in before.items():
        layer, _ = table.layer_of(name)
        array = table.array(name)
        if layer is None or tensor.dim() == 1:
            assert torch.equal(after[name], tensor)
            continue
        for old, new in zip(*(side.chunk(max(1, len(array.parts))) for side in (tensor, after[name])), strict=True):
            assert int((new == 0).sum()) == round(share * old.numel())
            assert old[new == 0].abs().max() <= old[new != 0].abs().min()
            assert torch.equal(new[new != 0], old[new != 0])


@pytest.mark.parametrize("bits", [4, 8])
def test_every_matrix_lies_on_a_grid_of_so_many_bits_row_by_row(tiny_multi_vector, bits):
    found = cut(tiny_multi_vector, Cuts(bits=bits), "tiny")
    levels = 2 ** (bits - 1) - 1
    matrices = [(n, t) for n, t in found.state_dict().items() if t.dim() == 2]
    assert any("1.linear" in name for name, _ in matrices)
    assert any("word_embeddings" in name for name, _ in matrices)
    for name, tensor in matrices:
        old = tiny_multi_vector.state_dict()[name]
        for row, before in zip(tensor, old, strict=True):
            step = before.abs().max() / levels
            whole = row / step if step > 0 else row
            assert torch.allclose(whole, whole.round(), atol=1e-4)
            assert whole.abs().max() <= levels + 1e-4
            assert (row - before).abs().max() <= step / 2 * (1 + 1e-4)
            assert len(row.unique()) <= 2**bits
    assert torch.equal(on_grid(torch.zeros(2, 3), bits), torch.zeros(2, 3))


def test_zeros_and_grids_leave_the_bytes_and_the_record_says_what_they_would_take(saved, tmp_path):
    plain, _ = written(saved, tmp_path / "plain")
    coarse, model = written(saved, tmp_path / "coarse", Cuts(zeros=0.5, bits=8))
    assert abs(coarse["bytes"] - plain["bytes"]) < 10
    assert coarse["zeros"] >= coarse["zeros_of"] // 2
    assert (coarse["zeros"], coarse["zeros_of"]) == zeros_in(model, "")
    assert coarse["packed_bytes"] < 0.4 * plain["packed_bytes"]
    half = torch.nn.Linear(16, 8, bias=False)
    with torch.no_grad():
        half.weight[:, :8] = 0
    assert packed_bytes(half, None) == 16 * 8 // 8 + 16 * 8 // 2 * 4
    assert packed_bytes(torch.nn.Linear(16, 8), 8) == 16 * 8 + 8 * 4 + 8 * 4


def test_bytes_and_parameters_of_the_record_are_those_on_the_disk(saved, tmp_path):
    record, model = written(saved, tmp_path / "out", Cuts(layers=(0,), neurons=0.5))
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file() and f.name != RECORD]
    assert record["bytes"] == sum(file.stat().st_size for file in files)
    assert record["bytes_before"] == folder_bytes(saved)
    assert record["parameters"] == parameters(model) == sum(p.numel() for p in model.parameters())
    # A layer of BERT: four squares, two matrices of neurons, biases, two norms.
    one = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert record["parameters_before"] - record["parameters"] == one + 32 * (2 * 32 + 1)
    assert record["bytes_before"] - record["bytes"] > 4 * (one + 32 * (2 * 32 + 1)) - 100
    assert json.loads((tmp_path / "out" / RECORD).read_text())["bytes"] == record["bytes"]


def test_weights_stored_in_half_precision_are_stored_so_again(tiny_dense, saved, tmp_path):
    model = load_model(saved, device="cpu").to(torch.bfloat16)
    model.save_pretrained(str(tmp_path / "half"), create_model_card=False)
    record, _ = written(tmp_path / "half", tmp_path / "out", Cuts(layers=(0,)))
    assert record["bytes"] < record["bytes_before"] < folder_bytes(saved) * 0.8
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_layers_go_one_by_one_that_first_without_which_vectors_change_least(tiny_multi_vector):
    found = removals(tiny_multi_vector, 1, TEXTS, "tiny")
    tried = {
        number: deviation(tiny_multi_vector, cut(tiny_multi_vector, Cuts((1 - number,)), "tiny"), TEXTS).cosine
        for number in (0, 1)
    }
    best = max(tried, key=tried.get)
    assert [removal["layer"] for removal in found] == [best]
    assert found[0]["cosine"] == tried[best]
    assert found[0]["others"] == {1 - best: tried[1 - best]}
    assert kept_after(2, found) == (1 - best,)
    [trial] = removals(tiny_multi_vector, 2, TEXTS, "tiny")
    assert trial["layer"] is None
    assert trial["others"] == tried


def test_a_layer_that_passes_on_what_comes_in_is_the_first_to_go(backbone, tmp_path):
    model = encoder("bert", vocab_size=len(AutoTokenizer.from_pretrained(backbone)))
    with torch.no_grad():
        layer = model.encoder.layer[2]
        for parameter in (*layer.attention.output.dense.parameters(), *layer.output.dense.parameters()):
            parameter.zero_()
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm, model.encoder.layer[1].output.LayerNorm):
            norm.weight.fill_(1)
            norm.bias.zero_()
    model.save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path / "plain")
    record, _ = written(tmp_path / "plain", tmp_path / "out", Cuts(count=3), texts=TEXTS)
    assert record["layers_kept"] == [0, 1, 3]
    assert record["deviation"]["cosine"] > 0.9999
    # A plain encoder stays one.
    assert not (tmp_path / "out" / "modules.json").exists()
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", ["tiny_multi_vector", "tiny_dense"])
def test_texts_of_the_corpus_keep_their_vectors_when_the_vocabulary_is_cut_to_it(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    some = TEXTS[:8]
    record, found = written(tmp_path / "model", tmp_path / "out", corpus=Texts("some", lambda: some), texts=some)
    assert record["vocabulary"] < record["vocabulary_before"]
    assert record["vocabulary_texts"] == 8
    assert record["asked"]["vocabulary"] == "some"
    assert same(vectors(found, some), vectors(model, some))
    assert record["deviation"]["retokenised"] == 0
    stock = type(model)(str(tmp_path / "out"), device="cpu")
    assert same(vectors(stock, some), vectors(model, some))
    plain = AutoModel.from_pretrained(tmp_path / "out")
    assert plain.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "out")) == record["vocabulary"]
    # Other texts are still texts: cut into smaller pieces, not unknown.
    other = ["glucose in the plasma"]
    old, new = (m.tokenizer.tokenize(other[0]) for m in (model, found))
    assert len(new) > len(old)
    assert "[UNK]" not in new
    assert "".join(new).replace("##", "") == "".join(old).replace("##", "")


def test_special_tokens_markers_prompts_and_skipped_words_stay_in_the_vocabulary(saved, tmp_path, tiny_multi_vector):
    record, found = written(saved, tmp_path / "out", corpus=Texts("one", lambda: ["wing"]))
    tokenizer, before = found.tokenizer, tiny_multi_vector.tokenizer
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Q]", "[D]", ".", "wing", "search", "a", "##a"):
        assert token in tokenizer.get_vocab(), token
    assert "glucose" not in tokenizer.get_vocab()
    assert tokenizer.all_special_tokens == before.all_special_tokens
    for prompt in PROMPTS.values():
        assert tokenizer.tokenize(prompt) == before.tokenize(prompt)
    config = encoder_of(found, "").config
    assert config.pad_token_id == tokenizer.pad_token_id
    # "." is skipped in documents, before and after.
    counts = [encode(model, ["a wing. a wing."], "document").lengths.item() for model in (tiny_multi_vector, found)]
    assert counts[0] == counts[1] < encode(found, ["a wing. a wing."], "query").lengths.item()
    assert record["parameters_before"] - record["parameters"] == 32 * (
        record["vocabulary_before"] - record["vocabulary"]
    )


def test_texts_longer_than_the_model_reads_are_read_whole_for_the_vocabulary(tiny_multi_vector):
    long = Texts("long", lambda: ["wing " * 300 + "glucose"])
    kept = vocabulary_of(tiny_multi_vector, long.texts()).kept
    assert tiny_multi_vector.tokenizer.get_vocab()["glucose"] in kept


def test_a_tokenizer_of_another_kind_is_refused(saved, tmp_path, tiny_multi_vector):
    file = saved / "tokenizer.json"
    whole = json.loads(file.read_text())
    vocabulary = whole["model"]["vocab"]
    whole["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    file.write_text(json.dumps(whole))
    message = (
        "^vocabulary: the tokenizer is of the kind WordLevel, and only WordPiece's is cut: there, texts of the corpus "
        "keep their tokens; leave `vocabulary` out$"
    )
    with pytest.raises(ColbertZeroError, match=message):
        written(saved, tmp_path / "out", corpus=Texts("some", lambda: TEXTS))
    assert not (tmp_path / "out").exists()


REFUSED = {
    "layers: 3, of the 2 that there are; keep 1 to 2": Cuts(count=3),
    "layers: 0, of the 2 that there are; keep 1 to 2": Cuts(count=0),
    r"layers: \[0, 2\], and there are 0 to 1; name some of these": Cuts(layers=(0, 2)),
    r"layers: \[\], and there are 0 to 1; name some of these": Cuts(layers=()),
    r"layers: \[1, 0\] is not ascending; name each layer that is kept once, in order": Cuts(layers=(1, 0)),
    "neurons: 0, of 64; the share that is kept is above 0, at most 1": Cuts(neurons=0.0),
    "neurons: 1.5, of 64; the share that is kept is above 0, at most 1": Cuts(neurons=1.5),
    "neurons: 0.001, of 64; the share that is kept is above 0, at most 1": Cuts(neurons=0.001),
    "zeros: 1; the share that becomes 0 is at least 0, below 1": Cuts(zeros=1.0),
    "bits: 3; 8 or 4": Cuts(bits=3),
    "layers: 1: which ones hurt least is measured on texts; add --corpus or --collection, or name those that are kept "
    r"\(--layers 0\)": Cuts(count=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_cut_is_refused_with_what_can_be(saved, tmp_path, message):
    with pytest.raises(ColbertZeroError, match=f"^{message}$"):
        written(saved, tmp_path / "out", REFUSED[message])
    assert not (tmp_path / "out").exists()


def test_modernbert_keeps_its_first_layer():
    torch.manual_seed(0)
    message = (
        r"^layers: \[1, 2\] leaves layer 0 out, which a modernbert cannot: its layer 0 has no norm before its "
        "attention, which every other layer has; keep 0$"
    )
    model = encoder("modernbert")
    fake = SentenceTransformer(modules=[Wrapped(model)], device="cpu")
    with pytest.raises(ColbertZeroError, match=message):
        cut(fake, Cuts((1, 2)), "mine")


class Wrapped(Transformer):
    """An encoder without a tokenizer, where none is needed."""

    def __init__(self, model):
        torch.nn.Module.__init__(self)
        self.model, self.processor = model, None


def test_a_model_that_scores_tokens_by_their_numbers_keeps_its_vocabulary(tiny_multi_vector):
    [mask] = [module for module in tiny_multi_vector if isinstance(module, MultiVectorMask)]
    told = "vocabulary: the model scores tokens by their numbers (keep_only_token_ids)"
    mask.keep_only_token_ids = [5]
    try:
        with pytest.raises(ColbertZeroError, match=f"^{re.escape(told)}; leave `vocabulary` out$"):
            check_vocabulary(tiny_multi_vector)
    finally:
        mask.keep_only_token_ids = None


def test_a_tokenizer_of_another_library_is_refused():
    told = (
        "vocabulary: the tokenizer is none of the `tokenizers` library, and only those are cut; leave `vocabulary` out"
    )
    with pytest.raises(ColbertZeroError, match=f"^{told}$"):
        check_tokenizer(object())


def test_a_model_that_begins_with_no_transformer_is_refused(backbone):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    message = (
        "^mine: begins with a StaticEmbedding; only one encoder of transformers, for queries and documents alike, can "
        "be cut; name such a model$"
    )
    with pytest.raises(ColbertZeroError, match=message):
        cut(model, Cuts((0,)), "mine")


def test_deviation_counts_texts_that_have_other_tokens(tiny_multi_vector, saved, tmp_path):
    _, found = written(saved, tmp_path / "out", corpus=Texts("one", lambda: [TEXTS[0]]))
    lost = deviation(tiny_multi_vector, found, [TEXTS[0], TEXTS[11]])
    assert (lost.texts, lost.retokenised) == (2, 2)
    assert lost.cosine == pytest.approx(1, abs=1e-6)
    nothing = deviation(tiny_multi_vector, found, [TEXTS[11]])
    assert (nothing.cosine, nothing.retokenised) == (0.0, 2)


def test_a_card_is_not_copied_and_that_is_said(saved, tmp_path):
    (saved / "README.md").write_text("scores of the whole model")
    said = []
    write_shrunk(Uncut(str(saved)), tmp_path / "out", Cuts(neurons=0.5), tell=said.append)
    assert said == [f"{saved / 'README.md'} is not copied: it speaks of the model before it was cut"]
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_failure_on_the_way_leaves_nothing(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("colbert_zero.models.shrunk.deviation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(saved, tmp_path / "out", Cuts(neurons=0.5))
    assert [path.name for path in tmp_path.iterdir()] == [Path(saved).name]


def test_pooling_of_a_dense_model_and_its_normalisation_stay(backbone, tmp_path):
    modules = [Transformer(str(backbone)), Pooling(32, "cls"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "m"), create_model_card=False)
    _, found = written(tmp_path / "m", tmp_path / "out", Cuts(layers=(0,)))
    assert [type(module).__name__ for module in found] == ["Transformer", "Pooling", "Normalize"]
    assert found[1].pooling_mode == "cls"


def test_picking_layers_leaves_out_no_array_of_the_others():
    model = encoder("electra")
    table = table_of(model, "mine")
    picked = pick_layers(model.state_dict(), table, [3])
    each = sum(table.layer_of(name)[0] == 0 for name in model.state_dict())
    assert len(picked) == len(model.state_dict()) - 3 * each
