"""Write files and folders so that a kill or a power cut leaves the old or the new ones, and one process at a time."""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioptimus_hf.errors import InputError

if TYPE_CHECKING:  # imported when needed: this module is imported before any help is shown
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

LOCKS = ".locks"
"""Hidden folder of a run's locks."""
RECORD = "made.json"
"""Name of the record in the folder of a result. It is written last, and lists all other files."""
_BUFFER = 1 << 20
_PARTIAL, _REPLACED = ".partial-", ".replaced"
_SECONDS_TO_WRITE = 1.0  # the record of a lock that has been taken


def hash_of_file(path: str | Path) -> str:
    """Return the hexadecimal XXH3 (128 bits) of a file's bytes, at several GB a second: against damage, not malice."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_BUFFER):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_of(files: Iterable[Path], root: Path) -> dict[str, dict[str, Any]]:
    """Return size (bytes) and hash of each file, by its path relative to `root`."""
    return {
        Path(os.path.relpath(file, root)).as_posix(): {"size": file.stat().st_size, "xxh3": hash_of_file(file)}
        for file in sorted(files)
    }


def find_damage(root: Path, manifest: Mapping[str, Mapping[str, Any]], *, hashes: bool) -> Iterator[tuple[Path, str]]:
    """Yield each file that differs from a manifest, and how.

    Args:
        root: folder that the paths in the manifest are relative to.
        manifest: as from `manifest_of`.
        hashes: compare contents, too, and not only sizes.
    """
    for name, recorded in manifest.items():
        file = Path(os.path.normpath(root / name))  # the record of an annotated file lies in a folder beside it
        try:
            problem = damage_of(file, recorded, hashes=hashes)
        except OSError as error:
            problem = f"can't be read ({error.strerror or error})"
        if problem:
            yield file, problem


def damage_of(file: Path, recorded: Mapping[str, Any], *, hashes: bool) -> str | None:
    """Return how a file differs from its entry in a manifest; None if it doesn't.

    Raises:
        OSError: the file is there, but can't be read.
    """
    try:
        size = file.stat().st_size
        if size != recorded["size"]:
            return f"has {size:,} bytes instead of {recorded['size']:,}"
        if hashes and hash_of_file(file) != recorded["xxh3"]:
            return "has changed since it was written: its hash differs"
    except FileNotFoundError:
        return "is missing"
    return None


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `folder` if the block succeeds, and is removed if it fails.

    The files are on disk before they get their final names. Files in the replaced folder that its record doesn't list
    aren't ours: they are kept in a folder beside the new one.

    Raises:
        InputError: nothing can be written there.
    """
    folder = Path(folder)
    temporary = temporary_name(folder)
    try:
        remove_leftovers(folder)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error.strerror}): choose another output_dir") from error
    try:
        yield temporary
        apply_umask(temporary)
        sync(temporary)
        replace_folder(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` if the block succeeds, and is removed if it fails.

    Raises:
        OSError: nothing can be written there, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync_entries(path.parent)
    finally:
        if temporary.is_file():
            temporary.unlink()


def recorded_files(folder: Path) -> set[Path] | None:
    """Return the files that the record in a folder lists, and the record itself; None if it doesn't list files."""
    try:
        names = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return {folder / RECORD, *(folder / name for name in names)}


def remove_result(folder: Path) -> None:
    """Remove the folder of a result; what its record doesn't list is kept in a folder beside it.

    Without a readable record, all of it is kept.
    """
    ours = recorded_files(folder)
    if ours is None:
        folder.rename(kept := _kept_folder(folder))
        logger.warning("%s has no readable record, so it was moved to %s", folder, kept)
        return
    foreign = [path for path in folder.rglob("*") if path not in ours and _is_end(path)]
    if foreign:
        kept = _kept_folder(folder)
        for path in foreign:
            place = kept / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        logger.warning("%d files that weren't made here were moved to %s", len(foreign), kept)
    shutil.rmtree(folder)


def _is_end(path: Path) -> bool:
    """Return whether nothing lies below a path: a file, a link, or an empty folder."""
    return path.is_symlink() or not path.is_dir() or not any(path.iterdir())


def _kept_folder(folder: Path) -> Path:
    """Return a new name beside a folder for what isn't ours."""
    name = f"{folder.name.removesuffix(_REPLACED)}.kept-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder.with_name(name) for name in names if not os.path.lexists(folder.with_name(name)))


def apply_umask(folder: Path, pattern: str = "*") -> None:
    """Give files in a new folder the permissions that the umask gives to a new file, as it gave them to the folder.

    safetensors writes files that only their owner can read.

    Args:
        pattern: of the files' names.
    """
    mode = folder.stat().st_mode
    for path in folder.rglob(pattern):
        if not path.is_symlink():
            missing = mode & (0o777 if path.is_dir() else 0o666) & ~path.stat().st_mode
            if missing:
                with suppress(PermissionError):  # a file system without permissions
                    path.chmod(path.stat().st_mode | missing)


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all it contains, is on disk."""
    for inner in path.iterdir() if path.is_dir() else ():
        sync(inner)
    sync_entries(path)


def sync_entries(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # the system doesn't say which
        raise
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return a name beside a path that no other process uses."""
    return path.with_name(f"{path.name}{_PARTIAL}{socket.gethostname()}-{os.getpid()}")


def is_partial(path: Path) -> bool:
    """Return whether a path is a temporary name of a file or folder that is, or was, being written."""
    return _PARTIAL in path.name


def replace_folder(folder: Path, temporary: Path) -> None:
    """Rename a folder that is on disk to its final name, and remove what it replaces, see `remove_result`."""
    replaced = folder.with_name(folder.name + _REPLACED)
    if replaced.exists():  # left behind when a process was killed while it removed it
        remove_result(replaced)
    if folder.exists():  # Rename first: a kill during deletion would leave half a folder.
        folder.rename(replaced)
    temporary.rename(folder)
    sync_entries(folder.parent)
    if replaced.exists():
        remove_result(replaced)


def remove_leftovers(path: Path, *, everywhere: bool = False) -> list[Path]:
    """Remove what dead processes left of a file or folder they were writing, and restore what they were replacing.

    Args:
        path: the file or folder.
        everywhere: remove also what processes of other machines left, of which it isn't known whether they are dead:
            for whoever holds the lock that keeps them from writing.

    Returns:
        What they were writing, which is removed.
    """
    removed = []
    replaced = path.with_name(path.name + _REPLACED)
    if replaced.is_dir():
        remove_result(replaced) if path.exists() else replaced.rename(path)
    pattern = f"{glob.escape(path.name + _PARTIAL)}*"
    for leftover in path.parent.glob(pattern) if path.parent.is_dir() else ():
        host, _, pid = leftover.name.rpartition(_PARTIAL)[2].rpartition("-")
        here = host == socket.gethostname()
        if pid.isdigit() and (not _writes(int(pid), leftover) if here else everywhere):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            removed.append(leftover)
    return removed


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: its number.
        host: name of the machine.
        boot: identity of the running system, which containers share with their machine; empty where it is unknown.
        space: the space in which numbers of processes are counted, such as that of a container.
        started: when the process was started, since numbers are used again.
        since: when it took the lock, for people.
    """

    pid: int
    host: str
    boot: str
    space: str
    started: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process."""
        boot = _read("/proc/sys/kernel/random/boot_id")
        space = os.readlink("/proc/self/ns/pid") if os.path.lexists("/proc/self/ns/pid") else ""
        since = datetime.now(UTC).isoformat(" ", "seconds")
        return cls(os.getpid(), socket.gethostname(), boot, space, _started(os.getpid()), since)

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine, whose locks end with their process."""
        now = Holder.this_process()
        return bool(self.boot and self.boot == now.boot) or self.host == now.host

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to be dead; of other machines and containers, nothing is known."""
        now = Holder.this_process()
        if self.boot != now.boot:
            return self.host == now.host  # restarted since
        return self.space == now.space and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder_of(lock: Path) -> Holder | None:
    """Return the process that holds a lock; None if there is none, or if it can't be read."""
    with suppress(OSError):
        return _holder(_record_of(lock))
    return None


@contextmanager
def locked(lock: Path, protected: Path, *, take_over: bool = False) -> Iterator[None]:
    """Keep other processes from writing a result for the time of a `with` block.

    The lock of a process of this host that has died is taken over. That of a process of another host looks the same
    whether it lives or not, so it must be taken over explicitly.

    Args:
        lock: the file to lock. A file beside it names its holder.
        protected: the file or folder that is going to be written, for errors.
        take_over: take the lock from a process of another host.

    Raises:
        InputError: another process holds the lock, or the lock can't be written.
    """
    record = _record_of(lock)
    this = Holder.this_process()
    new = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = _acquire(lock, record, protected, take_over=take_over)
        except FileNotFoundError:  # another process has just removed the empty folder
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = _acquire(lock, record, protected, take_over=take_over)
        record.write_text(json.dumps(asdict(this)) + "\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write {protected} ({error.filename or lock}: {reason}): choose another output_dir"
        ) from error
    try:
        yield
    finally:
        if _holder(record) == this:
            record.unlink()
            lock.unlink(missing_ok=True)  # a process that has just opened it finds out that it is gone
        else:
            logger.warning("the lock of %s was taken over while this process held it", protected)
        held.release()
        hidden = [lock.parent] if lock.parent.name.startswith(".") and lock.parent not in new else []
        _remove_empty([*hidden, *new])


def _acquire(lock: Path, record: Path, protected: Path, *, take_over: bool) -> BaseFileLock:
    holder = _holder(record)
    elsewhere = holder is not None and not holder.is_here
    held = None if elsewhere and not take_over else _try(lock)
    if held is None and holder and (holder.is_dead or (elsewhere and take_over)):
        time.sleep(_SECONDS_TO_WRITE)  # unless yet another process has just taken the lock over
        if _holder(record) == holder:
            lock.unlink(missing_ok=True)  # the dead process's workers may have outlived it, and hold the lock with it
            held = _try(lock)
    if held is not None:
        if holder:
            logger.warning("%s was being written by %s, which didn't finish: taken over", protected, holder)
        return held
    advice = "wait for it, or choose another output_dir"
    if elsewhere:
        advice += ". If that process is dead, run the same command with take_over"
    raise InputError(f"{protected} is being written by {_holder(record) or 'another process'}: {advice}")


def _try(file: Path) -> BaseFileLock | None:
    from filelock import FileLock, SoftFileLock, Timeout

    for kind in (FileLock, SoftFileLock):
        lock = kind(file, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        except NotImplementedError:  # a file system without locks
            continue
        return lock
    return None


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, up to the first that isn't empty."""
    try:
        for folder in folders:
            folder.rmdir()
    except OSError:
        return


def _writes(pid: int, leftover: Path) -> bool:
    """Return whether a process may be writing a file: it exists, and isn't younger than the file."""
    import psutil

    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE  # its parent hasn't noticed yet
        return not dead and bool(process.create_time() <= leftover.stat().st_mtime)
    except (psutil.Error, OSError):
        return False


def _started(pid: int) -> str:
    """Return when a process was started, in a form that no change of the clock affects; empty if there is none."""
    if status := _read(f"/proc/{pid}/stat"):
        return status.rpartition(")")[2].split()[19]
    import psutil

    try:
        return str(round(psutil.Process(pid).create_time()))
    except psutil.Error:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _record_of(lock: Path) -> Path:
    return lock.with_suffix(".json")


def _holder(record: Path) -> Holder | None:
    try:
        return Holder(**json.loads(record.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # none, or one that is being written
        return None
