"""Recognise the format of a file by its beginning, to say so where its name says something else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from bioptimus_hf.corpus.tags import OUTSIDE, parse_tag

HEAD = 1 << 12
"""Bytes of a file that are looked at."""
_PUBTATOR = re.compile(r"[^|\s]{1,60}\|t\|")
_XML = re.compile(r"<\?xml|<!DOCTYPE |<(?:PubmedArticle(?:Set)?|collection|article|pmc-articleset)\b")
_ROWS = (2, 20)  # the fewest and the most lines that decide whether a file is CoNLL


def recognise(head: bytes) -> str | None:
    """Return the format that the first bytes of a file show, by its name in `FORMATS`; None if it isn't sure.

    Plain text is never recognised, because it may look like anything.
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
        return _json_format(text, lines[0])
    return "conll" if _is_conll(lines[:-1] if len(lines) > 1 and len(head) >= HEAD else lines) else None


def _json_format(text: str, line: str) -> str | None:
    if re.search(r'"(?:documents|PubTator3|passages)"\s*:', text):
        return "bioc"
    try:
        return "jsonl" if isinstance(json.loads(line), dict) else None
    except (ValueError, RecursionError):  # one line may be longer than what is looked at
        return "jsonl" if re.match(r'\{"[^"]*": ?["\[{0-9tfn-]', line) and line == text.rstrip("\n") else None


def _is_conll(lines: Sequence[str]) -> bool:
    """Tell whether all lines are a token and its tag, separated by a tab."""
    rows = [line.split("\t") for line in lines[: _ROWS[1]]]
    tags = [row[-1].strip() for row in rows]
    return (
        len(rows) >= _ROWS[0]
        and all(len(row) >= 2 and parse_tag(tag) is not None for row, tag in zip(rows, tags, strict=True))
        and OUTSIDE in tags
    )
