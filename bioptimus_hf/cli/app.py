"""Serve a web page that finds named entities in a text.

    bioptimus app --models runs/mine/ner/ncbi-disease/v0.4/0
    bioptimus app --models HEAD OTHER_HEAD
    BIOPTIMUS_MODELS="HEAD OTHER_HEAD" GRADIO_SERVER_PORT=8000 bioptimus app

Needs the extra `app`: pip install 'bioptimus-hf[app]'. The page is reachable from this machine only, unless
GRADIO_SERVER_NAME=0.0.0.0 is set. It loads nothing from other servers, and stores nothing but the files to download,
for about an hour.
"""

from __future__ import annotations

import os
import signal

from bioptimus_hf.annotation.options import AppOptions

OPTIONS = (AppOptions,)


def execute(options: AppOptions) -> None:
    """Serve the page until the process is interrupted or terminated."""
    # Set before gradio is imported, which would otherwise ask a server for its latest version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # On an interrupt, gradio deletes the files that it served; SIGTERM should do the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from bioptimus_hf.annotation.app import serve
    from bioptimus_hf.annotation.labels import read_renames

    serve(options.models, read_renames(options.labels))
