"""Run a Hub by hand: python -m tests.hub --port 8642 --folder hub."""

from __future__ import annotations

import argparse
import contextlib
import threading
from pathlib import Path

from . import Hub


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a Hugging Face Hub on loopback until interrupted.")
    parser.add_argument("--port", type=int, default=0, help="Port on 127.0.0.1; by default any free port")
    parser.add_argument("--folder", type=Path, help="Folder to keep the state in; by default the state is discarded")
    parser.add_argument("--user", default="demo", help="User of the printed token")
    arguments = parser.parse_args()
    with Hub(arguments.folder, arguments.port) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.token(arguments.user)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
