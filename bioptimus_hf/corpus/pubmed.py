"""Read PubMed XML (`PubmedArticleSet`): a document per article, with its title and the sections of its abstract.

The file is parsed by expat chunk by chunk, so memory doesn't grow with it. Entities that the file declares itself are
never expanded.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

from bioptimus_hf.corpus.documents import Document, join_passages
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError

_SET = "PubmedArticleSet"
_ARTICLES = ("PubmedArticle", "PubmedBookArticle")
_READ_AT_ONCE = 1 << 16
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ENCODING = re.compile(rb"<\?xml[^>]*?\bencoding\s*=\s*[\"'](?!utf-?8[\"'])", re.IGNORECASE)
# Elements that are read, with their parents: articles cite other PMIDs, and may have abstracts in other languages.
_WANTED = {
    ("MedlineCitation", "PMID"): "id",
    ("BookDocument", "PMID"): "id",
    ("Article", "ArticleTitle"): "title",
    ("BookDocument", "ArticleTitle"): "title",
    ("Abstract", "AbstractText"): "abstract",
}


def read_pubmed(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the articles of PubMed XML, and an error for each article without a PMID.

    Markup within the text (italics, subscripts) is left out and its text is kept; white space becomes single spaces.
    The label of a section precedes its text, as PubMed shows it: `METHODS: We ...`. Abstracts in other languages than
    that of the article's own record are left out.

    Raises:
        InputError: the file isn't well-formed, declares or uses its own entities, or has neither a set of articles
            (which may be empty) nor an article.
    """
    articles = _Articles(file.path)
    # Undecodable bytes can be replaced in UTF-8 only; other encodings, which XML declares itself, are left to expat.
    head = file.binary.peek(200)
    declared = head.startswith(_UTF_16) or _ENCODING.match(head) or not file.options.is_utf8
    source = file.binary if declared else file
    try:
        at_end = False
        while not at_end:
            chunk = source.read(_READ_AT_ONCE)
            at_end = not chunk
            articles.parser.Parse(chunk, at_end)
            while articles.finished:  # some only now: expat may hold back the end of the file
                yield articles.finished.popleft()
    except expat.ExpatError as error:
        reason = expat.errors.messages.get(error.code, str(error))
        raise InputError(
            f"{file.path}, line {error.lineno}: not well-formed XML ({reason}): fix the file or fetch it again"
        ) from error
    except InputError:
        raise
    except (LookupError, ValueError) as error:
        raise InputError(f"{file.path}: can't read its encoding ({error}): convert the file to UTF-8") from error
    if not articles.seen:
        raise InputError(f"{file.path} has no PubmedArticle: give XML as PubMed exports it")


class _Articles:
    """Collects articles while expat parses.

    Attributes:
        parser: the parser to feed.
        finished: the articles that have ended; the caller takes them out.
        seen: whether there was an article or a set of articles.
    """

    def __init__(self, path: Path) -> None:
        self.finished: deque[Document | InputError] = deque()
        self.seen = False
        self._path = path
        self._open: list[str] = []
        self._line = 0
        self._id = ""
        self._title: str | None = None
        self._sections: list[tuple[str, str]] = []
        self._field: str | None = None
        self._depth = 0
        self._label = ""
        self._text: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.EntityDeclHandler = self._reject_declaration
        self.parser.SkippedEntityHandler = self._reject_unknown

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        self.seen = self.seen or name in (_SET, *_ARTICLES)
        if name in _ARTICLES:
            self._line = self.parser.CurrentLineNumber
            self._id, self._title, self._sections = "", None, []
        elif self._field is None and (found := _WANTED.get((parent, name))):
            self._field, self._depth, self._label, self._text = found, len(self._open), attributes.get("Label", ""), []
            self.parser.CharacterDataHandler = self._text.append  # other text is ignored

    def _end(self, name: str) -> None:
        if self._field and len(self._open) == self._depth:
            self._take(self._field, " ".join("".join(self._text).split()))
            self._field = None
            self.parser.CharacterDataHandler = None
        self._open.pop()
        if name in _ARTICLES:
            self.finished.append(self._article())

    def _take(self, field: str, text: str) -> None:
        if field == "id":
            self._id = text
        elif field == "title":
            self._title = text
        elif text:
            self._sections.append((self._label, text))

    def _article(self) -> Document | InputError:
        if not self._id:
            return InputError(f"{self._path}, line {self._line}: the article has no PMID: add it or remove the article")
        parts = [(self._title or "", None, {"type": "title"})]
        for label, text in self._sections:
            infons = {"type": "abstract", "section": label} if label else {"type": "abstract"}
            parts.append((f"{label}: {text}" if label else text, None, infons))
        text, passages = join_passages(parts)
        return Document(self._id, text, passages=passages)

    def _reject_declaration(self, name: str, *_: object) -> None:
        raise InputError(
            f"{self._path}, line {self.parser.CurrentLineNumber}: declares the entity {name!r}, which PubMed never "
            f"does and which is not expanded: remove the declaration"
        )

    def _reject_unknown(self, name: str, _: bool) -> None:
        raise InputError(
            f"{self._path}, line {self.parser.CurrentLineNumber}: unknown entity &{name};: write the character itself"
        )
