"""Token pooling: documents of fewer token vectors, each the mean of several that are alike.

A document's vectors are clustered by Ward's method on their cosine distance, `tokens // factor` clusters beside the
first token, and each cluster becomes its mean at length 1 (Clavié et al. 2024, arXiv 2409.14683). The work is done by
sentence-transformers' own module at the end of a model, so a checkpoint that has it pools wherever it is loaded.
"""

import copy

from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.multi_vector_encoder.modules.token_pooling import BaseTokenPooling

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import Encoder, Trainable


def with_pooling(model: Encoder, factor: float) -> Encoder:
    """The same weights with documents of a factor fewer token vectors, whatever pooling the model had.

    Args:
        model: Multi-vector; stays as it is. Any model, where the factor is 1.
        factor: Tokens that become one, about; 1 pools none.

    Raises:
        ColbertZeroError: The model is dense.
    """
    if factor > 1 and not isinstance(model, MultiVectorEncoder):
        raise ColbertZeroError("token pooling is for multi-vector models; a dense one has one vector a text already")
    own = copy.copy(model)
    kept = [module for module in model if not isinstance(module, BaseTokenPooling)]
    kept += [HierarchicalTokenPooling(float(factor))] if factor > 1 else []
    own._modules = {str(place): module for place, module in enumerate(kept)}
    return own


def pooling_of(model: Trainable) -> float:
    """Tokens of a document that become one, about; 1 where none are pooled."""
    factors = [module.pool_factor for module in model if isinstance(module, HierarchicalTokenPooling)]
    return float(factors[-1]) if factors else 1.0
