"""One model of several that are alike in everything but their weights, number by number.

sentence-transformers merges them, by mergekit; what goes before is to say in a recipe's words what does not fit.

Source: the averages of checkpoints that the paper's successors use; "Model soups", arXiv 2203.05482, for the mean.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, cast

from sentence_transformers.base.modules import Transformer

from colbert_zero.errors import ColbertZeroError, reason, show
from colbert_zero.models.adapting import has_route
from colbert_zero.models.checkpoints import Encoder

Method = Literal["linear", "slerp", "multislerp", "karcher"]

_NOT_SHAPE = {"architectures", "transformers_version", "torch_dtype", "dtype"}


def check_mergekit(whose: str) -> None:
    """Refuse merging without mergekit.

    Raises:
        ColbertZeroError: Names the mend.
    """
    if find_spec("mergekit") is None:
        raise ColbertZeroError(f"{whose}: mergekit is not installed; pip install colbert-zero[merge]")


def merged(models: Mapping[str, Encoder], weights: Sequence[float] | None, method: Method, whose: str) -> Encoder:
    """The merged model, with the first one's prompts and settings, which are those of all.

    Args:
        models: By what messages call them; they stay as they are.
        weights: One each, of which only ratios count; None: all alike.
        method: A mean of the numbers (`linear`), or on the sphere: of two (`slerp`) or of several.
        whose: How messages of errors begin.

    Raises:
        ColbertZeroError: They are not alike; names the first difference.
    """
    check_alike(models, whose)
    given, each = list(models.values()), list(weights or [1.0] * len(models))
    parameters: dict[str, Any] = {"weight": each} if method in ("linear", "multislerp") else {}
    if method == "slerp":
        parameters = {"t": each[1] / (each[0] + each[1])}
    try:
        made = cast(Any, type(given[0])).merge(given, method, parameters=parameters, device="cpu")
    except (ValueError, TypeError, RuntimeError) as error:  # what the library finds that is not among ours
        raise ColbertZeroError(f"{whose}: cannot be merged ({reason(error)})") from error
    return cast(Encoder, made)


def check_alike(models: Mapping[str, Encoder], whose: str) -> None:
    """Refuse models that differ in more than weights; raises as `merged`."""
    (first, one), *others = models.items()
    for name, model in models.items():
        if has_route(model):
            raise ColbertZeroError(
                f"{whose}: {name} is adapted, with modules for queries alone; merge what it was made of"
            )
    for name, other in others:
        for what, had, has in _settings(one, other):
            if had != has:
                raise ColbertZeroError(
                    f"{whose}: {name} has {what} {show(has)}, and {first} {show(had)}; only models that are alike in "
                    "everything but their weights are merged"
                )


def _settings(one: Encoder, other: Encoder) -> list[tuple[str, Any, Any]]:
    """What two models have to have in common: (what, of the one, of the other)."""
    found: list[tuple[str, Any, Any]] = []
    had, has = ([type(module).__name__ for module in model] for model in (one, other))
    found.append(("the modules", " → ".join(had), " → ".join(has)))
    if had != has:
        return found
    for first, second in zip(one, other, strict=True):
        if not isinstance(first, Transformer):
            said, says = (
                ", ".join(str(tuple(t.shape)) for t in module.state_dict().values()) for module in (first, second)
            )
            found.append((f"in its {type(first).__name__} arrays of", said, says))
            continue
        encoders: list[Any] = [first.model, cast(Any, second).model]
        configs = [{k: v for k, v in encoder.config.to_dict().items() if k[0] != "_"} for encoder in encoders]
        keys = [key for key in dict.fromkeys([*configs[0], *configs[1]]) if key not in _NOT_SHAPE]
        found += [(key, configs[0].get(key), configs[1].get(key)) for key in keys]
        size, other_size = (len(module.tokenizer.get_vocab()) for module in (first, cast(Any, second)))
        found.append(("a vocabulary of so many tokens:", size, other_size))
        alike = first.tokenizer.get_vocab() == cast(Any, second).tokenizer.get_vocab()
        found.append(("the tokenizer", "its own", "its own" if alike else "another"))
        for key in ("query_length", "document_length", "max_seq_length", "query_expansion"):
            found.append((key, getattr(first, key, None), getattr(second, key, None)))
    for task in ("query", "document"):
        found.append((f"the {task} prompt", one.prompts.get(task), other.prompts.get(task)))
    return found
