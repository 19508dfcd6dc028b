"""Annotate for the users of the web page, each of whom has results of their own, in a temporary file.

Nothing here knows gradio: `app` turns what is returned into a page.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.results import Results, View, save, without_folder
from bioptimus_hf.corpus.brat import ANNOTATIONS, TEXT
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import DocumentReader
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError, counted

MAX_CHARACTERS = 2_000_000
"""The limit of a text, and of a document in a file (there in bytes)."""
_CHARACTERS_AT_ONCE = 50_000  # seconds of work on a CPU, after which others have their turn, and one can stop
OnError = Literal["raise", "skip"]
_READERS = logging.getLogger("bioptimus_hf.corpus")


@dataclass
class Run:
    """What has become of the annotation of a text or of files so far.

    Attributes:
        results: the annotated documents.
        errors: the error of each file that couldn't be read, or not to its end.
        notes: what readers report: documents left out, bytes replaced and so on.
        share: how much of the files has been read, between 0 and 1.
        seconds: how long reading and annotating files has taken.
    """

    results: Results = field(default_factory=Results)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    share: float = 0.0
    seconds: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)


class Workshop:
    """Annotates for several users: in turn, since a model fills the machine, but none waits for another's files to end.

    In a `with` block, what readers report about users' files goes to these users and not to the log.

    Args:
        annotator: finds the entities.
    """

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self._lock = threading.Lock()
        self._notes = _Notes()

    def __enter__(self) -> Workshop:
        self._propagated = _READERS.propagate
        _READERS.propagate = False
        _READERS.addHandler(self._notes)
        return self

    def __exit__(self, *_: object) -> None:
        _READERS.removeHandler(self._notes)
        _READERS.propagate = self._propagated

    def annotate_text(self, text: str) -> Document:
        """Return the text with its entities.

        Raises:
            InputError: the text is empty, too long or not valid Unicode.
        """
        if not text.strip():
            raise InputError("The text is empty: type or paste some.")
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"The text has {len(text):,} characters, and this page accepts {MAX_CHARACTERS:,}: use bioptimus "
                f"annotate."
            )
        with self._lock:
            (document,) = self._annotator.annotate_documents([Document("1", text)])
        return document

    def annotate_files(
        self,
        files: Sequence[str | Path],
        format: str | None,
        options: ReadOptions,
        run: Run,
        on_error: OnError = "skip",
    ) -> Iterator[Run]:
        """Annotate files into a run, and yield it after every few documents until it is done or stopped.

        An error of one file doesn't stop the others.

        Args:
            files: uploaded files.
            format: their format; by default what their names end in.
            options: how to read them.
            run: takes the results; setting `stopped` ends it after the documents at hand.
            on_error: whether a document that can't be read ends its file, or is left out and noted.
        """
        began = time.monotonic()
        with _linked(files) as copies:
            sizes = [copy.stat().st_size for copy in copies]
            for number, copy in enumerate(copies):
                with self.collecting_notes(run.notes, copy.parent):
                    named = replace(options, place=copy.name)
                    for position in self._annotate_file(copy, format, named, run, on_error):
                        run.share = (sum(sizes[:number]) + position) / max(sum(sizes), 1)
                        run.seconds = time.monotonic() - began
                        yield run
                        if run.stopped.is_set():
                            return
        run.share, run.seconds = 1.0, time.monotonic() - began

    def _annotate_file(
        self, file: Path, format: str | None, options: ReadOptions, run: Run, on_error: OnError
    ) -> Iterator[int]:
        """Add the documents of a file to a run, and yield after every few of them how many bytes have been read."""
        before, replaced = len(run.results), 0
        try:
            reader = DocumentReader(file, format=format, on_error=on_error, options=options)
            for group in _groups(reader):
                replaced += sum(len(document.entities) for document in group)
                with self._lock:
                    annotated = list(self._annotator.annotate_documents(group))
                run.results.extend(annotated)
                yield reader.position
            if len(run.results) == before:
                raise InputError(reader.skipped[0] if reader.skipped else f"{file.name}: there is no text in it")
        except InputError as error:
            run.errors.append(without_folder(str(error), file))
        finally:
            if replaced:
                run.notes.append(f"{file.name}: replaced {counted(replaced, 'annotation')} of the file")

    def check_files(self, files: Sequence[str | Path], format: str | None, options: ReadOptions) -> list[str]:
        """Return why the first document of each file can't be read, or what is odd about it: a line each."""
        messages: list[str] = []
        with _linked(files) as copies:
            for file in copies:
                with self.collecting_notes(messages, file.parent):
                    try:
                        for _ in DocumentReader(file, format=format, options=options):
                            break
                    except InputError as error:
                        messages.append(without_folder(str(error), file))
        return messages

    def collecting_notes(self, notes: list[str], folder: Path | None = None) -> AbstractContextManager[None]:
        """Add to some notes, in a `with` block, what is logged about the files of a folder.

        Args:
            notes: takes the messages, without the folder.
            folder: without one, everything that readers and writers log in this thread is taken.
        """
        return self._notes.collecting(notes, folder)


class Sessions:
    """The current run of each user, and the files that they download.

    Args:
        downloads: folder from which files are served.

    Attributes:
        downloads: the same.
    """

    def __init__(self, downloads: Path) -> None:
        self.downloads = downloads
        self._runs: dict[str, Run] = {}
        self._files: dict[str, list[Path]] = {}

    def begin(self, user: str) -> Run:
        """Return a new run of a user, and stop the one that was there before."""
        self.stop(user)
        self._runs[user] = run = Run()
        return run

    def run(self, user: str) -> Run | None:
        """Return the current run of a user."""
        return self._runs.get(user)

    def stop(self, user: str) -> None:
        """Stop annotating for a user; the results so far stay."""
        if run := self._runs.get(user):
            run.stopped.set()

    def save(self, user: str, format: str, view: View) -> Path:
        """Write the results of a user as a file to download.

        Raises:
            InputError: there are no results, or they can't be written in this format.
        """
        run = self.run(user)
        if run is None:
            raise InputError("The results are no longer there: annotate once more.")
        path = save(self.downloads, format, run.results.documents(view))
        self._files.setdefault(user, []).append(path)
        return path

    def end(self, user: str) -> None:
        """Stop and forget the run of a user who has left, and delete their files."""
        self.stop(user)
        self._runs.pop(user, None)
        for path in self._files.pop(user, []):
            shutil.rmtree(path.parent, ignore_errors=True)

    def close(self) -> None:
        """End all sessions."""
        for user in [*self._runs, *self._files]:
            self.end(user)


@contextmanager
def _linked(files: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Yield links to uploaded files, each in a folder of its own or, if it annotates a text, beside the text.

    The files themselves are deleted after an hour, which annotating them may well take.
    """
    with tempfile.TemporaryDirectory() as folder:
        texts: dict[str, Path] = {}
        for number, file in enumerate(map(Path, files)):
            if file.suffix == TEXT:
                texts.setdefault(file.stem, Path(folder) / str(number))
        kept: list[Path] = []
        for number, file in enumerate(map(Path, files)):
            beside = texts.get(file.stem) if file.suffix == ANNOTATIONS else None
            link = (beside or Path(folder) / str(number)) / file.name
            link.parent.mkdir(exist_ok=True)
            try:
                os.link(file, link)
            except OSError:  # on another file system
                shutil.copy(file, link)
            if beside is None:
                kept.append(link)
        yield kept


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= _CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Notes(logging.Handler):
    """Gives what readers log about a file to whoever collects it; everything else goes to the usual handlers."""

    def __init__(self) -> None:
        super().__init__()
        self._collected: dict[int, tuple[str | int, list[str]]] = {}

    @contextmanager
    def collecting(self, notes: list[str], folder: Path | None) -> Iterator[None]:
        """See `Workshop.collecting_notes`."""
        key = threading.get_ident() if folder is None else f"{folder}{os.sep}"
        self._collected[id(notes)] = (key, notes)
        try:
            yield
        finally:
            del self._collected[id(notes)]

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        message = record.getMessage()
        for key, notes in list(self._collected.values()):
            if isinstance(key, str) and key in message:
                notes.append(message.replace(key, ""))
                return
            if key == record.thread:
                notes.append(message)
                return
        if parent := _READERS.parent:
            parent.handle(record)
