"""Read CSV and TSV: a header line with the names of the columns, and a document per row.

Python's csv module reads them: of the readers tried, it alone rejects what isn't closed or continues after a quote, and
it converts nothing. pyarrow's takes nearly twice the time and reads the rest of a file as one field after such a quote.
"""

from __future__ import annotations

import csv
import threading
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence

from bioptimus_hf.corpus.columns import check_columns, row_document
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.entity_table import COLUMNS
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError, counted, format_error

DELIMITERS = (",", "\t", ";")
"""What may separate the columns. The header shows which of them does."""
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
_SLACK = 1 << 16  # bytes of other columns
_LONGEST_FIELD = 2**31 - 1  # a C long on every platform
_limit_of_fields = threading.Lock()  # the csv module has one limit for the whole process


def read_csv(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the document of each row, and an error in place of each row that has more or fewer columns than the header.

    Columns are separated by commas, semicolons or tabs. Fields may be quoted, and then contain separators, line breaks
    and doubled quotes. Everything is text: nothing is read as a number or as missing. An empty id is none. Blank lines
    are left out. Columns other than text and id are kept in `extra["fields"]`.

    Raises:
        InputError: the header lacks a column or has one twice, or is that of a table of entities that we wrote; or a
            quote isn't closed or is followed by something.
    """
    lines = _Lines(file)
    header, delimiter = header_of(lines.header(), file.options.text_columns)
    id_column = file.options.id_column
    if tuple(header) == COLUMNS and file.options.text_columns == ("text",):
        raise InputError(
            f"{file.path} is a table of entities, each of which is its text: give the documents in which they were "
            f"found, or set text_column to sentence"
        )
    check_columns(file.path, header, file.options.text_columns)
    check_columns(file.path, header, [id_column] if id_column else [], argument="id_column")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        lines.begin()
        try:
            row = _next_row(rows)
        except csv.Error as error:
            raise InputError(
                f"{file.path}, row that begins in line {lines.first} and is read to line {lines.number}: "
                f"{format_error(error)}: close each quote, and double the quotes within fields"
            ) from error
        if row is None:
            return
        if not row:
            continue
        number += 1
        where = f"line {lines.first}"
        if lines.fault:
            yield lines.fault
        elif len(row) != len(header):
            advice = f"quote fields that contain {_NAMES[delimiter]}" if len(row) > len(header) else "complete the row"
            found = counted(len(row), "column")
            yield InputError(f"{file.path}, {where}: {found}, not {len(header)} as in the header: {advice}")
        else:
            try:
                yield row_document(file, number, where, dict(zip(header, row, strict=True)))
            except InputError as error:
                yield InputError(f"{file.path}, {where}: {error}")


def header_of(lines: Sequence[str], columns: Sequence[str]) -> tuple[list[str], str]:
    """Return the names in the header of a table, and what separates them.

    Of several separators with which the header has the wanted columns, the one that gives most names is taken; if
    there is none, the one that gives most names at all.

    Args:
        lines: the header, which has several lines if a quoted name has a line break.
        columns: the wanted columns.
    """
    best: tuple[bool, int, list[str], str] = (False, 0, [], DELIMITERS[0])
    for delimiter in DELIMITERS:
        try:
            names = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        wanted = set(columns) <= set(names)
        if (wanted, len(names)) > best[:2]:
            best = (wanted, len(names), names, delimiter)
    return best[2:]


class _Lines:
    """Yields the lines of a file with their ends, as the csv module wants them.

    Attributes:
        number: of the last line.
        first: the line in which the current row begins.
        fault: why the current row can't be decoded.
    """

    def __init__(self, file: InputFile) -> None:
        self.number = 0
        self.first = 1
        self.fault: InputError | None = None
        self._file = file
        self._size = 0  # of the current row so far
        self._place = 0  # bytes before the next line

    def header(self) -> list[str]:
        """Return the first line that isn't blank, and those after it that a quoted name reaches to.

        Raises:
            InputError: it can't be decoded or there is none, or lines end in carriage returns alone.
        """
        self.begin()
        lines: list[str] = []
        for line in self:
            if self.fault:
                raise self.fault
            if lines or line.strip():
                lines.append(line)
            if lines and "".join(lines).count('"') % 2 == 0:
                break
        if not lines:
            raise InputError(f"{self._file.path} is empty: a table begins with a line that names its columns")
        if "\r" in lines[0].rstrip("\r\n"):
            raise InputError(f"{self._file.path}: lines end in carriage returns alone: convert the line ends")
        return lines

    def begin(self) -> None:
        """Begin a row."""
        self.first = self.number + 1
        self.fault = None
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # A document over the limit is an error of its own, unless it is so long that a quote seems to be missing.
        limit = 2 * self._file.options.limit + _SLACK
        content = self._file.utf8.readline(limit + 1)
        if not content:
            raise StopIteration
        self.number += 1
        self._size += len(content)
        if self._size > limit:
            raise InputError(
                f"{self._file.path}, row that begins in line {self.first}: more than twice the limit of a document: "
                f"close its quotes, or set max_document_megabytes"
            )
        place, self._place = self._place, self._place + len(content)
        if self.number == 1:
            content = content.removeprefix(BOM_UTF8)
        try:
            return self._file.decode(content)
        except UnicodeDecodeError as error:
            self.fault = self._file.undecodable(self.number, place + error.start)
            return content.decode(errors="replace")


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """Return the next row, whose fields may have any length, None at the end."""
    with _limit_of_fields:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            return next(rows, None)
        finally:
            csv.field_size_limit(before)
