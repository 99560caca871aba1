"""The model that a phase will train, as far as a plan needs it: its size, its width, its tokenizer."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import FROM_SCRATCH, Alignment, Representation
from colbert_zero.models.checkpoints import Trainable
from colbert_zero.models.cross_encoders import assemble_cross_encoder, pair_tokeniser
from colbert_zero.models.encoders import Tokenise, assemble, tokeniser
from colbert_zero.models.encoding import width_of
from colbert_zero.models.heads import Head
from colbert_zero.planning.published import published
from colbert_zero.recipe.schema import LowRank, Recipe
from colbert_zero.study.resolved import Resolved
from colbert_zero.study.study import Study
from colbert_zero.training.low_rank import add_adapters


@dataclass(frozen=True)
class Size:
    """Of a model.

    Attributes:
        parameters: All of them.
        computing: Without token embeddings.
        trained: Those that move; with `low_rank` the adapters' and the heads'.
        width: Of the encoder's states.
        layers: Of the encoder.
        dim: Of an embedding.
        model_bytes: Of a checkpoint: weights in float32 and, where the model is at hand, its tokenizer.
    """

    parameters: int
    computing: int
    trained: int
    width: int
    layers: int
    dim: int
    model_bytes: int


@dataclass(frozen=True)
class PlannedModel:
    """A model as a plan knows it.

    Attributes:
        size: Its.
        tokenise: Of its texts; None where it is not at hand.
        alignment: Its longest texts.
        assemble: Puts it together; None where it is not at hand.
        attention: That was asked for; None: what is fastest.
    """

    size: Size
    tokenise: Tokenise | None
    alignment: Alignment
    assemble: Callable[[], Trainable] | None = None
    attention: str | None = None


ModelOf = Callable[[str], PlannedModel]
"""The model of a phase, by its name."""


def models_at_hand(study: Study) -> ModelOf:
    """Of a study whose base can be read, or whose sources can train its tokenizer: each model is put together once."""
    start, options = study.start()

    @cache
    def of(alignment: Alignment, representation: Representation, head: Head, low_rank: str | None) -> PlannedModel:
        def make(**attention: str) -> Any:
            with_, dim, seed = options | attention, study.resolved.dim, study.recipe.seed
            if representation == "cross-encoder":
                return assemble_cross_encoder(start, alignment, seed, "plan", **with_)
            scored = study.resolved.scored
            return assemble(start, representation, alignment, dim, seed, "plan", True, head, None, scored, **with_)

        def adapted(**attention: str) -> Any:
            model = make(**attention)
            if low_rank:
                add_adapters(model, LowRank.model_validate_json(low_rank), study.recipe.seed)
            return model

        def as_asked() -> Any:
            asked = study.recipe.model.attention
            return adapted(**({"attn_implementation": asked} if asked else {}))

        model = make()
        moving = sum(weight.numel() for weight in adapted().parameters() if weight.requires_grad) if low_rank else None
        tokenise = pair_tokeniser(model) if representation == "cross-encoder" else tokeniser(model)
        return PlannedModel(_size(model, moving), tokenise, alignment, as_asked, study.recipe.model.attention)

    def of_phase(name: str) -> PlannedModel:
        spec = study.recipe.trained[name]
        head = study.resolved.head(spec, first=True)  # a later phase has it from the one before
        low_rank = spec.low_rank.model_dump_json() if spec.low_rank else None
        return of(study.alignment(spec), spec.representation, head, low_rank)

    return of_phase


def published_models(recipe: Recipe) -> ModelOf:
    """Of a recipe whose base cannot be read, from its published configuration.

    Raises:
        ColbertZeroError: None is published.
    """
    resolved = Resolved(recipe, FROM_SCRATCH)
    configuration = recipe.model.architecture or published()["bases"].get(recipe.model.base)
    if configuration is None:
        raise ColbertZeroError(
            f"model.base: {recipe.model.base} cannot be read here, and its size is not known (known: "
            f"{', '.join(published()['bases'])}); plan where the Hub can be reached, or with a local folder"
        )
    size = _published_size(tuple(configuration.items()), resolved.dim)
    return lambda name: PlannedModel(size, None, resolved.alignment(recipe.trained[name]))


@cache
def _published_size(configuration: tuple[tuple[str, Any], ...], dim: int) -> Size:
    config = AutoConfig.for_model(**dict(configuration))
    with torch.device("meta"):
        model: torch.nn.Module = AutoModel.from_config(config)
    head = dim * config.hidden_size
    parameters = sum(weight.numel() for weight in model.parameters()) + head
    embeddings: Any = model
    computing = parameters - embeddings.get_input_embeddings().weight.numel()
    return Size(parameters, computing, parameters, config.hidden_size, config.num_hidden_layers, dim, 4 * parameters)


def _size(model: Any, trained: int | None) -> Size:
    encoder: Any = model[0].get_submodule("model")
    parameters = sum(weight.numel() for weight in model.parameters())
    config: Any = encoder.config
    with tempfile.TemporaryDirectory() as folder:
        model[0].tokenizer.save_pretrained(folder)
        written = sum(file.stat().st_size for file in Path(folder).rglob("*"))
    return Size(
        parameters,
        parameters - encoder.get_input_embeddings().weight.numel(),
        trained or parameters,
        model[0].get_embedding_dimension(),
        getattr(config, "num_hidden_layers", 0) or getattr(config, "num_layers", 1),
        width_of(model) or 1,
        4 * parameters + written,
    )
