"""Serve a web page that finds entities in texts and files, shows, filters and downloads them.

gradio is imported only when the page is served.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from bioptimus_hf.annotation.annotator import Annotator, recommended_score
from bioptimus_hf.annotation.extras import require_packages
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import find_model
from bioptimus_hf.ner.options import Context


def serve(models: Sequence[str], labels: Mapping[str, str] | None = None, *, context: Context | None = None) -> None:
    """Serve the page until the process is interrupted, at the address that gradio's environment variables name.

    Args:
        models: folders or Hub names of NER heads, which all annotate the text.
        labels: as for `Annotator`.
        context: as for `Annotator`.

    Raises:
        InputError: gradio is not installed (extra `app`), a model can't be loaded, the context is unknown, or no port
            is free.
        KeyboardInterrupt: the process was interrupted. The server has ended, and its files are deleted.
    """
    require_packages("app", "gradio")
    # First, since importing gradio takes seconds that a wrong name shouldn't cost.
    pinned = {model: find_model(model).pinned for model in models}
    annotator = Annotator(list(pinned.values()), labels=labels, context=context)
    offered = {model: recommended_score(source) for model, source in pinned.items()}
    recommended = {model: offer.best for model, offer in offered.items() if offer is not None}
    import gradio as gr
    from gradio.utils import get_upload_folder

    from bioptimus_hf.annotation.page import MAX_UPLOAD_MEGABYTES, build_page
    from bioptimus_hf.annotation.page_html import PAGE_CSS
    from bioptimus_hf.annotation.sessions import Sessions, Workshop

    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    # gradio's own fonts would be fetched from another server.
    theme = gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    # Only files in this folder are served, and those of uploads.
    with Workshop(annotator) as workshop, tempfile.TemporaryDirectory(dir=get_upload_folder()) as downloads:
        sessions = Sessions(Path(downloads))
        page = build_page(workshop, sessions, models, recommended)
        try:
            _, url, _ = page.launch(
                share=False,
                ssr_mode=False,
                theme=theme,
                css=PAGE_CSS,
                footer_links=["api", "settings"],
                max_file_size=f"{MAX_UPLOAD_MEGABYTES}mb",
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError as error:
            raise InputError("no free port: change GRADIO_SERVER_NAME or GRADIO_SERVER_PORT") from error
        print(f"Serving the page at {url} until interrupted (Ctrl-C)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)
            sessions.close()
