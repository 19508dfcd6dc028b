"""Keep the result of a stage on disk: write it atomically, record how it was made, and tell one result from another.

Every result has the same record, `made.json`: the identities of its inputs, the settings that shape it, their
fingerprint, facts about the result, and time, memory, hardware and versions. A stage is skipped if its record
matches the requested inputs and settings, and rejected otherwise.
"""

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

from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.hardware import describe_hardware

if TYPE_CHECKING:  # this module is imported everywhere, mostly without data sets
    from datasets import Dataset

logger = logging.getLogger(__name__)

RECORD = "made.json"
_VERSIONS_RECORDED = ("bioptimus-hf", "torch", "transformers", "datasets", "tokenizers", "accelerate")


@dataclass(frozen=True)
class Run:
    """Where a run is kept, and how its stages are run."""

    output_dir: str = field(
        default="runs/default",
        metadata={"help": "Folder of the run: each stage reads what earlier stages left there", "path": "output"},
    )
    seed: int = field(
        default=0, metadata={"help": "Random seed: the same inputs, settings and seed give the same bytes"}
    )
    force: bool = field(default=False, metadata={"help": "Redo the stage and replace its result"})
    num_proc: int | None = field(default=None, metadata={"help": "Processes for work on text; doesn't change results"})

    @property
    def root(self) -> Path:
        """The folder of the run."""
        return Path(self.output_dir)


@dataclass
class Stage:
    """A stage in progress.

    Attributes:
        path: folder to write into. It gets its final name when the stage succeeds.
        facts: what the record is to say about the result (counts, losses, scores).
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


def sha256_of_file(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(source: str | Path) -> str:
    """Return a string that identifies the content of an input, wherever it is stored.

    A folder with a record is identified by the record's fingerprint, any other folder by the hashes of its files, a
    file by its sha256, and anything else (a model or data set on the Hub) by its name, with `@commit` if the caller
    adds it.
    """
    path = Path(source)
    if (path / RECORD).is_file():
        return f"stage:{read_record(path)['fingerprint']}"
    if path.is_dir():
        # A README describes the model and isn't part of it.
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "README.md")
        digest = _digest([(file.relative_to(path).as_posix(), sha256_of_file(file)) for file in files])
        return f"folder:{digest}"
    if path.is_file():
        return f"sha256:{sha256_of_file(path)}"
    return f"name:{source}"


def fingerprint(inputs: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Return a hash of the identities of all inputs and of every setting that shapes the result."""
    return _digest({"inputs": dict(inputs), "settings": dict(settings)})


def digest_of_rows(dataset: Dataset) -> str:
    """Return a hash of the columns and rows of a data set, in order and independent of how they are stored."""
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(batch_size=10_000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:32]


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record.

    Args:
        path: the file, or a folder that contains it as `made.json`.

    Raises:
        InputError: it can't be read, or isn't a record.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    record: dict[str, Any] = read_json(path)
    if not isinstance(record, dict) or not {"fingerprint", "inputs", "settings"} <= record.keys():
        raise InputError(f"{path} doesn't say how the result was made: redo the stage with force")
    return record


def is_finished(
    path: str | Path, inputs: Mapping[str, str], settings: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Check whether this very result is already in place.

    Args:
        path: the folder of a stage, or the record of a single file.

    Raises:
        InputError: there is a result of other inputs or settings (the error names them), a folder that isn't a stage,
            or a file instead of a folder; and `force` is false.
    """
    path = Path(path)
    folder = path if path.suffix != ".json" else None
    if folder and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a folder of that name is needed: choose another output_dir")
    if force or not path.exists() or (folder and not any(folder.iterdir())):
        return False
    if folder and not (folder / RECORD).is_file():
        raise InputError(
            f"{folder} exists but is not a result of this project: choose another output_dir, or use force"
        )
    record = read_record(path)
    if record["fingerprint"] == fingerprint(inputs, settings):
        # There may be thousands of files.
        level = logging.INFO if folder else logging.DEBUG
        logger.log(level, "%s: already finished with the same inputs and settings, skipped", path)
        return True
    changed = differences(record, inputs, settings)
    raise InputError(f"{path} was made with different {changed}: choose another output_dir, or use force to redo it")


@contextmanager
def building(folder: str | Path, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Iterator[Stage]:
    """Build the result of a stage atomically, and write its record.

    If the stage fails or is killed, what was in `folder` before is untouched.

    Raises:
        InputError: nothing can be written there.
    """
    started = time.monotonic()
    with atomic_folder(folder) as temporary:
        stage = Stage(temporary)
        yield stage
        write_record(temporary / RECORD, inputs, settings, facts=stage.facts, seconds=time.monotonic() - started)
    logger.info("saved %s", folder)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `folder` if the block succeeds, and is removed if it fails.

    Raises:
        InputError: nothing can be written there.
    """
    folder = Path(folder)
    temporary, replaced = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".replaced"))
    try:
        if temporary.exists():  # left behind by a process that was killed
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error.strerror}): choose another output_dir") from error
    try:
        yield temporary
        if folder.exists():  # Rename first: a kill during deletion would leave half a folder.
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` if the block succeeds, and is removed if it fails.

    Raises:
        OSError: nothing can be written there, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_file():
            temporary.unlink()


def write_record(
    path: Path, inputs: Mapping[str, str], settings: Mapping[str, Any], *, facts: Mapping[str, Any], seconds: float
) -> None:
    """Write a record.

    Args:
        path: of the file.
        inputs: name of each input to its identity.
        settings: that shape the result.
        facts: about the result.
        seconds: wall time of the session that finished the result.
    """
    write_json(
        path,
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
    """Write indented JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file that a stage has written.

    Raises:
        InputError: the file can't be read, or isn't JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): redo its stage with force") from error


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: it cannot be read, or is not YAML.
    """
    import yaml  # here: this module is imported wherever files are read, and options must be quick to show

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {format_error(error, limit=400)}") from error


def map_processes(num_proc: int | None) -> int | None:
    """Return the `num_proc` to pass to `datasets.map`, which starts a pool of processes for any number, even for 1."""
    return num_proc if num_proc and num_proc > 1 else None


def peak_memory_mb() -> dict[str, int]:
    """Return the peak resident size in MB of this process, and of the largest child process that has finished."""
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
        except importlib.metadata.PackageNotFoundError:  # running from a checkout that isn't installed
            continue
    return versions


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def differences(record: Mapping[str, Any], inputs: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """List the inputs and settings that differ from those in a record, as `name (then, now)`."""
    now: dict[str, Mapping[str, Any]] = {"inputs": inputs, "settings": settings}
    changed = [
        f"{key} ({then} then, {new} now)"
        for part in ("inputs", "settings")
        for key in sorted({*record[part], *now[part]})
        # Compared as JSON, which the fingerprint hashes: 5 and 5.0 differ, and a tuple equals a list.
        if (then := _json(record[part], key)) != (new := _json(now[part], key))
    ]
    return ", ".join(changed)


def _json(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True, ensure_ascii=False) if key in values else "absent"
