"""Keep texts, sentences, tokens and exported models in files, and compare them with their hashes before they are used.

Entries are in the folder `bioptimus_hf` of the cache of `datasets`. An entry is a folder, mostly of Arrow files, with a
record like that of a stage. It is found by a hash of all it depends on, and made again if it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets.config
from datasets import Dataset, concatenate_datasets, is_caching_enabled
from datasets.fingerprint import Hasher

from bioptimus_hf import __version__
from bioptimus_hf.artifacts import (
    RECORD,
    fingerprint,
    map_processes,
    read_record,
    verification,
    verify,
    write_with_checksum,
)
from bioptimus_hf.errors import InputError
from bioptimus_hf.progress import progress_of_datasets
from bioptimus_hf.storage import manifest_of, remove_leftovers, temporary_name

logger = logging.getLogger(__name__)

_FOLDER = "bioptimus_hf"


def cached(
    kind: str, key: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]
) -> tuple[Dataset, dict[str, Any]]:
    """Return rows and facts from the cache; if they aren't there, or damaged, they are made first.

    Args:
        kind: of rows, as part of the name of the entry.
        key: all that the rows depend on. The version of this package is added.
        write: writes the rows to Arrow files (`.arrow`) in a folder, and returns facts about them. If it raises,
            nothing is kept.

    Returns:
        The rows, whose fingerprint depends on the key alone, and the facts.

    Raises:
        InputError: nothing can be written there.
    """
    folder = cached_folder(kind, key, write)
    record = read_record(folder)
    files = [str(folder / file) for file in sorted(record["files"])]  # steps of the user's own leave others there
    rows = concatenate_datasets([Dataset.from_file(file) for file in files])
    return Dataset(rows.data, info=rows.info, fingerprint=folder.name.rpartition("-")[2]), record["facts"]


def cached_folder(kind: str, key: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Return the folder of an entry of the cache; if it isn't there, or damaged, it is made first.

    Args:
        kind: of entries, as part of the name.
        key: all that the entry depends on. The version of this package is added.
        write: writes files into a folder, and returns facts about them. If it raises, nothing is kept.

    Raises:
        InputError: nothing can be written there.
    """
    key = {**key, "package": f"bioptimus_hf {__version__}"}
    name = hashlib.sha256(json.dumps([kind, key], sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / _FOLDER / f"{kind}-{name}"
    if not _is_sound(folder):
        _make(folder, key, write)
    return folder


def cached_map(
    dataset: Dataset, function: Callable[..., Any], *, kind: str, num_proc: int | None = None, **options: Any
) -> Dataset:
    """Return `dataset.map(function)` in batches, from the cache if it is there.

    Rows in memory, and all rows after `datasets.disable_caching()`, are mapped every time.

    Args:
        dataset: the rows.
        function: turns a batch of rows into other rows.
        kind: of rows it makes, as part of the name of the entry.
        num_proc: number of processes. It doesn't affect the result.
        options: for `map`.

    Raises:
        InputError: one of the processes was killed.
    """

    def mapped(**place: Any) -> Dataset:
        try:
            with progress_of_datasets():
                return dataset.map(function, batched=True, num_proc=map_processes(num_proc), **options, **place)
        except RuntimeError as error:
            if "abruptly died" not in str(error):
                raise
            raise InputError(
                "a process was killed, perhaps because memory ran out: run the same command again with fewer processes",
                argument="num_proc",
            ) from error

    def write(folder: Path) -> dict[str, Any]:
        mapped(cache_file_name=str(folder / "rows.arrow"), load_from_cache_file=False)
        return {}

    if not len(dataset) or not is_kept(dataset):
        return mapped()
    # The function's code isn't seen, only its name and its arguments.
    key = {"rows": dataset._fingerprint, "map": Hasher.hash((function, sorted(options.items())))}
    return cached(kind, key, write)[0].with_format(dataset.format["type"])


def is_kept(dataset: Dataset) -> bool:
    """Return whether what is made from these rows goes to the cache: they are in files, and caching isn't disabled."""
    return bool(dataset.cache_files) and is_caching_enabled()


def _is_sound(folder: Path) -> bool:
    """Return whether an entry is there and undamaged."""
    if not folder.exists():
        return False
    try:
        if not (folder / RECORD).is_file():
            raise InputError(f"{folder / RECORD} is missing: ")
        with verification(True):  # whatever is said about results
            verify(folder)
    except InputError as error:
        logger.warning("damaged cache, made again: %s", str(error).rpartition(": ")[0])
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _make(folder: Path, key: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> None:
    temporary = temporary_name(folder)
    try:
        remove_leftovers(folder)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder.parent} ({error.strerror}): set HF_DATASETS_CACHE to another folder"
        ) from error
    try:
        facts = write(temporary)
        # Without the hardware, unlike that of a stage: a process that was forked can't ask for it.
        record = {"fingerprint": fingerprint({}, key), "inputs": {}, "settings": dict(key), "facts": dict(facts)}
        write_with_checksum(temporary / RECORD, {**record, "files": manifest_of(temporary.iterdir(), temporary)})
        try:
            temporary.rename(folder)
        except OSError as error:
            if not _is_sound(folder):  # otherwise another process was faster
                raise InputError(f"{folder} is damaged and can't be replaced ({error.strerror}): delete it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
