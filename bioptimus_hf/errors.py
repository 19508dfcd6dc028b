"""Define the errors that users are meant to see, and put the messages of other errors into one line."""

from __future__ import annotations

import errno
import os
from pickle import UnpicklingError

# How PyTorch, the C++ library and the system report that memory ran out, and PyTorch that the system killed a worker.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "std::bad_alloc",
    "is killed by signal: Killed",
    os.strerror(errno.ENOMEM),
)


class InputError(ValueError):
    """Something the user gave can't be used.

    Args:
        message: one line that says what is wrong, where, and what to do.
        argument: name of the argument at fault. It precedes the message; the command line adds the dashes of an option.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message if argument is None else f"{argument}: {message}")
        self.argument = argument


class TrainingDiverged(InputError):
    """A loss or a weight became NaN or infinite, and nothing was saved."""


class Terminated(Exception):
    """The process was asked to stop (SIGTERM) and has saved a checkpoint to resume from."""


def lacks_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, of the machine or of a GPU."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or any(words in str(error) for words in _OUT_OF_MEMORY)


def counted(number: int, noun: str) -> str:
    """Return a number with a noun in singular or plural, such as `1 document` or `1,200 documents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_error(error: Exception | str, limit: int = 200) -> str:
    """Return an error's message, or a given message, in one line of at most `limit` characters."""
    if isinstance(error, UnpicklingError):  # its message explains how to load the file anyway
        return "the pickled weights contain more than tensors, and could run code when they are loaded"
    return " ".join(str(error).split())[:limit]
