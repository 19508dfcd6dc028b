"""Write a table of entities as CSV or TSV: a row for each, with the sentence around it."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from bioptimus_hf.corpus.documents import Document, Passage
from bioptimus_hf.errors import counted

logger = logging.getLogger(__name__)

COLUMNS = ("document", "start", "end", "text", "label", "score", "sentence")
"""The columns of every table, so that tables can be concatenated."""


def csv_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield a table separated by commas, see `tsv_text`."""
    return _table(documents, ",")


def tsv_text(documents: Iterable[Document]) -> Iterator[str]:
    r"""Yield a table separated by tabs: `COLUMNS`, then a row per entity; documents without entities have none.

    The sentence is the whole one in which the entity lies, or all from the first to the last if it lies in several.
    Cells are quoted if they need it, as in RFC 4180, but lines end in `\n`. Texts are written as they are, even if a
    spreadsheet would take them for formulas. Identifiers are left out, and a warning says how many there were.
    """
    return _table(documents, "\t")


def _table(documents: Iterable[Document], separator: str) -> Iterator[str]:
    # Some readers end a line at a carriage return, which the module csv doesn't quote; others strip blanks.
    special = re.compile(f'["\r\n{separator}]|^\\s|\\s$|^$')
    identifiers = 0

    def cell(value: object) -> str:
        text = str(value)
        return f'"{text.replace(chr(34), chr(34) * 2)}"' if special.search(text) else text

    yield separator.join(COLUMNS) + "\n"
    for document in documents:
        sentences = _Sentences(document) if document.entities else None
        for entity in document.entities:
            assert sentences
            values = (document.id, entity.start, entity.end, entity.text, entity.label, entity.score)
            sentence = sentences.around(entity.start, entity.end)
            yield separator.join(map(cell, (*values, sentence))) + "\n"
            identifiers += bool(entity.identifier)
    if identifiers:
        logger.warning("a table of entities has no identifiers: left out %s", counted(identifiers, "identifier"))


class _Sentences:
    """The sentences of a document; none of them crosses the edge of a passage."""

    def __init__(self, document: Document) -> None:
        from bioptimus_hf.corpus.sentences import sentence_starts  # loads numpy, which the help of a command must not

        self._text = document.text
        passages = document.passages or (Passage(0, len(document.text), 0),)
        self._starts = [
            passage.start + start
            for passage in passages
            for start in sentence_starts(document.text[passage.start : passage.end])
        ]

    def around(self, start: int, end: int) -> str:
        """Return the sentences, stripped, that have characters in common with a part of the text."""
        first = bisect_right(self._starts, start)
        after = bisect_left(self._starts, end)
        begin = self._starts[first - 1] if first else 0
        return self._text[begin : self._starts[after] if after < len(self._starts) else None].strip()
