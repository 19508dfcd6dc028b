"""Test that what was written is read back, in every format, up to what the format can't hold."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioptimus_hf.corpus.documents import Document, Entity, Passage, join_passages, without_overlaps
from bioptimus_hf.corpus.entity_table import COLUMNS
from bioptimus_hf.corpus.formats import FORMATS, READABLE, WRITABLE, DocumentReader, write_documents

STRANGE = [
    *"abé1中β🧬|\\\"'<&>-.;=%",
    "e\u0301",
    "👩\u200d⚕️",
    *" \u200b\ufeff\t\n\r\x01\x0b\x1c\x85\u2028\xa0\ufffe",
    "\r\n",
    ". A",
]
EDGES = "\t\n\r\x0b\x1c\x85\u2028"
WITHIN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
TABLES = {"csv": ",", "tsv": "\t"}
NOT_READ_BACK = {*TABLES, "html"}
"""What is written holds entities alone, or is for people."""


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    texts = st.lists(st.sampled_from(STRANGE), max_size=30).map("".join)
    names = st.lists(st.sampled_from("aé7/:. %"), min_size=1, max_size=5).map("".join)
    names = names.filter(lambda name: name == name.strip())
    return [draw(document(name, texts)) for name in draw(st.lists(names, max_size=3, unique=True))]


@st.composite
def document(draw: st.DrawFn, name: str, texts: st.SearchStrategy[str]) -> Document:
    sections = draw(st.lists(texts, min_size=1, max_size=3))
    text, passages = join_passages(
        (section, None, {"type": "part", "number": str(n)}) for n, section in enumerate(sections)
    )
    found: list[Entity] = []
    for passage in passages:
        for _ in range(draw(st.integers(0, 3)) if passage.start < passage.end else 0):
            start = draw(st.integers(passage.start, passage.end - 1))
            end = draw(st.integers(start + 1, min(passage.end, start + 9)))
            if text[start:end].strip(EDGES) != text[start:end]:
                continue  # of the edges of a mention, brat holds no line breaks
            label, score = draw(st.sampled_from(["Gene", "cell-type", "O2"])), draw(st.floats(0, 1))
            identifier = draw(st.sampled_from(["", "MESH:D009270", "7124", "a|b"]))
            found.append(Entity(start, end, text[start:end], label, score, identifier))
    several = len(sections) > 1 or draw(st.booleans())
    fields = draw(st.sampled_from([{}, {"year": 1981, "a b": [None, "é"]}]))
    return Document(name, text, tuple(found), passages if several else (), extra={"fields": fields} if fields else {})


def spans(passages: Sequence[Passage]) -> list[tuple[int, int]]:
    return [(passage.start, passage.end) for passage in passages]


def in_text(document: Document, text: str, **changes: Any) -> Document:
    """Return a document with another text as long, and its entities."""
    entities = tuple(replace(entity, text=text[entity.start : entity.end], **changes) for entity in document.entities)
    return replace(document, text=text, entities=entities)


def in_json_lines(document: Document) -> Document:
    """Passages are kept only if they are fields of a row, see the tests of text columns."""
    return replace(document, passages=())


def in_parquet(document: Document) -> Document:
    return document


def in_bioc(document: Document) -> Document:
    return replace(document, passages=document.passages or (Passage(0, len(document.text), 0),))


def in_bioc_xml(document: Document) -> Document:
    return in_text(in_bioc(document), re.sub("[\x01\x0b\x1c\ufffe]", "\ufffd", document.text))


def in_pubtator(document: Document) -> Document:
    title = document.passages[0].end if document.passages else document.text.find("\n")
    blank = re.sub("[\t\n\r\x0b\x1c\x85\u2028]", " ", document.text)
    text = blank if title in (-1, len(blank)) else f"{blank[:title]}\n{blank[title + 1 :]}"
    parts = [(0, len(text))] if text == blank else [(0, title), (title + 1, len(text))]
    passages = tuple(Passage(*part, part[0]) for part in parts)
    return replace(in_text(document, text, score=1.0), passages=passages)


def in_brat(document: Document) -> Document:
    return replace(in_text(document, document.text, score=1.0), passages=())


def check_documents(kept: Callable[[Document], Document], format: str, path: Path, written: list[Document]) -> None:
    """Check that a file holds documents as the format keeps them, and that they are written alike once more."""
    expected, found = [kept(document) for document in written], list(DocumentReader(path, format=format))
    if format == "brat":  # in the order of their names
        expected, found = (sorted(given, key=lambda document: document.id) for given in (expected, found))
    assert [(d.id, d.text, tuple(d.entities)) for d in found] == [(d.id, d.text, tuple(d.entities)) for d in expected]
    assert [spans(d.passages) for d in found] == [spans(d.passages) for d in expected]
    if format in ("jsonl", "parquet", "bioc"):
        assert [dict(d.extra.get("fields", {})) for d in found] == [d.extra.get("fields", {}) for d in expected]
    check_same_bytes(format, path)


def check_same_bytes(format: str, path: Path) -> None:
    again = path.with_name(f"again{FORMATS[format].suffix}")
    write_documents(again, DocumentReader(path, format=format), format=format)
    assert contents(again) == contents(path)


def contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}


def check_conll(path: Path, written: list[Document]) -> None:
    """CoNLL keeps neither ids nor white space, and of overlapping entities the longest."""
    found = list(DocumentReader(path, format="conll"))
    bare = re.compile(r"[\s\ufeff]")
    assert "".join(bare.sub("", d.text) for d in found) == "".join(bare.sub("", d.text) for d in written)
    entities = [(bare.sub("", e.text), e.label) for d in written for e in without_overlaps(d.entities)]
    assert [(bare.sub("", e.text), e.label) for d in found for e in d.entities] == [e for e in entities if e[0]]
    check_same_bytes("conll", path)


def check_table(separator: str, path: Path, written: list[Document]) -> None:
    header, *rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), delimiter=separator, strict=True)
    assert tuple(header) == COLUMNS
    assert [row[:6] for row in rows] == [
        [d.id, str(e.start), str(e.end), e.text, e.label, str(e.score)] for d in written for e in d.entities
    ]
    for row, (text, entity) in zip(rows, [(d.text, e) for d in written for e in d.entities], strict=True):
        assert entity.text.strip() in row[6]
        assert row[6] in text


def check_html(path: Path, written: list[Document]) -> None:
    page = path.read_bytes().decode()
    assert page.count('<mark style="--hue') == sum(len(without_overlaps(d.entities)) for d in written) + len(
        {entity.label for d in written for entity in without_overlaps(d.entities)}
    )
    assert all(html.escape(document.id) in page for document in written)


CHECKS: dict[str, Callable[[Path, list[Document]], None]] = {
    "jsonl": partial(check_documents, in_json_lines, "jsonl"),
    "parquet": partial(check_documents, in_parquet, "parquet"),
    "bioc": partial(check_documents, in_bioc, "bioc"),
    "bioc_xml": partial(check_documents, in_bioc_xml, "bioc_xml"),
    "pubtator": partial(check_documents, in_pubtator, "pubtator"),
    "brat": partial(check_documents, in_brat, "brat"),
    "conll": check_conll,
    "csv": partial(check_table, ","),
    "tsv": partial(check_table, "\t"),
    "html": check_html,
}


def test_every_format_that_is_written_is_checked() -> None:
    assert set(CHECKS) == set(WRITABLE)
    assert set(WRITABLE) - set(READABLE) <= NOT_READ_BACK


@given(written=documents())
@WITHIN
@pytest.mark.parametrize("format", WRITABLE)
def test_what_was_written_is_read_back(
    format: str, written: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("written") / f"a{FORMATS[format].suffix}"
    assert write_documents(path, written, format=format) == len(written)
    CHECKS[format](path, written)
