"""Read BioC XML (`collection`) like BioC JSON: its elements become the objects that BioC JSON has in their place."""

from __future__ import annotations

import re
from typing import Any
from xml.parsers import expat

from bioptimus_hf.corpus.bioc import bioc_document
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.corpus.xml_parsing import XmlHandler
from bioptimus_hf.errors import InputError

ROOT = "collection"
"""The root element of BioC XML."""
_DOCUMENT = "document"
_OBJECTS = {
    _DOCUMENT: "documents",
    "passage": "passages",
    "sentence": "sentences",
    "annotation": "annotations",
    "location": "locations",
    "relation": "relations",
}
_STRINGS = ("id", "text", "source", "date", "key")
_NUMBERS = ("offset", "length")
_NUMBER = re.compile(r"\s*-?[0-9]{1,15}\s*")


class BiocXmlHandler(XmlHandler):
    """Collects the documents of BioC XML, and an error for each document that has one."""

    def __init__(self, file: InputFile, parser: expat.XMLParserType) -> None:
        super().__init__(file, parser)
        self._seen = False
        self._line = 0
        self._open: list[dict[str, Any] | None] = []  # the object that each open element is, None if it is a value
        self._text: list[str] = []
        self._key = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Open an object or a field."""
        if name == ROOT and not self._open:
            self._open.append({})
        elif name in _OBJECTS and self._holder is not None:
            self._seen = True
            values = {key: _value(key, value) for key, value in attributes.items()}
            if name == _DOCUMENT:
                self._line = self.parser.CurrentLineNumber
            else:
                self._holder.setdefault(_OBJECTS[name], []).append(values)
            self._open.append(values)
        else:
            self._key = attributes.get("key", "")
            self._text = []
            self.parser.CharacterDataHandler = self._text.append  # white space between objects is ignored
            self._open.append(None)

    def end(self, name: str) -> None:
        """Close it, and finish the document if it is one."""
        ended = self._open.pop()
        self.parser.CharacterDataHandler = None
        holder = self._holder
        if ended is None:
            if holder is not None and name == "infon":
                holder.setdefault("infons", {})[self._key] = "".join(self._text)
            elif holder is not None and name in (*_STRINGS, *_NUMBERS):
                self._seen = True
                holder[name] = _value(name, "".join(self._text))
        elif name == _DOCUMENT:
            self._finish(ended)

    def check(self, root: str) -> None:
        """Raise InputError if the file had no document and wasn't an empty set of them."""
        if not self._seen:
            raise InputError(f"{self.file.path} has no BioC document: its <{root}> is of another kind")

    @property
    def _holder(self) -> dict[str, Any] | None:
        return self._open[-1] if self._open else None

    def _finish(self, row: dict[str, Any]) -> None:
        where = f"line {self._line}"
        try:
            self.finished.append(bioc_document(self.file, where, row, dict(self._open[0] or {})))
        except InputError as error:
            self.finished.append(InputError(f"{self.file.path}, document that begins in {where}: {error}"))


def _value(name: str, text: str) -> str | int:
    return int(text) if name in _NUMBERS and _NUMBER.fullmatch(text) else text
