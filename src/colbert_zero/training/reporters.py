"""Where each step's figures go besides the records: TensorBoard or Weights & Biases, a run a phase."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError
from colbert_zero.training.log import Entry


def check_reporters(reporters: Sequence[str]) -> None:
    """Refuse reporters whose packages are not installed, before anything is computed.

    Raises:
        ColbertZeroError: Names them and the mend.
    """
    if missing := [name for name in reporters if find_spec(name) is None]:
        extras = ",".join(missing)
        raise ColbertZeroError(
            f"reporters: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"pip install colbert-zero[{extras}], or take {'it' if len(missing) == 1 else 'them'} out of the recipe"
        )


@contextmanager
def reporting(
    reporters: Sequence[str], folder: Path, run: str, project: str, config: dict[str, Any]
) -> Iterator[Callable[[Entry], None]]:
    """What takes a phase's figures while it trains; they bear the names that they have in the log, below `train/`.

    Args:
        reporters: tensorboard, wandb.
        folder: The study's. TensorBoard's files go to FOLDER/tensorboard/RUN, or to RUN below a
            TENSORBOARD_LOGGING_DIR of the user's; those of Weights & Biases to FOLDER, or to WANDB_DIR.
        run: The phase's name and id.
        project: Of Weights & Biases, unless WANDB_PROJECT names another.
        config: What the phase was asked to do, shown beside its figures.
    """
    opened = {"tensorboard": _tensorboard, "wandb": _wandb}
    with ExitStack() as stack:
        takers = [stack.enter_context(opened[name](folder, run, project, config)) for name in reporters]

        def report(entry: Entry) -> None:
            figures = {f"train/{k}": v for k, v in entry.items() if k != "step" and isinstance(v, int | float)}
            for take in takers:
                take(entry["step"], figures)

        yield report


@contextmanager
def _tensorboard(
    folder: Path, run: str, project: str, config: dict[str, Any]
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    from torch.utils.tensorboard import SummaryWriter

    parent = os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "tensorboard"
    with SummaryWriter(str(Path(parent) / run)) as writer:
        writer.add_text("phase", "\n".join(f"    {key}: {value}" for key, value in config.items()))

        def take(step: int, figures: dict[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield take


@contextmanager
def _wandb(
    folder: Path, run: str, project: str, config: dict[str, Any]
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    import wandb

    place = os.environ.get("WANDB_DIR", str(folder))
    wandb.init(project=os.environ.get("WANDB_PROJECT", project), name=run, dir=place, config=config)
    failed = 1
    try:
        yield lambda step, figures: wandb.log({**figures, "train/global_step": step})
        failed = 0
    finally:
        wandb.finish(exit_code=failed)
