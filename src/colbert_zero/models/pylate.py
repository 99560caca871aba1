"""A checkpoint in PyLate's layout, which PyLate 1.6 and vLLM read where they do not read sentence-transformers 6's.

Both find a projection by its class's name in modules.json, and know those of sentence-transformers 5 and of PyLate
alone. What is written is read again by this program and gives the model's vectors, or it is not kept.
"""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import atomic_folder, read_json, write_json
from colbert_zero.models.alignment import META
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.comparing import TOLERANCE, difference, in_words, unknown_modules, vectors_of
from colbert_zero.models.encoding import prompt_of
from colbert_zero.models.scored_tokens import scored_in_words

_NOT_COPIED = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", META, "README.md"}


def export_pylate(model: Path, out: Path) -> float:
    """Write a multi-vector checkpoint in PyLate's layout.

    Args:
        model: The checkpoint's folder.
        out: The new folder.

    Returns:
        The largest difference of two numbers of a vector, of sample texts.

    Raises:
        ColbertZeroError: The layout cannot hold what the model is; nothing is kept.
    """
    encoder = _checked(load_model(model, device="cpu"))
    with atomic_folder(out) as folder:
        _write(encoder, model, folder)
        try:
            read = load_model(folder, device="cpu")
            apart = difference(vectors_of(encoder), vectors_of(read))
        except Exception as error:  # of the libraries, with a tokenizer or architecture that this layout does not suit
            raise ColbertZeroError(
                f"MODEL: what PyLate's layout makes of {model} cannot be read: {reason(error)}"
            ) from None
        if not apart <= TOLERANCE:
            how = in_words(apart)
            raise ColbertZeroError(
                f"MODEL: PyLate's layout cannot hold {model}: it would give other vectors ({how}), since PyLate puts a "
                "marker before a text by its number, and a prompt after it as words of their own"
            )
    return apart


def _checked(encoder: Encoder) -> MultiVectorEncoder:
    """The model; what PyLate's layout has no place for is refused."""
    if not isinstance(encoder, MultiVectorEncoder):
        raise ColbertZeroError("export: for multi-vector models; PyLate has no others")
    wrong = unknown_modules(encoder)
    if not any(isinstance(module, Normalize) for module in encoder):
        wrong.append("vectors that are not normalised")
    if encoder.similarity_fn_name != "maxsim":
        wrong.append(f"the score {encoder.similarity_fn_name}")
    expansion = cast(Any, encoder)[0].query_expansion
    if expansion and expansion.get("strategy") != "fixed":
        wrong.append("queries filled up at least")
    if wrong:
        raise ColbertZeroError(f"MODEL: has {', '.join(wrong)}, for which PyLate's layout has no place")
    return encoder


def _write(encoder: MultiVectorEncoder, model: Path, folder: Path) -> None:
    transformer: Any = cast(Any, encoder)[0]
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for entry in read_json(model / "modules.json"):
        if entry["type"].rpartition(".")[2] == "Dense":
            number = len(modules)
            place = f"{number}_Dense"
            modules.append({"idx": number, "name": str(number), "path": place, "type": "pylate.models.Dense.Dense"})
            shutil.copytree(model / entry["path"], folder / place)
            of_dense = read_json(folder / place / "config.json")
            kept = ("in_features", "out_features", "bias", "activation_function", "use_residual")
            write_json(folder / place / "config.json", {key: of_dense[key] for key in kept if key in of_dense})
    for file in (file for file in model.iterdir() if file.is_file() and file.name not in _NOT_COPIED):
        shutil.copyfile(file, folder / file.name)
    skipped, filled = scored_in_words(encoder)
    queries, documents = (_parts(encoder, task) for task in ("query", "document"))
    expansion = transformer.query_expansion or {}
    length = transformer.document_length or transformer.max_seq_length
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "ColBERT",
            "__version__": {"sentence_transformers": "5.3.0", "transformers": "", "pytorch": torch.__version__},
            "prompts": {"query": queries[1], "document": documents[1]} if queries[1] or documents[1] else {},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            "query_prefix": queries[0],
            "document_prefix": documents[0],
            "query_length": expansion.get("length") or transformer.query_length or length,
            "document_length": length,
            "attend_to_expansion_tokens": filled == "attend",
            "skiplist_words": skipped,
            "do_query_expansion": filled != "false",
        },
    )


def _parts(encoder: Encoder, task: str) -> tuple[str, str]:
    """Marker, a token of its own that a prompt begins with, and the rest of the prompt."""
    prompt = prompt_of(encoder, task) or ""
    special = {*encoder.tokenizer.get_added_vocab(), *encoder.tokenizer.all_special_tokens}
    longest = max((token for token in special if token and prompt.startswith(token)), key=len, default="")
    return longest, prompt[len(longest) :].removeprefix(" ")
