"""Read and write BioC XML (`collection`) like BioC JSON, whose objects its elements stand for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.parsers import expat

from bioptimus_hf.corpus.bioc import bioc_document, passage_rows
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.json_text import json_text
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.corpus.xml_parsing import XmlHandler
from bioptimus_hf.errors import InputError, counted

logger = logging.getLogger(__name__)

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
_STRUCTURE = {*_OBJECTS.values(), "infons"}  # fields that no attribute can hold
_STRINGS = ("id", "text", "source", "date", "key")
_NUMBERS = ("offset", "length")
_NUMBER = re.compile(r"\s*-?[0-9]{1,15}\s*")
_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # in XML 1.0
# A carriage return that isn't escaped is read as a line feed, and in attributes every blank as a space.
_ESCAPED = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}
)
_IN_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})


def bioc_xml_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield a collection of documents as BioC XML, valid under BioC.dtd (unless there is none, which it doesn't allow).

    A document without passages becomes one passage. Source, date, key and infons of the collection are those of the
    first document's. Each character that XML can't hold, such as a control character, becomes U+FFFD, so that offsets
    stay the same, and a warning says how many there were. Fields that only BioC JSON has are left out.

    Raises:
        InputError: an entity doesn't lie within one passage, or an infon can't be written.
    """
    writer = _Writer()
    first = True
    for document in documents:
        if first:
            yield writer.opening(document.extra.get("collection", {}))
        first = False
        try:
            yield writer.document(document)
        except InputError as error:
            raise InputError(f"document {document.id!a}: {error}") from error
    if first:
        yield writer.opening({})
    yield f"</{ROOT}>\n"
    writer.report()


class _Writer:
    """Turns documents into elements, in the order that BioC.dtd requires, and counts what XML can't hold."""

    def __init__(self) -> None:
        self._invalid = 0

    def opening(self, collection: Mapping[str, Any]) -> str:
        """Return what precedes the documents."""
        texts = "".join(self._element(name, _shown(collection.get(name, ""))) for name in ("source", "date", "key"))
        infons = collection.get("infons")
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<{ROOT}>{texts}'
            f"{self._infons(infons if isinstance(infons, dict) else {})}\n"
        )

    def document(self, document: Document) -> str:
        """Return a document on a line of its own, unless its text has line breaks."""
        passages = "".join(map(self._passage, passage_rows(document)))
        infons = self._infons(document.extra.get("infons", {}))
        return f"<{_DOCUMENT}>{self._element('id', document.id)}{infons}{passages}</{_DOCUMENT}>\n"

    def report(self) -> None:
        """Say what was replaced."""
        if self._invalid:
            logger.warning("XML can't hold %s, replaced by U+FFFD", counted(self._invalid, "control character"))

    def _passage(self, row: Mapping[str, Any]) -> str:
        annotations = "".join(map(self._annotation, row["annotations"]))
        offset, text = self._element("offset", str(row["offset"])), self._element("text", row["text"])
        return f"<passage>{self._infons(row['infons'])}{offset}{text}{annotations}</passage>"

    def _annotation(self, row: Mapping[str, Any]) -> str:
        (place,) = row["locations"]
        location = f'<location offset="{place["offset"]}" length="{place["length"]}"/>'
        infons, text = self._infons(row["infons"]), self._element("text", row["text"])
        return f'<annotation id="{row["id"]}">{infons}{location}{text}</annotation>'

    def _infons(self, infons: Mapping[str, Any]) -> str:
        return "".join(
            f'<infon key="{self._valid(str(key)).translate(_ESCAPED)}">'
            f"{self._valid(_shown(value)).translate(_IN_TEXT)}</infon>"
            for key, value in infons.items()
        )

    def _element(self, name: str, text: str) -> str:
        return f"<{name}>{self._valid(text).translate(_IN_TEXT)}</{name}>"

    def _valid(self, text: str) -> str:
        valid, replaced = _INVALID.subn("\ufffd", text)
        self._invalid += replaced
        return valid


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


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
            values = {key: _value(key, value) for key, value in attributes.items() if key not in _STRUCTURE}
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
