"""Find the files of NER data sets, by the names and endings that are common."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bioptimus_hf.corpus.brat import has_annotations
from bioptimus_hf.corpus.files import check_copies, is_hidden, readable_files, some
from bioptimus_hf.corpus.formats import ANNOTATED, FORMATS, annotated_format
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("dev", "devel", "valid", "validation", "val"),
    "test": ("test",),
}
"""What the files of each split may be called, without their ending."""
UNSPLIT = "all"
"""Stands for the documents of a source that isn't split."""

_ENDINGS = FORMATS["conll"].endings
_LAST_ENDINGS = (".txt", ".txt.gz")  # if there are no others: such files often hold plain text
_BRAT_FOLDERS = ("", *FORMATS["brat"].endings)
_OTHER_ENDINGS = (
    *dict.fromkeys(
        end for name in ANNOTATED for end in FORMATS[name].endings if end not in (*_ENDINGS, *_BRAT_FOLDERS)
    ),
    *(".xml", ".xml.gz"),  # of BioC, too
)
_DOCUMENT_ENDINGS = (*_OTHER_ENDINGS, *_BRAT_FOLDERS)
TEST_PATTERNS = [f"{folder}test{ending}" for folder in ("", "*/") for ending in (*_ENDINGS, *_LAST_ENDINGS)]
"""Patterns of the test sets in a folder and in its sub-folders."""


@dataclass(frozen=True)
class LabelFiles:
    """The files that hold the labels of a task.

    Attributes:
        place: the file or folder that was found, for messages.
        files: the files of each split, or of `UNSPLIT`, each with its path within the folder that stands for the split;
            empty for a split that is one file.
    """

    place: Path
    files: Mapping[str, Mapping[Path, str]]

    @property
    def is_conll(self) -> bool:
        """Whether there are three splits, each of which is a CoNLL file."""
        files = [file for of_split in self.files.values() for file in of_split]
        return UNSPLIT not in self.files and len(files) == len(SPLIT_NAMES) and all(map(_is_conll, files))


def is_named_like_labels(source: str) -> bool:
    """Tell whether a name ends as those of files with annotations do."""
    return source.lower().endswith((*_ENDINGS, *_OTHER_ENDINGS, *_LAST_ENDINGS))


def split_file(folder: Path, split: str) -> Path | None:
    """Return the CoNLL file of a split, `train`, `validation` or `test`, None if there is none.

    Raises:
        InputError: there are several.
    """
    return _first(folder, split, (_ENDINGS, _LAST_ENDINGS))


def find_labels(task: str, source: str | Path, folder: str, *, nested: bool, report: bool = True) -> LabelFiles:
    """Find the files with the labels of a task.

    These are the first of the following that exist:

    1. the source itself, or what it has under the name of the folder, if that is a file;
    2. in its sub-folder: a file or a folder for each split (see `SPLIT_NAMES`), or else all files with annotations;
    3. a file beside the sub-folders, with the name of the task's folder;
    4. in the source itself: a file or a folder for each split, or else the only file with annotations, and if `nested`,
       all of them.

    Args:
        task: name of the task, for messages.
        source: a file, or a folder with the sub-folder or the files themselves.
        folder: name of the sub-folder.
        nested: the source is that of this task alone, so look into all its sub-folders, too.
        report: warn about files that are left out.

    Raises:
        InputError: there are none, or there are several for a split, or none for one of them, or a file lies beside its
            compressed copy.
    """
    source = Path(source)
    own = source / folder
    for path in (source, own):
        if path.is_file():
            return LabelFiles(path, {UNSPLIT: _labelled(path)})
    beside = [path for end in _OTHER_ENDINGS + _ENDINGS if (path := source / f"{folder}{end}").is_file()]
    if found := _in_folder(own, nested=True, report=report):
        if report and beside:
            files = some([path.name for path in beside])
            logger.warning("%s: left out, because the folder %s has files for the task, too: %s", source, folder, files)
        return found
    if len(beside) > 1:
        raise InputError(f"several files for task {task}, {some(list(map(str, beside)))}: move all but one away")
    if beside:
        return LabelFiles(beside[0], {UNSPLIT: _labelled(beside[0])})
    if found := _in_folder(source, nested=nested, report=report):
        inside = list(map(str, found.files.get(UNSPLIT, ())))
        if len(inside) > 1 and not nested:
            raise InputError(
                f"no files of task {task} in {source}, but {some(inside)}: give the source as {task}=FILE, or "
                f"{task}={source} for all of them together"
            )
        return found
    raise InputError(
        f"no train.tsv for task {task} in {own} or {source} (nor one that ends in .conll, .iob, .iob2, .bio or .txt), "
        f"and no other file with annotations: give a file or folder in one of the formats {', '.join(ANNOTATED)}"
    )


def _in_folder(folder: Path, *, nested: bool, report: bool) -> LabelFiles | None:
    """Return the files of each split, or else all files with annotations; None if there are none."""
    tiers = (_ENDINGS, _DOCUMENT_ENDINGS, _LAST_ENDINGS)
    found = {split: _first(folder, split, tiers) for split in SPLIT_NAMES}
    if not any(found.values()):
        inside = _labelled_in(folder, nested=nested, report=report)
        return LabelFiles(folder, {UNSPLIT: inside}) if inside else None
    files: dict[str, Mapping[Path, str]] = {}
    for split, path in found.items():
        if path is None:
            names = " or ".join(f"{name}.tsv" for name in SPLIT_NAMES[split])
            raise InputError(
                f"no {names} in {folder}: a task needs train.tsv, dev.tsv and test.tsv (or files in another format "
                f"with annotations), or a single file or folder to be split"
            )
        if path.is_dir():
            files[split] = _labelled_in(path, nested=True, report=report)
        else:
            files[split] = {path: ""} if _is_conll(path) else _labelled(path)
        if not files[split]:
            raise InputError(f"{path} has no file with annotations: give one in the formats {', '.join(ANNOTATED)}")
    in_conll = [split for split, path in found.items() if path and path.name.endswith(_ENDINGS)]
    others = [path.name for split in in_conll for path in _named(folder, split, _DOCUMENT_ENDINGS)]
    if report and others:
        logger.warning("%s: left out, because these splits also have CoNLL files: %s", folder, some(others))
    return LabelFiles(folder, files)


def _first(folder: Path, split: str, tiers: Iterable[Iterable[str]]) -> Path | None:
    """Return the file or folder of a split with an ending of the first tier that has one.

    Raises:
        InputError: there are several.
    """
    for endings in tiers:
        found = _named(folder, split, endings)
        if len(found) > 1:
            several = " and ".join(path.name for path in found)
            raise InputError(f"{folder} has several files for {split}, {several}: move all but one away")
        if found:
            return found[0]
    return None


def _named(folder: Path, split: str, endings: Iterable[str]) -> list[Path]:
    """Return the files and folders that have a name of a split and one of the endings."""
    paths = [folder / f"{name}{ending}" for name in SPLIT_NAMES[split] for ending in endings]
    return [path for path in paths if (path.is_dir() if path.suffix in _BRAT_FOLDERS else path.is_file())]


def _labelled(path: Path) -> dict[Path, str]:
    """Return a file as `LabelFiles` has it.

    Raises:
        InputError: its format has no annotations.
    """
    if annotated_format(path) is None:
        raise InputError(f"{path} has a format without annotations: give one of {', '.join(ANNOTATED)}")
    return {path: ""}


def _labelled_in(folder: Path, *, nested: bool, report: bool) -> dict[Path, str]:
    """Return the files with annotations in a folder, in order; a warning names the others.

    Raises:
        InputError: a file lies beside its compressed copy.
    """
    if not folder.is_dir():
        return {}
    inside = [path for path in folder.glob("**/*" if nested else "*") if not is_hidden(path.relative_to(folder))]
    files: dict[Path, str] = {}
    others: list[str] = []
    for path in readable_files(inside, folder, report=False):
        if annotated_format(path):
            files[path] = path.relative_to(folder).as_posix()
        else:
            others.append(str(path))
    check_copies(files)
    if files and report:
        readable_files(inside, folder)  # warns of those of unknown formats
        if others:
            logger.warning("%s: left out, since their formats have no annotations: %s", folder, some(others))
    return files


def _is_conll(path: Path) -> bool:
    if path.name.endswith(_LAST_ENDINGS):
        return not has_annotations(path) and annotated_format(path) in (None, "conll")
    return path.name.endswith(_ENDINGS)
