"""Annotate files and folders of documents; a second call resumes where the first one stopped."""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.labels import read_renames
from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.artifacts import identity, is_finished, read_record, verification, write_record
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.files import readable_files
from bioptimus_hf.corpus.formats import (
    FORMATS,
    READABLE,
    DocumentReader,
    format_of,
    stem_of,
    write_documents,
)
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import find_model
from bioptimus_hf.progress import progress_bar
from bioptimus_hf.storage import locked, remove_leftovers

logger = logging.getLogger(__name__)

RECORDS = ".records"
"""Hidden folder beside the annotated files, with a record of how each was made; `datasets.load_dataset` ignores it."""


def annotate_files(options: AnnotationOptions) -> list[Path]:
    """Annotate files of documents that aren't annotated yet.

    Each input file becomes one file of the same name in `options.output_dir`, written atomically, with a record of its
    models and settings in `.records`. Files with a matching record are skipped.

    Args:
        options: input files, models, formats and the folder of the results.

    Returns:
        The annotated files, including those that were finished before, in the order of the input files.

    Raises:
        InputError: there are no input files, two would have the same result, a document can't be read, the folder can't
            be written, or it contains results of other models, settings or input files and `force` is false.
    """
    root = Path(options.output_dir)
    lock = root / RECORDS / "annotation.lock"
    with verification(not options.no_verify), locked(lock, root, take_over=options.take_over):
        return _annotate_all(root, options)


def _annotate_all(root: Path, options: AnnotationOptions) -> list[Path]:
    targets = target_files(input_files(options.input, root), root, options.format)
    for file in targets:
        format_of(file, options.input_format, READABLE)
    models = [find_model(model) for model in options.models]
    settings = {name: getattr(options, name) for name in ("format", "input_format", "text_column", "bf16")}
    if options.labels:  # records of files that were annotated without have no such key
        settings["labels"] = read_renames(options.labels)
    provenance = _Provenance({f"model {number}": model.identity for number, model in enumerate(models)}, settings)
    options = replace(options, models=[model.pinned for model in models])  # what the records say is what is loaded
    rest = {file: target for file, target in targets.items() if not _is_annotated(file, target, provenance, options)}
    if len(rest) < len(targets):
        logger.info("%d of %d files are already annotated", len(targets) - len(rest), len(targets))
    if rest:
        _annotate(rest, provenance, options)
    return list(targets.values())


def input_files(patterns: Iterable[str], output_dir: Path) -> list[Path]:
    """Return the files that are named, that match a pattern, or that lie in a folder and have a readable format.

    Annotated files in `output_dir` are left out if this folder is itself an input.

    Raises:
        InputError: a name, pattern or folder yields no file.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = readable_files((file for file in path.iterdir() if not file.name.startswith(".")), path)
            if path.resolve() == output_dir.resolve():
                found = [file for file in found if not record_of(file).is_file()]
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        found = [file for file in found if file.is_file()]
        if not found:
            raise InputError(
                f"no documents at {pattern}: name a file, a pattern, or a folder of {', '.join(READABLE)} files"
            )
        files += found
    return list(dict.fromkeys(files))


def target_files(files: Iterable[Path], output_dir: Path, format: str) -> dict[Path, Path]:
    """Return the annotated file of each input file.

    Raises:
        InputError: two input files would have the same annotated file, or an input file would be overwritten.
    """
    targets: dict[Path, Path] = {}
    for file in files:
        target = output_dir / f"{stem_of(file)}{FORMATS[format].suffixes[0]}"
        if same := next((other for other, taken in targets.items() if taken == target), None):
            raise InputError(f"{same} and {file} would both become {target}: annotate them into different folders")
        if target.resolve() == file.resolve():
            raise InputError(f"{file} would be overwritten by its annotated copy: choose another output_dir")
        targets[file] = target
    return targets


def record_of(target: Path) -> Path:
    """Return the file that records how an annotated file was made."""
    return target.parent / RECORDS / f"{target.name}.json"


def _begun(target: Path) -> Path:
    """Return the file that exists while an annotated file is being written: if it has no record, it is ours."""
    return record_of(target).with_suffix(".begun")


@dataclass(frozen=True)
class _Provenance:
    """The models and settings that all files of a call share."""

    models: Mapping[str, str]
    settings: Mapping[str, Any]

    def inputs(self, file: Path) -> dict[str, str]:
        return {"file": identity(file), **self.models}


def _is_annotated(file: Path, target: Path, provenance: _Provenance, options: AnnotationOptions) -> bool:
    record = record_of(target)
    if target.exists() and not record.is_file() and not _begun(target).is_file():
        raise InputError(f"{target} exists but wasn't annotated here: move it away, or choose another output_dir")
    if options.force or not target.is_file() or not record.is_file():
        return False
    finished = is_finished(record, provenance.inputs(file), provenance.settings)
    skipped = read_record(record)["facts"]["skipped"]
    if skipped and options.on_error == "raise":
        raise InputError(
            f"{target} lacks {len(skipped)} documents of {file} that couldn't be read: fix them and use force, or "
            f"accept the gap with on_error=skip"
        )
    return finished


def _annotate(targets: Mapping[Path, Path], provenance: _Provenance, options: AnnotationOptions) -> None:
    dtype = torch.bfloat16 if options.bf16 else None
    annotator = Annotator(
        options.models, batch_size=options.batch_size, labels=read_renames(options.labels), dtype=dtype
    )
    root = Path(options.output_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {root} ({error.strerror}): choose another output_dir") from error
    size = sum(file.stat().st_size for file in targets)
    with progress_bar(total=size, unit="B", unit_scale=True, desc="Annotating") as bar:
        progress = Progress(bar)
        for file, target in targets.items():
            began, entities_before = time.monotonic(), progress.entities
            inputs = provenance.inputs(file)
            reader = DocumentReader(
                file,
                format=options.input_format,
                on_error=options.on_error,
                options=ReadOptions(options.text_column),
                content=inputs["file"],
            )
            annotated = progress.watch(reader, file.stat().st_size, annotator.annotate_documents(reader))
            record = record_of(target)
            # After a kill, the record must not describe a file that replaced the recorded one.
            begun = _begun(target)
            begun.touch()
            remove_leftovers(target)
            record.unlink(missing_ok=True)
            try:
                documents = write_documents(target, annotated, format=options.format)
            except BaseException:
                if not target.exists():
                    begun.unlink()
                raise
            entities = progress.entities - entities_before
            facts = {"documents": documents, "entities": entities, "skipped": reader.skipped}
            seconds = time.monotonic() - began
            write_record(record, inputs, provenance.settings, facts=facts, seconds=seconds, files=[target])
            begun.unlink()
    logger.info(
        "annotated %d documents with %d entities in %s, %.1f documents per second",
        *(progress.documents, progress.entities, root, progress.documents_per_second),
    )


class Progress:
    """Counts documents and entities, and shows how many bytes of the files have been read.

    Args:
        bar: from `progress_bar`, whose total is the size of all files in bytes.
    """

    def __init__(self, bar: Any) -> None:
        self.documents = self.entities = 0
        self._began = time.monotonic()
        self._bar = bar

    @property
    def documents_per_second(self) -> float:
        """Average speed so far."""
        return self.documents / (time.monotonic() - self._began)

    def watch(self, reader: DocumentReader, size: int, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents of a file and update the bar.

        Args:
            reader: reader of the file.
            size: size of the file in bytes.
            documents: its annotated documents.
        """
        start = self._bar.n
        for document in documents:
            self.documents += 1
            self.entities += len(document.entities)
            self._bar.set_postfix_str(f"{self.documents:,} documents, {self.documents_per_second:.1f}/s", refresh=False)
            self._bar.update(max(start + reader.position - self._bar.n, 0))
            yield document
        self._bar.update(start + size - self._bar.n)
