"""What a launcher says in the environment, and what a scheduler has left there."""

import os

from colbert_zero.errors import ColbertZeroError

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""That torchrun and accelerate launch set in each process."""


def world() -> int:
    """Processes that the environment speaks of; 1 where it says nothing that is a number of them."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isdecimal() else 1


def launched_rank() -> str:
    """This process's number among those that a launcher started."""
    return os.environ.get("RANK", "0") if world() > 1 and not half() else "0"


def half() -> str | None:
    """What is wrong with an environment that speaks of several processes; None for a whole one, and for one process."""
    if world() == 1:
        return None
    if missing := [name for name in VARIABLES if name != "LOCAL_RANK" and not os.environ.get(name)]:
        return f"but not {', '.join(missing)}"
    number = os.environ["RANK"]
    return None if number.isdecimal() and int(number) < world() else f"and RANK={number} is none of them"


def check_launched() -> None:
    """Refuse an environment that speaks of other processes without the way to them.

    Raises:
        ColbertZeroError: Says what is missing, and the mend.
    """
    if wrong := half():
        raise ColbertZeroError(
            f"WORLD_SIZE={world()} is set, {wrong}: start with torchrun or accelerate launch, which set all of "
            "it; if a scheduler has left it there, unset WORLD_SIZE to run with one process"
        )


def forget_left_overs() -> str | None:
    """Take out of the environment what would number a process that is alone; returns what to tell of it."""
    if world() > 1:
        return None
    usual = {"WORLD_SIZE": ("", "1"), "RANK": ("", "0"), "LOCAL_RANK": ("", "0")}
    left = [f"{name}={os.environ[name]}" for name, values in usual.items() if os.environ.get(name, "") not in values]
    for name in usual:
        os.environ.pop(name, None)
    if not left:
        return None
    return (
        f"{', '.join(left)}: not used, since WORLD_SIZE names no other processes. torchrun starts several; "
        "CUDA_VISIBLE_DEVICES chooses a GPU"
    )
