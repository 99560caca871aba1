"""What a model takes to answer: the bytes of its files, and the operations of encoding a query."""

from pathlib import Path
from typing import Any

from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import EXPANSION, TEXTS_TOKENISED_AT_ONCE, prompt_of
from colbert_zero.models.shrunk import folder_bytes


def footprint(folder: Path, queries: list[str]) -> dict[str, Any]:
    """Bytes of a checkpoint, and floating-point operations of encoding a query of mean length by it.

    Operations are counted as in training's records: 2 for each parameter, token embeddings left out, and token, with
    markers, prompts and what queries are filled up with. Attention's products and the search itself are not in them.

    Args:
        folder: The checkpoint's.
        queries: Texts, whose lengths the mean is over.

    Returns:
        model_bytes (of the files it is loaded from), query_tokens (the mean), query_flops.
    """
    model: Any = load_model(folder, device="cpu")
    tokens = 0
    for start in range(0, len(queries), TEXTS_TOKENISED_AT_ONCE):
        group = queries[start : start + TEXTS_TOKENISED_AT_ONCE]
        features = model.preprocess(group, prompt=prompt_of(model, "query"), task="query")
        used = features["attention_mask"].bool()
        if (expansion := features.get(EXPANSION)) is not None:
            used = used | expansion.bool()
        tokens += int(used.sum())
    embeddings: Any = model[0].get_submodule("model").get_input_embeddings()
    computing = sum(weight.numel() for weight in model.parameters()) - embeddings.weight.numel()
    mean = tokens / len(queries)
    return {"model_bytes": folder_bytes(folder), "query_tokens": round(mean, 2), "query_flops": 2 * computing * mean}
