"""The errors a user is meant to see."""


class ColbertZeroError(Exception):
    """A mistake the user can mend: the message says what, with which values, where, and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


class Diverged(ColbertZeroError):
    """Training came to a loss that is not finite; the same training would come to it again."""


class ProcessLost(Exception):
    """Another process of this training has died or failed; the message names it. Exit code 1."""


class Stopped(Exception):
    """The user or the scheduler asked to stop; the message says what is kept and how to go on. Exit code 0."""
