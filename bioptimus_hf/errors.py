"""Define the errors that users are meant to see."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave can't be used.

    Args:
        message: one line that says what is wrong, where, and what to do.
        argument: name of the argument at fault. It precedes the message; the command line adds the dashes of an option.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message if argument is None else f"{argument}: {message}")
        self.argument = argument


class Terminated(Exception):
    """The process was asked to stop (SIGTERM) and has saved a checkpoint to resume from."""
