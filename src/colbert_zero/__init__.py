"""Train multi-vector (ColBERT) retrievers from zero, and learn whether pre-training was worth its cost.

The public names, each loaded when it is first asked for, since torch takes seconds:

    load_recipe                         a recipe, read and checked
    Study                               a recipe in a folder: what is missing is trained and evaluated
    train_phase                         one phase, the only training path
    choose_base                         which of several models to start from, by their recall@1 on your pairs
    Index                               an index of documents, opened: `Index.open(path).search("…")`
    open_index                          that, or one on Qdrant: `open_index("qdrant+http://localhost:6333/notes")`
    maxsim_scores, candidate_scores     drop-ins for sentence-transformers' `similarity_fct`
    TrainerLoss                         an objective as a loss of sentence-transformers' own trainers:
    Contrastive, Distillation, ContrastiveDistillation
"""

from importlib import import_module, metadata
from typing import Any

_NAMES = {
    "load_recipe": "recipe.reading",
    "Study": "study.study",
    "train_phase": "training.phase",
    "choose_base": "study.choosing",
    "Index": "serving.index.opened",
    "open_index": "serving.opening",
    "maxsim_scores": "maxsim.scores",
    "candidate_scores": "maxsim.scores",
    "TrainerLoss": "training.trainer_loss",
    "Contrastive": "training.objectives",
    "Distillation": "training.objectives",
    "ContrastiveDistillation": "training.objectives",
}

__all__ = [
    "Contrastive",
    "ContrastiveDistillation",
    "Distillation",
    "Index",
    "Study",
    "TrainerLoss",
    "__version__",
    "candidate_scores",
    "choose_base",
    "load_recipe",
    "maxsim_scores",
    "open_index",
    "train_phase",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("colbert-zero")
    if name not in _NAMES:
        raise AttributeError(f"module 'colbert_zero' has no attribute {name!r}")
    return getattr(import_module(f"colbert_zero.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
