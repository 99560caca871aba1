"""What kind of model a folder holds; what is no text encoder is refused as a base and by `evaluate`, by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from colbert_zero.data.layouts import write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.bases import check_base
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.kinds import kind_of
from colbert_zero.models.precision import encoding_in
from colbert_zero.training.machine import attention_of

ST = "sentence_transformers"


def write(folder, **files):
    """JSON files of a checkpoint; a double underscore is a slash."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def modules(*types):
    return [{"idx": i, "name": str(i), "path": "" if not i else str(i), "type": t} for i, t in enumerate(types)]


def config(model_type, *architectures):
    return {"model_type": model_type, "architectures": list(architectures)}


REFUSED = {
    "a cross-encoder": (
        {"config": config("bert", "BertForSequenceClassification")},
        "is a cross-encoder or classifier (BertForSequenceClassification)",
    ),
    "a cross-encoder that says so": (
        {
            "config": config("bert", "BertModel"),
            "config_sentence_transformers": {"model_type": "CrossEncoder"},
        },
        "is a cross-encoder, which scores a query and a document together",
    ),
    "a cross-encoder with modules": (
        {
            "config": config("qwen3", "Qwen3ForCausalLM"),
            "modules": modules(f"{ST}.base.modules.Transformer", f"{ST}.cross_encoder.modules.LogitScore"),
        },
        "is a cross-encoder",
    ),
    "a reranker of a class of its own": (
        {"config": config("new", "NewForSequenceClassification")},
        "is a cross-encoder or classifier",
    ),
    "a token classifier": ({"config": config("bert", "BertForTokenClassification")}, "is a token classifier"),
    "a model that marks answers": ({"config": config("bert", "BertForQuestionAnswering")}, "marks answers"),
    "SPLADE": (
        {
            "config": config("bert", "BertForMaskedLM"),
            "modules": modules(f"{ST}.models.MLMTransformer", f"{ST}.models.SpladePooling"),
        },
        "is a sparse encoder",
    ),
    "SPLADE, inference-free": (
        {
            "modules": modules(f"{ST}.base.modules.Router", f"{ST}.models.Pooling"),
            "config_sentence_transformers": {"model_type": "SparseEncoder"},
        },
        "is a sparse encoder",
    ),
    "a generator, GPT": ({"config": config("gpt2", "GPT2LMHeadModel")}, "is a generator (GPT2LMHeadModel)"),
    "a generator, Llama": ({"config": config("llama", "LlamaForCausalLM")}, "is a generator (LlamaForCausalLM)"),
    "a generator by its task": (
        {
            "config": config("qwen3", "Qwen3ForCausalLM"),
            "modules": modules(f"{ST}.base.modules.Transformer"),
            "sentence_bert_config": {"transformer_task": "text-generation"},
        },
        "is a generator",
    ),
    "ViT": ({"config": config("vit", "ViTModel")}, "is a model of images"),
    "CLIP": ({"config": config("clip", "CLIPModel")}, "is a model of images"),
    "SigLIP": ({"config": config("siglip", "SiglipModel")}, "is a model of images"),
    "sentence-transformers' CLIP": ({"modules": modules(f"{ST}.models.CLIPModel")}, "is a model of images"),
    "ColPali": ({"config": config("colpali", "ColPaliForRetrieval")}, "is a model of images"),
    "ColQwen2 by its task": (
        {
            "config": config("colqwen2", "ColQwen2ForRetrieval"),
            "modules": modules(f"{ST}.base.modules.Transformer"),
            "sentence_bert_config": {"transformer_task": "retrieval"},
            "config_sentence_transformers": {"model_type": "MultiVectorEncoder"},
        },
        "is a model of images",
    ),
    "an unknown model with eyes": ({"config": {"model_type": "xyz", "vision_config": {}}}, "is a model of images"),
    "speech": ({"config": config("wav2vec2", "Wav2Vec2Model")}, "is a model of sound"),
    "Whisper": ({"config": config("whisper", "WhisperForConditionalGeneration")}, "is a model of sound"),
    "an adapter": ({"config": config("bert", "BertModel"), "adapter_config": {"peft_type": "LORA"}}, "is an adapter"),
}


@pytest.mark.parametrize(("files", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_encoder_is_refused_by_name_as_a_base_and_to_evaluate(tmp_path, files, message):
    write(tmp_path, **files)
    for trained in (True, False):
        with pytest.raises(ColbertZeroError) as error:
            check_base(str(tmp_path), whose="model.base", trained=trained)
        assert str(error.value).startswith(f"model.base: {str(tmp_path)!r} is ")
        assert message in str(error.value)


KINDS = {
    "plain BERT": ({"config": config("bert", "BertForMaskedLM")}, "encoder"),
    "ELECTRA": ({"config": config("electra", "ElectraForPreTraining")}, "encoder"),
    "T5": ({"config": config("t5", "T5ForConditionalGeneration")}, "encoder"),
    "Llama without its head": ({"config": config("llama", "LlamaModel")}, "encoder"),
    "CLIP's half that reads text": ({"config": config("clip_text_model", "CLIPTextModel")}, "encoder"),
    "a class of its own": ({"config": config("new", "NewModel") | {"auto_map": {}}}, "encoder"),
    "no architectures": ({"config": {"model_type": "bert"}}, "encoder"),
    "Stanford": ({"config": config("bert", "HF_ColBERT")}, "multi-vector"),
    "PyLate 1.x": (
        {
            "config": config("modernbert", "ModernBertModel"),
            "modules": modules(f"{ST}.models.Transformer", "pylate.models.Dense.Dense"),
            "config_sentence_transformers": {"similarity_fn_name": "MaxSim", "query_prefix": "[Q] "},
        },
        "multi-vector",
    ),
    "PyLate that names no similarity": (
        {
            "config": config("bert", "BertModel"),
            "modules": modules(f"{ST}.models.Transformer", "pylate.models.Dense.Dense"),
        },
        "multi-vector",
    ),
    "PyLate that names its class": ({"config_sentence_transformers": {"model_type": "ColBERT"}}, "multi-vector"),
    "dense": (
        {
            "config": config("bert", "BertModel"),
            "modules": modules(f"{ST}.models.Transformer", f"{ST}.models.Pooling"),
        },
        "dense",
    ),
    "a generator with pooling, as Qwen3-Embedding": (
        {
            "config": config("qwen3", "Qwen3ForCausalLM"),
            "modules": modules(f"{ST}.models.Transformer", f"{ST}.models.Pooling"),
        },
        "dense",
    ),
    "dense, its encoder in a folder of its own": (
        {
            "modules": [{"path": "0_Transformer", "type": f"{ST}.models.Transformer"}],
            "0_Transformer__config": config("bert", "BertModel"),
        },
        "dense",
    ),
}


@pytest.mark.parametrize(("files", "kind"), KINDS.values(), ids=KINDS)
def test_a_text_encoder_is_told_from_all_its_signs(tmp_path, files, kind):
    write(tmp_path, **files)
    assert kind_of(str(tmp_path)) == kind


def cross_encoder(backbone, folder):
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
    model.save_pretrained(folder.parent / "plain")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder.parent / "plain")
    CrossEncoder(str(folder.parent / "plain")).save_pretrained(str(folder))


def sparse_encoder(backbone, folder):
    AutoModelForMaskedLM.from_pretrained(backbone).save_pretrained(folder.parent / "plain")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder.parent / "plain")
    first = Transformer(str(folder.parent / "plain"), transformer_task="fill-mask")
    SparseEncoder(modules=[first, SpladePooling()]).save_pretrained(str(folder), create_model_card=False)


def test_evaluate_refuses_a_sparse_encoder_that_sentence_transformers_has_written(
    backbone, tmp_path, collection, command
):
    sparse_encoder(backbone, tmp_path / "model")
    write_beir(collection, tmp_path / "beir")
    code, _, told = command("evaluate", tmp_path / "model", "--collection", tmp_path / "beir")
    assert code == 2
    assert "is a sparse encoder" in told


@pytest.mark.parametrize(
    ("make", "message"), [(cross_encoder, "is a cross-encoder"), (sparse_encoder, "is a sparse encoder")]
)
def test_what_has_no_embeddings_is_not_loaded_as_an_encoder(backbone, tmp_path, make, message):
    make(backbone, tmp_path / "model")
    with pytest.raises(ColbertZeroError, match=message):
        load_model(tmp_path / "model")


def test_a_model_without_a_transformer_is_evaluated_and_no_base(backbone, tmp_path):
    modules = [StaticEmbedding(AutoTokenizer.from_pretrained(backbone).backend_tokenizer, embedding_dim=8), Normalize()]
    SentenceTransformer(modules=modules).save_pretrained(str(tmp_path), create_model_card=False)
    check_base(str(tmp_path), trained=False)
    model = load_model(tmp_path)
    assert attention_of(model) is None
    with pytest.raises(
        ColbertZeroError, match="begins with a StaticEmbedding and has no encoder to compute in bfloat16"
    ):
        encoding_in(model, "bfloat16")
    with pytest.raises(ColbertZeroError, match="begins with a StaticEmbedding; only one encoder"):
        check_base(str(tmp_path))


def test_the_published_layout_of_gte_moderncolbert_loads_and_may_be_a_base(backbone, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.save_pretrained(tmp_path)
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    made = AutoConfig.for_model("modernbert", vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ids)
    torch.manual_seed(0)
    AutoModel.from_config(made).save_pretrained(tmp_path)
    identity = "torch.nn.modules.linear.Identity"
    write(
        tmp_path,
        modules=modules(f"{ST}.models.Transformer", "pylate.models.Dense.Dense"),
        sentence_bert_config={"max_seq_length": 31, "do_lower_case": False},
        config_sentence_transformers={
            "__version__": {"sentence_transformers": "4.0.2", "transformers": "4.48.2", "pytorch": "2.5.1"},
            "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
            "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12, "document_length": 32,
            "attend_to_expansion_tokens": False, "skiplist_words": [".", ","],
        },
    )  # fmt: skip
    dense = {"in_features": 32, "out_features": 16, "bias": False, "activation_function": identity}
    (tmp_path / "modules.json").write_text((tmp_path / "modules.json").read_text().replace('"1"', '"1_Dense"'))
    write(tmp_path, **{"1_Dense__config": dense})
    save_file({"linear.weight": torch.randn(16, 32)}, tmp_path / "1_Dense" / "model.safetensors", {"format": "pt"})
    check_base(str(tmp_path))
    model = load_model(tmp_path)
    assert isinstance(model, MultiVectorEncoder)
    assert model.encode_query(["the lift of a wing"])[0].shape[1] == 16


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


WEIGHTS = {
    "half a download": (half, "cannot be read"),
    "a pointer of Git LFS": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), "cannot be read"),
    "nothing": (lambda f: f.unlink(), "has no weights as safetensors"),
    "a pickle": (lambda f: f.rename(f.with_name("pytorch_model.bin")), "has no weights as safetensors"),
}


@pytest.mark.parametrize(("spoil", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_cannot_be_read_are_told_before_anything_is_prepared(backbone, tmp_path, spoil, message):
    shutil.copytree(backbone, tmp_path / "base")
    check_base(str(tmp_path / "base"))
    spoil(tmp_path / "base" / "model.safetensors")
    with pytest.raises(ColbertZeroError, match=f"model.base: .*{message}"):
        check_base(str(tmp_path / "base"))


def test_a_pickle_beside_the_weights_of_a_sentence_transformers_base_is_told_before_anything_is_prepared(
    backbone, tmp_path
):
    modules = [Transformer(str(backbone)), Pooling(32)]
    SentenceTransformer(modules=modules).save_pretrained(str(tmp_path), create_model_card=False)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ColbertZeroError, match="a pickle can run code"):
        check_base(str(tmp_path))
