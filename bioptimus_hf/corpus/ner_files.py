"""Find the files of NER data sets, by the names and endings that are common."""

from __future__ import annotations

from pathlib import Path

from bioptimus_hf.corpus.formats import FORMATS
from bioptimus_hf.errors import InputError

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("dev", "devel", "valid", "validation", "val"),
    "test": ("test",),
}
"""What the files of each split may be called, without their ending."""

_ENDINGS = FORMATS["conll"].endings
_LAST_ENDINGS = (".txt", ".txt.gz")  # if there are no others: such files often hold plain text
TEST_PATTERNS = [f"{folder}test{ending}" for folder in ("", "*/") for ending in (*_ENDINGS, *_LAST_ENDINGS)]
"""Patterns of the test sets in a folder and in its sub-folders."""


def split_file(folder: Path, split: str) -> Path | None:
    """Return the file of a split, `train`, `validation` or `test`, None if there is none.

    Raises:
        InputError: there are several.
    """
    for endings in (_ENDINGS, _LAST_ENDINGS):
        names = [f"{name}{ending}" for name in SPLIT_NAMES[split] for ending in endings]
        found = [folder / name for name in names if (folder / name).is_file()]
        if len(found) > 1:
            several = " and ".join(file.name for file in found)
            raise InputError(f"{folder} has several files for {split}, {several}: move all but one away")
        if found:
            return found[0]
    return None
