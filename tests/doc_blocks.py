"""Read the fenced blocks of a Markdown page, and run those in Python and shell in this process.

A block is run unless an HTML comment on the line before its fence says why not:

    <!-- needs: network -->     or GPU
    <!-- not run: REASON -->
    <!-- file: NAME -->         of a YAML block: it is saved under this name instead

A `text` block right after a block is its output, and each of its lines must be printed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bioptimus_hf.cli.__main__ import COMMANDS, main
from bioptimus_hf.cli.options import parse

FENCE = re.compile(r"(?:<!--(?P<marker>[^\n]*?)-->\n)?```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)
MARKER = re.compile(r"needs: (?:network|GPU)|not run: \S.*|file: [\w./-]+")
SHELL = ("bash", "shell", "sh", "console")
SUBSTITUTIONS = (  # what a test runs in place of what the pages say; the first match counts
    ("google-bert/bert-base-uncased", "base"),  # a BERT with random weights
    ("ncbi-disease", "task-a"),  # the sample's NER set twice, since the mentions of the real tasks are counted
    ("bc5-disease", "task-b"),
    ("--tasks all --joint", "--tasks task-a task-b --joint"),
    ("size: 30522", "size: 1200"),
    ("size=3000", "size=1200"),
    ("per_token: 64", "per_token: 4"),
    ("per_token=16", "per_token=4"),
    ("num_train_epochs: 4", "max_steps: 4, max_length: 32, per_device_train_batch_size: 4"),
    ("bf16: true", "bf16: false"),  # slow on processors without it
    ("num_train_epochs=12", "max_steps=4"),
    ("num_train_epochs=10", "num_train_epochs=1"),
    ("seeds: 3", "seeds: 1, num_train_epochs: 1"),
    ("--seeds 5", "--seeds 1 --num_train_epochs 1"),
    ("--seeds 1", "--seeds 1 --num_train_epochs 1"),
    ("max_steps=1000", "max_steps=8"),
    ("eval_steps=500", "eval_steps=4"),
    ("steps=1000", "steps=8"),
    ("completed < 1000", "completed < 8"),
    ("completed == 1000", "completed == 8"),
    ("--num_proc 2", "--num_proc 1"),
    ("--language en", "--language en --base_model_id owner/base"),  # only a card can't name a folder
)
BEFORE_COMMAND = {"-m", "bioptimus_hf.cli", "accelerate", "launch", "--config_file"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its fence in the page, counted from 1.
        marker: what the comment before it says, or an empty string.
        output: lines it is said to print.
    """

    page: str
    line: int
    language: str
    code: str
    marker: str
    output: tuple[str, ...]

    @property
    def is_code(self) -> bool:
        """Whether the block is in Python or shell."""
        return self.language == "python" or self.language in SHELL

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def read_blocks(page: str, text: str) -> list[Block]:
    """Return the blocks of a page in order; outputs belong to the blocks before them."""
    blocks: list[Block] = []
    end = 0
    for found in FENCE.finditer(text):
        code, marker = found["code"], (found["marker"] or "").strip()
        assert not marker or MARKER.fullmatch(marker), f"{page}: {marker!r} is not a known marker"
        line = text.count("\n", 0, found.start("language")) + 1
        if found["language"] == "text" and blocks and not text[end : found.start()].strip():
            blocks[-1] = Block(**{**vars(blocks[-1]), "output": tuple(code.splitlines())})
        else:
            blocks.append(Block(page, line, found["language"], code, marker, ()))
        end = found.end()
    assert text.count("\n```") % 2 == 0, f"{page}: a fence isn't closed, or is indented"
    return blocks


def substituted(text: str) -> str:
    """Return a text with all substitutions, none of them made in the result of another one."""
    wanted = dict(SUBSTITUTIONS)
    return re.sub("|".join(map(re.escape, wanted)), lambda found: wanted[found[0]], text)


def shell_commands(code: str) -> Iterator[list[str]]:
    """Split a shell block into commands and their words; comments are removed, and continued lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def command_line(words: Sequence[str]) -> list[str] | None:
    """Return the arguments of `bioptimus` in a command, which `accelerate launch` may precede; None for others."""
    if words[0] == "bioptimus":
        return list(words[1:])
    if words[0] == "accelerate" and "bioptimus_hf.cli" in words:
        return list(words[words.index("bioptimus_hf.cli") + 1 :])
    return None


def check_options(code: str) -> None:
    """Parse the options of the commands in a shell block, without running them."""
    for words in shell_commands(code):
        if arguments := command_line(words):
            section = arguments[0].replace("-", "_")
            assert arguments[0] in COMMANDS, f"there is no command {arguments[0]}"
            module = importlib.import_module(f"bioptimus_hf.cli.{section}")
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                parse(module.OPTIONS, section, module.__doc__, arguments[1:])


def run(block: Block, code: str, namespace: dict[str, Any]) -> None:
    """Run a block in the current folder.

    Args:
        code: of the block, with the substitutions made.
        namespace: of the Python blocks of the page.
    """
    if block.language == "python":
        # Lines are counted as in the page.
        exec(compile("\n" * block.line + code, block.page, "exec"), namespace)
        return
    for words in shell_commands(code):
        arguments = command_line(words)
        assert arguments is not None, f"{block.place}: {words[0]} can't be run here; mark the block"
        for word in words[: words.index("-m")] if "-m" in words else []:
            assert word in BEFORE_COMMAND or Path(word).is_file(), f"{block.place}: there is no {word}"
        status = main(arguments)
        assert status == 0, f"{block.place}: status {status}"


def check_output(block: Block, printed: str) -> None:
    """Check that each line a page shows was printed, whatever the spaces."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for shown in block.output:
        assert " ".join(substituted(shown).split()) in lines, f"{block.place} shows {shown!r}, but printed:\n{printed}"
