"""List the formats of documents; read and write files in any of them.

`FORMATS` is the one table of formats, for corpora and for annotated documents. A new format is one entry in it, with a
function that turns an open file into documents, or one that turns documents into text, or both.
"""

from __future__ import annotations

import gzip
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, cast

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus import bioc_xml, brat, jats
from bioptimus_hf.corpus.arrow_tables import read_parquet
from bioptimus_hf.corpus.bioc import bioc_text, read_bioc
from bioptimus_hf.corpus.columns import fields_not_in_text
from bioptimus_hf.corpus.conll import read_conll_documents
from bioptimus_hf.corpus.conll_writing import conll_text
from bioptimus_hf.corpus.csv_tables import read_csv
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.encodings import NotUtf8Error
from bioptimus_hf.corpus.entity_table import csv_text, tsv_text
from bioptimus_hf.corpus.html import html_text
from bioptimus_hf.corpus.json_array import read_json_array
from bioptimus_hf.corpus.parquet_rows import parquet_bytes
from bioptimus_hf.corpus.pubmed import PubmedHandler
from bioptimus_hf.corpus.pubtator import pubtator_text, read_pubtator
from bioptimus_hf.corpus.reading import (
    InputFile,
    ReadOptions,
    Source,
    TooLongError,
    is_hub_split,
    open_input,
    size_over,
)
from bioptimus_hf.corpus.recognition import HEAD, recognise
from bioptimus_hf.corpus.rows import jsonl_text, read_jsonl, read_txt
from bioptimus_hf.corpus.xml_parsing import parse_xml
from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.storage import atomic_file

logger = logging.getLogger(__name__)

_BUFFER = 1 << 16  # bytes
_KEPT_ERRORS = 10_000  # of documents that were skipped


class UnwritableError(InputError):
    """A file can't be written, whatever the documents: there is no permission or no space."""


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: what it is called in options.
        suffixes: how names of such files end, in lower case; the first one is given to files that we write.
        read: yields the documents of a file, and an error in place of each document that can't be read; raises
            InputError if the rest of the file can't be read either. None if the format can only be written.
        write: yields documents as pieces of text, or of bytes. None if the format can't be written to a single file.
        write_files: writes documents to several files, all or none of them, at the path that stands for them. None if
            the format has one file.
        gzip: whether files may be compressed, with `.gz` after the suffix.
        annotated: whether entities are read.
        loses_fields: whether what is written holds documents, but not the other fields of their rows.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[InputFile], Iterator[Document | InputError]] | None = None
    write: Callable[[Iterable[Document]], Iterator[str] | Iterator[bytes]] | None = None
    write_files: Callable[[Path, Iterable[Document]], None] | None = None
    gzip: bool = True
    annotated: bool = False
    loses_fields: bool = False

    @property
    def suffix(self) -> str:
        """How the names of files end that we write."""
        return self.suffixes[0]

    @property
    def endings(self) -> tuple[str, ...]:
        """The suffixes, also with `.gz` if files may be compressed."""
        return tuple(f"{suffix}{packed}" for suffix in self.suffixes for packed in ("", ".gz")[: 1 + self.gzip])


def read_xml(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the documents of PubMed XML, BioC XML or JATS; the root element says which of them it is.

    Raises:
        InputError: the file isn't well-formed, declares or uses its own entities, or is none of these.
    """
    handlers = {bioc_xml.ROOT: bioc_xml.BiocXmlHandler, **dict.fromkeys(jats.ROOTS, jats.JatsHandler)}
    return parse_xml(file, handlers, PubmedHandler)


FORMATS = {
    format.name: format
    for format in (
        Format("txt", (".txt",), read_txt),
        Format("jsonl", (".jsonl",), read_jsonl, jsonl_text, annotated=True),
        Format("csv", (".csv",), read_csv, csv_text),
        Format("parquet", (".parquet",), read_parquet, parquet_bytes, gzip=False, annotated=True),
        Format("pubmed", (".xml",), read_xml),
        Format(
            "pubtator", (".pubtator", ".pubtator.txt"), read_pubtator, pubtator_text, annotated=True, loses_fields=True
        ),
        Format("bioc", (".json",), read_bioc, bioc_text, annotated=True),
        Format("json", (".json",), read_json_array, annotated=True),
        Format("bioc_xml", (".bioc.xml",), read_xml, bioc_xml.bioc_xml_text, annotated=True, loses_fields=True),
        Format("jats", (".nxml",), read_xml),
        Format(
            "brat",
            (".brat",),
            brat.read_brat,
            write_files=brat.write_brat,
            gzip=False,
            annotated=True,
            loses_fields=True,
        ),
        Format(
            "conll",
            (".conll", ".tsv", ".iob", ".iob2", ".bio"),
            read_conll_documents,
            conll_text,
            annotated=True,
            loses_fields=True,
        ),
        Format("tsv", (".tsv",), read_csv, tsv_text),
        Format("html", (".html",), write=html_text),
    )
}
"""All formats by name. Where two have the same suffix, the first is meant unless the content shows the second."""
HUB = "hub"
"""What a data set on the Hub is called in place of a format."""
READABLE = tuple(name for name, format in FORMATS.items() if format.read)
"""The formats that can be read."""
WRITABLE = tuple(name for name, format in FORMATS.items() if format.write or format.write_files)
"""The formats that can be written."""
ANNOTATED = tuple(name for name, format in FORMATS.items() if format.annotated)
"""The formats from which entities are read."""
READABLE_ENDINGS = tuple(dict.fromkeys(ending for name in READABLE for ending in FORMATS[name].endings))
"""How names of files end that can be read."""


@check_call()
class DocumentReader:
    """Reads the documents of a file one at a time.

    - `txt`: a document per line; blank lines are left out. Or the whole file, if it is the unit.
    - `jsonl`, `json`: an object per line, or in an array, with the text, and optionally `id` and `entities` as
      `write_documents` writes them; all other fields are kept in `extra["fields"]`, and written exactly as they were
      read.
    - `csv`, `tsv`, `parquet`: a document per row, with the text and optionally `id`; other columns are kept likewise.
    - `brat`: a text with a file `.ann` beside it is a document; in a folder named `.brat`, all of them are.
    - `pubmed`, `pubtator`, `bioc`, `bioc_xml`, `conll`: see the modules of these names.

    Args:
        path: a file, plain or `.gz`, or a folder of brat.
        format: one of `READABLE`; by default what the name of the file ends in and, if that fits several, the content
            shows.
        on_error: what to do about a document that can't be read: `raise`, or `skip` it with a warning. An error after
            which no next document can be found (a truncated file, for instance) is raised in any case.
        options: how to read the file: names of text and id in formats with columns, encoding, limit of a document.
        content: what the file must contain, an identity from `artifacts.identity`; by default, this isn't checked.

    Attributes:
        skipped: the error of each document that was skipped; of more than 10,000, the first ones.
        skipped_documents: how many documents were skipped.

    Raises:
        InputError: the format is unknown; while reading: the file, the line and what is wrong there, or that the file
            has changed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        options: ReadOptions | None = None,
        content: str | None = None,
    ) -> None:
        self.skipped: list[str] = []
        self.skipped_documents = 0
        self._content = content
        self._path = Path(path)
        format_to_read(path, format)  # raises if it is unknown
        self._format = format
        self._options = options or ReadOptions()
        self._skip = on_error == "skip"
        self._source: Source | None = None

    def note(self, what: str, example: str) -> None:
        """Count something that the reader's user converts or leaves out, while it reads; see `InputFile.note`."""
        if self._source:
            self._source.note(what, example)

    @property
    def position(self) -> int:
        """The number of bytes of the file read so far, before decompression."""
        return self._source.position if isinstance(self._source, InputFile) else 0

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        self.skipped_documents = 0
        for document in self._documents():
            if isinstance(document, Document):
                yield document
            elif self._skip:
                self.skipped_documents += 1
                if len(self.skipped) < _KEPT_ERRORS:
                    self.skipped.append(str(document))
            else:
                raise document
        if self.skipped:
            skipped = counted(self.skipped_documents, "document")
            logger.warning("%s: skipped %s that can't be read; the first: %s", self._path, skipped, self.skipped[0])

    def _documents(self) -> Iterator[Document | InputError]:
        if is_hub_split(self._path):
            from bioptimus_hf.corpus.hub import read_hub  # here: it imports datasets

            self._source = Source(str(self._path).partition("@")[0], self._options)
            yield from read_hub(str(self._path), self._source)
            return
        for path, options in self._files():
            with open_input(path, options, content=self._content) as file:
                self._source = file
                yield from read_open_file(file, self._format)

    def _files(self) -> Iterator[tuple[Path, ReadOptions]]:
        """Yield the files to read, of which only a folder of brat has several."""
        if format_to_read(self._path, self._format) != "brat" or not self._path.is_dir():
            yield self._path, self._options
            return
        for path in brat.texts_in(self._path):
            yield path, replace(self._options, place=path.relative_to(self._path).as_posix())


def read_open_file(file: InputFile, format: str | None = None) -> Iterator[Document | InputError]:
    """Yield the documents of an open file, and an error in place of each document that can't be read.

    Raises:
        InputError: the format is unknown, or the rest of the file can't be read.
    """
    given = FORMATS[format_to_read(file.path, format or _by_content(file))]
    assert given.read  # as it is among the readable ones
    advice = _other_format(file, given)
    try:
        for document in given.read(file):
            if isinstance(document, Document):
                advice = ""  # only what precedes the first document hints at another format
            if advice and isinstance(document, InputError):
                yield InputError(f"{document}{advice}")
            elif isinstance(document, NotUtf8Error):
                yield InputError(f"{document}, {document.advice}")
            elif isinstance(document, Document) and (size := size_over(document.text, file.options)):
                yield TooLongError(f"{file.path}, document {document.id}", size, file.options)
            else:
                yield document
    except NotUtf8Error as error:
        raise InputError(f"{error}, {error.advice}") from error
    except InputError as error:
        if not advice:
            raise
        raise InputError(f"{error}{advice}") from error


def _by_content(file: InputFile) -> str | None:
    """Return the format that the content of a file shows, if its name fits several."""
    fitting = [format.name for format in _fitting(file.path)]
    if len(fitting) < 2:
        return None
    try:
        head = cast(io.BufferedReader, file.utf8).peek(HEAD)[:HEAD]
    except NotUtf8Error:  # the reader will say so
        return None
    seen = recognise(head, file.options.text_columns)
    return seen if seen in fitting else None


def _other_format(file: InputFile, given: Format) -> str:
    """Return what to add to the first error of a file that looks like one of another format."""
    head = file.binary.peek(HEAD)[:HEAD]
    seen = recognise(head, file.options.text_columns)
    other = FORMATS[seen] if seen else given
    if seen is None and given.name == "conll" and file.path.name.lower().endswith(FORMATS["tsv"].endings):
        columns = ", ".join(
            head.decode("utf-8", "replace").lstrip("\ufeff").partition("\n")[0][:200].strip().split("\t")
        )
        return f" (if it is a table, set text_column to one of its columns: {columns})"
    return "" if other.read == given.read else f" (the file looks like {other.name}: pass the format {other.name})"


@check_call()
def write_documents(path: str | Path, documents: Iterable[Document], *, format: str | None = None) -> int:
    """Write documents one at a time. If anything fails, no file is left, and a file that was there before stays.

    - `jsonl`: `id`, the other fields of the line that was read, `text`, `entities`.
    - `csv`, `tsv`: a row per entity, with its sentence; see `entity_table`.
    - `parquet`: a row per document; see `parquet_rows`.
    - `brat`: a folder with two files for each document; see `brat.write_brat`.
    - `pubtator`, `bioc`, `bioc_xml`, `conll`: see the modules of these names.
    - `html`: a page for people.

    Args:
        path: the file, compressed if its name ends in `.gz`. A folder of brat that is there already is kept under
            another name.
        format: one of `WRITABLE`; by default what the name of the file ends in.

    Returns:
        The number of documents written.

    Raises:
        InputError: a document can't be written in this format, or the file can't be written at all (an
            `UnwritableError`).
    """
    path = Path(path)
    given = FORMATS[format_of(path, format, WRITABLE)]
    counted = _Counted(documents, given)
    try:
        if given.write_files:
            given.write_files(path, counted)
            counted.report()
            return counted.number
        assert given.write  # as it is among the writable ones
        with atomic_file(path) as partial, _created(partial, packed=path.name.lower().endswith(".gz")) as file:
            for piece in given.write(counted):
                # Half a surrogate pair can occur only in other fields of JSON, where this is the right escape.
                file.write(piece if isinstance(piece, bytes) else piece.encode("utf-8", "backslashreplace"))
    except InputError as error:
        if counted.given:  # otherwise it is an error of the source, which names its own file
            raise InputError(f"{path}: {error}") from error
        raise
    except OSError as error:
        raise UnwritableError(f"can't write {path} ({error.strerror or error}): choose another place") from error
    counted.report()
    return counted.number


def find_format(path: str | Path) -> Format | None:
    """Return the format that the name of a file ends in, the first of those with this ending; None if it is unknown."""
    return next(iter(_fitting(path)), None)


def _fitting(path: str | Path) -> list[Format]:
    """Return the formats with the longest ending that the name of a file has: `.pubtator.txt` is longer than `.txt`."""
    name = Path(path).name.lower()
    found = [(len(end), format) for format in FORMATS.values() for end in format.endings if name.endswith(end)]
    longest = max((length for length, _ in found), default=0)
    return [format for length, format in found if length == longest]


def stem_of(path: str | Path) -> str:
    """Return the name of a file without the ending of its format, or without `.gz` if the format is unknown."""
    name = Path(path).name
    found = find_format(path)
    endings = found.endings if found else (".gz",)
    return name[: len(name) - max(len(end) for end in (*endings, "") if name.lower().endswith(end))]


def format_to_read(path: str | Path, given: str | None = None) -> str:
    """Return the name of the format in which a file is read; a text with annotations beside it is one of brat.

    The split of a data set on the Hub has the name `HUB`, whatever is given.

    Raises:
        InputError: the format is unknown.
    """
    if is_hub_split(path):
        return HUB
    name = format_of(path, given, READABLE)
    return "brat" if given is None and name == "txt" and brat.has_annotations(Path(path)) else name


def annotated_format(path: str | Path) -> str | None:
    """Return the format from which the entities of a file are read, None if its format has none.

    Where the name leaves it open (`.txt`, `.xml`, `.tsv`, `.json`), the content decides.

    Raises:
        InputError: the format is unknown, or the file can't be read.
    """
    name = format_to_read(path)
    if name in ("txt", "pubmed", "conll", "bioc"):
        with open_input(path) as file:
            name = recognise(file.binary.peek(HEAD)[:HEAD]) or name
    return name if name in ANNOTATED else None


def written_files(path: Path, format: str) -> list[Path]:
    """Return the files that `write_documents` has written to a path."""
    return brat.files_of(path) if FORMATS[format].write_files else [path]


def format_of(path: str | Path, given: str | None, known: Iterable[str]) -> str:
    """Return the name of a file's format: the given one, or what the name of the file ends in.

    Raises:
        InputError: it isn't one of the known ones.
    """
    found = find_format(path)
    name = given or (found.name if found else "")
    if name not in known:
        ends = ", ".join(dict.fromkeys(suffix for kind in known for suffix in FORMATS[kind].suffixes))
        problem = f"the format {name!r} can't be used here"
        if not name:
            ending = Path(path).suffix
            problem = f"unknown format (the name {f'ends in {ending}' if ending else 'has no ending'})"
        raise InputError(
            f"{path}: {problem}: name one of {', '.join(known)} as the format, or use a file name that ends in {ends}"
        )
    return name


class _Counted:
    """Counts documents as they pass, and what the format can't hold; `given` is true while the writer has one."""

    def __init__(self, documents: Iterable[Document], format: Format) -> None:
        self.number = 0
        self.given = False
        self._documents = documents
        self._format = format
        self._lost: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            self.number += 1
            if self._format.loses_fields:
                self._lost.update(fields_not_in_text(document))
            self.given = True
            yield document
            self.given = False

    def report(self) -> None:
        """Say how many fields were left out."""
        if self._lost:
            names = ", ".join(list(self._lost)[:5])
            logger.warning(
                "the format %s has no other fields: left out %d (%s)", self._format.name, self._lost.total(), names
            )


@contextmanager
def _created(path: Path, *, packed: bool) -> Iterator[BinaryIO]:
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packed else nullcontext(raw) as file,
        io.BufferedWriter(cast(io.RawIOBase, file), _BUFFER) as buffered,
    ):
        yield buffered
