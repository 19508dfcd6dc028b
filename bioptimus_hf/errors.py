"""Errors that tell a user what to change."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, and what to do."""


class Terminated(Exception):
    """The process was told to end (SIGTERM), and has saved what it takes to go on."""
