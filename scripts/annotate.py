#!/usr/bin/env python
r"""Find named entities in files of documents, with one head or several, at any length of text.

    python scripts/annotate.py --models runs/mine/ner/ncbi-disease/v0.4/0 --input abstracts.jsonl --output_dir found
    python scripts/annotate.py --models HEAD OTHER_HEAD --input pubmed/*.xml.gz --output_dir found --format pubtator

Reads txt (a document a line), JSON lines, PubMed XML, PubTator, BioC JSON and CoNLL, plain or .gz, and writes for each
file one named after it into OUTPUT_DIR, whole or not at all: JSON lines, PubTator, BioC JSON, CoNLL or an HTML page.
Offsets count characters. A file that is finished is not done again; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import glob
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.artifacts import fingerprint, identity, write_json
from bioptimus_hf.cli.legacy import parse, run
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import READABLE, SUFFIXES, WRITABLE, DocumentReader, format_of, write_documents
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import find_model

logger = logging.getLogger("annotate")

RECORD = ".made.json"


@dataclass
class Options:
    """What is read by what, and what is written."""

    models: list[str] = field(
        metadata={
            "help": "Folders or Hub names of token classifiers: from finetune_ner.py, from export_onnx.py, or any other"
        }
    )
    input: list[str] = field(metadata={"help": "Files, folders or patterns"})
    output_dir: str = field(metadata={"help": "Folder for the annotated files"})
    format: str = field(default="jsonl", metadata={"help": f"Of what is written: {', '.join(WRITABLE)}"})
    input_format: str | None = field(
        default=None, metadata={"help": f"Of what is read: {', '.join(READABLE)}; by default what the names end in"}
    )
    on_error: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "What is done about a document that cannot be read; skip counts and names it"},
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Windows of text read at once; by default 8 on a CPU, 64 on a GPU"}
    )
    bf16: bool = field(default=False, metadata={"help": "Read in bfloat16: faster where the hardware has it"})
    force: bool = field(default=False, metadata={"help": "Do again what is finished, or was done with other settings"})


def main() -> None:
    """Annotate what is not finished."""
    (options,) = parse(Options, section="annotate", description=__doc__)
    root = Path(options.output_dir)
    files = input_files(options.input, root)
    targets = target_files(files, root, options.format)
    for file in files:
        format_of(file, options.input_format, READABLE)
    inputs = {f"model {number}": find_model(model).identity for number, model in enumerate(options.models)}
    settings = {"format": options.format, "input_format": options.input_format, "bf16": options.bf16}
    made_by = fingerprint(inputs, settings)
    whole = options.on_error == "raise"
    rest = [file for file in files if options.force or not is_done(targets[file], file, made_by, whole=whole)]
    if len(rest) < len(files):
        logger.info("%d of %d files are there already", len(files) - len(rest), len(files))
    if not rest:
        return
    annotator = Annotator(options.models, batch_size=options.batch_size, dtype=torch.bfloat16 if options.bf16 else None)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {root} ({error.strerror}): choose another --output_dir") from error
    with tqdm(total=sum(file.stat().st_size for file in rest), unit="B", unit_scale=True, desc="Annotating") as bar:
        progress = Progress(bar)
        for file in rest:
            reader = DocumentReader(file, format=options.input_format, on_error=options.on_error)
            before = progress.entities
            record_of(targets[file]).unlink(missing_ok=True)  # a kill must not leave it beside what others have made
            seen = progress.watch(reader, file.stat().st_size, annotator.annotate_documents(reader))
            number = write_documents(targets[file], seen, format=options.format)
            record = {"made_by": made_by, "input": identity(file), "documents": number}
            record |= {"entities": progress.entities - before, "skipped": reader.skipped}
            write_json(record_of(targets[file]), record)
    logger.info(
        "%d documents with %d entities in %s, %.1f documents a second",
        *(progress.documents, progress.entities, root, progress.documents / (time.monotonic() - progress.began)),
    )


def input_files(given: Iterable[str], root: Path) -> list[Path]:
    """Return the files that are named, those in folders that can be told by their names, and those that patterns match.

    In the folder `root`, where the annotated files go, these themselves are left out.

    Raises:
        InputError: there are none.
    """
    endings = tuple(f"{end}{packed}" for kind in READABLE for end in SUFFIXES[kind] for packed in ("", ".gz"))
    files: list[Path] = []
    for one in given:
        if Path(one).is_dir():
            found = [path for path in sorted(Path(one).iterdir()) if path.name.lower().endswith(endings)]
            if Path(one).resolve() == root.resolve():
                found = [path for path in found if not record_of(path).is_file()]
        else:
            found = [Path(one)] if Path(one).is_file() else sorted(map(Path, glob.glob(one, recursive=True)))
        # Our own records lie in a folder of annotated files, which may be annotated again.
        found = [path for path in found if path.is_file() and not path.name.endswith(RECORD)]
        if not found:
            raise InputError(
                f"no document at {one}: name a file, a pattern, or a folder of {', '.join(READABLE)} files"
            )
        files += found
    return list(dict.fromkeys(files))


def target_files(files: Iterable[Path], root: Path, format: str) -> dict[Path, Path]:
    """Return where the annotated documents of each file go.

    Raises:
        InputError: two files of one name, or a format that cannot be written.
    """
    if format not in WRITABLE:
        raise InputError(f"--format {format}: choose one of {', '.join(WRITABLE)}")
    targets: dict[Path, Path] = {}
    for file in files:
        stem = file.name.removesuffix(".gz")
        ending = next((end for ends in SUFFIXES.values() for end in ends if stem.lower().endswith(end)), "")
        target = root / f"{stem[: len(stem) - len(ending)]}{SUFFIXES[format][0]}"
        same = next((other for other, its in targets.items() if its == target), None)
        if same:
            raise InputError(f"{same} and {file} would both become {target}: annotate them into two folders")
        if target.resolve() == file.resolve():
            raise InputError(f"{file} would be replaced by its own annotated copy: choose another --output_dir")
        targets[file] = target
    return targets


def record_of(target: Path) -> Path:
    """Return the file that says how an annotated file was made."""
    return target.with_name(target.name + RECORD)


def is_done(target: Path, file: Path, made_by: str, *, whole: bool) -> bool:
    """Say whether a file has been annotated in this way already.

    Raises:
        InputError: it was, in another way, or when it held something else; or documents were skipped, though `whole`.
    """
    record = record_of(target)
    if not target.is_file() or not record.is_file():
        return False
    made = json.loads(record.read_text(encoding="utf-8"))
    if made["made_by"] != made_by or made["input"] != identity(file):
        raise InputError(
            f"{target} was made by other models or settings, or of another {file}: choose another --output_dir, or "
            f"--force to replace it"
        )
    if whole and made["skipped"]:
        raise InputError(
            f"{target} lacks {len(made['skipped'])} documents that were skipped: mend {file} and give --force, or go "
            f"on with --on_error skip"
        )
    return True


class Progress:
    """Counts documents and entities as they pass, and shows how far into the files they are."""

    def __init__(self, bar: Any) -> None:
        self.documents = self.entities = 0
        self.began = time.monotonic()
        self._bar = bar

    def watch(self, reader: DocumentReader, size: int, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents of a file of that many bytes."""
        start = self._bar.n
        for document in documents:
            self.documents += 1
            self.entities += len(document.entities)
            speed = self.documents / (time.monotonic() - self.began)
            self._bar.set_postfix_str(f"{self.documents:,} documents, {speed:.1f}/s", refresh=False)
            self._bar.update(max(start + reader.position - self._bar.n, 0))
            yield document
        self._bar.update(start + size - self._bar.n)


if __name__ == "__main__":
    run(main)
