"""Parse XML chunk by chunk, so that memory doesn't grow with the file. The one place for what makes XML safe.

Nothing is fetched. Entities that a file declares itself are rejected, never expanded. Attributes that a document type
gives by default are ignored, so that a text consists of what is written in the file.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from xml.parsers import expat

from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError

_READ_AT_ONCE = 1 << 16
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ENCODING = re.compile(rb"<\?xml[^>]*?\bencoding\s*=\s*[\"'](?!utf-?8[\"'])", re.IGNORECASE)


class XmlHandler:
    """Turns the elements of a file into documents while it is parsed.

    Attributes:
        finished: the documents that have ended, and an error in place of each that can't be read.
        file: the file.
        parser: its parser.
    """

    def __init__(self, file: InputFile, parser: expat.XMLParserType) -> None:
        self.finished: deque[Document | InputError] = deque()
        self.file = file
        self.parser = parser

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Take the start of an element."""
        raise NotImplementedError

    def end(self, name: str) -> None:
        """Take the end of an element."""
        raise NotImplementedError

    def check(self, root: str) -> None:
        """Raise InputError if the whole file, with this root element, had nothing that this handler reads."""
        raise NotImplementedError


def parse_xml(
    file: InputFile, handlers: Mapping[str, type[XmlHandler]], default: type[XmlHandler]
) -> Iterator[Document | InputError]:
    """Yield the documents of an XML file.

    Args:
        file: the file.
        handlers: what reads a file with a certain root element.
        default: what reads all other files.

    Raises:
        InputError: the file isn't well-formed, declares or uses its own entities, or has nothing that can be read.
    """
    parser = expat.ParserCreate()
    root = _Root(file, parser, handlers, default)
    # Undecodable bytes can be replaced in UTF-8 only; other encodings, which XML declares itself, are left to expat.
    head = file.binary.peek(200)
    declared = head.startswith(_UTF_16) or _ENCODING.match(head) or not file.options.is_utf8
    source = file.binary if declared else file
    try:
        at_end = False
        while not at_end:
            chunk = source.read(_READ_AT_ONCE)
            at_end = not chunk
            parser.Parse(chunk, at_end)
            while root.handler and root.handler.finished:  # some only now: expat may hold back the end of the file
                yield root.handler.finished.popleft()
    except expat.ExpatError as error:
        reason = expat.errors.messages.get(error.code, str(error))
        raise InputError(
            f"{file.path}, line {error.lineno}: not well-formed XML ({reason}): fix the file or fetch it again"
        ) from error
    except InputError:
        raise
    except (LookupError, ValueError) as error:
        if root.name:  # the encoding comes before the root element: it isn't the reason
            raise
        raise InputError(f"{file.path}: can't read its encoding ({error}): convert the file to UTF-8") from error
    if root.handler:
        root.handler.check(root.name)


class _Root:
    """Prepares a parser, and chooses the handler when the root element begins."""

    def __init__(
        self,
        file: InputFile,
        parser: expat.XMLParserType,
        handlers: Mapping[str, type[XmlHandler]],
        default: type[XmlHandler],
    ) -> None:
        self.handler: XmlHandler | None = None
        self.name = ""
        self._file, self._parser = file, parser
        self._handlers, self._default = handlers, default
        parser.buffer_text = True
        parser.specified_attributes = True  # not those that an internal subset gives by default
        parser.StartElementHandler = self._start
        parser.EntityDeclHandler = self._reject_declaration
        parser.SkippedEntityHandler = self._reject_unknown

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.handler = self._handlers.get(name, self._default)(self._file, self._parser)
        self._parser.StartElementHandler = self.handler.start
        self._parser.EndElementHandler = self.handler.end
        self.handler.start(name, attributes)

    def _reject_declaration(self, name: str, *_: object) -> None:
        raise InputError(
            f"{self._file.path}, line {self._parser.CurrentLineNumber}: declares the entity {name!r}, which such files "
            f"never do and which is not expanded: remove the declaration"
        )

    def _reject_unknown(self, name: str, _: bool) -> None:
        raise InputError(
            f"{self._file.path}, line {self._parser.CurrentLineNumber}: unknown entity &{name};: write the character "
            f"itself"
        )
