"""Write an HTML page that highlights the entities of documents: one file, without scripts and network access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from bioptimus_hf.corpus.documents import Document, Entity, without_overlaps

if TYPE_CHECKING:
    from jinja2 import Template

# Steps of the golden angle, in degrees, keep hues far apart however many labels there are.
_STEP = 137.508
LIGHT = "--mark: 75% 84%; --edge: 45% 40%; --ink: #1a1a1a; --paper: #fff; --faint: #595959;"
DARK = "--mark: 45% 22%; --edge: 50% 62%; --ink: #eee; --paper: #161616; --faint: #a6a6a6;"
"""CSS variables with the colours that `STYLE` uses, for a light and a dark page."""
STYLE = """\
.legend { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .2rem .6rem; padding: .6rem 0;
  background: var(--paper); border-bottom: 1px solid var(--faint); }
h2 { margin: 1.6rem 0 .2rem; font-size: .85rem; font-weight: 600; color: var(--faint); overflow-wrap: anywhere; }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
p.note { color: var(--faint); font-size: .85rem; }
mark { padding: .1em .25em; border-radius: .3em; color: inherit; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; background: hsl(var(--hue) var(--mark));
  border-bottom: 2px solid hsl(var(--hue) var(--edge)); }
.legend mark { overflow-wrap: anywhere; }
small { display: inline-block; margin-left: .35em; font-size: .68em; font-weight: 600; line-height: 1.2;
  letter-spacing: .02em; color: inherit; }
"""
"""CSS for a page that contains an `html_fragment`."""
_HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Entities</title>
<style>
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{
  :root {{ {DARK} }}
}}
body {{ display: flex; flex-direction: column; max-width: 50rem; margin: 0 auto; padding: 0 1rem 3rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.9 system-ui, sans-serif; }}
{STYLE}.legend {{ order: -1; }}
@media print {{ .legend {{ position: static; }} mark {{ print-color-adjust: exact; }} }}
</style>
</head>
<body>
"""
# The type is written beside each entity, so that nothing depends on colour alone.
_DOCUMENT = """<article>{% if heading %}<h2>{{ heading }}</h2>
{% endif %}<p dir="auto">{% for text, entity, hue in pieces %}{% if entity %}<mark style="--hue: {{ hue }}" title="\
{{ entity.label }}, {{ entity.start }} to {{ entity.end }}, score {{ "%.2f" | format(entity.score) }}\
{% if entity.identifier %}, {{ entity.identifier }}{% endif %}">{{ text }}<small>{{ entity.label }}</small></mark>\
{% else %}{{ text }}{% endif %}{% endfor %}</p>
{% if hidden %}<p class="note">overlapping entities not shown: {{ hidden }}</p>
{% endif %}</article>
"""
_LEGEND = """<div class="legend">{% for label, count in counts.items() %}<mark style="--hue: {{ hues[label] }}">\
{{ label }}<small>{{ count }}</small></mark>{% else %}no entities{% endfor %}</div>
"""
_FOOT = "</body>\n</html>\n"


def html_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield a page, one document after the other.

    If entities overlap, only the longest is highlighted, and the page says how many others there are. Each label has
    its own colour, in the light or dark scheme of the reader's system. The legend, with the number of entities per
    label, is shown at the top although it is written last.
    """
    page = _Page()
    yield _HEAD
    for document in documents:
        yield page.article(document, heading=document.id)
    yield page.legend() + _FOOT


def html_fragment(document: Document, start: int = 0, end: int | None = None) -> str:
    """Return a document as `html_text` shows it, but without its id, for a page that has `STYLE` and the colours.

    Args:
        start: the first character to show.
        end: the character after the last one to show, by default the whole rest. No entity may extend over either.
    """
    page = _Page()
    end = len(document.text) if end is None else end
    within = [entity for entity in document.entities if start <= entity.start and entity.end <= end]
    article = page.article(replace(document, entities=within), heading="", start=start, end=end)
    return page.legend() + article


class _Page:
    """Renders documents whose labels share their colours."""

    def __init__(self) -> None:
        self._article, self._legend = _templates()
        self._hues: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def article(self, document: Document, *, heading: str, start: int = 0, end: int | None = None) -> str:
        """Return the text of a document, from one place to another, with its entities highlighted."""
        shown = without_overlaps(document.entities)
        for entity in shown:
            self._hues.setdefault(entity.label, round(205 + len(self._hues) * _STEP) % 360)
            self._counts[entity.label] += 1
        hidden = len(document.entities) - len(shown)
        pieces = _pieces(document.text[:end], shown, self._hues, start)
        return self._article.render(heading=heading, pieces=pieces, hidden=hidden)

    def legend(self) -> str:
        """Return the labels of all documents so far, with their colours and counts."""
        return self._legend.render(counts=self._counts, hues=self._hues)


@cache
def _templates() -> tuple[Template, Template]:
    """Return the templates of a document and of the legend."""
    import jinja2  # takes longer to import than all formats

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_DOCUMENT), environment.from_string(_LEGEND)


def _pieces(
    text: str, entities: list[Entity], hues: dict[str, float], end: int
) -> Iterator[tuple[str, Entity | None, float]]:
    """Yield the text of each entity, with its hue, and the text before, between and after them, from a place on."""
    for entity in entities:
        yield text[end : entity.start], None, 0
        yield entity.text, entity, hues[entity.label]
        end = entity.end
    yield text[end:], None, 0
