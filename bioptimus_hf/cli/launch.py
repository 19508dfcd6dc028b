"""Run a command: logging, errors in one line, exit status."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import torch
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.hardware import leave_process_group


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`: log to stderr; end with status 2 and one line where the user's input is at fault."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("httpx", "httpcore", "httpx2", "httpcore2", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # The scripts say themselves which weights are new, and need no bar for the reading or writing of one file.
    for chatty in ("transformers.modeling_utils", "transformers.distributed.tensor_parallel"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    disable_progress_bar()
    # With only a pytorch_model.bin, transformers would ask an outside service for a converted copy behind our back.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        main()
        # Where a run fails instead, the group stays: the other processes may wait in it for this one.
        leave_process_group()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Terminated as end:
        print(f"{end}: run the same command again, without --force, to go on", file=sys.stderr)
        end.__traceback__ = None  # its frames hold the model
        leave_process_group()
        sys.exit(128 + signal.SIGTERM)
    except torch.OutOfMemoryError as error:
        print(
            f"error: too little memory on the GPU ({' '.join(str(error).split())[:150]}): read fewer "
            f"rows at once (--batch_size; in training a smaller --per_device_train_batch_size, with more "
            f"--gradient_accumulation_steps for the same training); what is finished is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _no_room(error):
            raise
        place = f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:150]
        print(
            f"error: no room left on the disk{place} ({reason}): make some, and run the same command again; what is "
            f"finished is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again, without --force, to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _no_room(error: Exception) -> bool:
    """Say whether the disk is full; the libraries that write weights and optimizer states say so in words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(words in str(error) for words in ("os error 28", "os error 27", "os error 122", "inline_container"))
