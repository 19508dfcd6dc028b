"""Run a command: prepare the process, print errors in one line, and return an exit status."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable

from bioptimus_hf.cli.ranks import lost_process, prepare_rank, tell_launcher
from bioptimus_hf.errors import InputError, Terminated, lacks_memory
from bioptimus_hf.hardware import keep_freed_memory
from bioptimus_hf.progress import bars_are_drawn

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How the libraries that write weights and optimizer states report a full disk.
_OUT_OF_SPACE_WORDING = ("os error 28", "os error 27", "os error 122", "inline_container")


def prepare_process() -> None:
    """Configure logging, memory and the environment of a process that does nothing but run one command."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    configure_logging()
    # If a repository has only a pytorch_model.bin, transformers would ask an outside service for a converted copy.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    keep_freed_memory()
    prepare_rank()
    tqdm.monitor_interval = 0  # bars need no thread, which would be waited for if memory ran out when it is started
    disable_progress_bar()  # reading or writing a single file needs no bar
    if not bars_are_drawn():
        # Those of downloads and of loading. The steps that take long have lines of their own.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        if "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
            disable_progress_bars()


def configure_logging() -> None:
    """Log this package from INFO on, and other libraries from WARNING on, each record in a line above the bars."""
    handler = _AboveBars() if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("bioptimus_hf").setLevel(logging.INFO)
    # The commands report themselves which weights are new.
    for noisy in ("transformers.modeling_utils", "transformers.distributed.tensor_parallel"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for library in ("transformers", "huggingface_hub", "datasets"):  # they print what they log, in their own formats
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True
        setattr(logger, "addHandler", lambda _: None)  # noqa: B010  (when the library is imported)
    logging.captureWarnings(True)
    warnings.formatwarning = _one_line


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Write records to a terminal, above the bars that are being drawn there."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if os.getpid() != self._process:  # a forked worker has copies of the bars, which are out of date
            super().emit(record)
            return
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:
            self.handleError(record)


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: object = None) -> str:
    """Return the text of a Python warning."""
    return f"{category.__name__}: {' '.join(str(message).split())} ({filename}:{lineno})"


def run(command: Callable[[], None]) -> int:
    """Run a command.

    Returns:
        The exit status: 0, or 2 if the user's input, memory or disk is at fault, 130 after an interrupt, 143 after
        SIGTERM, 141 if nobody reads the output. In all these cases there is one line on stderr, and no traceback.
    """
    try:
        command()
        sys.stdout.flush()
        # After an error the process group stays: other ranks may still be waiting in it.
        _leave_process_group()
    except InputError as error:
        dashes = "--" if error.argument else ""
        return _fail(f"error: {dashes}{' '.join(str(error).split())}")
    except Terminated as end:
        end.__traceback__ = None  # its frames hold the model
        _leave_process_group()
        return _fail(f"{end}: run the same command again, without --force, to resume", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _fail("interrupted: run the same command again, without --force, to resume", 130)
    except BrokenPipeError:  # whoever reads the output has seen enough, as in `bioptimus --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the process
        return 128 + signal.SIGPIPE
    except Exception as error:
        message = _resource_error(error) or lost_process(error)
        if message is None:
            raise
        return _fail(f"error: {message}")
    return 0


def _fail(message: str, status: int = 2) -> int:
    """Print an error as the last line, and return the exit status."""
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):  # it would be drawn once more when the process ends
            bar.close()
    sys.stdout.flush()
    print(message, file=sys.stderr)
    tell_launcher(message)
    return status


def _resource_error(error: Exception) -> str | None:
    """Return what to say if memory or disk ran out, or a file can't be used; None for any other error."""
    detail = " ".join(str(error).split())[:150]
    torch = sys.modules.get("torch")
    gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if lacks_memory(error):
        memory = f"{'GPU memory' if gpu else 'memory'}{f' ({detail})' if detail else ''}"
        return (
            f"out of {memory}: use a smaller --batch_size, or in training a smaller --per_device_train_batch_size with "
            f"more --gradient_accumulation_steps; finished work is kept"
        )
    if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
        place = f" writing {error.filename}" if error.filename else ""
        return f"disk full{place} ({error.strerror}): free some space and run the same command again to resume"
    if any(words in str(error) for words in _OUT_OF_SPACE_WORDING):
        return f"disk full ({detail}): free some space and run the same command again to resume"
    if isinstance(error, OSError) and error.filename:  # permissions, a device that fails, too many open files
        return f"{error.filename} can't be read or written ({error.strerror or error}): run the same command again"
    return None


def _leave_process_group() -> None:
    """Destroy the process group of a launch before the interpreter shuts down, if there is one."""
    if "torch" in sys.modules:
        from bioptimus_hf.hardware import leave_process_group

        leave_process_group()
