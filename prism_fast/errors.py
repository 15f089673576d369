"""The one error type for input that cannot be used as given."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message says what was found, what was expected and what to do about it.

    The command line prints it as one line and exits with status 2; a traceback is for bugs only.
    """


class ToldElsewhere(UserError):
    """Bad input that another process of the same job tells the user about, in the same words.

    The command line exits with status 2 and prints nothing.
    """
