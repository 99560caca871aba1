"""A 20-document collection and tiny seeded encoders, shared by all tests."""

import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from colbert_zero import cli
from colbert_zero.data.collection import Collection
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.cross_encoders import assemble_cross_encoder
from helpers import DOCUMENTS, PROMPTS, QRELS, QUERIES, Hub

# Tiny tensors: a second thread only adds waiting.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def collection() -> Collection:
    return Collection.from_memory("tiny", DOCUMENTS, QUERIES, QRELS)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a seeded two-layer BERT and a WordPiece tokenizer of the collection's words.

    The vocabulary is written out, because training one numbers its pieces in the order of a randomly seeded hash map:
    the weights that a token gets, and with them which maxima of MaxSim nearly tie, would differ from run to run.
    """
    folder = tmp_path_factory.mktemp("backbone")
    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Q]", "[D]"]
    texts = [normalizer.normalize_str(text) for text in [*DOCUMENTS.values(), *QUERIES.values(), *PROMPTS.values()]]
    known = sorted({word for text in texts for word, _ in words.pre_tokenize_str(text)} | set(string.ascii_lowercase))
    pieces = [*special, *known, *(f"##{letter}" for letter in string.ascii_lowercase)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_multi_vector(backbone: Path) -> MultiVectorEncoder:
    """A multi-vector model of 16 dimensions that skips full stops in documents; do not change it."""
    torch.manual_seed(1)
    modules = [
        Transformer(str(backbone)),
        Dense(
            32,
            16,
            bias=False,
            activation_function=torch.nn.Identity(),
            module_input_name="token_embeddings",
            module_output_name="token_embeddings",
        ),
        MultiVectorMask(skiplist_words=["."]),
        Normalize(module_input_name="token_embeddings"),
    ]
    return MultiVectorEncoder(modules=modules, prompts=PROMPTS, device="cpu")


@pytest.fixture(scope="session")
def tiny_dense(backbone: Path) -> SentenceTransformer:
    """A dense model of 32 dimensions; do not change it."""
    modules = [Transformer(str(backbone)), Pooling(32, "mean"), Normalize()]
    return SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")


@pytest.fixture(scope="session")
def tiny_cross_encoder(backbone: Path) -> CrossEncoder:
    """A cross-encoder of one number a pair, of at most 39 tokens; do not change it."""
    return assemble_cross_encoder(str(backbone), Alignment("", "", "", "", 20, 20), 1, "tiny")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command; returns exit code, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["colbert-zero", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine, with an empty cache."""
    served = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.address)
    template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once, with the address of that time
    yield served
    served.close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a module's `made` made, as the one that commands are typed in, on a wide terminal."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "200")
    return made
