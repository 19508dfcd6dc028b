"""Keep the processes of one launch together: a rank ends with its launcher, and missing ranks are noticed."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from bioptimus_hf.hardware import warn_if_alone

logger = logging.getLogger(__name__)

_SECONDS = 1.0  # between two looks at the launcher


def prepare_rank() -> None:
    """Watch the launcher of this process, if it is `torchrun` or Accelerate, and warn if Accelerate started only one.

    A rank whose launcher is killed would train on alone, or wait for the others forever. Nor does Accelerate pass
    SIGTERM on to a single process.
    """
    if _is_launched():
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    warn_if_alone("-m bioptimus_hf.cli COMMAND ...")


def lost_process(error: Exception) -> str | None:
    """Return what to say if another process, on which this one depends, has ended; None for any other error."""
    detail = " ".join(str(error).split())[:150]
    if "DataLoader worker" in detail:
        return f"a process that loads data has ended ({detail}): use fewer --dataloader_num_workers"
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in detail:
        return None
    return (
        f"another process of this launch has ended, or doesn't answer ({detail}): look for its error above; without "
        f"one it was killed, often for lack of memory (then use a smaller --per_device_train_batch_size with more "
        f"--gradient_accumulation_steps). Run the same command again to resume"
    )


def tell_launcher(message: str) -> None:
    """Leave an error where `torchrun` looks for it: its own report ends with it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": content}), encoding="utf-8")


def _is_launched() -> bool:
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return "TORCHELASTIC_RUN_ID" in os.environ
    import psutil

    try:  # the variable may also be one that the user has set
        return any("accelerate" in part for part in psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return False


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_SECONDS)
    with suppress(OSError):  # nobody may be reading
        print(
            f"error: the launcher (process {launcher}) has ended, and this process ends with it: run the same command "
            f"again to resume",
            file=sys.stderr,
            flush=True,
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the others are ending, so no checkpoint can be saved together
        os._exit(1)
    os.kill(os.getpid(), signal.SIGTERM)
