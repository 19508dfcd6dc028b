"""Check that all files of a run are as they were written, and that its stages belong together.

    bioptimus check runs/mine

Compares every file with the size and hash in the record of its stage, and every stage with those it was made from. It
works for folders of annotated files, too. The exit status is 2 if anything is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bioptimus_hf.errors import InputError


@dataclass(frozen=True)
class CheckOptions:
    """What is checked."""

    folder: str = field(metadata={"help": "Folder of a run, or of annotated files", "positional": True, "path": True})
    sizes_only: bool = field(default=False, metadata={"help": "Compare the sizes of files but don't read them"})


OPTIONS = (CheckOptions,)


def execute(options: CheckOptions) -> None:
    """Print a line for each result.

    Raises:
        InputError: something is wrong.
    """
    from bioptimus_hf.publishing.consistency import check_results

    findings = check_results(Path(options.folder), hashes=not options.sizes_only)
    for finding in findings:
        print(f"{finding.result}: {finding.problem or f'{finding.files} files, as they were written'}")
    wrong = sum(finding.problem is not None for finding in findings)
    if wrong:
        raise InputError(f"{wrong} of {len(findings)} results have a problem")
