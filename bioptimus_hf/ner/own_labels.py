"""Turn annotated documents of any format into sentences of words with tags, and say what was found and left out."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from bioptimus_hf.corpus.conll import Sentence
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.formats import DocumentReader, annotated_format
from bioptimus_hf.corpus.reading import Notes, ReadOptions
from bioptimus_hf.corpus.sentences import sentence_starts
from bioptimus_hf.corpus.tags import OUTSIDE, TAG
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.splitting import DocumentGroup
from bioptimus_hf.ner.text_words import stripped, text_words

Span = tuple[int, int]


@dataclass(frozen=True)
class TaggedDocument:
    """A document as heads are trained on it.

    Attributes:
        id: of the document.
        text: of the document.
        sentences: its sentences, in order.
        passages: the number of the passage that each sentence is from, such as the title.
        mentions: the number of mentions of each type.
        is_sentence: whether it is a sentence of a source that doesn't say which document it is from.
    """

    id: str
    text: str
    sentences: Sequence[Sentence]
    passages: Sequence[int]
    mentions: Counter[str]
    is_sentence: bool


@dataclass(frozen=True)
class _Mention:
    """A mention of whole words, given by the numbers of its first and its last one."""

    first: int
    last: int
    entity: Entity


def read_tagged(
    files: Mapping[Path, str],
    place: Path,
    options: ReadOptions,
    *,
    types: Collection[str] | None = None,
    only: bool = False,
) -> list[TaggedDocument]:
    """Read annotated documents, and log what is changed and left out, each with a count and an example.

    A text is divided into sentences, and these into words, as annotation does; a source with tokens keeps its own.

    - A mention that begins or ends within a word is extended to the whole word.
    - Of mentions that share a word, the longest is kept, then the first.
    - Sentences that a mention reaches across are joined.
    - Documents without words are left out.

    Args:
        files: to read, with the path that distinguishes documents without ids of their own.
        place: where the files are, for messages.
        options: how to read them; annotations are needed in any case.
        types: the types that are read.
        only: whether another type is an error; otherwise, its mentions are left out.

    Raises:
        InputError: a document can't be read, or a type can't be a tag or isn't among `types` (where).
    """
    notes = Notes(place)
    converter = _Converter(notes, types, only=only)
    documents: list[TaggedDocument] = []
    for path, name in files.items():
        reading = replace(options, place=name, annotations="needed")
        for document in DocumentReader(path, format=annotated_format(path) or "conll", options=reading):
            try:
                tagged = converter.tagged(document)
            except InputError as error:
                raise InputError(f"{path}, document {document.id}: {error}") from error
            if tagged.sentences:
                documents.append(tagged)
            else:
                notes.note("documents without words, left out", f"document {document.id}")
    notes.report()
    return documents


def groups_of(documents: Sequence[TaggedDocument]) -> list[DocumentGroup]:
    """Return documents in groups of those that have the same id or the same text."""
    group_of: dict[tuple[str, str], DocumentGroup] = {}
    for number, document in enumerate(documents):
        keys = ("id", document.id), ("text", document.text)
        group, *others = _different([group_of[key] for key in keys if key in group_of]) or [DocumentGroup()]
        group_of |= dict.fromkeys(keys, group)
        group.documents.append(number)
        for other in others:
            group.documents += other.documents
            group_of |= {key: group for key, value in group_of.items() if value is other}
    groups = _different(group_of.values())
    for group in groups:
        group.documents.sort()
        group.text = min(documents[number].text for number in group.documents)
        group.sentences = sum(len(documents[number].sentences) for number in group.documents)
        group.mentions = sum((documents[number].mentions for number in group.documents), Counter())
    return groups


def _different(groups: Iterable[DocumentGroup]) -> list[DocumentGroup]:
    return list({id(group): group for group in groups}.values())


class _Converter:
    """Converts documents, and notes what it changes and leaves out."""

    def __init__(self, notes: Notes, types: Collection[str] | None, *, only: bool) -> None:
        self._note = notes.note
        self._types = types
        self._only = only

    def tagged(self, document: Document) -> TaggedDocument:
        """Convert a document.

        Raises:
            InputError: a type can't be a tag, or isn't among the types.
        """
        words, firsts = _words_of(document)
        mentions = self._without_overlaps(document, list(self._mentions(document, words)))
        firsts = self._joined(document, firsts, mentions)
        tags = [OUTSIDE] * len(words)
        for mention in mentions:
            inside = range(mention.first + 1, mention.last + 1)
            tags[mention.first] = f"B-{mention.entity.label}"
            for word in inside:
                tags[word] = f"I-{mention.entity.label}"
        tokens = [document.text[start:end] for start, end in words]
        # The passages of a document with tokens are its sentences, which are each other's context.
        passages = [] if document.tokens else [passage.start for passage in document.passages]
        return TaggedDocument(
            document.id,
            document.text,
            [(tokens[first:end], tags[first:end]) for first, end in pairwise([*firsts, len(words)])],
            [bisect_right(passages, words[first][0]) for first in firsts],
            Counter(mention.entity.label for mention in mentions),
            is_sentence=bool(document.tokens) and not document.passages,
        )

    def _mentions(self, document: Document, words: Sequence[Span]) -> Iterator[_Mention]:
        """Yield the mentions of the types that are wanted, as whole words."""
        starts, ends = [start for start, _ in words], [end for _, end in words]
        for entity in document.entities:
            kind = self._type(document, entity)
            if kind is None:
                continue
            example = f"document {document.id}, {entity.text[:60]!r} at {entity.start}"
            first, last = bisect_right(ends, entity.start), bisect_left(starts, entity.end) - 1
            if first > last:
                self._note("mentions without a word, left out", example)
                continue
            place = (starts[first], ends[last])
            if place != stripped(document.text, entity.start, entity.end):
                whole = document.text[slice(*place)]
                what = "mentions that begin or end within a word, extended to whole words"
                self._note(what, f"{example}, now {whole[:60]!r}")
            elif place != (entity.start, entity.end):
                self._note("mentions with blanks at their edges, which are left out", example)
            yield _Mention(first, last, replace(entity, label=kind))

    def _type(self, document: Document, entity: Entity) -> str | None:
        """Return the type of an entity as it is written in tags, None if it isn't wanted."""
        kind = re.sub(r"\s+", "_", entity.label.strip())
        if kind != entity.label:
            self._note("types with blanks, written with _", f"document {document.id}, {entity.label!r}")
        if not TAG.fullmatch(f"B-{kind}"):
            raise InputError(f"{entity.label!r} can't be the type of a tag: rename it (no hyphen at either end)")
        if self._types is None or kind in self._types:
            return kind
        example = f"document {document.id}, {kind} {entity.text[:60]!r}"
        if self._only:
            raise InputError(
                f"the type {kind} of {entity.text[:60]!r} doesn't occur in the training set, which has "
                f"{', '.join(self._types)}: add documents with it there, or name the types of the task"
            )
        self._note("mentions of other types than those of the task, left out", example)
        return None

    def _without_overlaps(self, document: Document, mentions: Sequence[_Mention]) -> list[_Mention]:
        """Return mentions in order of the text; of those that share a word, the longest, then the first."""
        kept: dict[int, _Mention] = {}  # by each of their words
        for mention in sorted(mentions, key=lambda one: (one.first - one.last, one.first, one.entity.label)):
            inside = range(mention.first, mention.last + 1)
            other = next((kept[word] for word in inside if word in kept), None)
            if other is None:
                kept |= dict.fromkeys(inside, mention)
                continue
            example = f"document {document.id}, {mention.entity.label} {mention.entity.text[:60]!r}"
            if (other.first, other.last, other.entity.label) == (mention.first, mention.last, mention.entity.label):
                self._note("mentions that are given twice, read once", example)
            elif other.first <= mention.first and mention.last <= other.last:
                outer = f"in {other.entity.label} {other.entity.text[:60]!r}"
                self._note("mentions within others (or of the same words), left out", f"{example} {outer}")
            else:
                what = "mentions that overlap longer ones, left out"
                self._note(what, f"{example} and {other.entity.label} {other.entity.text[:60]!r}")
        return sorted({id(one): one for one in kept.values()}.values(), key=lambda one: one.first)

    def _joined(self, document: Document, firsts: Sequence[int], mentions: Sequence[_Mention]) -> list[int]:
        """Return the numbers of the first words of sentences, none of which begins within a mention."""
        inside = {word: mention for mention in mentions for word in range(mention.first + 1, mention.last + 1)}
        for mention in {id(inside[first]): inside[first] for first in firsts if first in inside}.values():
            example = f"document {document.id}, {mention.entity.text[:60]!r}"
            self._note("mentions across the end of a sentence, whose sentences are joined", example)
        return [first for first in firsts if first not in inside]


def _words_of(document: Document) -> tuple[list[Span], list[int]]:
    """Return the places of the words of a document, and the numbers of those that begin a sentence."""
    sections = [(passage.start, passage.end) for passage in document.passages] or [(0, len(document.text))]
    words: list[Span] = []
    begins: list[int] = []  # where sentences begin in the text
    if document.tokens:
        words = list(document.tokens)
        begins = [start for start, _ in sections]
    else:
        for start, end in sections:
            text = document.text[start:end]
            words += [(start + first, start + last) for first, last in text_words(text)]
            begins += [start + begin for begin in sentence_starts(text)] if text.strip() else []
    starts = [start for start, _ in words]
    firsts = {bisect_left(starts, begin) for begin in begins}
    return words, sorted(first for first in firsts if first < len(words))
