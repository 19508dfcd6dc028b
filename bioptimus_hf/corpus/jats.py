"""Read JATS XML, the full texts of PubMed Central: a document per article."""

from __future__ import annotations

from xml.parsers import expat

from bioptimus_hf.corpus.documents import Document, join_passages
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.corpus.xml_parsing import XmlHandler
from bioptimus_hf.errors import InputError

ROOTS = ("article", "pmc-articleset", "OAI-PMH")
"""The root elements of JATS: an article, and what the services of PubMed Central return."""

_ARTICLE = "article"
_IDS = ("pmcid", "pmc", "pmid", "doi", "publisher-id")
"""Kinds of identifiers, in order of preference. PubMed Central has called its own by two names."""
_TEXT = {"title-group", "abstract", "body", "back", "floats-group"}  # the parts of an article that are read
_SECTIONS = {"sec", "ack", "app", "notes", "glossary", "fn-group"}
# Elements whose own text is a passage, and what it is called.
_PASSAGES = {
    "article-title": "title",
    "subtitle": "title",
    "title": "heading",
    "p": "paragraph",
    "term": "term",
    "disp-formula": "formula",
}
_APART = {*_PASSAGES, "list", "def-list", "fig", "table-wrap", "break"}  # separate the words before from those after
_CAPTIONS = {"fig": "figure caption", "table-wrap": "table caption"}
# Elements that are left out with everything in them.
_LEFT_OUT = {
    *("ref-list", "table", "tex-math", "object-id", "label", "permissions", "alt-text", "long-desc", "attrib", "media"),
    *("trans-abstract", "trans-title-group", "alt-title", "sub-article", "response", "graphic", "inline-graphic"),
}


class _Passage:
    """A passage that is being read.

    Attributes:
        depth: how many elements were open when it began, itself included.
        pieces: its text so far, and whether each piece is the number of a citation.
    """

    def __init__(self, infons: dict[str, str], depth: int) -> None:
        self.infons = infons
        self.depth = depth
        self.pieces: list[tuple[str, bool]] = []

    @property
    def text(self) -> str:
        """Its text, with single spaces."""
        return " ".join("".join(text for text, _ in self.pieces).split())

    def drop_citations_from(self, start: int) -> None:
        """Drop the pieces from `start` if they are numbers of citations and what separates them."""
        pieces = self.pieces[start:]
        others = "".join(text for text, cited in pieces if not cited)
        if any(cited for _, cited in pieces) and not any(map(str.isalnum, others)):
            del self.pieces[start:]


class JatsHandler(XmlHandler):
    """Collects articles in JATS.

    Title, abstracts, headings, paragraphs, list items and captions become passages, in the order in which they begin.
    The infon `type` says what a passage is, `section` is the heading of its main section. Left out are the references,
    the cells of tables, numbers of citations that are set as superscripts, the TeX of formulas, titles and abstracts in
    other languages, everything about authors and journal, and articles within the article, such as reviews of it.
    Markup within the text is left out and its text is kept; white space becomes single spaces.

    The id is that of PubMed Central, `PMC123`. An article without has its PMID, its DOI or the publisher's id.
    """

    def __init__(self, file: InputFile, parser: expat.XMLParserType) -> None:
        super().__init__(file, parser)
        parser.CharacterDataHandler = self._take
        self._open: list[str] = []
        self._left_out = 0  # how many elements are open within one that is left out
        self._seen = False
        self._begin()

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Open an element, and a passage if it is one."""
        if self._left_out or name in _LEFT_OUT or (name == _ARTICLE and name in self._open):
            self._left_out += 1
            return
        self._open.append(name)
        if name == _ARTICLE:
            self._begin()
        elif name == "article-id":
            self._id_kind = attributes.get("pub-id-type", "")
        elif name == "xref":
            self._references.append(attributes.get("ref-type") == "bibr")
        elif name == "sup" and self._reading:
            self._raised.append(len(self._reading[-1].pieces))
        elif name in _APART and self._reading:
            self._reading[-1].pieces.append((" ", False))
        if name in _PASSAGES and not _TEXT.isdisjoint(self._open):
            self._reading.append(_Passage(self._infons(name), len(self._open)))
            self._passages.append(self._reading[-1])

    def end(self, name: str) -> None:
        """Close it, and finish the document if it is one."""
        if self._left_out:
            self._left_out -= 1
            return
        if self._reading and self._reading[-1].depth == len(self._open):
            passage = self._reading.pop()
            if name == "title" and self._is_main_heading():
                self._section = passage.text
        elif name == "xref":
            self._references.pop()
        elif name == "sup" and self._raised:
            self._reading[-1].drop_citations_from(self._raised.pop())
        elif name in _SECTIONS and self._is_in_main_section():
            self._section = ""
        elif name == _ARTICLE:
            self.finished.append(self._article())
        self._open.pop()

    def check(self, root: str) -> None:
        """Raise InputError if the file had no article and wasn't an empty set of them."""
        if root not in ROOTS or (root == "OAI-PMH" and not self._seen):
            raise InputError(f"{self.file.path} has no article in JATS: its <{root[:60]}> is of another kind")

    def _begin(self) -> None:
        self._seen = self._seen or bool(self._open)
        self._line = self.parser.CurrentLineNumber
        self._ids: dict[str, str] = {}
        self._id_kind = ""
        self._section = ""
        self._passages: list[_Passage] = []
        self._reading: list[_Passage] = []  # those that are open: a footnote may be within a paragraph
        self._references: list[bool] = []  # whether each open cross reference is a citation
        self._raised: list[int] = []  # where each open superscript began

    def _take(self, text: str) -> None:
        if self._left_out or not self._open:
            return
        if self._open[-1] == "article-id":
            self._ids[self._id_kind] = self._ids.get(self._id_kind, "") + text
        elif self._reading:
            self._reading[-1].pieces.append((text, any(self._references)))

    def _infons(self, name: str) -> dict[str, str]:
        if "abstract" in self._open:
            kind, section = ("heading" if name == "title" else "abstract"), "Abstract"
        else:
            caption = next((_CAPTIONS[outer] for outer in reversed(self._open) if outer in _CAPTIONS), None)
            kind, section = "footnote" if "fn" in self._open else caption or _PASSAGES[name], self._section
        return {"type": kind, **({"section": section} if section else {})}

    def _is_main_heading(self) -> bool:
        """Tell whether the title that ends is that of a main section of the text."""
        return "abstract" not in self._open and self._open[-2] in _SECTIONS and self._is_in_main_section()

    def _is_in_main_section(self) -> bool:
        """Tell whether a main section is open, and no section within it."""
        return sum(name in _SECTIONS for name in self._open) == 1

    def _article(self) -> Document | InputError:
        ids = {kind: text.strip() for kind, text in self._ids.items() if text.strip()}
        kind = next((kind for kind in _IDS if kind in ids), None)
        if kind is None:
            return InputError(
                f"{self.file.path}, line {self._line}: the article has no article-id of PubMed Central, no PMID and no "
                f"DOI: add one or remove the article"
            )
        name = ids[kind]
        if kind in _IDS[:2] and name.isdecimal():
            name = f"PMC{name}"
        parts = [(text, None, passage.infons) for passage in self._passages if (text := passage.text)]
        text, passages = join_passages(parts)
        return Document(name, text, passages=passages)
