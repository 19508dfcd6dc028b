"""Read PubMed XML (`PubmedArticleSet`): a document per article, with its title and the sections of its abstract."""

from __future__ import annotations

import re
from xml.parsers import expat

from bioptimus_hf.corpus.documents import Document, join_passages
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.corpus.xml_parsing import XmlHandler
from bioptimus_hf.errors import InputError

_SET = "PubmedArticleSet"
_ARTICLES = ("PubmedArticle", "PubmedBookArticle")
# Elements that are read, with their parents: articles cite other PMIDs.
_WANTED = {
    ("MedlineCitation", "PMID"): "id",
    ("BookDocument", "PMID"): "id",
    ("Article", "ArticleTitle"): "title",
    ("BookDocument", "ArticleTitle"): "title",
    ("Article", "VernacularTitle"): "vernacular",
    ("BookDocument", "VernacularTitle"): "vernacular",
    ("Book", "BookTitle"): "book",
    ("Book", "CollectionTitle"): "series",
    ("Abstract", "AbstractText"): "abstract",
    ("OtherAbstract", "AbstractText"): "other",
}
_TITLES = ("title", "vernacular", "book", "series")
"""In order of preference."""
_NO_TITLE = re.compile(r"\[(not available|no title available|in process citation)\.?\]\.?", re.IGNORECASE)
_ENGLISH = "eng"  # the language of OtherAbstract by default
_FOR_LAYPEOPLE = "plain-language-summary"

_Sections = list[tuple[str, str]]  # label and text


class PubmedHandler(XmlHandler):
    """Collects the articles of PubMed XML, and an error for each article without a PMID.

    Markup within the text (italics, subscripts) is left out and its text is kept; white space becomes single spaces.
    The label of a section precedes its text, as PubMed shows it: `METHODS: We ...`.

    Where an article has no title (or `[Not Available]`), its vernacular title is read, then the title of the book and
    of the book's series. Where it has no abstract, its other abstract is read: an English one if there is one, and a
    summary for laypeople last. Citations that PubMed deleted, headings of the chapters of books and all other fields
    are left out.
    """

    def __init__(self, file: InputFile, parser: expat.XMLParserType) -> None:
        super().__init__(file, parser)
        self._seen = False
        self._open: list[str] = []
        self._line = 0
        self._fields: dict[str, str] = {}
        self._sections: _Sections = []
        self._others: list[tuple[str, str, _Sections]] = []  # language, type and sections of each
        self._field: str | None = None
        self._depth = 0
        self._label = ""
        self._text: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Open an object or a field."""
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        self._seen = self._seen or name in (_SET, *_ARTICLES)
        if name in _ARTICLES:
            self._line = self.parser.CurrentLineNumber
            self._fields, self._sections, self._others = {}, [], []
        elif name == "OtherAbstract":
            self._others.append((attributes.get("Language", _ENGLISH), attributes.get("Type", ""), []))
        elif self._field is None and (found := _WANTED.get((parent, name))):
            self._field, self._depth, self._label, self._text = found, len(self._open), attributes.get("Label", ""), []
            self.parser.CharacterDataHandler = self._text.append  # other text is ignored

    def end(self, name: str) -> None:
        """Close it, and finish the document if it is one."""
        if self._field and len(self._open) == self._depth:
            self._take(self._field, " ".join("".join(self._text).split()))
            self._field = None
            self.parser.CharacterDataHandler = None
        self._open.pop()
        if name in _ARTICLES:
            self.finished.append(self._article())

    def check(self, root: str) -> None:
        """Raise InputError if the file had no document and wasn't an empty set of them."""
        if not self._seen:
            raise InputError(
                f"{self.file.path} has no PubmedArticle, but the root element <{root[:60]}>: give XML as PubMed "
                f"exports it (<{_SET}>), JATS (<article>), or BioC XML (<collection>)"
            )

    def _take(self, field: str, text: str) -> None:
        if not text:
            return
        if field == "abstract":
            self._sections.append((self._label, text))
        elif field == "other":
            self._others[-1][2].append((self._label, text))
        else:
            self._fields[field] = text

    def _article(self) -> Document | InputError:
        if "id" not in self._fields:
            return InputError(
                f"{self.file.path}, line {self._line}: the article has no PMID: add it or remove the article"
            )
        parts = [(self._title(), None, {"type": "title"})]
        language, sections = self._abstract()
        for label, text in sections:
            infons = {"type": "abstract"}
            infons |= {"section": label} if label else {}
            infons |= {"language": language} if language != _ENGLISH else {}
            parts.append((f"{label}: {text}" if label else text, None, infons))
        text, passages = join_passages(parts)
        return Document(self._fields["id"], text, passages=passages)

    def _title(self) -> str:
        titles = [self._fields[kind] for kind in _TITLES if kind in self._fields]
        return next((title for title in titles if not _NO_TITLE.fullmatch(title)), next(iter(titles), ""))

    def _abstract(self) -> tuple[str, _Sections]:
        """Return the sections of the abstract, and the language if that of another abstract is known."""
        if self._sections or not self._others:
            return _ENGLISH, self._sections

        def preference(other: tuple[str, str, _Sections]) -> tuple[bool, bool, bool]:
            language, kind, sections = other
            return not sections, language.lower() not in (_ENGLISH, "en"), kind == _FOR_LAYPEOPLE

        language, _, sections = min(self._others, key=preference)
        return language, sections
