"""Describe the machine, and adapt a model or process to it.

PyTorch is imported only if the process uses it anyway: every stage describes the machine in its record.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

THREADS_THAT_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""Environment variables for how PyTorch's threads wait for one another: awake for some ten microseconds, then asleep.

By default they stay awake for about a millisecond, which starves others when the machine is busy. If they fall asleep
at once, small operations take longer, because waking a thread up takes as long as they do.
"""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process: a third less time for a training step on a CPU.

    By default glibc returns each large block to the system, which then zeroes the next one page by page.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def prepare_for_cpu(model: PreTrainedModel, device: torch.device, *, dropout: float = 0.0) -> None:
    """Choose the attention that is fastest on a CPU; results differ from the default only by rounding.

    Without dropout, plain matrix products are faster than fused attention in the backward pass, at 128 and at 512
    tokens; with dropout they are much slower.

    Args:
        model: its attention is changed if the device is a CPU.
        device: the device the model is going to be on.
        dropout: dropout of the attention in the training that follows.
    """
    if device.type == "cpu" and not dropout:
        model.set_attn_implementation("eager")


def warn_if_alone(program: str) -> None:
    """Warn if Accelerate was asked for several processes but started a single one.

    For several processes it sets MASTER_PORT. On a CPU it nevertheless starts one, unless MPI starts them (accelerate
    1.15).

    Args:
        program: what to run under `torchrun` instead.
    """
    several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if several and not any(name in os.environ for name in _WORLD_SIZES):
        logger.warning(
            "Accelerate was asked for several processes, but has started only this one: on a CPU, use `torchrun "
            "--nproc_per_node NUMBER %s`",
            program,
        )


def leave_process_group() -> None:
    """Destroy the process group of a launch, if there is one, before the interpreter shuts down.

    At shutdown, threads of PyTorch's gloo group may wait for a lock that no longer exists, which kills the process. The
    group must not be destroyed together with a model that refers to it either, since that would wait for these threads:
    garbage is collected first. At this point the work is done, so a failure (another process is gone) is only logged.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        try:
            torch.distributed.destroy_process_group()
        except RuntimeError as error:
            logger.warning("could not leave the process group: %s", error)


def describe_hardware() -> dict[str, Any]:
    """Return what this process runs on.

    Returns:
        `cpu` (its name), `cores` (number that the process may use) and `accelerators` (names of those that PyTorch
        finds; none if the process hasn't imported PyTorch, since it can't have used any).
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cpu": _cpu_name(), "cores": cores, "accelerators": _accelerators()}


def _accelerators() -> list[str]:
    if "torch" not in sys.modules:
        return []
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.accelerator.is_available():
        return [str(torch.accelerator.current_accelerator())] * torch.accelerator.device_count()
    return []


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
