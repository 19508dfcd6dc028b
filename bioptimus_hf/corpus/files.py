"""Find the files of a corpus and read their texts."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path

from bioptimus_hf.corpus.brat import belongs_to_text
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import READABLE_ENDINGS, format_to_read, read_open_file
from bioptimus_hf.corpus.reading import ReadOptions, open_input
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import is_hub_name

logger = logging.getLogger(__name__)

_MANY_FILES = 10
_SMALL_FILE = 1 << 16  # bytes


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus.

    Attributes:
        path: where it is.
        content: identity of its content, which is compared with what is read; None if it may be anything.
    """

    path: Path
    content: str | None = None


@dataclass
class TextCounts:
    """What was read, and what was left out.

    Attributes:
        documents: documents that were read.
        words: words in them, separated by white space.
        bytes: bytes of their texts in UTF-8.
        empty: documents without text, and blank lines, which were left out.
        replaced: undecodable bytes or sequences that were replaced by U+FFFD.
        cut: files that weren't read to their end because there was enough text.
    """

    documents: int = 0
    words: int = 0
    bytes: int = 0
    empty: int = 0
    replaced: int = 0
    cut: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:
        return TextCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def facts(self) -> dict[str, int]:
        """Return what a record says about the text of a stage."""
        return {key: count for key, count in asdict(self).items() if key != "cut"}


def resolve(source: str | Path | Sequence[str | Path], *, report: bool = False) -> list[Path] | str:
    """Return the files that a source names, in order, or the name of a Hub data set.

    In folders and patterns, all files are taken whose names end like a format that can be read, except hidden ones.

    Args:
        source: see `load_corpus`.
        report: warn about the other files.

    Raises:
        InputError: there is nothing, or a file and its compressed copy.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    files: list[Path] = []
    for given in sources:
        found = _files(given, report=report)
        if not found and len(sources) == 1 and not Path(given).exists() and looks_like_hub_name(str(given)):
            return str(given)
        if not found:
            raise InputError(
                f"no corpus at {given}: give a Hub data set, a folder or files ending in {_known_endings()}"
            )
        files.extend(found)
    if not files:
        raise InputError("no corpus given: name files, folders or a Hub data set")
    check_copies(files)
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


def check_unit(files: Iterable[Path], unit: str | None, *, format: str | None = None) -> None:
    """Raise if it can't be known whether a line or a file of plain text is a document.

    That is so for ten or more files of on average less than 64 KiB: they may be the parts of a corpus, or notes.

    Args:
        files: of any format.
        unit: `line` or `file` if the user has said so.
        format: of all files; by default that of their names.

    Raises:
        InputError: there are many small files and nobody has said so.
    """
    texts = [file for file in files if format_to_read(file, format) == "txt"]
    if unit or len(texts) < 2:
        return
    size = sum(file.stat().st_size for file in texts if file.is_file()) / len(texts)
    if len(texts) < _MANY_FILES or size >= _SMALL_FILE:
        logger.info("%d files of plain text are read as a document per line: set unit to change that", len(texts))
        return
    raise InputError(
        f"{len(texts)} small files of plain text (on average {size / 1000:,.1f} kB, for example {texts[0]}): say line "
        f"if each line is a document, or file if each file is one",
        argument="unit",
    )


@dataclass(frozen=True)
class TextOptions:
    """Which texts of files are read, and how.

    Attributes:
        read: how to read each file.
        limit: stop before the first document with which there would be more bytes of text.
        at_least_one: read the first document whatever its size.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    limit: int | None = None
    at_least_one: bool = True


def texts_of(file: CorpusFile, options: TextOptions, counts: TextCounts) -> Iterator[str]:
    """Yield the texts of a file's documents, in any readable format; empty ones are left out.

    Args:
        file: a file, whose content is compared with what is read.
        options: how to read it.
        counts: counts what is read and what is left out.

    Raises:
        InputError: the file can't be read (where in it), or has changed.
    """
    with open_input(file.path, replace(options.read, annotations="ignored"), content=file.content) as opened:
        yield from kept_texts(map(text_of, read_open_file(opened)), options, counts)
        counts.empty += opened.blank
        counts.replaced += opened.replaced


def kept_texts(texts: Iterable[str | None], options: TextOptions, counts: TextCounts) -> Iterator[str]:
    """Yield texts up to the limit, without empty ones, and count them."""
    for text in texts:
        if not text or text.isspace():
            counts.empty += 1
            continue
        size = len(text.encode())
        enough = options.limit is not None and counts.bytes + size > options.limit
        if enough and (counts.documents or not options.at_least_one):
            counts.cut += 1
            return
        counts.documents += 1
        counts.words += len(text.split())
        counts.bytes += size
        yield text


def no_text(files: Sequence[str | Path]) -> InputError:
    """Return the error that all documents of these files are empty."""
    return InputError(f"no text in {', '.join(map(str, files[:3]))}: every document is empty")


def _files(source: str | Path, *, report: bool) -> list[Path]:
    path = Path(source)
    if path.is_file():
        if not _is_readable(path):
            raise InputError(f"{path} has an unknown format: give a file ending in {_known_endings()}")
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if not is_hidden(file.relative_to(path))]
    else:
        found = [Path(file) for file in glob.glob(str(source), recursive=True)]
    return readable_files(found, source, report=report)


def readable_files(found: Iterable[Path], source: str | Path, *, report: bool = True) -> list[Path]:
    """Return the files among some paths whose format is known, in order; not what belongs to texts of brat.

    Args:
        source: where they were found, for the warning.
        report: warn about the files of other formats, and about links to folders.
    """
    found = list(found)
    files = sorted(file for file in found if file.is_file() and not belongs_to_text(file))
    ignored = [str(file) for file in files if not _is_readable(file)]
    if ignored and report:
        logger.warning("%s: left out, since the format is unknown: %s", source, some(ignored))
    links = sorted(str(file) for file in found if file.is_symlink() and file.is_dir())
    if links and report:
        logger.warning("%s: left out, since links to folders are not followed: %s", source, some(links))
    return [file for file in files if _is_readable(file)]


def text_of(document: Document | InputError) -> str:
    """Return the text of a document, or raise the error in its place."""
    if isinstance(document, InputError):
        raise document
    return document.text


def check_copies(files: Iterable[Path]) -> None:
    """Raise InputError for a file and its compressed copy: whoever has both means one of them."""
    present = set(files)
    for file in sorted(present):
        packed = file.with_name(f"{file.name}.gz")
        if packed in present:
            raise InputError(
                f"{file} and {packed.name} are the same documents twice: move one of them away, or name the files"
            )


def some(names: Sequence[str]) -> str:
    """List names, at most five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _is_readable(path: Path) -> bool:
    return path.name.lower().endswith(READABLE_ENDINGS)


def is_hidden(path: Path) -> bool:
    """Return whether a file, or one of the folders in a relative path, is hidden."""
    return any(part.startswith(".") for part in path.parts)


def _known_endings() -> str:
    plain = [ending for ending in READABLE_ENDINGS if not ending.endswith(".gz")]
    uncompressed = [ending for ending in plain if f"{ending}.gz" not in READABLE_ENDINGS]
    return f"{', '.join(plain)} (all but {', '.join(uncompressed)} may be followed by .gz)"


def looks_like_hub_name(source: str) -> bool:
    """Return whether a source is no path and may be the name of a data set on the Hub, also with revision and split."""
    name = source.partition(":")[0]
    return is_hub_name(name) and not _is_readable(Path(name.partition("@")[0]))
