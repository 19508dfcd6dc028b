"""PubMed's XML (`PubmedArticleSet`): a document an article, of its title and the sections of its abstract.

It is read by expat piece by piece, so that memory does not grow with the file, and no entity that the file itself
declares is ever expanded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

from bioptimus_hf.corpus.documents import Document, join_passages
from bioptimus_hf.errors import InputError

_SET = "PubmedArticleSet"
_ARTICLES = ("PubmedArticle", "PubmedBookArticle")
_READ_AT_ONCE = 1 << 16
# What is read, and within what: an article cites the PMIDs of others, and may have abstracts in other languages.
_WANTED = {
    ("MedlineCitation", "PMID"): "id",
    ("BookDocument", "PMID"): "id",
    ("Article", "ArticleTitle"): "title",
    ("BookDocument", "ArticleTitle"): "title",
    ("Abstract", "AbstractText"): "abstract",
}


def read_pubmed(path: Path, file: BinaryIO) -> Iterator[Document | InputError]:
    """Yield the articles of PubMed XML, and the fault of one that has no PMID.

    Marks within the text (italics, indices) are left out and their text is kept; runs of white space are one blank.
    The label of a section stands before its text, as PubMed shows it: `METHODS: We ...`. Abstracts in other languages
    than the article's own record are left out.

    Raises:
        InputError: the file is not well-formed, declares or uses entities of its own, or is neither a set of articles,
            which may be empty, nor holds one.
    """
    articles = _Articles(path)
    try:
        at_end = False
        while not at_end:
            chunk = file.read(_READ_AT_ONCE)
            at_end = not chunk
            articles.parser.Parse(chunk, at_end)
            while articles.finished:  # some at the very end: expat may put off what it has not seen the end of
                yield articles.finished.popleft()
    except expat.ExpatError as error:
        reason = expat.errors.messages.get(error.code, str(error))
        raise InputError(f"{path}, line {error.lineno}: not well-formed XML ({reason}): fetch or mend it") from error
    except InputError:
        raise
    except (LookupError, ValueError) as error:
        raise InputError(f"{path}: its encoding cannot be read ({error}): convert it to UTF-8") from error
    if not articles.seen:
        raise InputError(f"{path} holds no PubmedArticle: give XML as PubMed exports it")


class _Articles:
    """Gathers articles as expat reads.

    `finished` holds those that ended since it was last emptied; `seen` says whether there was an article or a set.
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
        self.parser.EntityDeclHandler = self._refuse_declaration
        self.parser.SkippedEntityHandler = self._refuse_unknown

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        self.seen = self.seen or name in (_SET, *_ARTICLES)
        if name in _ARTICLES:
            self._line = self.parser.CurrentLineNumber
            self._id, self._title, self._sections = "", None, []
        elif self._field is None and (found := _WANTED.get((parent, name))):
            self._field, self._depth, self._label, self._text = found, len(self._open), attributes.get("Label", ""), []
            self.parser.CharacterDataHandler = self._text.append  # of all other text nothing is seen

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
            return InputError(f"{self._path}, line {self._line}: the article has no PMID: mend it or leave it out")
        parts = [(self._title or "", None, {"type": "title"})]
        for label, text in self._sections:
            infons = {"type": "abstract", "section": label} if label else {"type": "abstract"}
            parts.append((f"{label}: {text}" if label else text, None, infons))
        text, passages = join_passages(parts)
        return Document(self._id, text, passages=passages)

    def _refuse_declaration(self, name: str, *_: object) -> None:
        raise InputError(
            f"{self._path}, line {self.parser.CurrentLineNumber}: declares the entity {name!r}, which PubMed never "
            f"does, and which is not expanded: take the declaration out"
        )

    def _refuse_unknown(self, name: str, _: bool) -> None:
        raise InputError(
            f"{self._path}, line {self.parser.CurrentLineNumber}: the entity &{name}; is known to no one: write the "
            f"character itself"
        )
