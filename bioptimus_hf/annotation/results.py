"""Keep annotated documents in a temporary file, and show or save those entities that are in view."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import FORMATS, write_documents
from bioptimus_hf.errors import InputError


@dataclass(frozen=True)
class View:
    """Which entities of the results are shown and downloaded.

    Attributes:
        min_score: the lowest score, between 0 and 1.
        labels: the labels; None stands for all.
    """

    min_score: float = 0.0
    labels: frozenset[str] | None = None

    def filter(self, document: Document) -> Document:
        """Return a document with the entities that are in view."""
        kept = [
            entity
            for entity in document.entities
            if entity.score >= self.min_score and (self.labels is None or entity.label in self.labels)
        ]
        return replace(document, entities=kept)


class Results:
    """Annotated documents in a temporary file, of which one at a time is read. The file has no name.

    Attributes:
        labels: the number of entities by label.
    """

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def extend(self, documents: Iterable[Document]) -> None:
        """Add documents at the end."""
        ends = []
        for document in documents:
            pickle.dump(document, self._file, pickle.HIGHEST_PROTOCOL)  # keeps everything, whatever the format was
            self.labels.update(entity.label for entity in document.entities)
            ends.append(self._file.tell())
        self._file.flush()
        self._ends.extend(ends)

    def document(self, number: int, view: View) -> Document:
        """Return a document, counted from 1, with the entities in view."""
        start, end = self._ends[number - 1 : number + 1]
        # This doesn't move the place where a run is writing. Only we wrote to the file, so unpickling is safe.
        document: Document = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return view.filter(document)

    def documents(self, view: View) -> Iterator[Document]:
        """Yield all documents with the entities in view."""
        for number in range(1, len(self) + 1):
            yield self.document(number, view)


def save(folder: Path, format: str, documents: Iterable[Document]) -> Path:
    """Write documents into a new folder within a given one, and return the file: a zip if the format has several.

    Raises:
        InputError: a document can't be written in this format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=folder)) / f"entities{FORMATS[format].suffix}"
    try:
        write_documents(path, documents, format=format)
    except InputError as error:
        path.parent.rmdir()
        raise InputError(without_folder(str(error), path)) from error
    if not path.is_dir():
        return path
    archive = shutil.make_archive(str(path), "zip", path.parent, path.name)
    shutil.rmtree(path)
    return Path(archive)


def without_folder(message: str, file: Path) -> str:
    """Return a message without the temporary folder of the file that it is about."""
    return message.replace(f"{file.parent}{os.sep}", "")
