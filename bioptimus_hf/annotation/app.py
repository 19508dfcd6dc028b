"""Serve a web page that finds entities in a text and shows, lists and downloads them.

gradio is imported only by functions that build or serve the page.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.extras import require_packages
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import FORMATS, write_documents
from bioptimus_hf.corpus.html import DARK, LIGHT, STYLE, html_fragment
from bioptimus_hf.errors import InputError

MAX_CHARACTERS = 2_000_000
SHOWN_CHARACTERS = 50_000  # browsers are slow to lay out tens of thousands of marks
SHOWN_ROWS = 1_000
KEPT_SECONDS = 3600  # how long files stay available for download
DOWNLOADS = {"jsonl": "JSON lines", "pubtator": "PubTator"}
HEADERS = ["entity", "label", "start", "end", "score"]
EXAMPLES = [
    "Two children with severe asthma were given magnesium sulfate after salbutamol had failed. Bronchoconstriction "
    "eased within the hour; one of them had transient hypotension.",
    "Loss of PTEN activated AKT in the tumour cells, and rapamycin slowed their growth in mice. Cells with a mutation "
    "of the TP53 gene did not respond.",
    "A 71-year-old woman who took methotrexate for rheumatoid arthritis developed pancytopenia and acute renal "
    "failure two weeks after trimethoprim was added. Both resolved with folinic acid.",
]
# The style of annotated HTML files, on the background of gradio's page.
CSS = f"""
{LIGHT} --paper: var(--background-fill-primary); font: 1rem/1.9 system-ui, sans-serif;
.dark & {{ {DARK} --paper: var(--background-fill-primary); }}
[role=alert] {{ font-weight: 600; }}
{STYLE}"""


def serve(models: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
    """Serve the page until the process is interrupted, at the address that gradio's environment variables name.

    Args:
        models: folders or Hub names of NER heads, which all annotate the text.
        labels: as for `Annotator`.

    Raises:
        InputError: gradio is not installed (extra `app`), a model can't be loaded, or no port is free.
    """
    require_packages("app", "gradio")
    annotator = Annotator(
        models, labels=labels
    )  # first, since importing gradio takes seconds that a wrong name shouldn't cost
    import gradio as gr

    page = build_page(annotator, models)
    # gradio's own fonts would be fetched from another server.
    theme = gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    try:
        page.launch(share=False, ssr_mode=False, theme=theme, footer_links=["api", "settings"])
    except OSError as error:
        raise InputError("no free port: change GRADIO_SERVER_NAME or GRADIO_SERVER_PORT") from error


def build_page(annotator: Annotator, models: Sequence[str]) -> Any:
    """Return the page as a `gradio.Blocks`, with an API endpoint `find_entities`.

    Args:
        annotator: finds the entities.
        models: names of its models, shown on the page.
    """
    import gradio as gr

    def answer(text: str) -> tuple[Any, ...]:
        try:
            document = find_entities(annotator, text)
        except InputError as error:
            hidden = [gr.DownloadButton(visible=False) for _ in DOWNLOADS]
            return alert(str(error)), gr.Dataframe([], visible=False), *hidden
        buttons = [gr.DownloadButton(value=path, visible=True) for path in save_downloads(document)]
        table = gr.Dataframe(table_rows(document), visible=bool(document.entities))
        return marked_text(document), table, *buttons

    with gr.Blocks(title="Find entities", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.HTML(heading(models))
        text = gr.Textbox(
            label="Text", placeholder="A sentence, an abstract, a full paper", lines=6, max_lines=16, elem_id="text"
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
                gr.DownloadButton(f"Download {name}", visible=False, elem_id=format)
                for format, name in DOWNLOADS.items()
            ]
        button.click(answer, text, [found, table, *files], api_name="find_entities")
    return page


def find_entities(annotator: Annotator, text: str) -> Document:
    """Return the text with its entities.

    Raises:
        InputError: the text is empty, too long or not valid Unicode.
    """
    if not text.strip():
        raise InputError("The text is empty: type or paste some.")
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"The text has {len(text):,} characters, and this page accepts {MAX_CHARACTERS:,}: use bioptimus annotate."
        )
    (document,) = annotator.annotate_documents([Document("1", text)])
    return document


def heading(models: Sequence[str]) -> str:
    """Return the heading of the page as HTML, with the names of the models."""
    names = ", ".join(f"<code>{html.escape(name)}</code>" for name in models)
    return f"<h1>Find entities</h1><p>Annotated by {names}. For research use; not medical advice.</p>"


def alert(message: str) -> str:
    """Return a message as HTML, shown in place of a result."""
    return f'<p role="alert">{html.escape(message)}</p>'


def marked_text(document: Document) -> str:
    """Return the text as HTML with its entities marked; of a long text only the beginning, with a note."""
    counts = ((SHOWN_CHARACTERS, len(document.text), "characters"), (SHOWN_ROWS, len(document.entities), "entities"))
    cut = [f"the first {shown:,} of {total:,} {unit}" for shown, total, unit in counts if total > shown]
    note = f'<p class="note">Showing {" and ".join(cut)}. The downloads contain everything.</p>' if cut else ""
    visible = [entity for entity in document.entities if entity.end <= SHOWN_CHARACTERS]
    return note + html_fragment(replace(document, text=document.text[:SHOWN_CHARACTERS], entities=visible))


def table_rows(document: Document) -> list[list[str | float]]:
    """Return the rows of the table, in the order of `HEADERS`."""
    return [
        [entity.text, entity.label, entity.start, entity.end, round(entity.score, 3)]
        for entity in document.entities[:SHOWN_ROWS]
    ]


def save_downloads(document: Document) -> list[str]:
    """Write a file of each of `DOWNLOADS` into the folder that gradio serves and cleans up; return their paths."""
    from gradio.utils import get_upload_folder

    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    paths = [folder / f"entities{FORMATS[format].suffix}" for format in DOWNLOADS]
    for path in paths:
        write_documents(path, [document])
    return [str(path) for path in paths]
