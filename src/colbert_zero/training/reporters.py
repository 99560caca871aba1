"""Where each step's figures go besides the records: the trainer's own reporters, a run a phase."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from colbert_zero.errors import ColbertZeroError


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
def reporting(reporters: Sequence[str], folder: Path, run: str, project: str) -> Iterator[None]:
    """Inside, the trainer's reporters write one phase's figures; they are told where by environment variables.

    Args:
        reporters: tensorboard, wandb.
        folder: The study's. TensorBoard's files go to FOLDER/tensorboard/RUN, or to RUN below a
            TENSORBOARD_LOGGING_DIR of the user's; left to itself, it writes where unfinished checkpoints are deleted.
        run: The phase's name and id.
        project: Of Weights & Biases, unless WANDB_PROJECT names another.
    """
    wanted: dict[str, str] = {}
    if "tensorboard" in reporters:
        parent = os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "tensorboard"
        wanted["TENSORBOARD_LOGGING_DIR"] = str(Path(parent) / run)
    if "wandb" in reporters:
        places = {"WANDB_PROJECT": project, "WANDB_DIR": str(folder)}
        wanted |= {"WANDB_NAME": run} | {key: os.environ.get(key, value) for key, value in places.items()}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    failed = 1
    try:
        yield
        failed = 0
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        if "wandb" in reporters:
            import wandb

            # Left open, the next phase's figures would go on in this run.
            wandb.finish(exit_code=failed)
