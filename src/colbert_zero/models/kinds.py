"""What kind of model a checkpoint holds, told from all its signs; what has no embeddings of texts to train is refused.

sentence-transformers loads a cross-encoder, a sparse encoder or a generator as a dense model with mean pooling, and
says so in a line of its log; its scores look like a weak model's. Only configuration files are read here.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import transformers
from sentence_transformers.util import load_file_path
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import parse_json

Kind = Literal["multi-vector", "dense", "encoder"]
"""`encoder`: one of transformers, without pooling or projection."""

_ALONE = (
    "to start from its encoder alone, save that: AutoModel.from_pretrained(IT).save_pretrained(FOLDER), and its "
    "tokenizer likewise"
)
_TASKS = {
    "ForSequenceClassification": "a cross-encoder or classifier",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a model that marks answers",
    "ForMultipleChoice": "a classifier",
    "ForCausalLM": "a generator",
    "GPT2LMHeadModel": "a generator",
    "OpenAIGPTLMHeadModel": "a generator",
    "DoubleHeadsModel": "a generator",
}
"""Heads by the end of an architecture's name. Those of pre-training (ForMaskedLM, ForPreTraining) are left off as
always, and an encoder-decoder (ForConditionalGeneration) has an encoder of its own."""
_SENSES = {"image": "images", "video": "video", "audio": "sound"}


class _Signs(NamedTuple):
    """What a checkpoint's configuration files say."""

    saved: dict[str, Any]
    """config_sentence_transformers.json."""
    modules: list[str]
    """Types in modules.json."""
    config: dict[str, Any]
    """config.json, of the first module where the root has none."""
    task: str
    """What sentence-transformers loads the first module for."""
    adapter: bool

    @property
    def architectures(self) -> list[str]:
        """Classes that the weights were saved from."""
        names = self.config.get("architectures")
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def kind_of(path: str, revision: str | None = None, whose: str = "") -> Kind:
    """What a checkpoint holds: a multi-vector model, a dense one, or a plain encoder.

    Args:
        path: Folder or Hub id.
        revision: Of a Hub id.
        whose: How the message of an error begins: the key that names it.

    Raises:
        ColbertZeroError: Another kind of model; says which, and the mend.
    """
    signs = _signs(path, revision)
    if what := _unfit(signs):
        raise ColbertZeroError(f"{whose}{path!r} is {what}")
    similarity = str(signs.saved.get("similarity_fn_name")).lower()
    if (
        signs.saved.get("model_type") in ("MultiVectorEncoder", "ColBERT")
        or similarity == "maxsim"
        or "HF_ColBERT" in signs.architectures
        or any(module.startswith("pylate.") for module in signs.modules)
    ):
        return "multi-vector"
    return "dense" if signs.modules else "encoder"


def is_cross_encoder(path: str, revision: str | None = None) -> bool:
    """Whether a checkpoint scores a query and a document together.

    Args:
        path: Folder or Hub id.
        revision: Of a Hub id.
    """
    signs = _signs(path, revision)
    alone = not signs.modules and any(name.endswith("ForSequenceClassification") for name in signs.architectures)
    return _is_cross_encoder(signs) or alone


def _is_cross_encoder(signs: _Signs) -> bool:
    saved, modules = signs.saved.get("model_type"), " ".join(signs.modules)
    return saved == "CrossEncoder" or "cross_encoder" in modules or signs.task == "sequence-classification"


def trainable_kind(path: str, revision: str | None = None, whose: str = "") -> Kind:
    """As `kind_of`; what can be evaluated and has no transformer to train is refused too.

    Raises:
        ColbertZeroError: Also as `kind_of`.
    """
    kind = kind_of(path, revision, whose)
    names = [module.rpartition(".")[2] for module in _signs(path, revision).modules]
    if names and not names[0].endswith("Transformer"):
        raise ColbertZeroError(
            f"{whose}{path!r} begins with a {short(names[0])}; only one encoder for queries and documents, of "
            "transformers, can be trained on"
        )
    if goes_two_ways(path, revision):
        raise ColbertZeroError(
            f"{whose}{path!r} has a Router, with modules for queries or documents alone, and would not stay what it is "
            "adapted from; train the model that it was made of, and adapt what comes of that"
        )
    return kind


def goes_two_ways(path: str, revision: str | None = None) -> bool:
    """Whether a model has a Router: modules that queries or documents alone go through, as `adapt` writes them."""
    return any(module.rpartition(".")[2] == "Router" for module in _signs(path, revision).modules)


def _unfit(signs: _Signs) -> str:
    """What is no text encoder, and the mend; empty where it is one."""
    saved, modules = signs.saved.get("model_type"), " ".join(signs.modules)
    if signs.adapter:
        return (
            "an adapter, whose weights come on top of another model's; merge it (PEFT's merge_and_unload) and save "
            "the whole"
        )
    if saved == "SparseEncoder" or any(s in modules for s in ("sparse_encoder", "Splade", "MLMTransformer")):
        return f"a sparse encoder (SPLADE and its kin), which gives weights of terms and no embeddings; {_ALONE}"
    if _is_cross_encoder(signs):
        return f"a cross-encoder, which scores a query and a document together and has no embeddings; {_ALONE}"
    if senses := sorted(_senses(signs)):
        return f"a model of {' and '.join(senses)}; only encoders of text are trained and evaluated here"
    if signs.task in ("text-generation", "any-to-any"):
        return f"a generator; {_ALONE}"
    if not signs.modules:
        for architecture in signs.architectures:
            for end, what in _TASKS.items():
                if architecture.endswith(end):
                    return f"{what} ({short(architecture)}), which has no embeddings of its own; {_ALONE}"
    return ""


def _senses(signs: _Signs) -> Iterator[str]:
    """What a model reads besides text, by its classes' own word where transformers knows them."""
    if signs.task == "retrieval" or any("CLIPModel" in module for module in signs.modules):
        yield "images"
        return
    names = [*signs.architectures, MODEL_MAPPING_NAMES.get(str(signs.config.get("model_type")), ())]
    read: set[str] = set()
    for name in names:
        for one in [name] if isinstance(name, str) else name:
            known = None
            with suppress(ImportError, RuntimeError):  # a class whose libraries are not here
                known = getattr(transformers, one, None)
            if isinstance(known, type) and issubclass(known, transformers.PreTrainedModel):
                inputs = known.input_modalities
                read.update([inputs] if isinstance(inputs, str) else inputs)
    read.update(sense for sense, key in (("image", "vision_config"), ("audio", "audio_config")) if key in signs.config)
    yield from {_SENSES.get(sense, sense) for sense in read - {"text"}}


def _signs(path: str, revision: str | None) -> _Signs:
    found = _read(path, "modules.json", revision, "")
    modules = [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []
    first = str(modules[0].get("path") or "") if modules else ""

    def read(name: str) -> dict[str, Any]:
        for folder in dict.fromkeys(("", first)):
            content = _read(path, name, revision, folder)
            if isinstance(content, dict):
                return content
        return {}

    return _Signs(
        saved=read("config_sentence_transformers.json"),
        modules=[str(m.get("type")) for m in modules],
        config=read("config.json"),
        task=str(read("sentence_bert_config.json").get("transformer_task")),
        adapter=bool(read("adapter_config.json")),
    )


def _read(path: str, name: str, revision: str | None, folder: str) -> Any:
    """A JSON file of a checkpoint; None where there is none."""
    try:
        file = load_file_path(path, name, subfolder=folder, revision=revision)
        return parse_json(Path(file).read_text(encoding="utf-8")) if file else None
    except ValueError as error:
        place = Path(path, folder, name)
        raise ColbertZeroError(f"{place}: cannot be read as JSON: {reason(error)}; fetch it again") from None
