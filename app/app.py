#!/usr/bin/env python
r"""Find named entities in a text, in the browser.

    python app/app.py --models runs/mine/ner/ncbi-disease/v0.4/0
    python app/app.py --models HEAD OTHER_HEAD
    BIOPTIMUS_MODELS="HEAD OTHER_HEAD" GRADIO_SERVER_PORT=8000 python app/app.py

Needs the extra `app`. The page is served on this machine alone unless GRADIO_SERVER_NAME=0.0.0.0 says otherwise. It
fetches nothing from elsewhere, and what is typed is kept nowhere but in the files to download, for about an hour.
README.md beside this file says how it becomes a Space.
"""

from __future__ import annotations

import html
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

# Before gradio is read: it would ask for a newer version of itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from gradio.utils import get_upload_folder

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.cli.legacy import parse, run
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import SUFFIXES, write_documents
from bioptimus_hf.corpus.html import DARK, LIGHT, STYLE, html_part
from bioptimus_hf.errors import InputError

VARIABLE = "BIOPTIMUS_MODELS"
MOST_CHARACTERS = 2_000_000
SHOWN_CHARACTERS = 50_000  # a browser is slow to lay out tens of thousands of marks
SHOWN_ROWS = 1_000
KEPT_SECONDS = 3600
FORMATS = {"jsonl": "JSON lines", "pubtator": "PubTator"}
HEADERS = ["entity", "label", "start", "end", "score"]
EXAMPLES = [
    "Two children with severe asthma were given magnesium sulfate after salbutamol had failed. Bronchoconstriction "
    "eased within the hour; one of them had a transient hypotension.",
    "Loss of PTEN activated AKT in the tumour cells, and rapamycin slowed their growth in mice. Cells with a mutation "
    "of the TP53 gene did not respond.",
    "A 71-year-old woman who took methotrexate for rheumatoid arthritis developed pancytopenia and acute renal "
    "failure two weeks after trimethoprim was added. Both resolved with folinic acid.",
]
# Our own page's, on the paper of gradio's.
CSS = f"""
{LIGHT} --paper: var(--background-fill-primary); font: 1rem/1.9 system-ui, sans-serif;
.dark & {{ {DARK} --paper: var(--background-fill-primary); }}
[role=alert] {{ font-weight: 600; }}
{STYLE}"""


@dataclass
class Options:
    """What reads the text."""

    models: list[str] = field(
        default_factory=lambda: os.environ.get(VARIABLE, "").split(),
        metadata={
            "help": f"Folders or Hub names of token classifiers, which all read the text; by default those in the "
            f"environment variable {VARIABLE}, with blanks between them"
        },
    )


def main() -> None:
    """Serve the page until interrupted."""
    (options,) = parse(Options, section="app", description=__doc__)
    if not options.models:
        raise InputError(f"no model: name one with --models, or in the environment variable {VARIABLE}")
    page = build(load(options.models), options.models)
    # Fonts of the reader's own: gradio's come from a server elsewhere.
    theme = gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that gradio deletes the files at the end
    try:
        page.launch(share=False, ssr_mode=False, theme=theme, footer_links=["api", "settings"])
    except OSError as error:
        raise InputError("no free port to serve at: change GRADIO_SERVER_NAME or GRADIO_SERVER_PORT") from error


def load(models: Sequence[str]) -> Annotator:
    """Load the models.

    Raises:
        InputError: one is not to be had.
    """
    try:
        return Annotator(models)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load {', '.join(models)} ({' '.join(str(error).split())[:200]})") from error


def build(annotator: Annotator, models: Sequence[str]) -> gr.Blocks:
    """Make the page."""

    def answer(text: str) -> tuple[str, gr.Dataframe, gr.DownloadButton, gr.DownloadButton]:
        try:
            document = find_entities(annotator, text)
        except InputError as error:
            hidden = [gr.DownloadButton(visible=False) for _ in FORMATS]
            return message(str(error)), gr.Dataframe([], visible=False), *hidden
        buttons = [gr.DownloadButton(value=path, visible=True) for path in saved(document)]
        table = gr.Dataframe(rows(document), visible=bool(document.entities))
        return marked(document), table, *buttons

    with gr.Blocks(title="Entities in a text", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.HTML(heading(models))
        text = gr.Textbox(
            label="Text", placeholder="A sentence, an abstract, a whole paper", lines=6, max_lines=16, elem_id="text"
        )
        button = gr.Button("Find entities", variant="primary", elem_id="find")
        gr.Examples(EXAMPLES, text, label="Examples", cache_examples=False)
        found = gr.HTML(css_template=CSS, elem_id="found", max_height="70vh")
        table = gr.Dataframe(
            headers=HEADERS,
            datatype=["str", "str", "number", "number", "number"],
            label="Entities",
            interactive=False,
            wrap=True,
            visible=False,
            elem_id="table",
        )
        with gr.Row():
            files = [
                gr.DownloadButton(f"Download {name}", visible=False, elem_id=kind) for kind, name in FORMATS.items()
            ]
        button.click(answer, text, [found, table, *files], api_name="find_entities")
    return page


def find_entities(annotator: Annotator, text: str) -> Document:
    """Return the text with its entities.

    Raises:
        InputError: there is no text, too much, or what is none.
    """
    if not text.strip():
        raise InputError("There is no text: write or paste one.")
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"The text has {len(text):,} characters, and {MOST_CHARACTERS:,} are read here: use scripts/annotate.py."
        )
    (document,) = annotator.annotate_documents([Document("1", text)])
    return document


def heading(models: Sequence[str]) -> str:
    """Return the top of the page, which names the models."""
    names = ", ".join(f"<code>{html.escape(name)}</code>" for name in models)
    return f"<h1>Entities in a text</h1><p>Read by {names}. For research: nothing found here is medical advice.</p>"


def message(text: str) -> str:
    """Return what stands in place of entities."""
    return f'<p role="alert">{html.escape(text)}</p>'


def marked(document: Document) -> str:
    """Return the text with its entities marked, or the beginning of a long one, which is then said."""
    counts = ((SHOWN_CHARACTERS, len(document.text), "characters"), (SHOWN_ROWS, len(document.entities), "entities"))
    parts = [f"the first {most:,} of {there:,} {what}" for most, there, what in counts if there > most]
    note = f'<p class="note">Shown are {" and ".join(parts)}. The files hold all.</p>' if parts else ""
    inside = [entity for entity in document.entities if entity.end <= SHOWN_CHARACTERS]
    return note + html_part(replace(document, text=document.text[:SHOWN_CHARACTERS], entities=inside))


def rows(document: Document) -> list[list[str | float]]:
    """Return the table."""
    return [
        [entity.text, entity.label, entity.start, entity.end, round(entity.score, 3)]
        for entity in document.entities[:SHOWN_ROWS]
    ]


def saved(document: Document) -> list[str]:
    """Write the files to download, where gradio looks after them and deletes them."""
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    paths = [folder / f"entities{SUFFIXES[kind][0]}" for kind in FORMATS]
    for path in paths:
        write_documents(path, [document])
    return [str(path) for path in paths]


if __name__ == "__main__":
    run(main)
