"""An objective as a loss of sentence-transformers' own trainers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import EXPANSION, PROMPT_LENGTH, forward
from colbert_zero.training.gradcache import TokenisedTexts
from colbert_zero.training.objective import Objective

_PER_TOKEN = ("input_ids", "attention_mask", EXPANSION)


class TrainerLoss(nn.Module):
    """An objective as sentence-transformers' `MultiVectorEncoderTrainer` and `SentenceTransformerTrainer` want a loss.

    The columns of the data set are the query and its documents: its answer and then hard negatives for `Contrastive`,
    its candidates for the others, which want a teacher's `scores` too, a list a row. A batch is encoded once, and its
    activations are kept: for batches that do not fit there are `train_phase`, which has GradCache, and
    sentence-transformers' own cached losses, which take `maxsim_scores`.

    Args:
        model: The one that is trained, dense or multi-vector.
        objective: What a batch's loss is.

    Example:
        >>> from colbert_zero import Contrastive, TrainerLoss
        >>> loss = TrainerLoss(model, Contrastive(temperature=0.3))
        >>> queries = model.preprocess(["lift of a wing", "oxygen in blood"], task="query")
        >>> documents = model.preprocess(["The lift of a wing grows.", "The blood takes up oxygen."], task="document")
        >>> loss([queries, documents]).shape
        torch.Size([])
    """

    def __init__(self, model: Encoder, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar in nats.

        Args:
            sentence_features: Tokenised texts of each column, the query's first.
            labels: A teacher's scores, (queries, documents a query); None for `Contrastive`.

        Raises:
            ValueError: There are no documents, or they are not as many a query as it has scores.
        """
        queries, *columns = sentence_features
        if not columns:
            raise ValueError("one column: a query and at least one document are needed")
        if labels is not None and labels.shape != (len(queries["input_ids"]), len(columns)):
            raise ValueError(
                f"scores of shape {tuple(labels.shape)}, but {len(queries['input_ids'])} queries have {len(columns)} "
                "documents each"
            )
        sides = {"query": _joined([queries]), "document": _joined(columns)}
        texts = [
            TokenisedTexts(task, **{key: features[key] for key in _PER_TOKEN if key in features})
            for task, features in sides.items()
        ]
        embeddings = [forward(self.model, features, task) for task, features in sides.items()]
        return self.objective.of(texts[0], texts[1], labels)(embeddings[0], embeddings[1])

    def get_config_dict(self) -> dict[str, Any]:
        """For the model's card."""
        return {"objective": type(self.objective).__name__, "temperature": self.objective.temperature.item()}


def _joined(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns of one task, one below the other."""
    width = max(column["input_ids"].shape[1] for column in columns)
    joined: dict[str, Any] = {
        key: torch.cat([pad(column[key], (0, width - column[key].shape[1])) for column in columns])
        for key in _PER_TOKEN
        if key in columns[0]
    }
    return joined | {key: columns[0][key] for key in (PROMPT_LENGTH,) if key in columns[0]}
