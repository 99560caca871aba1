"""Tasks of mteb (`mteb:SciFact`): a checkpoint is handed to mteb, which encodes, ranks and scores with its own code.

The checkpoint is loaded by sentence-transformers, as everywhere here, so no code of a model's runs; what mteb keeps of
earlier results is neither read nor written.
"""

from importlib.util import find_spec
from typing import Any

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.recipe.named import MTEB

_MEASURES = {"nDCG@10": "ndcg_at_10", "R@100": "recall_at_100", "RR@10": "mrr_at_10"}


def find_task(word: str) -> Any:
    """The task of mteb's that a word means, such as `mteb:SciFact`.

    Raises:
        ColbertZeroError: mteb is not installed, has no such task, or it is not retrieval.
    """
    if find_spec("mteb") is None:
        raise ColbertZeroError(f"{word}: mteb is not installed; pip install 'colbert-zero[mteb]'")
    import mteb

    try:
        task = mteb.get_task(word.removeprefix(MTEB))
    except KeyError as error:
        raise ColbertZeroError(f"{word}: {reason(error)}; mteb.get_tasks() lists what mteb has") from None
    if task.metadata.type != "Retrieval":
        raise ColbertZeroError(f"{word}: a task of {task.metadata.type}; only retrieval is evaluated here")
    return task


def load_task(task: Any) -> None:
    """Let mteb load a task's data, before time is spent on anything else.

    Raises:
        ColbertZeroError: It could not; says why.
    """
    try:
        for part in getattr(task.metadata, "tasks", [task]):  # CQADupstackRetrieval puts twelve together
            part.load_data()
    except Exception as error:  # of data sets, of the Hub's client, of mteb itself
        raise ColbertZeroError(
            f"{MTEB}{task.metadata.name}: mteb cannot load its data: {reason(error)}; check the network, or load them "
            "once where there is one (datasets keeps them under HF_HOME)"
        ) from error


def evaluate_task(model: Encoder, task: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores that mteb gives a model on a task: means over its splits and languages.

    Args:
        model: Dense or multi-vector.
        task: Of `find_task`.

    Returns:
        {measure: score} by our names of measures, and what mteb says of itself: its version, the data's commit.

    Raises:
        ColbertZeroError: mteb could not evaluate it; says why.
    """
    import mteb

    try:
        (result,) = mteb.evaluate(model, task, cache=None, co2_tracker=False).task_results
        scores = {ours: float(result.get_score(getter=lambda s, k=k: s[k])) for ours, k in _measures(task).items()}
    except Exception as error:  # of its own, of the Hub's client, of data sets
        told = f"{MTEB}{task.metadata.name}: mteb cannot evaluate it: {reason(error)}"
        raise ColbertZeroError(told) from error
    return scores, {"mteb": result.mteb_version, "dataset_revision": result.dataset_revision}


def _measures(task: Any) -> dict[str, str]:
    """Its names of our measures; a task that puts others together, as CQADupstackRetrieval, has its main one alone."""
    together = hasattr(task.metadata, "tasks")
    return {ours: its for ours, its in _MEASURES.items() if not together or its == task.metadata.main_score}
