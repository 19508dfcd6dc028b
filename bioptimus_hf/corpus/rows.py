"""Read and write files with a document per line: plain text, which may also be one document, and JSON lines."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from typing import cast

from bioptimus_hf.corpus.columns import ID, entity_row, json_document, place_rows
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.json_text import field_texts, member_text, object_text
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.corpus.recognition import HEAD, recognise
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)


def read_txt(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document per line, named by the number of the line; blank lines are left out.

    If the unit is the file, it is one document, named by its path without suffix. Nothing of it is left out.

    A warning says so if the file looks like one of another format.
    """
    found = recognise(cast(io.BufferedReader, file.utf8).peek(HEAD)[:HEAD])
    if found:
        unit = "a document per line" if file.options.unit == "line" else "one document"
        logger.warning(
            "%s looks like the format %s but is read as plain text, %s: pass the format %s, or name the file "
            "accordingly",
            *(file.path, found, unit, found),
        )
    if file.options.unit == "file":
        yield Document(file.stem, file.text())
        return
    for number, line in file.lines():
        if isinstance(line, InputError):
            yield line
        elif line and not line.isspace():
            yield Document(file.name(number), line)
        else:
            file.blank += 1


def read_jsonl(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document per line of JSON, or the error in it.

    A line is an object with the text under `text_column` (null is an empty text), and optionally an id (a string or an
    integer; null is none) and `entities` as `jsonl_text` writes them. All other fields are kept in `extra["fields"]`,
    which is written as it was read. A line with NaN, which isn't JSON, or with a key twice is an error. Where
    annotations are ignored, NaN is, too.
    """
    for number, line in file.lines():
        if isinstance(line, InputError):
            yield line
        elif line and not line.isspace():
            try:
                yield json_document(file, number, f"line {number}", line)
            except InputError as error:
                yield InputError(f"{file.path}, line {number}: {error}")


def jsonl_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as JSON lines: `id`, the other fields of the line that was read, `text` and `entities`.

    Fields that were read from JSON are written exactly as they were read. If the text was several columns, `passages`
    says where each of them lies in `text`.

    Raises:
        InputError: a field has one of our names but isn't what it stands for, or can't be written as JSON.
    """
    for document in documents:
        fields = document.extra.get("fields", {})
        places = place_rows(document)
        ours = ("text", *(["passages"] if places else []), "entities")
        taken = next((name for name in ours if name in fields), None)
        if ID in fields and str(fields[ID]) != document.id:
            taken = ID
        if taken:
            raise InputError(
                f"document {document.id}: its field {taken!r} would be lost, because annotated lines use this name: "
                f"rename the field"
            )
        try:
            others = dict(zip(fields, field_texts(fields), strict=True))
            # An id that was read as a number is written as one.
            kept = others.pop(ID, "") or member_text(ID, document.id)
            values = {"text": document.text, "passages": places, "entities": list(map(entity_row, document.entities))}
            written = [member_text(name, values[name]) for name in ours]
            yield object_text([kept, *others.values(), *written]) + "\n"
        except InputError as error:
            raise InputError(f"document {document.id}: {error}") from error
