"""Read annotated documents as the splits of a task, and split those that come without splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bioptimus_hf.corpus.conll import Sentence, types_of
from bioptimus_hf.corpus.ner_files import SPLIT_NAMES, UNSPLIT, LabelFiles
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.ner.own_labels import TaggedDocument, groups_of, read_tagged
from bioptimus_hf.ner.splitting import DocumentGroup, split_groups

logger = logging.getLogger(__name__)

_ADVICE = " (JSON and Parquet have them under entities, brat in a file .ann beside the text)"


@dataclass(frozen=True)
class SplitSentences:
    """The sentences of a split.

    Attributes:
        where: the file or data set that they are from.
        sentences: words and tags of each.
        documents: the document of each; None where it isn't known.
        passages: the number of the passage of the document, such as the title; empty if none are known.
    """

    where: str
    sentences: list[Sentence]
    documents: Sequence[str | None]
    passages: Sequence[int] = ()


def types_found(
    types: tuple[str, ...] | None, train: Sequence[Sentence], where: str | Path, *, advice: str = ""
) -> tuple[str, ...]:
    """Return the types that are given, or else those of the training set.

    Args:
        advice: what to add to the error.

    Raises:
        InputError: there are none.
    """
    found = types or types_of(train)
    if not found:
        raise InputError(f"{where} contains no entities: every tag is O{advice}")
    return found


def read_split_documents(
    found: LabelFiles, options: ReadOptions, types: tuple[str, ...] | None
) -> dict[str, SplitSentences]:
    """Read annotated documents that are split already.

    A warning counts the documents of other splits whose text is also that of one in the training set.

    Args:
        found: files of each split.
        options: how to read them.
        types: the types that are read; by default those of the training set, and another one is an error.

    Raises:
        InputError: see `read_tagged`; or the training set has no mention.
    """
    places = {split: _place(files) for split, files in found.files.items()}
    train = read_tagged(found.files["train"], places["train"], options, types=types)
    known = types_found(types, _sentences(train), places["train"], advice=_ADVICE)
    splits = {"train": train}
    texts = {document.text for document in train}
    for split in list(SPLIT_NAMES)[1:]:
        splits[split] = read_tagged(found.files[split], places[split], options, types=known, only=types is None)
        if twice := [document.id for document in splits[split] if document.text in texts]:
            logger.warning(
                "%s: documents with the text of one in the training set: %d (for example %s)",
                *(places[split], len(twice), twice[0]),
            )
    return {split: _split(documents, str(places[split])) for split, documents in splits.items()}


def split_documents(
    task: str,
    found: LabelFiles,
    options: ReadOptions,
    types: tuple[str, ...] | None,
    shares: Sequence[float],
    seed: int,
) -> dict[str, SplitSentences]:
    """Read annotated documents, log what was found, and split them; see `split_groups`.

    Args:
        task: name of the task, for messages.
        found: the files.
        options: how to read them.
        types: the types that are read; by default all.
        shares: of training, development and test set.
        seed: another one gives another split.

    Raises:
        InputError: see `read_tagged`; there is no mention, or there are too few documents.
    """
    place = found.place
    documents = read_tagged(found.files[UNSPLIT], place, options, types=types)
    types_found(types, _sentences(documents), place, advice=_ADVICE)
    groups = groups_of(documents)
    _report(task, place, documents, groups)
    try:
        numbers = dict(zip(SPLIT_NAMES, split_groups(groups, shares, seed), strict=True))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    shown = ", ".join(f"{split} {share:g}" for split, share in zip(SPLIT_NAMES, shares, strict=True))
    logger.info("%s: split by document with the shares %s and split_seed %d", task, shown, seed)
    return {
        split: _split([documents[number] for number in of_split], f"{place}, {split}")
        for split, of_split in numbers.items()
    }


def _report(task: str, place: Path, documents: Sequence[TaggedDocument], groups: Sequence[DocumentGroup]) -> None:
    """Log what was found in documents that are going to be split."""
    kinds = sum((document.mentions for document in documents), Counter[str]())
    logger.info(
        "%s: %s has %s (%d without a mention), %s and %s: %s",
        *(task, place, counted(len(documents), "document"), sum(not document.mentions for document in documents)),
        *(counted(len(_sentences(documents)), "sentence"), counted(kinds.total(), "mention")),
        ", ".join(f"{kind} {kinds[kind]}" for kind in sorted(kinds)),
    )
    if loose := [document.id for document in documents if document.is_sentence]:
        logger.warning(
            "%s: sentences whose document isn't marked, each of which counts as a document: %d (for example %s)",
            *(place, len(loose), loose[0]),
        )
    if together := [group.documents[1] for group in groups if len(group.documents) > 1]:
        logger.info(
            "%s: documents with the id or the text of another one, kept in the same split: %d (for example %s)",
            *(place, len(documents) - len(groups), documents[together[0]].id),
        )


def _split(documents: Sequence[TaggedDocument], where: str) -> SplitSentences:
    sentences = _sentences(documents)
    ids = [None if document.is_sentence else document.id for document in documents for _ in document.sentences]
    passages = [number for document in documents for number in document.passages]
    return SplitSentences(where, sentences, ids, passages)


def _sentences(documents: Iterable[TaggedDocument]) -> list[Sentence]:
    return [sentence for document in documents for sentence in document.sentences]


def _place(files: Mapping[Path, str]) -> Path:
    """Return the file or folder of a split, for messages."""
    path, name = next(iter(files.items()))
    return path.parents[name.count("/")] if name else path
