"""Find the files to annotate, and say where the result of each goes."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bioptimus_hf.corpus.brat import ANNOTATIONS, TEXT
from bioptimus_hf.corpus.files import is_hidden, looks_like_hub_name, readable_files
from bioptimus_hf.corpus.formats import FORMATS, READABLE, format_to_read, stem_of
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import is_partial

logger = logging.getLogger(__name__)

RECORDS = ".records"
"""Hidden folder beside the annotated files, with a record of how each was made; `datasets.load_dataset` ignores it."""


def input_files(patterns: Iterable[str], output_dir: Path, *, any_name: bool = False) -> dict[Path, Path]:
    """Return the files that are named, that match a pattern, or that lie in a folder or its sub-folders.

    In folders, and among what matches a pattern, hidden files are left out, a warning names files of unknown formats,
    and results in `output_dir` are no inputs.

    A data set on the Hub is one input, with the path `owner/name@commit:split`.

    Args:
        patterns: files, folders, glob patterns, and data sets on the Hub with or without revision and split.
        output_dir: folder of the results.
        any_name: take whatever matches a pattern, because the format is given.

    Returns:
        For each file its path relative to the folder, or to the part of the pattern that has no wildcard.

    Raises:
        InputError: a name, pattern or folder yields no file, or a data set isn't available.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            found = {path: Path(path.name)}
        elif path.is_dir():
            inside = (file for file in path.rglob("*") if not is_hidden(file.relative_to(path)))
            others = _without_results(path, inside, output_dir)
            found = {file: file.relative_to(path) for file in readable_files(others, path)}
        else:
            folder = _fixed_part(pattern)
            others = _without_results(folder, map(Path, glob.glob(pattern, recursive=True)), output_dir)
            kept = sorted(filter(Path.is_file, others)) if any_name else readable_files(others, pattern)
            found = {file: file.relative_to(folder) for file in kept} or _hub_split(pattern)
        if not found:
            raise InputError(
                f"no documents at {pattern}: name a file, a pattern, or a folder of {', '.join(READABLE)} files"
            )
        files = {**found, **files}
    return dict(sorted(files.items()))


def _hub_split(name: str) -> dict[Path, Path]:
    """Return the split of a data set on the Hub and what its results are named after; nothing for other names."""
    if not looks_like_hub_name(name):
        return {}
    from bioptimus_hf.corpus.hub import pin_source  # here: it imports datasets

    try:
        pinned, _, split = pin_source(name).partition(":")
    except InputError as error:
        raise InputError(f"no documents at {name}: {error}") from error
    split = split or "train"
    named = re.sub(r"[^\w.+-]", "_", f"{name.partition('@')[0].partition(':')[0].replace('/', '--')}--{split}")
    return {Path(f"{pinned}:{split}"): Path(named)}


def target_files(
    files: Mapping[Path, Path], output_dir: Path, format: str, input_format: str | None = None, unit: str | None = None
) -> dict[Path, Path]:
    """Return the annotated file of each input file: its whole name, followed by the suffix of the format.

    In brat's format, a text that is one document keeps its name.

    Args:
        files: from `input_files`; sub-folders are the same in `output_dir`.
        input_format: the format of all input files; by default that of each.
        unit: what a document is in plain text, `line` (default) or `file`.

    Raises:
        InputError: an input file has an unknown format, or two would have the same annotated file.
    """
    sources: dict[Path, Path] = {}
    for file, relative in files.items():
        is_document = format_to_read(file, input_format) in ("brat", *(["txt"] if unit == "file" else []))
        keeps_name = format == "brat" and is_document and file.suffix == TEXT
        suffix = "" if keeps_name else FORMATS[format].suffix
        target = output_dir / relative.with_name(f"{relative.name}{suffix}")
        if target in sources:
            raise InputError(
                f"{sources[target]} and {file} would both become {target}: name the folder that contains both, or "
                f"annotate them into different folders"
            )
        sources[target] = file
    return {file: target for target, file in sources.items()}


def old_target(file: Path, target: Path, format: str) -> Path | None:
    """Return the result of a file that an older version named without the file's own suffix, if there is one."""
    old = target.parent / f"{stem_of(file)}{FORMATS[format].suffix}"
    return old if old != target and old.is_file() and record_of(old).is_file() else None


def record_of(target: Path) -> Path:
    """Return the file that records how an annotated file was made."""
    return target.parent / RECORDS / f"{target.name}.json"


def begun(target: Path) -> Path:
    """Return the file that exists while an annotated file is being written: if it has no record, it is ours."""
    return record_of(target).with_suffix(".begun")


def _fixed_part(pattern: str) -> Path:
    """Return the folders at the beginning of a pattern that have no wildcards."""
    folders: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        folders.append(part)
    return Path(*folders)


def _without_results(folder: Path, files: Iterable[Path], output_dir: Path) -> list[Path]:
    """Leave out what was annotated into `output_dir`. If that lies within the folder, nothing in it is an input."""
    results, root = output_dir.resolve(), folder.resolve()
    if not (results.is_relative_to(root) or root.is_relative_to(results)):
        return list(files)
    kept: list[Path] = []
    foreign: list[Path] = []
    for file in files:
        place = root / file.relative_to(folder)
        if not place.is_relative_to(results):
            kept.append(file)
        elif not _is_result(file):
            (kept if root.is_relative_to(results) else foreign).append(file)
    if foreign := sorted(filter(Path.is_file, foreign)):
        logger.warning(
            "left out, since the results go to the folder that contains them: %d files, for example %s",
            *(len(foreign), foreign[0]),
        )
    return kept


def _is_result(file: Path) -> bool:
    text = file.with_suffix(TEXT) if file.suffix == ANNOTATIONS else file
    paths = (file, text, *file.parents)  # a result of brat is a folder
    return any(record_of(path).exists() or begun(path).exists() or is_partial(path) for path in paths)
