"""The one error a user is meant to see."""


class ColbertZeroError(Exception):
    """A mistake the user can mend: the message says what, with which values, where, and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


class Diverged(ColbertZeroError):
    """Training came to a loss that is not finite; the same training would come to it again."""
