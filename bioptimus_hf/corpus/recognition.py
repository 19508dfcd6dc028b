"""Recognise the format of a file by its beginning, where its name says something else or fits several."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence

import ijson

from bioptimus_hf.corpus.csv_tables import header_of
from bioptimus_hf.corpus.tags import OUTSIDE, parse_tag

HEAD = 1 << 12
"""Bytes of a file that are looked at."""
_PUBTATOR = re.compile(r"[^|\s]{1,60}\|t\|")
_XML = re.compile(r"<\?xml|<!DOCTYPE |<(?:PubmedArticle(?:Set)?|collection|article|pmc-articleset)\b")
# Keys of BioC JSON, and what their values begin with.
_BIOC_KEYS = {
    "documents": "start_array",
    "PubTator3": "start_array",
    "passages": "start_array",
    "infons": "start_map",
}
_ROWS = (2, 20)  # the fewest and the most lines that decide whether a file is CoNLL


def recognise(head: bytes, text_columns: Sequence[str] = ("text",)) -> str | None:
    """Return the format that the first bytes of a file show, by its name in `FORMATS`; None if it isn't sure.

    Plain text is never recognised, because it may look like anything.

    Args:
        head: the first `HEAD` bytes, or the whole file.
        text_columns: what the fields or columns with the text are called.
    """
    text = head.decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if _PUBTATOR.match(lines[0]):
        return "pubtator"
    if _XML.match(text):
        roots = {"<collection": "bioc_xml", "<Pubmed": "pubmed", "<article": "jats", "<pmc-articleset": "jats"}
        return next((format for root, format in roots.items() if root in text), None)
    if text[0] in "{[":
        return _json_format(text, lines[0], text_columns)
    if _is_conll(lines[:-1] if len(lines) > 1 and len(head) >= HEAD else lines):
        return "conll"
    return _table_format(text, text_columns)


def _json_format(text: str, line: str, text_columns: Sequence[str]) -> str | None:
    keys, is_array = _first_keys(text)
    if keys.keys() & set(text_columns):
        return "json" if is_array else _json_lines(text, line)
    if any(keys.get(name) == event for name, event in _BIOC_KEYS.items()):
        return "bioc"
    return "json" if is_array else _json_lines(text, line)


def _first_keys(text: str) -> tuple[dict[str, str], bool]:
    """Return the keys of the first object with the kinds of their values, and whether it is in an array of objects.

    An empty array counts as one of objects.
    """
    keys: dict[str, str] = {}
    is_array = False
    key = ""
    events = ijson.parse(io.BytesIO(text.encode()), multiple_values=True)
    try:
        for number, (prefix, event, value) in enumerate(events):
            if event == "map_key" and prefix in ("", "item"):
                key = value
            elif prefix == (f"item.{key}" if is_array else key) and key:
                keys.setdefault(key, event)
            elif number == 1:
                is_array = text.startswith("[") and event in ("start_map", "end_array")
            if event == "end_map" and prefix in ("", "item"):
                break
    except (ijson.JSONError, ValueError, UnicodeError):  # only the beginning is there
        pass
    return keys, is_array


def _json_lines(text: str, line: str) -> str | None:
    try:
        return "jsonl" if isinstance(json.loads(line), dict) else None
    except (ValueError, RecursionError):  # one line may be longer than what is looked at
        return "jsonl" if re.match(r'\{"[^"]*": ?["\[{0-9tfn-]', line) and line == text.rstrip("\n") else None


def _table_format(text: str, text_columns: Sequence[str]) -> str | None:
    """Return the format of a table whose header has all columns with the text, and another one."""
    names, delimiter = header_of(text.split("\n"), text_columns)
    if len(names) < 2 or not set(text_columns) <= set(names):
        return None
    return "tsv" if delimiter == "\t" else "csv"


def _is_conll(lines: Sequence[str]) -> bool:
    """Tell whether all lines are a token and its tag, separated by a tab."""
    rows = [line.split("\t") for line in lines[: _ROWS[1]]]
    tags = [row[-1].strip() for row in rows]
    return (
        len(rows) >= _ROWS[0]
        and all(len(row) >= 2 and parse_tag(tag) is not None for row, tag in zip(rows, tags, strict=True))
        and OUTSIDE in tags
    )
