"""Files of documents with entities: which format a file is of, reading one document after the other, writing alike."""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast

from bioptimus_hf.corpus.bioc import bioc_text, read_bioc
from bioptimus_hf.corpus.documents import Document, Entity, read_score
from bioptimus_hf.corpus.files import numbered_bytes, opened
from bioptimus_hf.corpus.html import html_text
from bioptimus_hf.corpus.pubmed import read_pubmed
from bioptimus_hf.corpus.pubtator import pubtator_text, read_pubtator
from bioptimus_hf.corpus.tagging import conll_text, read_tagged
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

_KINDS: dict[str, Any] = {
    "start": int, "end": int, "text": str, "label": str, "score": (int, float), "identifier": str
}  # fmt: skip

Found = Iterator[Document | InputError]
SUFFIXES: dict[str, tuple[str, ...]] = {
    "pubtator": (".pubtator", ".pubtator.txt"),
    "txt": (".txt",),
    "jsonl": (".jsonl",),
    "bioc": (".json",),
    "pubmed": (".xml",),
    "conll": (".conll", ".tsv", ".iob", ".iob2", ".bio"),
    "html": (".html",),
}
"""The formats, and how the names of their files end, each also with `.gz`."""


class DocumentReader:
    """Reads the documents of a file one at a time.

    - `txt`: a document a line; empty lines are left out.
    - `jsonl`: an object a line with `text`, and maybe `id` and `entities` as `write_documents` writes them; all other
      fields are kept in `extra["fields"]`.
    - `pubmed`, `pubtator`, `bioc`: see the modules of these names. `conll`: see `tagging`.

    Args:
        path: a file, plain or `.gz`.
        format: one of `READABLE`; by default what the name ends in.
        on_error: what is done about a document that cannot be read: `raise`, or `skip` it with a warning. Where it is
            the file that is broken, so that no next document can be found, that is raised in any case.

    Attributes:
        skipped: why each document that was skipped could not be read.

    Raises:
        InputError: the format is not known; when reading: file, line and what is wrong there.
    """

    def __init__(
        self, path: str | Path, *, format: str | None = None, on_error: Literal["raise", "skip"] = "raise"
    ) -> None:
        self.skipped: list[str] = []
        self._path = Path(path)
        self._read = _READERS[format_of(path, format, READABLE)]
        self._skip = on_error == "skip"
        self._raw: BinaryIO | None = None

    @property
    def position(self) -> int:
        """Bytes of the file that have been read, packed as they are."""
        return 0 if self._raw is None or self._raw.closed else self._raw.tell()

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        with opened(self._path) as file:
            self._raw = getattr(file, "fileobj", file)  # what a packed file is unpacked from
            for document in self._read(self._path, file):
                if isinstance(document, Document):
                    yield document
                elif self._skip:
                    self.skipped.append(str(document))
                    logger.warning("skipped: %s", document)
                else:
                    raise document
        if self.skipped:
            logger.warning("%s: %d documents could not be read and were skipped", self._path, len(self.skipped))


def write_documents(path: str | Path, documents: Iterable[Document], *, format: str | None = None) -> int:
    """Write documents one at a time, the whole file or none.

    - `jsonl`: `id`, the other fields of the line it was read from, `text`, `entities`.
    - `pubtator`, `bioc`: see the modules of these names.
    - `conll`: see `tagging`.
    - `html`: a page for people.

    Args:
        path: a file, packed where it ends in `.gz`.
        format: one of `WRITABLE`; by default what the name ends in.

    Returns:
        How many were written.

    Raises:
        InputError: a document cannot be written in this format, or the file cannot be written at all.
    """
    path = Path(path)
    write = _WRITERS[format_of(path, format, WRITABLE)]
    counted = _Counted(documents)
    partial = path.with_name(path.name + ".partial")
    try:
        with _created(partial, packed=path.name.lower().endswith(".gz")) as file:
            file.writelines(write(counted))
        partial.replace(path)
    except InputError as error:
        if counted.given:  # else it is of the reader, who names his own file
            raise InputError(f"{path}: {error}") from error
        raise
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): choose another place") from error
    finally:
        if partial.is_file():
            partial.unlink()
    return counted.number


def format_of(path: str | Path, given: str | None, known: Iterable[str]) -> str:
    """Return the format of a file: the one given, or what its name ends in.

    Raises:
        InputError: it is none of those known.
    """
    name = Path(path).name.lower().removesuffix(".gz")
    found = given or next((kind for kind, ends in SUFFIXES.items() if name.endswith(ends)), "")
    if found not in known:
        ends = ", ".join(end for kind in known for end in SUFFIXES[kind])
        raise InputError(f"{path}: no format {found!r} here: name one of {', '.join(known)}, or end the file in {ends}")
    return found


class _Counted:
    """Documents that count themselves as they pass; `given` while one is in the hands of who asked for it."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.number = 0
        self.given = False
        self._documents = documents

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            self.number += 1
            self.given = True
            yield document
            self.given = False


@contextmanager
def _created(path: Path, *, packed: bool) -> Iterator[TextIO]:
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packed else nullcontext(raw) as file,
        # Half a surrogate pair can stand only in the other fields of JSON, where this is its escape.
        io.TextIOWrapper(cast(BinaryIO, file), "utf-8", errors="backslashreplace", newline="") as text,
    ):
        yield text


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for _, line in numbered_bytes(file))


def _read_lines(path: Path, file: BinaryIO, read: Callable[[str, str], Document | None]) -> Found:
    """Yield what `read` makes of each line that is not empty, given its number."""
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            document = read(str(number), line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield InputError(
                f"{path}, line {number}: not valid UTF-8 at byte {error.start} of the line: convert or mend it"
            )
        except InputError as error:
            yield InputError(f"{path}, line {number}: {error}")
        else:
            if document:
                yield document


def _read_txt(path: Path, file: BinaryIO) -> Found:
    return _read_lines(path, file, lambda number, line: Document(number, line) if line.strip() else None)


def _read_jsonl(path: Path, file: BinaryIO) -> Found:
    return _read_lines(path, file, _json_document)


def _json_document(number: str, line: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({' '.join(str(error).split())})") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError("no text under 'text': each line is an object with this field")
    name = row.get("id", number)
    if not isinstance(name, (str, int)):
        raise InputError("'id' must be text or a whole number")
    entities = row.get("entities", [])
    if not isinstance(entities, list):
        raise InputError("'entities' must be a list of objects: rename the field if it holds something else")
    # An id that is a number stays one.
    taken = ("text", "entities", "id") if isinstance(name, str) else ("text", "entities")
    fields = {key: value for key, value in row.items() if key not in taken}
    return Document(str(name), row["text"], tuple(map(_json_entity, entities)), extra={"fields": fields})


def _json_entity(row: Any) -> Entity:
    """Read an entity; that it lies within the text is the document's to check."""
    if not isinstance(row, dict) or not {"start", "end", "text", "label"} <= row.keys() <= _KINDS.keys():
        raise InputError(
            "'entities' must be objects with start, end, text, label and maybe score and identifier: rename the field "
            "if it holds something else"
        )
    for name, value in row.items():
        if not isinstance(value, _KINDS[name]) or isinstance(value, bool):
            raise InputError(f"an entity's {name} cannot be {value!r}")
    read_score(row.get("score", 1.0))
    return Entity(**row)


def _jsonl_text(documents: Iterable[Document]) -> Iterator[str]:
    for document in documents:
        row = {"id": document.id, **document.extra.get("fields", {}), "text": document.text}
        row["entities"] = [_entity_row(entity) for entity in document.entities]
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _entity_row(entity: Entity) -> dict[str, Any]:
    row = dict(start=entity.start, end=entity.end, text=entity.text, label=entity.label, score=entity.score)
    return {**row, "identifier": entity.identifier} if entity.identifier else row


_READERS: dict[str, Callable[[Path, BinaryIO], Found]] = {
    "txt": _read_txt,
    "jsonl": _read_jsonl,
    "pubmed": read_pubmed,
    "pubtator": lambda path, file: read_pubtator(path, _lines(file)),
    "bioc": read_bioc,
    "conll": lambda path, file: read_tagged(path, _lines(file)),
}
_WRITERS: dict[str, Callable[[Iterable[Document]], Iterator[str]]] = {
    "jsonl": _jsonl_text,
    "pubtator": pubtator_text,
    "bioc": bioc_text,
    "conll": conll_text,
    "html": html_text,
}
READABLE = tuple(_READERS)
"""The formats that can be read."""
WRITABLE = tuple(_WRITERS)
"""The formats that can be written."""
