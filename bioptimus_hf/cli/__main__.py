"""Dispatch `bioptimus COMMAND` to the module of the command, which is imported only then."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from bioptimus_hf import __version__
from bioptimus_hf.errors import InputError
from bioptimus_hf.hardware import THREADS_THAT_WAIT

COMMANDS = {
    "run": "Run all stages of a recipe",
    "demo": "Run the whole method on the embedded sample, offline, in minutes",
    "train-vocabulary": "Train a WordPiece vocabulary on a corpus",
    "find-contexts": "Find sentences that contain each new token",
    "distill": "Initialise the new tokens from their contexts",
    "pretrain": "Pre-train through the masking curriculum",
    "finetune-ner": "Fine-tune NER heads and tabulate their scores",
    "annotate": "Find entities in files of documents",
    "export-onnx": "Export a head as an ONNX file",
    "package": "Build a package from a head, to install and use by name",
    "check": "Check that the files of a run are as they were written",
    "report": "Summarise what a run has produced, or what NER heads get wrong",
    "publish": "Publish versions and heads on the Hugging Face Hub",
    "app": "Find entities in the browser",
}
"""Name and summary of each command, in the order of the help."""


def main(argv: Sequence[str], *, own_process: bool = False) -> int:
    """Run a command and return its exit status; see `launch.run`.

    Args:
        argv: the command and its options.
        own_process: whether the process does nothing else, so that its logging, memory and environment may be set.
    """
    from bioptimus_hf.cli import launch

    return launch.run(lambda: _dispatch(argv, own_process))


def entry(command: str | None = None) -> NoReturn:
    """Run the command of a process of its own, and exit.

    Args:
        command: name of the command; default: the first argument of the process.
    """
    try:
        if not THREADS_THAT_WAIT.keys() & os.environ.keys():  # the user's own setting wins
            os.environ.update(THREADS_THAT_WAIT)  # before PyTorch is loaded
        # Importing the libraries creates a million objects that live as long as the process. To search them for garbage
        # again and again, and once more at the end, would take a quarter of the start-up time.
        gc.set_threshold(100_000, 20, 20)
        atexit.register(gc.freeze)
        sys.unraisablehook = _interrupt_again
        status = main([*([command] if command else []), *sys.argv[1:]], own_process=True)
        _ignore_interrupts()
    except KeyboardInterrupt:  # before a command could begin, or after it had ended
        _ignore_interrupts()
        print("interrupted: run the same command again, without --force, to resume", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C from here on: there is nothing to interrupt any more but the end of the interpreter."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that Python has dropped because it came while an object was deleted."""
    if unraisable.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])  # after the object is gone
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _dispatch(arguments: Sequence[str], own_process: bool) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"bioptimus {__version__}")
        return
    name = arguments[0].replace("_", "-")
    if name not in COMMANDS:
        from bioptimus_hf.cli.recipes import suggestion

        kind = "option" if name.startswith("-") else "command"
        close = suggestion(name.lower(), ["--help", "--version"] if kind == "option" else COMMANDS)
        raise InputError(f"unknown {kind} {arguments[0]}{close}; see bioptimus --help")
    section = name.replace("-", "_")
    command = importlib.import_module(f"bioptimus_hf.cli.{section}")
    from bioptimus_hf.cli.options import parse

    try:
        options = parse(command.OPTIONS, section, command.__doc__, arguments[1:])
    except SystemExit:  # after --help
        return
    if own_process:
        from bioptimus_hf.cli.launch import prepare_process

        prepare_process()
    try:
        command.execute(*options)
    except InputError as error:
        from bioptimus_hf.cli.options import with_dashes

        raise InputError(with_dashes(error, command.OPTIONS)) from error


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "Adapt a BERT encoder to a domain, and find entities with it.",
            "",
            "  bioptimus demo",
            "  bioptimus COMMAND --help",
            "  bioptimus --version",
            "",
            "Commands:",
            *lines,
        ]
    )


if __name__ == "__main__":
    entry()
