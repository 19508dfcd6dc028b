"""Read and write the standoff format of brat: a text, and beside it a file `.ann` with an annotation per line.

Lines are those of https://brat.nlplab.org/standoff.html: `T1`, a tab, the type, start and end, a tab, the mention.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, unquote

from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.encodings import NotUtf8Error
from bioptimus_hf.corpus.mentions import UNREADABLE, read_entities
from bioptimus_hf.corpus.reading import InputFile, TooLongError, open_input
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import atomic_file, atomic_folder, remove_leftovers

logger = logging.getLogger(__name__)

TEXT, ANNOTATIONS = ".txt", ".ann"
"""How the names of the two files end."""
_CONFIGURATION = ("annotation.conf", "visual.conf", "tools.conf", "kb_shortcuts.conf")
_MENTION = re.compile(r"(T\S*)\t(\S+) ([0-9]{1,15} [0-9]{1,15}(?:;[0-9]{1,15} [0-9]{1,15})*) *(?:\t(.*))?", re.DOTALL)
_IDENTIFIER = re.compile(r"N\S*\t\S+ (\S+) ([^\s:]+:\S+)(?:\t.*)?", re.DOTALL)
_OTHERS = {
    "A": "attributes", "M": "attributes", "R": "relations", "*": "relations", "E": "events", "#": "notes"
}  # fmt: skip
_NO_DATABASE = "identifier:"  # brat wants the name of a database before each identifier
# What some reader takes for the end of a line or column. A mention with one of them is written in several pieces.
_BREAKS = re.compile("[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_LONGEST_NAME = 240  # bytes: most file systems have 255
_EMPTY = "%"  # the name of a document with an empty id, which no other id has


def has_annotations(path: Path) -> bool:
    """Return whether a file is a text with annotations of brat beside it."""
    return path.suffix == TEXT and path.with_suffix(ANNOTATIONS).is_file()


def belongs_to_text(path: Path) -> bool:
    """Return whether a file holds the annotations of a text beside it, or is a configuration of brat."""
    return path.name in _CONFIGURATION or (path.suffix == ANNOTATIONS and path.with_suffix(TEXT).is_file())


def texts_in(folder: Path) -> list[Path]:
    """Return the texts in a folder of brat, in order."""
    return sorted(path for path in folder.rglob(f"*{TEXT}") if has_annotations(path))


def read_brat(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the document that a text and the annotations beside it are, or its error.

    The text is the file as it is, with its line ends. The id is the path of the file without suffix, decoded where
    `write_brat` has encoded it. An annotation in several pieces reaches from the first to the last. Of the identifiers
    that normalisations give it, the first is kept. Attributes, relations, events and notes are left out; a line each
    says how many there were. If annotations aren't needed, the file with them may be missing.
    """
    try:
        text = _text(file)
        entities: list[Entity] = []
        beside = file.path.with_suffix(ANNOTATIONS)
        if file.options.annotations == "needed" or (file.options.annotations == "optional" and beside.is_file()):
            with open_input(beside, file.options) as annotations:
                entities = _Reader(annotations, text).entities()
        yield Document(_id(file), text, tuple(entities))
    except InputError as error:
        yield error


def write_brat(path: Path, documents: Iterable[Document]) -> None:
    """Write documents in brat's format: a folder with two files for each, or, if the path ends in `.txt`, one document.

    The files are named by the documents' ids, in which all characters but letters, digits and `_.-~` are encoded as in
    URLs (`/` as `%2F`). Of documents with the same id, the second gets `.2` at the end of its name, and so on; a
    warning says how many. A mention with line breaks or tabs is written in the pieces between them. Scores are left
    out, and so are identifiers with blanks or tabs; a warning says how many.

    Raises:
        InputError: a type has blanks, a mention consists of line breaks, an id is too long for the name of a file, or
            there isn't exactly one document for the path of a text.
        OSError: nothing can be written there.
    """
    lost: Counter[str] = Counter()
    if path.suffix == TEXT:
        found = list(documents)
        if len(found) != 1:
            raise InputError(
                f"{path}: a text of brat is one document, not {len(found)}: name a folder that ends in .brat"
            )
        _write(path, found[0], lost)
    else:
        with atomic_folder(path) as folder:
            for document in documents:
                _write(_free_name(folder, document, lost), document, lost, atomic=False)
    for what, number in lost.items():
        logger.warning("brat: %s: %d", what, number)


def files_of(path: Path) -> list[Path]:
    """Return the files that `write_brat` has written to a path."""
    if path.suffix == TEXT:
        return [path, path.with_suffix(ANNOTATIONS)]
    return sorted(inner for inner in path.rglob("*") if inner.is_file())


def _text(file: InputFile) -> str:
    content = file.utf8.read(file.options.limit + 1)
    if len(content) > file.options.limit:
        rest = sum(map(len, iter(lambda: file.utf8.read(1 << 16), b"")))
        raise TooLongError(str(file.path), len(content) + rest, file.options)
    try:
        return file.decode(content)  # with a byte order mark, which brat counts as a character
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{file.path}: not valid UTF-8 at byte {error.start}: convert the file") from error


def _id(file: InputFile) -> str:
    place = file.options.place or file.path.name
    folder, slash, name = place.rpartition("/")
    stem = name.removesuffix(TEXT)
    return f"{folder}{slash}{unquote(stem) if stem != _EMPTY else ''}"


class _Reader:
    """Reads the annotations of a text.

    Args:
        file: the open file with the annotations.
        text: the text.
    """

    def __init__(self, file: InputFile, text: str) -> None:
        self._file = file
        self._text = text
        self._found: dict[str, list[Entity]] = {}
        self._identifiers: dict[str, str] = {}

    def entities(self) -> list[Entity]:
        """Return the entities in the order of the file.

        Raises:
            InputError: a line can't be read, and annotations are needed.
        """
        for number, line in self._file.lines():
            where = f"line {number}"
            try:
                if isinstance(line, InputError):
                    raise line
                self._read(where, line)
            except NotUtf8Error:
                raise
            except InputError as error:
                if self._file.options.annotations == "needed":
                    raise InputError(f"{self._file.path}, {where}: {error}") from error
                self._file.note(UNREADABLE, f"{where}: {error}")
        for target in self._identifiers.keys() - self._found.keys():
            self._file.note("identifiers of no annotation, left out", target)
        return [
            Entity(e.start, e.end, e.text, e.label, e.score, self._identifiers.get(name, ""))
            for name, entities in self._found.items()
            for e in entities
        ]

    def _read(self, where: str, line: str) -> None:
        if not line.strip():
            return
        if found := _MENTION.fullmatch(line):
            name, label, places, mention = found.groups()
            pieces = [(int(start), int(end)) for start, end in (place.split(" ") for place in places.split(";"))]
            entity = self._entity(where, label, sorted(pieces), mention or "")
            if name in self._found:
                raise InputError(f"a second annotation {name}: give each its own number")
            if settled := read_entities(self._file, where, self._text, [entity]):
                self._found[name] = settled
        elif found := _IDENTIFIER.fullmatch(line):
            target, identifier = found.groups()
            if target in self._identifiers:
                self._file.note("further identifiers of an annotation, left out", f"{where}, {identifier}")
            self._identifiers.setdefault(target, identifier.removeprefix(_NO_DATABASE))
        elif line[0] in _OTHERS:
            self._file.note(f"{_OTHERS[line[0]]}, left out", f"{where}, {line[:60]!r}")
        else:
            raise InputError(f"{line[:60]!r} is no line of brat, such as T1<tab>Chemical 0 7<tab>Aspirin")

    def _entity(self, where: str, label: str, pieces: Sequence[tuple[int, int]], mention: str) -> Entity:
        """Return an annotation from its first piece to its last one, as the text spells it if the pieces are right."""
        (start, _), (_, end) = pieces[0], pieces[-1]
        written = " ".join(self._text[first:last] for first, last in pieces)
        if all(first < last <= len(self._text) for first, last in pieces) and written.split() == mention.split():
            gaps = [self._text[before[1] : after[0]] for before, after in pairwise(pieces)]
            if any(gap.strip() for gap in gaps):
                self._file.note("annotations in several pieces, read from the first to the last", where)
            mention = self._text[start:end]
        elif len(pieces) > 1:
            raise InputError(f"the text in these places is {written[:60]!r}, not {mention[:60]!r}: fix the offsets")
        return Entity(start, end, mention, label)


def _free_name(folder: Path, document: Document, lost: Counter[str]) -> Path:
    """Return the path of a document's text, under a name that no other file in the folder has."""
    name = quote(document.id, safe="", errors="surrogatepass") or _EMPTY
    if name.startswith("."):  # hidden, or the folder itself
        name = f"%2E{name[1:]}"
    if len(name) > _LONGEST_NAME:
        raise InputError(f"document {document.id[:60]!r}...: the id is too long for the name of a file: shorten it")
    path = folder / f"{name}{TEXT}"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{name}.{number}{TEXT}"
    if number > 1:
        lost["documents with an id that another one has, named with a number at the end"] += 1
    return path


def _write(path: Path, document: Document, lost: Counter[str], *, atomic: bool = True) -> None:
    """Write the two files of a document. The one with annotations comes last: without it, there is no document."""
    try:
        contents = {path: document.text.encode(), path.with_suffix(ANNOTATIONS): _lines(document, lost).encode()}
    except UnicodeEncodeError as error:
        raise InputError(f"document {document.id!a}: half a surrogate pair outside of its text: fix it") from error
    for place, content in contents.items():
        if atomic:
            remove_leftovers(place)
            with atomic_file(place) as partial:
                partial.write_bytes(content)
        else:
            place.write_bytes(content)


def _lines(document: Document, lost: Counter[str]) -> str:
    lines: list[str] = []
    identifiers: list[str] = []
    for number, entity in enumerate(document.entities, start=1):
        if not re.fullmatch(r"\S+", entity.label):
            raise InputError(
                f"document {document.id!a}: {entity.label!r} can't be a type in brat, which has no blanks: rename it"
            )
        pieces = _pieces(entity)
        if not pieces:
            raise InputError(f"document {document.id!a}: brat can't hold the mention {entity.text!r}: leave it out")
        places = ";".join(f"{start} {end}" for start, end in pieces)
        mention = " ".join(document.text[start:end] for start, end in pieces)
        lines.append(f"T{number}\t{entity.label} {places}\t{mention}\n")
        if entity.identifier.split() == [entity.identifier]:
            named = re.fullmatch("[^:]+:.+", entity.identifier)
            identifier = entity.identifier if named else f"{_NO_DATABASE}{entity.identifier}"
            identifiers.append(f"N{len(identifiers) + 1}\tReference T{number} {identifier}\t{mention}\n")
        elif entity.identifier:
            lost["identifiers with blanks or tabs, left out"] += 1
    return "".join(lines + identifiers)


def _pieces(entity: Entity) -> list[tuple[int, int]]:
    """Return the places of an entity's pieces between line breaks."""
    pieces: list[tuple[int, int]] = []
    start = 0
    for found in _BREAKS.finditer(entity.text):
        pieces.append((start, found.start()))
        start = found.end()
    pieces.append((start, len(entity.text)))
    return [(entity.start + first, entity.start + last) for first, last in pieces if first < last]
