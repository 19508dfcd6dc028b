"""Find the files of a corpus and read their texts."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from bioptimus_hf.corpus.formats import READABLE_ENDINGS, read_open_file
from bioptimus_hf.corpus.reading import ReadOptions, open_input
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import is_hub_name

logger = logging.getLogger(__name__)


class NoTextError(InputError):
    """Every document of some files is empty."""


def resolve(source: str | Path | Sequence[str | Path]) -> list[Path] | str:
    """Return the files that a source names, in order, or the name of a Hub data set.

    In folders and patterns, all files are taken whose names end like a format that can be read, except hidden ones.

    Raises:
        InputError: there is nothing.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    files: list[Path] = []
    for given in sources:
        found = _files(given)
        if not found and len(sources) == 1 and not Path(given).exists() and _looks_like_hub_name(str(given)):
            return str(given)
        if not found:
            raise InputError(
                f"no corpus at {given}: give a Hub data set, a folder or files ending in {_known_endings()}"
            )
        files.extend(found)
    if not files:
        raise InputError("no corpus given: name files, folders or a Hub data set")
    return files


def corpus_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a corpus in the order in which they are read.

    Raises:
        InputError: there are none, or the source is a Hub data set.
    """
    found = resolve(source)
    if isinstance(found, str):
        raise InputError(
            f"no files at {found}. If it is a Hub data set, write it to files (`datasets.load_dataset`, then "
            f"`to_parquet`) and name those"
        )
    return found


def texts_of(path: str | Path, text_column: str = "text", errors: str = "strict") -> Iterator[str]:
    """Yield the texts of a file's documents, in any readable format; empty ones are left out.

    Args:
        text_column: name of the text in JSON lines and Parquet.
        errors: what to do about bytes that are not UTF-8: `strict`, or `replace` them by U+FFFD.

    Raises:
        InputError: the file can't be read (where in it).
    """
    with open_input(path, ReadOptions(text_column, errors, text_only=True)) as file:
        for document in read_open_file(file):
            if isinstance(document, InputError):
                raise document
            if document.text and not document.text.isspace():
                yield document.text


def report_undecodable(files: Sequence[Path], text_column: str) -> None:
    """Log, for each file, how many bytes are not UTF-8 and will be replaced."""
    for path in files:
        try:
            with open_input(path, ReadOptions(text_column, "replace", text_only=True)) as file:
                for _ in read_open_file(file):
                    pass
        except InputError:  # raised again when the file is read
            continue
        if file.replaced:
            logger.warning("%s: %d undecodable bytes or sequences are replaced by U+FFFD", path, file.replaced)


def no_text(files: Sequence[str | Path]) -> NoTextError:
    """Return the error that all documents of these files are empty."""
    return NoTextError(f"no text in {', '.join(map(str, files[:3]))}: every document is empty")


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        if not _is_readable(path):
            raise InputError(f"{path} has an unknown format: give a file ending in {_known_endings()}")
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if not _is_hidden(file.relative_to(path))]
    else:
        found = [Path(file) for file in glob.glob(str(source), recursive=True)]
    return sorted(file for file in found if file.is_file() and _is_readable(file))


def _is_readable(path: Path) -> bool:
    return path.name.lower().endswith(READABLE_ENDINGS)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _known_endings() -> str:
    plain = [ending for ending in READABLE_ENDINGS if not ending.endswith(".gz")]
    uncompressed = [ending for ending in plain if f"{ending}.gz" not in READABLE_ENDINGS]
    return f"{', '.join(plain)} (all but {', '.join(uncompressed)} may be followed by .gz)"


def _looks_like_hub_name(source: str) -> bool:
    name = source.partition(":")[0]
    return is_hub_name(name) and not _is_readable(Path(name.partition("@")[0]))
