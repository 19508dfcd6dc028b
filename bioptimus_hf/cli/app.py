"""Serve a web page that finds named entities in texts and files.

    bioptimus app --models runs/mine/ner/ncbi-disease/v0.4/0
    bioptimus app --models HEAD OTHER_HEAD
    BIOPTIMUS_MODELS="HEAD OTHER_HEAD" GRADIO_SERVER_PORT=8000 bioptimus app

Needs the extra `app`: pip install 'bioptimus-hf[app]'. The page is reachable from this machine only, unless
GRADIO_SERVER_NAME=0.0.0.0 is set. It loads nothing from other servers. Uploaded files, at most 100 MB each, and files
to download are deleted after about an hour, results when their user closes the page, and everything when the server
ends.
"""

from __future__ import annotations

import os
import signal
import tempfile

from bioptimus_hf.annotation.options import AppOptions

OPTIONS = (AppOptions,)


def execute(options: AppOptions) -> None:
    """Serve the page until the process is interrupted or terminated."""
    # Set before gradio is imported, which would otherwise ask a server for its latest version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # SIGTERM ends the server like an interrupt, so that its files are deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = os.environ.get("GRADIO_TEMP_DIR")
    if place:
        os.makedirs(place, exist_ok=True)
    try:
        # gradio leaves empty files and folders behind.
        with tempfile.TemporaryDirectory(prefix="bioptimus-app-", dir=place) as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            from bioptimus_hf.annotation.app import serve
            from bioptimus_hf.annotation.labels import read_renames

            serve(options.models, read_renames(options.labels), context=options.context)
    except KeyboardInterrupt:
        print("stopped: the page is no longer served", flush=True)
