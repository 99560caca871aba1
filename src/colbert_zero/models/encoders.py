"""Encoders: from a Hub id, a folder or an architecture; their markers, prompts and lengths, and the alignment of those.

Every checkpoint is an ordinary sentence-transformers one (safetensors) that carries its prompts and lengths, so that
`MultiVectorEncoder(folder).encode_query(...)` is all a user needs. What sentence-transformers has no place for stands
beside it in colbert_zero.json.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import load_file_path

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import read_json, write_json
from colbert_zero.models.checkpoints import SAFE, Encoder, give_padding, is_stanford, load_model, usable_positions
from colbert_zero.models.untrusted import check_checkpoint

Representation = Literal["dense", "multi-vector"]
Tokenise = Callable[[list[str], str], dict[str, torch.Tensor]]
"""Texts of a task to `input_ids` and `attention_mask`, (texts, tokens) int64, padded."""
_META = "colbert_zero.json"


@dataclass(frozen=True)
class Alignment:
    """What queries and documents are wrapped in, and how long they may be: the same in training and in use."""

    query_prompt: str
    document_prompt: str
    query_marker: str
    document_marker: str
    query_tokens: int
    document_tokens: int

    def prefix(self, task: str, representation: Representation) -> str:
        """What is put before a text: the marker (multi-vector only), then the prompt."""
        prompt, marker = getattr(self, f"{task}_prompt"), getattr(self, f"{task}_marker")
        return f"{marker} {prompt}" if representation == "multi-vector" and marker else prompt


def read_alignment(folder: str | Path) -> dict[str, Any] | None:
    """What a checkpoint says of its prompts, markers and lengths; None where it was not made by this program.

    Raises:
        ColbertZeroError: It says nothing that could be understood.
    """
    path = Path(folder) / _META
    if not path.is_file():
        return None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        known: dict[str, Any] = read_json(path)
        if all(isinstance(known[f"{task}_prompt"], str) for task in ("query", "document")):
            return known
    raise ColbertZeroError(f"{path}: not what this program writes; delete it, and the model counts as another's")


def check_alignment(start: dict[str, Any] | None, alignment: Alignment, phase: str, parent: str) -> None:
    """Refuse to train on prompts other than those a checkpoint was trained with.

    Raises:
        ColbertZeroError: Names both.
    """
    if start is None:
        return
    for task in ("query", "document"):
        had, wants = start[f"{task}_prompt"], getattr(alignment, f"{task}_prompt")
        if had != wants:
            raise ColbertZeroError(
                f"phases.{phase}: its start, {parent}, was trained with the {task} prompt {had!r}, this phase has "
                f"{wants!r}. Stripping or adding prompts hurts clearly; give the phase the same `prompts`, or, for an "
                "ablation, `allow_prompt_mismatch: true`"
            )


class _Start(NamedTuple):
    transformer: Transformer
    projection: Dense | None
    """Of token vectors, in a multi-vector checkpoint."""
    head: list[torch.nn.Module] | None
    """Pooling and what follows, in a dense checkpoint."""
    similarity: Any
    """What a dense checkpoint scores by."""
    known: dict[str, Any] | None
    """Its prompts."""


def _base_modules(base: str, options: dict[str, Any]) -> _Start:
    """What a start is made of."""
    known = read_alignment(base)
    local = {key: options[key] for key in ("revision",) if options.get(key)}
    if load_file_path(base, "modules.json", **local) is None and not is_stanford(base, local):
        check_checkpoint(base, options.get("revision"), options.get("trust_remote_code", False))
        # Left open, transformers would ask at the terminal whether to run a checkpoint's code.
        options = {"trust_remote_code": False, **options}
        hub = {key: value for key, value in options.items() if key != "attn_implementation"}
        transformer = Transformer(
            base,
            model_kwargs={**SAFE, **options},
            processor_kwargs=dict(hub),
            config_kwargs=dict(hub),
        )
        return _Start(transformer, None, None, None, known)
    loaded = load_model(base, **options)
    transformer = next(module for module in loaded if isinstance(module, Transformer))
    projection = next((m for m in loaded if isinstance(m, Dense) and m.module_input_name == "token_embeddings"), None)
    if known is None and any(loaded.prompts.get(task) for task in ("query", "document")):
        known = {f"{task}_prompt": loaded.prompts.get(task) or "" for task in ("query", "document")}
    head = None if isinstance(loaded, MultiVectorEncoder) else [m for m in loaded if m is not transformer]
    return _Start(transformer, projection, head, loaded.similarity_fn_name, known)


def assemble(
    base: str,
    representation: Representation,
    alignment: Alignment,
    dim: int,
    seed: int,
    phase: str,
    allow_prompt_mismatch: bool = False,
    new_projection: str = "random",
    **options: Any,
) -> Encoder:
    """The model a phase starts from.

    Args:
        base: Hub id or folder: a transformers encoder, a dense or a multi-vector checkpoint.
        representation: What the phase trains. A dense start keeps its pooling, its head and its similarity in a dense
            phase, and becomes multi-vector by a new linear projection, without bias, in their place. A plain encoder
            gets mean pooling and normalisation.
        alignment: Prompts, markers and lengths; markers and prompts come on top of the lengths.
        dim: Width of a token vector.
        seed: Of the projection's random weights.
        phase: Named in errors.
        allow_prompt_mismatch: Do not compare the prompts with those of the start.
        new_projection: `random`, or `orthogonal`: orthonormal rows (columns, where `dim` is above the encoder's width).
        options: `attn_implementation`; `revision` and `trust_remote_code` for the Hub.

    Raises:
        ColbertZeroError: The prompts or the projection's width differ, the lengths exceed the encoder's positions, or
            the similarity is none that a dense phase trains.
    """
    try:
        start = _base_modules(base, options)
    except ColbertZeroError:
        raise
    except Exception as error:  # whatever may be wrong with a checkpoint, and there is much
        raise ColbertZeroError(f"phases.{phase}: cannot load the start {base!r}: {reason(error)}") from error
    if not allow_prompt_mismatch:
        check_alignment(start.known, alignment, phase, base)
    transformer = start.transformer
    give_padding(transformer.tokenizer, f"phases.{phase}: the tokenizer of {base!r}")
    if representation == "multi-vector":
        _add_markers(transformer, [alignment.query_marker, alignment.document_marker], seed)
    prefixes = {task: alignment.prefix(task, representation) for task in ("query", "document")}
    _set_lengths(transformer, alignment, prefixes, phase)
    prompts = {
        task: prefix if not prefix or prefix.endswith(" ") else f"{prefix} " for task, prefix in prefixes.items()
    }
    if representation == "dense":
        return _padded(_dense(start, prompts, f"phases.{phase}: the start {base!r}"))
    projection = start.projection or _new_projection(transformer.get_embedding_dimension(), dim, seed, new_projection)
    if projection.out_features != dim:
        raise ColbertZeroError(
            f"model.dim: {dim}, but {base!r} has token vectors of {projection.out_features}; make them equal"
        )
    normalize = Normalize(module_input_name="token_embeddings")
    return _padded(MultiVectorEncoder(modules=[transformer, projection, MultiVectorMask(), normalize], prompts=prompts))


def _add_markers(transformer: Transformer, markers: list[str], seed: int) -> None:
    """Make the markers special tokens; those unknown to the encoder get random vectors."""
    tokenizer: Any = transformer.tokenizer
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [m for m in markers if m]}, replace_extra_special_tokens=False
    )
    embeddings: Any = transformer.model.get_input_embeddings()
    if len(tokenizer) > len(embeddings.weight):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def _set_lengths(transformer: Transformer, alignment: Alignment, prefixes: dict[str, str], phase: str) -> None:
    """Set the longest texts, in tokens; what is put before them comes on top.

    Raises:
        ColbertZeroError: The encoder has no positions for them.
    """
    tokenizer: Any = transformer.tokenizer
    for task, prefix in prefixes.items():
        extra = len(tokenizer(prefix.rstrip(), add_special_tokens=False)["input_ids"]) if prefix else 0
        setattr(transformer, f"{task}_length", getattr(alignment, f"{task}_tokens") + extra)
    positions = usable_positions(transformer)
    longest = max(transformer.query_length or 0, transformer.document_length or 0)
    if positions and longest > positions:
        raise ColbertZeroError(
            f"phases.{phase}: texts of {longest} tokens (with markers and prompts) do not fit the encoder's "
            f"{positions} positions; lower query_tokens or document_tokens"
        )


def _dense(start: _Start, prompts: dict[str, str], whose: str) -> SentenceTransformer:
    """A dense model with its start's pooling, head and similarity; of a plain encoder, with mean pooling and cosine.

    Raises:
        ColbertZeroError: Its similarity is none that a dot product gives.
    """
    transformer, head, similarity = start.transformer, start.head, start.similarity
    if head is None:
        head, similarity = [Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")], "cosine"
    if similarity not in ("cosine", "dot"):
        raise ColbertZeroError(f"{whose} scores by {similarity}; a dense phase trains cosine or dot product")
    if similarity == "cosine" and not isinstance(head[-1], Normalize):
        # Training scores by the dot product: of these, the cosine.
        head = [*head, Normalize()]
    modules = [transformer, *head]
    return SentenceTransformer(modules=modules, prompts=prompts, similarity_fn_name=similarity)


def _new_projection(hidden: int, dim: int, seed: int, kind: str) -> Dense:
    """A linear projection of token vectors, without bias, with random or orthogonal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = Dense(hidden, dim, False, torch.nn.Identity(), module_input_name="token_embeddings")
        if kind == "orthogonal":
            torch.nn.init.orthogonal_(projection.linear.weight)
        return projection


def _padded(model: Encoder) -> Encoder:
    """The model, given padded texts: training sorts them by length and takes the padding out itself."""
    for module in model.modules():
        if hasattr(module, "can_flatten_inputs"):
            module.can_flatten_inputs = False  # type: ignore[assignment]
    return model


def tokeniser(model: Encoder) -> Tokenise:
    """A model's tokenizer with its prompts and lengths."""
    transformer: Any = model[0]
    # As lists, since transformers takes as long to turn them into tensors as the tokenizer took to make them. Query
    # expansion, and checks of generative models, want tensors before that.
    plain = transformer.transformer_task == "feature-extraction" and transformer.query_expansion is None
    options: dict[str, Any] = {"processing_kwargs": {"common": {"return_tensors": None}}} if plain else {}

    def tokenise(texts: list[str], task: str) -> dict[str, torch.Tensor]:
        features = model.preprocess(texts, prompt=model.prompts.get(task), task=task, **options)
        return {key: torch.from_numpy(np.asarray(features[key], np.int64)) for key in ("input_ids", "attention_mask")}

    return tokenise


def with_own_tokenizer(model: Encoder) -> Encoder:
    """The same weights with a copy of the tokenizer.

    A fast tokenizer holds the length to cut to, and a thread may be cutting the next training batches with this one.
    """
    own = copy.copy(model)
    own._modules = dict(model._modules)
    first: Any = copy.copy(model[0])
    first.processor = copy.deepcopy(first.processor)
    own._modules[next(iter(own._modules))] = first
    return own


def save_model(model: Encoder, folder: Path, alignment: Alignment) -> None:
    """Write a checkpoint: safetensors weights, tokenizer, prompts, markers and lengths."""
    representation = "multi-vector" if isinstance(model, MultiVectorEncoder) else "dense"
    model.save_pretrained(str(folder), create_model_card=False)
    write_json(folder / _META, {"representation": representation, **asdict(alignment)})
