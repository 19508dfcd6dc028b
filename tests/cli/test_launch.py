"""Errors in one line, exit statuses, and what importing and asking for help may not cost."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils.import_utils import is_env_variable_true

from bioptimus_hf.cli import launch
from bioptimus_hf.cli.__main__ import COMMANDS, main
from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.hardware import THREADS_THAT_WAIT

HEAVY = {"torch", "transformers", "datasets", "sklearn", "matplotlib", "pyarrow", "numpy", "evaluate", "gradio", "ray"}
HEAVY |= {"tqdm", "asyncio"}


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("too\nlarge", argument="size"), 2, "error: --size: too large"),
        (InputError("no such file"), 2, "error: no such file"),
        (Terminated("stopped at step 3"), 143, "stopped at step 3: run the same command again"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again"),
        (
            OSError(28, "No space left on device", "w.bin"),
            2,
            "error: disk full writing w.bin (No space left on device)",
        ),
        (torch.OutOfMemoryError("Tried to allocate 20 GiB"), 2, "error: out of GPU memory (Tried to allocate 20 GiB)"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 2, "error: out of memory (DataLoader"),
    ],
)
def test_an_error_of_the_user_or_the_machine_is_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.run(raising(error)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: bytearray(10**15)], ids=["torch", "python"])
def test_out_of_memory_names_the_batch_size(allocate: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.run(lambda: bool(allocate())) == 2  # type: ignore[arg-type, return-value]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")
    assert "a smaller --per_device_train_batch_size with more --gradient_accumulation_steps" in line


def test_an_error_of_ours_is_not_hidden() -> None:
    assert launch.run(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        launch.run(raising(ZeroDivisionError("a fault of ours")))


def test_a_file_that_can_not_be_used_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Other errors of the system name no file, and are faults of ours."""
    assert launch.run(raising(PermissionError(13, "Permission denied", "config.json"))) == 2
    assert capsys.readouterr().err.startswith("error: config.json can't be read or written (Permission denied)")
    with pytest.raises(OSError, match="ours"):
        launch.run(raising(OSError("a fault of ours")))


def test_the_error_is_the_last_line_even_while_a_bar_is_open() -> None:
    """A bar in a frame of the traceback is drawn once more when the frame is freed."""
    program = """
    import sys
    from tqdm.auto import tqdm
    from bioptimus_hf.cli import launch
    from bioptimus_hf.errors import InputError
    def command():
        outer = tqdm(total=9, desc="outer")
        for number in tqdm(range(9), desc="inner"):
            outer.update()
            if number == 3:
                print("on stdout")
                raise InputError("text 3 is empty")
    sys.exit(launch.run(command))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "inner" in ended.stdout
    assert ended.stdout.endswith("\nerror: text 3 is empty\n")


@pytest.mark.parametrize("write", ["safetensors.torch.save_file({'a': x}, 'w')", "torch.save({'a': x}, 'w')"])
def test_a_full_disk_in_the_middle_of_a_checkpoint(tmp_path: Path, write: str) -> None:
    """The libraries that write weights and optimizer states raise errors of their own."""
    program = f"""
    import resource, sys, safetensors.torch, torch
    from bioptimus_hf.cli import launch
    def command():
        x = torch.zeros(100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        {write}
    sys.exit(launch.run(command))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: disk full")


@pytest.mark.parametrize(("error", "status"), [(None, 0), (Terminated("stopped at step 3"), 143)])
def test_ranks_that_are_gone_change_no_status(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception | None, status: int
) -> None:
    def destroy() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", destroy)
    assert launch.run(raising(error) if error else lambda: None) == status
    assert "Connection closed by peer" in caplog.text


def test_a_process_of_its_own_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask an outside service for a converted copy of a pytorch_model.bin (S14)."""
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "")
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION")
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(launch, "configure_logging", lambda: None)
    for variable in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(variable, "1")
    launch.prepare_process()
    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, THREADS_THAT_WAIT),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_how_threads_wait_is_set_unless_the_user_has_set_it(given: dict[str, str], expected: dict[str, str]) -> None:
    code = "import os, bioptimus_hf.cli.__main__ as command; command.main = lambda *_, **__: print(dict(os.environ))"
    environment = {name: value for name, value in os.environ.items() if name not in THREADS_THAT_WAIT} | given
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; command.entry()"], env=environment, check=True, capture_output=True, text=True
    )
    found = ast.literal_eval(done.stdout)
    assert {name: found[name] for name in THREADS_THAT_WAIT if name in found} == expected


def test_running_a_command_in_a_process_of_the_user_changes_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    def logging_of_process() -> list[object]:
        loggers = [logging.getLogger(name) for name in ("", "httpx", "transformers", "datasets", "bioptimus_hf")]
        state: list[object] = [(logger.level, logger.propagate, *logger.handlers) for logger in loggers]
        return [*state, warnings.formatwarning, warnings.showwarning]

    importlib.import_module("datasets")  # which sets up its logger
    before, logging_before = dict(os.environ), logging_of_process()
    assert main(["report", "--output_dir", "nowhere"]) == 2
    assert "error: " in capsys.readouterr().err
    assert dict(os.environ) == before
    assert logging_of_process() == logging_before


LOADED = """
import sys
from bioptimus_hf.cli.__main__ import main
status = main(sys.argv[1:])
print(status, *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["", *(name for name in COMMANDS if name != "pretrain")])
def test_help_and_rejected_options_import_nothing_heavy(command: str) -> None:
    """What takes seconds to import is imported only when the options are known to be good."""
    for option, status in (("--help", "0"), ("--no_such_option", "2")):
        arguments = [*([command] if command else []), option]
        ended = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True)
        ended_with, *modules = ended.stderr.splitlines()[-1].split()
        assert ended_with == status, ended.stderr
        assert not HEAVY & set(modules)


def test_help_of_pretrain_imports_nothing_beside_the_arguments_of_the_trainer() -> None:
    """They are the one part of its options that takes seconds to import."""

    def libraries(module: str) -> set[str]:
        code = f"import sys, {module}; print(*sys.modules)"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        return {
            name for name in shown.split() if name.partition(".")[0] in {"transformers", "torch", "accelerate", *HEAVY}
        }

    assert libraries("bioptimus_hf.cli.pretrain") <= libraries("transformers.training_args")


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert f"{name}  " in shown
        assert summary in shown
    assert main(["--version"]) == 0
    assert main(["train-vocabulery"]) == 2
    assert "unknown command train-vocabulery: did you mean train-vocabulary?" in capsys.readouterr().err
    assert main(["--verison"]) == 2
    assert "unknown option --verison: did you mean --version?" in capsys.readouterr().err
    assert main(["help"]) == main(["-V"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_begins_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Example:\n\n    bioptimus {command}")
    assert "--help" in shown
    assert "scripts/" not in shown


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_is_no_error(unbuffered: str) -> None:
    """As in `bioptimus --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bioptimus_hf.cli", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")
