"""Check all results in a folder: that their files are as they were written, and that they belong together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, differences, missing_sources, read_record, replaced_sources, verify
from bioptimus_hf.errors import InputError
from bioptimus_hf.progress import progress_bar

LOCK_RECORD = "annotation.json"
"""Name of the file that says which process is annotating, beside the records of annotated files."""
_TEXT_SETTINGS = ("text_column", "max_megabytes", "errors", "encoding", "unit", "validation_share")
_UNFINISHED = re.compile(r"\.partial-|\.replaced$")  # what is being written, or was being replaced


@dataclass(frozen=True)
class Finding:
    """What was found about a result.

    Attributes:
        result: its folder, or the record of a single file.
        files: number of its files.
        problem: what is wrong with it; None if nothing is.
    """

    result: Path
    files: int
    problem: str | None


@check_call()
def check_results(root: str | Path, *, hashes: bool = True) -> list[Finding]:
    """Check every result in a folder.

    Args:
        root: the folder of a run, or of annotated files.
        hashes: compare the contents of files, and not only their sizes.

    Raises:
        InputError: there is no result.
    """
    root = Path(root)
    annotated = {record for record in root.rglob(".records/*.json") if record.name != LOCK_RECORD}
    records = sorted({*root.rglob(RECORD), *annotated})
    records = [record for record in records if not any(map(_UNFINISHED.search, record.relative_to(root).parts))]
    if not records:
        raise InputError(f"{root} contains no results: name the folder of a run, or of annotated files")
    try:
        text = _text_of(root / "tokenizer")
    except InputError:  # reported below, with the tokenizer
        text = {}
    lost = [Finding(folder, 0, f"has no {RECORD}, so nothing in it can be checked") for folder in _without_record(root)]
    bar = progress_bar(records, desc="Checking", unit=" results", delay=1)
    return lost + [_check(record, text, hashes=hashes) for record in bar]


def _without_record(root: Path) -> list[Path]:
    """Return the folders of stages that have files but no record."""
    patterns = ("tokenizer", "contexts", "v[0-9]*", "pretraining*", "ner/*/*/[0-9]*")
    folders = sorted(folder for pattern in patterns for folder in root.glob(pattern) if folder.is_dir())
    folders = [folder for folder in folders if not any(map(_UNFINISHED.search, folder.relative_to(root).parts))]
    return [
        folder
        for folder in folders
        if any(folder.iterdir()) and not (folder / RECORD).is_file() and ".kept-" not in folder.name
    ]


def _check(record: Path, text: dict[str, Any], *, hashes: bool) -> Finding:
    result = record.parent if record.name == RECORD else record
    try:
        files = len(read_record(record).get("files", {}))
        verify(result, hashes=hashes)
        return Finding(result, files, next(_problems(result, text), None))
    except InputError as error:  # of a record that it was made from, too
        return Finding(result, 0, str(error))


def _problems(result: Path, text: dict[str, Any]) -> Iterator[str]:
    if result.is_dir():
        for replaced, name, source in replaced_sources(result):
            yield f"{replaced} was made from another {name} than is now in {source}"
        for name, source in missing_sources(result):
            yield f"was made from a {name} that is no longer in {source}"
    own = _text_of(result)
    if text and own:
        then, now = ({"inputs": {}, "settings": {key: of[key] for key in own if key in of}} for of in (text, own))
        if changed := differences(then, {}, now["settings"]):
            yield f"reads other text than the tokenizer was trained on, with different {changed}"


def _text_of(result: Path) -> dict[str, Any]:
    """Return the identity of the text that a stage read, and how it was read; empty if it read none."""
    if result.name == "contexts" and "words" in read_record(result)["inputs"]:
        return {}
    record = read_record(result) if (result / RECORD).is_file() else {"inputs": {}, "settings": {}}
    if "corpus" not in record["inputs"] or "version" in record["settings"]:
        return {}
    return {"corpus": record["inputs"]["corpus"], **{key: record["settings"].get(key) for key in _TEXT_SETTINGS}}
