"""Render what the web page shows as HTML. All text is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from bioptimus_hf.annotation.sessions import Run
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.html import DARK, LIGHT, STYLE, html_fragment
from bioptimus_hf.errors import counted

PART_CHARACTERS = 150_000
_NOTES = 20  # lines
# The style of annotated HTML files, on the background of gradio's page.
CSS = f"""
{LIGHT} --paper: var(--background-fill-primary); font: 1rem/1.9 system-ui, sans-serif;
.dark & {{ {DARK} --paper: var(--background-fill-primary); }}
[role=alert] {{ font-weight: 600; }}
.bar {{ height: .6rem; border-radius: .3rem; background: var(--border-color-primary); overflow: hidden; }}
.bar div {{ height: 100%; background: #3b82f6; }}
h2 {{ margin: 0; }}
{STYLE}"""
"""Style of the HTML components of the page."""
PAGE_CSS = "#pager, #saving { align-items: center; }"
"""Style of the other components."""


def heading(models: Sequence[str]) -> str:
    """Return the heading of the page as HTML, with the names of the models."""
    names = ", ".join(f"<code>{html.escape(name)}</code>" for name in models)
    return f"<h1>Find entities</h1><p>Annotated by {names}. For research use; not medical advice.</p>"


def recommendation(recommended: Mapping[str, float]) -> str:
    """Return what models recommend as the least score of an entity, as HTML; empty if none does.

    Args:
        recommended: the score by the name of the model.
    """
    scores = ", ".join(
        f"{score:.2f} for <code>{html.escape(name)}</code>" for name, score in recommended.items() if score > 0
    )
    return f"Best F1 on the development set: {scores}" if scores else ""


def alert(message: str) -> str:
    """Return a message about something that went wrong."""
    return f'<p role="alert">{html.escape(message)}</p>'


def progress(run: Run) -> str:
    """Return how far a run is."""
    percent = f"{100 * run.share:.0f}"
    return (
        f'<p role="status">{_counts(run)}</p><div class="bar" role="progressbar" aria-label="Files read" '
        f'aria-valuenow="{percent}"><div style="width: {percent}%"></div></div>'
    )


def summary(run: Run) -> str:
    """Return what has become of a run: errors first, then counts, then notes."""
    entities = run.results.labels.total()
    found = f"{entities:,} {'entity' if entities == 1 else 'entities'}"
    stopped = "Stopped: " if run.stopped.is_set() else ""
    counts = f'<p role="status">{stopped}{_counts(run)}, {found}.</p>'
    return "".join(map(alert, run.errors)) + (counts if len(run.results) else "") + lines(run.notes)


def lines(notes: Sequence[str]) -> str:
    """Return notes, a line each, and how many more there are if there are too many."""
    more = len(notes) - _NOTES
    shown = [*notes[:_NOTES], *([f"and {counted(more, 'more note')}"] if more > 0 else [])]
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in shown)


def parts(document: Document) -> list[tuple[int, int]]:
    """Return the start and end of the parts in which a document is shown, which divide no entity; usually one.

    Browsers need minutes to lay out a hundred thousand marks.
    """
    found: list[tuple[int, int]] = []
    start, last = 0, len(document.text)
    inner = sorted((entity.start, entity.end) for entity in document.entities)
    while last - start > PART_CHARACTERS:
        latest = start + PART_CHARACTERS
        cut = max(document.text.rfind(space, start + 1, latest) for space in "\n ") + 1 or latest
        for entity_start, entity_end in reversed(inner):  # the later ones first: moving the cut may divide others
            if start < entity_start < cut < entity_end:
                cut = entity_start
        found.append((start, cut))
        start = cut
    return [*found, (start, last)]


def marked_text(document: Document, part: tuple[int, int], *, heading: bool) -> str:
    """Return a part of a document with its entities marked, and the id as a heading if there are other documents."""
    title = f"<h2>{html.escape(document.id)}</h2>" if heading else ""
    return title + html_fragment(document, *part)


def table_rows(document: Document, part: tuple[int, int]) -> list[list[str | float]]:
    """Return the entities of a part as rows: text, label, score, start, end."""
    return [
        [entity.text, entity.label, round(entity.score, 3), entity.start, entity.end]
        for entity in document.entities
        if part[0] <= entity.start and entity.end <= part[1]
    ]


def size_in_words(size: int) -> str:
    """Return a size in bytes as a number with a unit."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _counts(run: Run) -> str:
    speed = f", {len(run.results) / run.seconds:.1f} per second" if run.seconds else ""
    return counted(len(run.results), "document") + speed
