"""Cross-encoders made of any start: whose encoder they have, what head, how long their pairs are, how they are kept."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertGenerationConfig,
    BertGenerationEncoder,
    BertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLNetConfig,
    XLNetModel,
)

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import FROM_SCRATCH, Alignment
from colbert_zero.models.cross_encoders import assemble_cross_encoder, load_cross_encoder, pair_tokeniser
from colbert_zero.models.encoders import read_own, save_model
from colbert_zero.models.encoding import forward
from colbert_zero.models.scratch import train_tokenizer, write_scratch
from helpers import DOCUMENTS, QUERIES, study, with_cross_encoder

LENGTHS = Alignment("", "", "", "", query_tokens=10, document_tokens=20)
PAIRS = [
    (query, text * (1 + n)) for n, (query, text) in enumerate(zip(QUERIES.values(), DOCUMENTS.values(), strict=False))
]


def make(start, seed=3, alignment=LENGTHS):
    return assemble_cross_encoder(str(start), alignment, seed, "p")


def training_scores(model, pairs=PAIRS):
    model.eval()
    with torch.no_grad():
        return forward(model, pair_tokeniser(model)(pairs, "query"), "query").values[:, 0]


@pytest.fixture(scope="module")
def starts(backbone, tiny_dense, tiny_multi_vector, tmp_path_factory):
    """A checkpoint of each kind, on one backbone."""
    folder = tmp_path_factory.mktemp("starts")
    shutil.copytree(backbone, folder / "plain")
    for name, model in (("dense", tiny_dense), ("multi-vector", tiny_multi_vector)):
        model.save_pretrained(str(folder / name), create_model_card=False)
    return folder


@pytest.mark.parametrize("kind", ["plain", "dense", "multi-vector"])
def test_the_encoder_is_the_starts_and_the_head_is_new_by_its_seed(starts, kind):
    own = load_file(next((starts / kind).rglob("model.safetensors")))
    one, again, other = make(starts / kind), make(starts / kind), make(starts / kind, seed=4)
    states = one[0].get_submodule("model").base_model.state_dict()
    own = {name: tensor for name, tensor in own.items() if name in states}
    assert {name for name in states if not name.startswith("pooler.")} <= set(own)
    assert all(torch.equal(tensor, states[name]) for name, tensor in own.items())
    heads = [
        torch.cat([p.flatten() for n, p in m.named_parameters() if "classifier" in n or "pooler" in n])
        for m in (one, again, other)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert one.num_labels == 1


def test_a_start_made_here_with_markers_is_read_whole_and_pairs_have_none(tmp_path):
    texts = [*DOCUMENTS.values(), *QUERIES.values()]
    tiny = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16}  # fmt: skip
    write_scratch(tmp_path / "start", tiny, train_tokenizer(texts, 400, ["[Q]", "[D]"], 64), seed=3)
    model = make(tmp_path / "start")
    ids = pair_tokeniser(model)([("wing", "lift of a wing")], "query")["input_ids"][0]
    assert model.tokenizer.convert_ids_to_tokens(ids.tolist()) == [
        "[CLS]", "wing", "[SEP]", "lift", "of", "a", "wing", "[SEP]",
    ]  # fmt: skip
    embedded = model[0].get_submodule("model").get_input_embeddings()
    assert embedded.num_embeddings == len(model.tokenizer)


def test_randomness_elsewhere_is_left_as_it_was(starts):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make(starts / "plain")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["plain", "dense", "multi-vector"])
def test_a_saved_cross_encoder_scores_in_sentence_transformers_as_it_was_trained_and_cuts_pairs_alike(
    starts, kind, tmp_path
):
    model = make(starts / kind)
    save_model(model, tmp_path / "saved", LENGTHS)
    loaded = CrossEncoder(str(tmp_path / "saved"))
    assert model.max_seq_length == loaded.max_seq_length == 29
    found = torch.tensor(loaded.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=2))
    assert torch.allclose(found, training_scores(model), atol=1e-5)
    whole = max(len(ids) for ids in model.tokenizer(PAIRS, truncation=False)["input_ids"])
    assert whole > 29 == pair_tokeniser(model)(PAIRS, "query")["input_ids"].shape[1]


def test_a_start_that_is_a_cross_encoder_is_kept_as_it_is(starts, tmp_path):
    first = make(starts / "dense")
    save_model(first, tmp_path / "first", LENGTHS)
    second = make(tmp_path / "first", seed=99, alignment=Alignment("", "", "", "", 12, 20))
    assert torch.equal(training_scores(second, PAIRS[:1]), training_scores(first, PAIRS[:1]))
    weights = first.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.state_dict().items())
    assert second.max_seq_length == 31


def test_weights_of_half_precision_are_trained_in_float32(starts, tmp_path):
    for kind in ("plain", "cross"):
        folder = tmp_path / kind
        if kind == "plain":
            shutil.copytree(starts / kind, folder)
        else:
            save_model(make(starts / "plain"), folder, LENGTHS)
        file = folder / "model.safetensors"
        save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, {"format": "pt"})
        assert {p.dtype for p in make(folder).parameters()} == {torch.float32}


def test_a_classifier_of_several_labels_is_refused(starts, tmp_path):
    config = BertConfig.from_pretrained(starts / "plain", num_labels=3)
    shutil.copytree(starts / "plain", tmp_path / "classes")
    BertForSequenceClassification(config).save_pretrained(tmp_path / "classes")
    for load in (make, lambda path: load_cross_encoder(str(path), whose=f"{path}: ")):
        with pytest.raises(ColbertZeroError, match="a classifier, which gives 3 numbers a pair; a teacher has one"):
            load(tmp_path / "classes")


def test_weights_that_are_pickled_are_refused(starts, tmp_path):
    save_model(make(starts / "plain"), tmp_path / "cross", LENGTHS)
    weights = load_file(tmp_path / "cross" / "model.safetensors")
    (tmp_path / "cross" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "cross" / "pytorch_model.bin")
    with pytest.raises(ColbertZeroError):
        make(tmp_path / "cross")


# ---- Other families

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
SIZES = {"vocab_size": 44, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = Qwen3Config(num_key_value_heads=2, head_dim=16, max_position_embeddings=64, **SIZES)
LONG = [(" ".join(f"w{(i + k) % 40}" for k in range(3 + i)), "w9 " * (5 + 11 * i)) for i in range(4)]
AS_BERT = "[CLS] $A [SEP] $B [SEP]"


def written(folder, model, pair, side="right"):
    """A model with a tokenizer of whole words that puts a pair together by a template; none: it adds nothing."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(VOCABULARY[:4])
    if pair:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **names).save_pretrained(folder)
    torch.manual_seed(0)
    model.save_pretrained(folder)
    return folder


FAMILIES = {
    "BERT": (lambda: BertModel(BertConfig(max_position_embeddings=32, **SIZES)), AS_BERT, "right", 32),
    # Positions are counted from the padding's number + 1.
    "RoBERTa": (
        lambda: RobertaModel(RobertaConfig(max_position_embeddings=34, pad_token_id=0, **SIZES)),
        "[CLS] $A [SEP] [SEP] $B [SEP]", "right", 33,
    ),
    "MPNet": (lambda: MPNetModel(MPNetConfig(max_position_embeddings=34, **SIZES)), AS_BERT, "right", 32),
    "a decoder that knows no padding": (lambda: Qwen3Model(DECODER), "[CLS] $A [CLS] $B", "left", 47),
    "XLNet": (lambda: XLNetModel(XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=32, vocab_size=44)), AS_BERT,
              "left", 47),
}  # fmt: skip


@pytest.mark.parametrize(("model", "pair", "side", "longest"), FAMILIES.values(), ids=FAMILIES)
def test_pairs_of_any_family_are_no_longer_than_its_positions_and_score_alike_once_saved(
    model, pair, side, longest, tmp_path
):
    made = make(written(tmp_path / "start", model(), pair, side), alignment=Alignment("", "", "", "", 8, 40))
    assert made.max_seq_length == longest
    trained = training_scores(made, LONG)
    save_model(made, tmp_path / "saved", LENGTHS)
    loaded = CrossEncoder(str(tmp_path / "saved"))
    found = torch.tensor(loaded.predict(LONG, activation_fn=torch.nn.Identity()))
    assert torch.allclose(found, trained, atol=1e-5)


UNFIT = {
    "an encoder whose classifier has a decoder too": (
        lambda: T5EncoderModel(T5Config(vocab_size=44, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)),
        AS_BERT, "a T5ForSequenceClassification has another encoder than a T5EncoderModel",
    ),
    "a tokenizer that puts nothing between two texts": (
        lambda: GPT2Model(GPT2Config(vocab_size=44, n_embd=32, n_layer=1, n_head=2, n_positions=32)),
        "", "its tokenizer puts nothing between a query and a document",
    ),
    "an architecture without a classifier": (
        lambda: BertGenerationEncoder(BertGenerationConfig(**SIZES)),
        AS_BERT, "transformers has no classifier of a BertGenerationEncoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "pair", "why"), UNFIT.values(), ids=UNFIT)
def test_what_no_cross_encoder_can_be_made_of_is_one_message_before_any_data_is_read(model, pair, why, tmp_path):
    written(tmp_path / "start", model(), pair)
    with pytest.raises(ColbertZeroError, match=f"phases.p: no cross-encoder can be made of its start: {why}; take an"):
        make(tmp_path / "start")
    recipe = with_cross_encoder(tmp_path, model={"base": str(tmp_path / "start"), "dim": 16})
    with pytest.raises(ColbertZeroError, match=f"phases.reranker: no cross-encoder .*: {why}"):
        study(tmp_path, recipe).prepare([("reranker",)])  # pairs.jsonl is not there


def test_a_start_of_which_one_can_be_made_has_nothing_against_it(starts):
    assert FROM_SCRATCH.no_pairs == ""
    for kind in ("plain", "dense", "multi-vector"):
        assert read_own(str(starts / kind)).no_pairs == ""
