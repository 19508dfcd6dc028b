"""Annotate one input file: write its result, and the record of how it was made."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.inputs import begun, record_of
from bioptimus_hf.annotation.labels import read_renames
from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.artifacts import identity, write_record
from bioptimus_hf.corpus.brat import ANNOTATIONS
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import (
    DocumentReader,
    UnwritableError,
    format_to_read,
    write_documents,
    written_files,
)
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import remove_leftovers

logger = logging.getLogger(__name__)

_COMPARED_IDS = 1_000_000  # of a file; they take about 60 MB


@dataclass(frozen=True)
class Job:
    """A file to annotate.

    Attributes:
        file: the input.
        target: the result.
        place: path of the input among the others; ids of documents that have none begin with it.
        readable: whether the file could be read where the job was given to another machine.
    """

    file: Path
    target: Path
    place: str
    readable: bool = True


@dataclass(frozen=True)
class Provenance:
    """The models and settings that all files of a call share.

    Attributes:
        models: identity of each model.
        settings: the options that shape a result.
    """

    models: Mapping[str, str]
    settings: Mapping[str, Any]

    def inputs(self, file: Path) -> dict[str, str]:
        """Return what a result is made from: identities of the file, of kept annotations beside it, and of the models.

        Raises:
            InputError: the file can't be read.
        """
        found = {"file": file}
        if self.settings["keep"] and format_to_read(file, self.settings["input_format"]) == "brat":
            found["annotations"] = file.with_suffix(ANNOTATIONS)
        try:
            return {**{name: identity(path) for name, path in found.items()}, **self.models}
        except OSError as error:
            raise InputError(f"{file} can't be read ({error.strerror or error})") from error


def load_annotator(options: AnnotationOptions, device: str | None = None) -> Annotator:
    """Load the models of a call; for the device and errors, see `Annotator`."""
    return Annotator(
        options.models,
        batch_size=options.batch_size,
        labels=read_renames(options.labels),
        min_score=options.min_score,
        context=options.context,
        engine=options.engine,
        precision=options.precision,
        device=device,
    )


class Progress(Protocol):
    """What is told how far the work is."""

    def begin(self) -> None:
        """Start the clock: the models are loaded."""
        ...

    def add(self, documents: int, entities: int, size: int) -> None:
        """Add to the numbers of documents, of entities in them, and of bytes of the input that have been read."""
        ...


def annotate_file(
    job: Job, annotator: Annotator, provenance: Provenance, options: AnnotationOptions, progress: Progress
) -> Mapping[str, Any]:
    """Annotate a file, write the result and its record, and return the facts in the record.

    Whatever runs the jobs calls this function, so that a result doesn't depend on where it was made.

    Raises:
        InputError: the file can't be read or annotated; nothing is left of the result.
        UnwritableError: nothing can be written there.
    """
    started = time.monotonic()
    inputs = provenance.inputs(job.file)
    reader = DocumentReader(
        job.file,
        format=options.input_format,
        on_error=options.on_error,
        options=options.read_options(job.place),
        content=inputs["file"],
    )
    given = _Given(reader)
    found = _Found(annotator.annotate_documents(given, keep=options.keep), reader, size_of(job.file), progress)
    with _replacing(job.target) as record:
        number = write_documents(job.target, found, format=options.format)
        beside = job.file.with_suffix(ANNOTATIONS)  # the reader compares the file itself
        if "annotations" in inputs and identity(beside) != inputs["annotations"]:
            raise InputError(f"{beside} changed while it was being read: run the same command again")
        if not number and not reader.skipped:
            logger.warning("%s has no documents", job.file)
        facts = {
            "documents": number,
            "entities": found.entities,
            "skipped": reader.skipped,
            "documents_skipped": reader.skipped_documents,
            "replaced": 0 if options.keep else given.entities,
        }
        seconds = time.monotonic() - started
        files = written_files(job.target, options.format)
        write_record(record, inputs, provenance.settings, facts=facts, seconds=seconds, files=files)
    return facts


def size_of(file: Path) -> int:
    """Return the size of a file for the progress bar; 0 if it can't be read, which is an error later."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield the place of the record of a result that is written in a `with` block.

    After a kill, no record describes a file that replaced the recorded one.
    """
    record, mark = record_of(target), begun(target)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        remove_leftovers(target, everywhere=True)
        record.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableError(f"can't write {target} ({error.strerror or error}): choose another output_dir") from error
    try:
        yield record
    except BaseException:
        discard(target)
        raise
    mark.unlink(missing_ok=True)


def discard(target: Path) -> None:
    """Remove what is left of a result that isn't going to be finished, for whoever holds the lock of the folder."""
    remove_leftovers(target, everywhere=True)
    if not target.exists():
        begun(target).unlink(missing_ok=True)


def remove_empty_folders(target: Path, root: Path) -> None:
    """Remove the folders that were created for a result and its record, if nothing is in them.

    Not while other results are being written: their folders may be empty yet.
    """
    folder = record_of(target).parent
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


class _Given:
    """Passes on the documents of a file, counts their annotations, and notes ids that occur twice."""

    def __init__(self, reader: DocumentReader) -> None:
        self.entities = 0
        self._reader = reader

    def __iter__(self) -> Iterator[Document]:
        ids: set[int] = set()
        for document in self._reader:
            self.entities += len(document.entities)
            key = hash(document.id)  # much smaller than the id
            if key in ids:
                self._reader.note("documents with an id that another one has", repr(document.id))
            elif len(ids) < _COMPARED_IDS:
                ids.add(key)
            else:
                what = f"documents whose id was compared with the first {_COMPARED_IDS:,} ids only"
                self._reader.note(what, repr(document.id))
            yield document


class _Found:
    """Passes on the annotated documents of a file, counts their entities, and tells how far the file has been read."""

    def __init__(self, documents: Iterable[Document], reader: DocumentReader, size: int, progress: Progress) -> None:
        self.entities = 0
        self._documents = documents
        self._reader = reader
        self._size = size
        self._progress = progress

    def __iter__(self) -> Iterator[Document]:
        read = 0
        for document in self._documents:
            self.entities += len(document.entities)
            position = max(self._reader.position, read)  # parquet is not read in order
            self._progress.add(1, len(document.entities), position - read)
            read = position
            yield document
        self._progress.add(0, 0, self._size - read)
