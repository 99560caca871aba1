"""Encoders: from a Hub id, a folder or an architecture, with their prompts and lengths, as a phase starts from them.

A checkpoint keeps all that it has: its modules are taken as they are, and only what a recipe asks for otherwise is
changed. Every checkpoint written is an ordinary sentence-transformers one (safetensors) that carries its prompts and
lengths, so that `MultiVectorEncoder(folder).encode_query(...)` is all a user needs. What sentence-transformers has no
place for stands beside it in colbert_zero.json.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import write_json
from colbert_zero.models.alignment import (
    META,
    TASKS,
    Alignment,
    Asked,
    Own,
    Representation,
    align,
    check_alignment,
    check_dim,
    check_lengths,
    check_similarity,
    read_alignment,
)
from colbert_zero.models.checkpoints import (
    SAFE,
    Encoder,
    Trainable,
    give_padding,
    load_model,
    usable_positions,
)
from colbert_zero.models.encoding import EXPANSION, PROMPT_LENGTH, prompt_of
from colbert_zero.models.heads import TOKENS, Head, new_layers
from colbert_zero.models.kinds import kind_of
from colbert_zero.models.pooling import pooling_of, with_pooling
from colbert_zero.models.scored_tokens import ScoredTokens, scored_in_words, set_scored
from colbert_zero.models.untrusted import check_checkpoint

_LINEAR, _AS_IT_IS = Head(), ScoredTokens()

Tokenise = Callable[[list[str], str], dict[str, torch.Tensor]]
"""Texts of a task to their features (`TokenisedTexts`), (texts, tokens) int64, padded."""


def read_own(base: str, asked: Iterable[Asked] = (), **options: Any) -> Own:
    """What a base has of its own; loads it, and encodes two texts with it.

    Args:
        base: Folder or Hub id.
        asked: What phases are asked to train, of which prompts and markers are counted in tokens.
        options: As for `assemble`.

    Raises:
        ColbertZeroError: It cannot be loaded, does not encode texts of any length, or is not one encoder for queries
            and documents.
    """
    transformer, _, own = _load_start(base, options, "model.base")
    try:
        with torch.no_grad():
            features = batch_to_device(transformer.preprocess(["one", "and a longer one"]), transformer.model.device)
            states = transformer(features)["token_embeddings"]
    except Exception as error:  # each architecture has conditions of its own
        raise ColbertZeroError(f"model.base: {base!r} does not encode texts: {reason(error)}") from error
    if not torch.isfinite(states).all():
        raise ColbertZeroError(f"model.base: {base!r} gives states that are not finite; fetch it again")
    asked = list(asked)
    prefixes = _prefixes(own, transformer.tokenizer, asked)
    has_token = transformer.tokenizer.mask_token is not None or own.query_expansion != "false"
    ways = ways_to_train(transformer.model)
    no_pairs = why_no_pairs(transformer) if any(what == "cross-encoder" for what, *_ in asked) else ""
    return replace(own, prefixes=prefixes, can_expand=has_token, no_pairs=no_pairs, **ways)


def ways_to_train(encoder: nn.Module) -> dict[str, Any]:
    """What `Own` has of an encoder's layers: whether they can be computed again, the names of the linear ones."""
    linears = {name.rpartition(".")[2] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    can_recompute = bool(getattr(encoder, "supports_gradient_checkpointing", False))
    return {"can_recompute": can_recompute, "linears": sorted(linears)}


def why_no_pairs(transformer: Any) -> str:
    """Why no cross-encoder can be made of an encoder and its tokenizer; empty where one can."""
    encoder, tokenizer = transformer.model, transformer.tokenizer
    classifiers: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(encoder.config) not in classifiers:
        return f"transformers has no classifier of a {type(encoder).__name__}"
    try:
        with torch.device("meta"):
            classifier = classifiers[type(encoder.config)](copy.deepcopy(encoder.config))
    except Exception as error:  # each architecture has conditions of its own
        return f"no classifier can be made of a {type(encoder).__name__} ({reason(error)})"
    if type(classifier.base_model) is not type(encoder):
        return f"a {type(classifier).__name__} has another encoder than a {type(encoder).__name__}"
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("one", "two")]
    pair, together = tokenizer("one", "two")["input_ids"], texts[0] + texts[1]
    if any(pair[place : place + len(together)] == together for place in range(len(pair))):
        return "its tokenizer puts nothing between a query and a document"
    return ""


def _prefixes(own: Own, tokenizer: Any, asked: Iterable[Asked]) -> dict[str, int]:
    """Tokens of whatever phases may put before texts."""
    prefixes = {}
    for representation, prompts, markers in asked:
        alignment = align(own, representation, prompts, markers, {})
        _make_special(tokenizer, alignment)
        for prefix in alignment.prefixes(representation):
            prefixes[prefix] = _tokens_before(tokenizer, prefix)
    return prefixes


def load_encoder(base: str, options: dict[str, Any], whose: str) -> Any:
    """The encoder of a checkpoint of any kind, with its tokenizer and without what comes after it.

    Args:
        base: Folder or Hub id.
        options: As for `assemble`.
        whose: Named in errors.
    """
    return _load_start(base, options, whose).transformer


class _Start(NamedTuple):
    transformer: Any
    """The encoder: its first module."""
    model: Encoder | None
    """All of a checkpoint; None of a plain encoder."""
    own: Own


def _load_start(base: str, options: dict[str, Any], whose: str) -> _Start:
    """A checkpoint with all its modules, or a plain encoder."""
    try:
        check_checkpoint(base, options.get("revision"), options.get("trust_remote_code", False))
        if kind_of(base, options.get("revision"), f"{whose}: ") == "encoder":
            # Left open, transformers would ask at the terminal whether to run a checkpoint's code.
            options = {"trust_remote_code": False, **options}
            hub = {key: value for key, value in options.items() if key != "attn_implementation"}
            transformer = Transformer(
                base,
                model_kwargs={**SAFE, **options},
                processor_kwargs=dict(hub),
                config_kwargs=dict(hub),
            )
            give_padding(transformer.tokenizer, f"{whose}: the tokenizer of {base!r}")
            return _Start(transformer, None, Own(positions=usable_positions(transformer), words="a plain encoder"))
        loaded = load_model(base, **options)
    except ColbertZeroError:
        raise
    except Exception as error:  # whatever may be wrong with a checkpoint, and there is much
        raise ColbertZeroError(f"{whose}: cannot load the start {base!r}: {reason(error)}") from error
    if not isinstance(loaded[0], Transformer):
        raise ColbertZeroError(
            f"{whose}: {base!r} begins with a {type(loaded[0]).__name__}; only one encoder for queries and documents, "
            "of transformers, can be trained on"
        )
    return _Start(loaded[0], loaded, _own(loaded, base))


def _own(model: Encoder, base: str) -> Own:
    transformer: Any = model[0]
    multi_vector = isinstance(model, MultiVectorEncoder)
    known = read_alignment(base)
    whole = {task: prompt_of(model, task) or "" for task in TASKS}
    if known:
        markers = {task: known[f"{task}_marker"] if multi_vector else "" for task in TASKS}
        prompts: dict[str, str] | None = {task: known[f"{task}_prompt"] for task in TASKS}
    else:
        markers = {task: _marker_of(whole[task], transformer.tokenizer) if multi_vector else "" for task in TASKS}
        prompts = {task: whole[task].removeprefix(markers[task]).removeprefix(" ") for task in TASKS}
        # A dense model that says nothing of prompts may be given some; a multi-vector one was trained without.
        prompts = prompts if multi_vector or any(prompts.values()) else None
    expansion = transformer.query_expansion
    fixed = expansion["length"] if expansion and expansion["strategy"] == "fixed" else None
    longest = {
        "query": fixed or transformer.query_length or transformer.max_seq_length,
        "document": transformer.document_length or transformer.max_seq_length,
    }
    # A tokenizer without a bound of its own says 10 ** 30.
    longest = {task: length if length and length < 10**9 else None for task, length in longest.items()}
    extra = {task: _tokens_before(transformer.tokenizer, whole[task]) for task in TASKS}
    fills = expansion and expansion["strategy"] != "fixed"
    skipped, filled = scored_in_words(model) if multi_vector else ([], "false")
    return Own(
        representation="multi-vector" if multi_vector else "dense",
        dim=model.get_embedding_dimension() if multi_vector else None,
        prompts=prompts,
        markers=markers if multi_vector else None,
        tokens={task: length and length - extra[task] for task, length in longest.items()},
        positions=usable_positions(transformer),
        filled_to=expansion["length"] if fills else None,
        skip_list=skipped,
        query_expansion=filled,
        pool=pooling_of(model),
        similarity=None if multi_vector else str(model.similarity_fn_name),
        words=_words(model, whole, longest),
    )


def _marker_of(prefix: str, tokenizer: Any) -> str:
    """The special token that a prompt begins with, as Stanford's and PyLate's do, or nothing."""
    first = prefix.split(None, 1)[0] if prefix.strip() else ""
    special = {*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder}
    return first if prefix.startswith(f"{first} ") and special & {first, f"{first} "} else ""


def _tokens_before(tokenizer: Any, prefix: str) -> int:
    """Tokens that a prefix adds to a text."""
    with_it, without = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{prefix}a", "a"))
    return len(with_it) - len(without)


def _words(model: Encoder, prefixes: dict[str, str], longest: dict[str, Any]) -> str:
    """A checkpoint's modules, prompts and lengths, for people."""
    said = []
    for module in list(model)[1:]:
        match module:
            case Dense():
                activation = type(module.activation_function).__name__
                shape = f"linear {module.in_features} → {module.out_features}"
                said.append(shape + ("" if activation == "Identity" else f" and {activation}"))
            case Pooling():
                said.append(f"{module.pooling_mode} pooling")
            case Normalize():
                said.append("normalised")
            case MultiVectorMask() if module.skiplist_words:
                said.append(f"{len(module.skiplist_words)} skipped tokens")
            case MultiVectorMask():
                pass
            case HierarchicalTokenPooling():
                said.append(f"documents' tokens pooled by {module.pool_factor:g}")
            case _:
                said.append(type(module).__name__)
    transformer: Any = model[0]
    for task in TASKS:
        prefix = f"{prefixes[task]!r} + " if prefixes[task] else ""
        expansion = transformer.query_expansion if task == "query" else None
        fill = f", filled up to {expansion['length']}" if expansion else ""
        said.append(f"{task} {prefix}text of at most {longest[task]} tokens{fill}")
    kind = "multi-vector" if isinstance(model, MultiVectorEncoder) else f"dense, by {model.similarity_fn_name}"
    return f"{kind}: {', '.join(said)}"


def assemble(
    base: str,
    representation: Representation,
    alignment: Alignment,
    dim: int,
    seed: int,
    phase: str,
    allow_prompt_mismatch: bool = False,
    head: Head = _LINEAR,
    fit: Callable[[Encoder], None] | None = None,
    scored: ScoredTokens = _AS_IT_IS,
    **options: Any,
) -> Encoder:
    """The model a phase starts from.

    Args:
        base: Hub id or folder: a transformers encoder, a dense or a multi-vector checkpoint.
        representation: What the phase trains. A start of that kind keeps all its modules. A dense one becomes
            multi-vector by a new linear projection, without bias, in place of its pooling and what follows; a
            multi-vector one becomes dense, and a plain encoder too, by mean pooling and normalisation.
        alignment: Prompts, markers and lengths.
        dim: Width of a token vector.
        seed: Of the projection's random weights.
        phase: Named in errors.
        allow_prompt_mismatch: Do not compare prompts and markers with those of the start.
        head: A new one, where the start has none of the phase's kind or `head.new` puts it in place of its own.
        fit: Sets the weights that a new one starts with, where `head.start` is `pca`.
        scored: Skip list, query expansion and token pooling of a multi-vector model.
        options: `attn_implementation`; `revision` and `trust_remote_code` for the Hub.

    Raises:
        ColbertZeroError: The prompts, markers or the projection's width differ, the lengths exceed the encoder's
            positions, or the similarity is none that a dense phase trains.
    """
    transformer, loaded, own = start = _load_start(base, options, f"phases.{phase}")
    if not allow_prompt_mismatch:
        check_alignment(own, alignment, representation, phase, base)
    if representation == "multi-vector" and own.markers != {t: getattr(alignment, f"{t}_marker") for t in TASKS}:
        _add_markers(transformer, alignment, seed)
    prefixes = {prefix: _tokens_before(transformer.tokenizer, prefix) for prefix in alignment.prefixes(representation)}
    filled_to = None if scored.query_expansion is False else own.filled_to
    check_lengths(replace(own, prefixes=prefixes, filled_to=filled_to), alignment, representation, phase)
    prompts = _set_prompts_and_lengths(start, alignment, representation)
    kept = loaded if own.representation == representation and not head.new else None
    modules = list(kept) if kept else [transformer]
    similarity: Any = kept.similarity_fn_name if kept else None
    if representation == "dense":
        similarity = similarity if kept else "cosine"
        check_similarity(similarity, phase, base)
        if not kept:
            modules.append(Pooling(transformer.get_embedding_dimension(), pooling_mode="mean"))
        if similarity == "cosine" and not isinstance(modules[-1], Normalize):
            # Training scores by the dot product: of these, the cosine.
            modules.append(Normalize())
        return _padded(SentenceTransformer(modules=modules, prompts=prompts, similarity_fn_name=similarity))
    if kept:
        check_dim(own, dim, base)
    else:
        modules += new_layers(transformer.get_embedding_dimension(), dim, seed, head)
        modules += [MultiVectorMask(), Normalize(module_input_name=TOKENS)]
    model = _padded(MultiVectorEncoder(modules=modules, prompts=prompts, similarity_fn_name=similarity))
    before = prefixes[alignment.prefix("query", representation)]
    set_scored(model, scored, alignment.text_tokens("query", before) + before)
    if fit and not kept and head.start == "pca":
        fit(model)
    return model if scored.pool is None else with_pooling(model, scored.pool)


def _make_special(tokenizer: Any, alignment: Alignment) -> None:
    """Make the markers special tokens."""
    markers = [marker for marker in (alignment.query_marker, alignment.document_marker) if marker]
    tokenizer.add_special_tokens({"extra_special_tokens": markers}, replace_extra_special_tokens=False)


def _add_markers(transformer: Transformer, alignment: Alignment, seed: int) -> None:
    """Make the markers special tokens; those unknown to the encoder get random vectors."""
    tokenizer: Any = transformer.tokenizer
    _make_special(tokenizer, alignment)
    embeddings: Any = transformer.model.get_input_embeddings()
    if len(tokenizer) > len(embeddings.weight):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def _set_prompts_and_lengths(start: _Start, alignment: Alignment, representation: Representation) -> dict[str, str]:
    """Set the longest texts with what is put before them, in tokens; returns the prompts.

    A start's own are left as they are.
    """
    transformer, model, own = start
    prompts: dict[str, str] = {name: prompt for name, prompt in model.prompts.items() if prompt} if model else {}
    for task in TASKS:
        had = prompt_of(model, task) if model else None
        prefix = alignment.prefix(task, representation)
        kept = model is not None and prefix.rstrip() == (had or "").rstrip()
        prompts[task] = had or "" if kept else prefix
        before = _tokens_before(transformer.tokenizer, prompts[task])
        length = alignment.text_tokens(task, before) + before
        if kept and own.tokens and own.tokens[task] == length - before:
            continue
        expansion = transformer.query_expansion if task == "query" else None
        if expansion and expansion["strategy"] == "fixed":
            transformer.query_length, transformer.query_expansion = None, {**expansion, "length": length}
            continue
        setattr(transformer, f"{task}_length", length)
    return prompts


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
    of_text_alone = any(isinstance(module, Pooling) and not module.include_prompt for module in model)

    def tokenise(texts: list[str], task: str) -> dict[str, torch.Tensor]:
        features = model.preprocess(texts, prompt=model.prompts.get(task), task=task, **options)
        read = [key for key in ("input_ids", "attention_mask", EXPANSION) if key in features]
        tokenised = {key: torch.from_numpy(np.asarray(features[key], np.int64)) for key in read}
        if of_text_alone and PROMPT_LENGTH in features:
            tokenised[PROMPT_LENGTH] = torch.full((len(texts), 1), int(features[PROMPT_LENGTH]))
        return tokenised

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


def save_model(model: Trainable, folder: Path, alignment: Alignment) -> None:
    """Write a checkpoint: safetensors weights, tokenizer, and of encoders prompts, markers and lengths."""
    model.save_pretrained(str(folder), create_model_card=False)
    if isinstance(model, CrossEncoder):
        return
    representation = "multi-vector" if isinstance(model, MultiVectorEncoder) else "dense"
    write_json(folder / META, {"representation": representation, **asdict(alignment)})
