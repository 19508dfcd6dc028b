"""Finished stages on disk: built under a temporary name, described by `made.json`, never mistaken for one another."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bioptimus_hf.errors import InputError

if TYPE_CHECKING:  # everything imports this module, and some of it has no need of data sets
    from datasets import Dataset

logger = logging.getLogger(__name__)

MADE = "made.json"
_VERSIONS_RECORDED = ("bioptimus-hf", "torch", "transformers", "datasets", "tokenizers", "accelerate")


@dataclass
class Stage:
    """A stage being built.

    Attributes:
        path: folder to write into; it takes its final name when the stage ends without an error.
        facts: what the stage wants remembered in `made.json` (counts, losses, scores).
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


def sha256_of_file(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(source: str | Path) -> str:
    """Return what makes an input itself, wherever it lies: the same content gives the same string.

    A stage folder is known by the fingerprint in its `made.json`, another folder by the hashes of its files, a file by
    its sha256, and anything else (a Hub model or data set) by its name, with `@revision` where the caller adds one.
    """
    path = Path(source)
    if (path / MADE).is_file():
        return f"stage:{read_made(path)['fingerprint']}"
    if path.is_dir():
        # What people write about a model is no part of it.
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "README.md")
        digest = _digest([(file.relative_to(path).as_posix(), sha256_of_file(file)) for file in files])
        return f"folder:{digest}"
    if path.is_file():
        return f"sha256:{sha256_of_file(path)}"
    return f"name:{source}"


def fingerprint(inputs: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Return the identity of a stage: a hash of its inputs' identities and of every setting that shapes the result."""
    return _digest({"inputs": dict(inputs), "settings": dict(settings)})


def digest_of_rows(dataset: Dataset) -> str:
    """Return a hash of a data set's columns and rows in their order, however they are stored."""
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(batch_size=10_000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:32]


def read_made(folder: str | Path) -> dict[str, Any]:
    """Read a stage's `made.json`.

    Raises:
        InputError: the file is not as `write_made` leaves it.
    """
    path = Path(folder) / MADE
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): redo the stage with --force") from error
    if not isinstance(made, dict) or not {"fingerprint", "inputs", "settings"} <= made.keys():
        raise InputError(f"{path} does not say how its stage was made: redo the stage with --force")
    return made


def is_finished(
    folder: str | Path, inputs: Mapping[str, str], settings: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Say whether this very stage already lies in `folder`.

    Raises:
        InputError: the folder holds a stage made from other inputs or settings (which ones is named), or files that
            are no stage at all, and `force` is false; or it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, and a folder of that name is to be made: choose another --output_dir")
    if force or not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / MADE).is_file():
        raise InputError(f"{folder} exists and is not a stage of ours: choose another --output_dir, or --force")
    made = read_made(folder)
    if made["fingerprint"] == fingerprint(inputs, settings):
        logger.info("%s is already there, made from the same inputs and settings: skipped", folder)
        return True
    changed = differences(made, inputs, settings)
    raise InputError(f"{folder} was made with other {changed}: choose another --output_dir, or --force to redo it")


@contextmanager
def building(folder: str | Path, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Iterator[Stage]:
    """Build a stage under a temporary name beside `folder`; give it its name, with `made.json`, only if all went well.

    A stage that fails or is killed leaves what was in `folder` before untouched.

    Raises:
        InputError: nothing can be written there.
    """
    folder = Path(folder)
    partial, replaced = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".replaced"))
    try:
        if partial.exists():  # left over by a process that was killed
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error.strerror}): choose another --output_dir") from error
    stage = Stage(partial)
    started = time.monotonic()
    try:
        yield stage
        write_made(partial, inputs, settings, facts=stage.facts, seconds=time.monotonic() - started)
        if folder.exists():  # set aside whole: a kill in mid-deletion would leave half a stage beside its made.json
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("saved %s", folder)


def write_made(
    folder: Path, inputs: Mapping[str, str], settings: Mapping[str, Any], *, facts: Mapping[str, Any], seconds: float
) -> None:
    """Write `made.json`: inputs, settings, versions, facts, hardware, seconds of wall time, peak MB of a process.

    The time is that of the session that finished the stage, from `building` on; the memory that of its process until
    then, whatever else the process has done before.
    """
    from bioptimus_hf.hardware import describe_hardware  # here, since it brings torch, which most importers need not

    write_json(
        folder / MADE,
        {
            "fingerprint": fingerprint(inputs, settings),
            "inputs": dict(inputs),
            "settings": dict(settings),
            "facts": dict(facts),
            "seconds": round(seconds, 2),
            "peak_memory_mb": peak_memory_mb(),
            "hardware": describe_hardware(),
            "versions": _versions(),
        },
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON readable by people, whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def peak_memory_mb() -> dict[str, int]:
    """Return the largest resident size so far, in MB, of this process and of the largest of its finished children."""
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return {
        name: resource.getrusage(who).ru_maxrss * bytes_per_unit // 2**20
        for name, who in (("process", resource.RUSAGE_SELF), ("largest_child", resource.RUSAGE_CHILDREN))
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONS_RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return versions


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def differences(made: Mapping[str, Any], inputs: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Name which inputs and settings differ from those that something was made of, as its record has them."""
    now: dict[str, Mapping[str, Any]] = {"inputs": inputs, "settings": settings}
    changed = [
        f"{key} ({then} then, {new} now)"
        for part in ("inputs", "settings")
        for key in sorted({*made[part], *now[part]})
        # Compared as JSON, which the fingerprint is made of: there 5 and 5.0 differ, and a tuple is a list.
        if (then := _json(made[part], key)) != (new := _json(now[part], key))
    ]
    return ", ".join(changed)


def _json(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True, ensure_ascii=False) if key in values else "absent"
