"""Run a Hub by hand: python -m tests.hub --port 8642 --folder hub."""

from __future__ import annotations

import argparse
import contextlib
import threading
from pathlib import Path

from . import Hub


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on loopback, until it is interrupted.")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: any free one)")
    parser.add_argument("--folder", type=Path, help="where to keep the state (default: nowhere)")
    parser.add_argument("--user", default="demo", help="who the printed token belongs to")
    arguments = parser.parse_args()
    with Hub(arguments.folder, arguments.port) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.token(arguments.user)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
