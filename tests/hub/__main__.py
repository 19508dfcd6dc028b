"""Run a Hub by hand, to rehearse publishing: python -m tests.hub --port 8642 --folder hub."""

from __future__ import annotations

import argparse
import contextlib
import threading
from pathlib import Path

from . import Hub

# Comments of a shell, so that the output can be read by `source`.
USAGE = """\
export HF_ENDPOINT={endpoint} HF_TOKEN={token}
export HF_HOME={home} HF_HUB_OFFLINE=0 NO_PROXY=127.0.0.1,localhost
# A Hub on loopback for {user}: look at it in a browser at {endpoint}
# In another terminal, give the two lines above; then publish to {user}/..., as in
#     bioptimus publish --output_dir runs/mine --repo_id {user}/encoder ... --push
# and load from it, as in
#     python -c 'from transformers import pipeline; print(pipeline("fill-mask", "{user}/encoder", revision="v0.1"))'
# Other owners: give --user NAME. {kept} Stop it with Ctrl-C."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a Hugging Face Hub on loopback until interrupted.")
    parser.add_argument("--port", type=int, default=0, help="Port on 127.0.0.1; by default any free port")
    parser.add_argument("--folder", type=Path, help="Folder to keep the state in; by default the state is discarded")
    parser.add_argument("--user", default="me", help="User of the printed token, and owner of what is published")
    arguments = parser.parse_args()
    with Hub(arguments.folder, arguments.port) as hub:
        kept = f"What is published stays in {arguments.folder}." if arguments.folder else "Nothing is kept."
        home = hub.folder.absolute() / "client"  # a cache of its own: that of the real Hub must not be mixed up with it
        values = {"user": arguments.user, "endpoint": hub.endpoint, "token": hub.token(arguments.user)}
        print(USAGE.format(**values, kept=kept, home=home), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
