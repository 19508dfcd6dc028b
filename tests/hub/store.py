"""Store repositories with their commits and files, and collections. Ids are those that git would give."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BINARY = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar "
    "safetensors tar tflite tgz wasm xz zip zst"
)
GITATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in BINARY.split()).encode()


def git_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(content), content)).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file of a commit. If it has a sha256, it is stored as a large file, and `oid` is that of its pointer."""

    oid: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0


def regular_file(content: bytes) -> Entry:
    return Entry(git_id("blob", content), len(content))


def large_file(sha256: str, size: int) -> Entry:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Entry(git_id("blob", pointer), size, sha256, len(pointer))


def parents(path: str) -> Iterator[str]:
    """Yield the folders that contain a path, from the innermost to the root ("")."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def tree_ids(files: Mapping[str, Entry]) -> dict[str, str]:
    """Return the id of every folder, including the root ("")."""
    folders = {"", *(folder for path in files for folder in parents(path))}
    members: dict[str, list[tuple[str, bytes]]] = {folder: [] for folder in folders}
    for path, entry in files.items():
        folder, _, name = path.rpartition("/")
        members[folder].append((name, b"100644 %s\0%s" % (name.encode(), bytes.fromhex(entry.oid))))
    found: dict[str, str] = {}
    for path in sorted(folders, key=lambda path: (-path.count("/"), not path)):  # the root last
        found[path] = git_id("tree", b"".join(line for _, line in sorted(members[path])))
        folder, _, name = path.rpartition("/")
        if path:  # git sorts a folder as if its name ended in a slash
            members[folder].append((name + "/", b"40000 %s\0%s" % (name.encode(), bytes.fromhex(found[path]))))
    return found


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


@dataclass
class Repository:
    kind: str  # models, datasets or spaces
    id: str
    private: bool
    created: str
    gated: str | bool = False
    refs: dict[str, str] = field(default_factory=dict)  # refs/heads/main -> commit
    commits: dict[str, Commit] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # sha256 of every large file that was uploaded to this repository

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    @property
    def url_path(self) -> str:
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag, a full ref, or an id of at least seven digits."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [commit for id, commit in self.commits.items() if id.startswith(revision)]
            return found[0] if len(found) == 1 else None
        return None

    def branch(self, revision: str) -> str | None:
        """Return the full name of the ref that a commit to this revision would move."""
        for name in (revision, f"refs/heads/{revision}"):
            if name in self.refs and not name.startswith("refs/tags/"):
                return name
        return None

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and its ancestors."""
        yield commit
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            yield commit

    def commit(self, ref: str, files: dict[str, Entry], title: str, message: str, author: str, date: str) -> Commit:
        """Add a commit to a ref."""
        parent = self.refs.get(ref)
        lines = [f"tree {tree_ids(files)['']}", *([f"parent {parent}"] if parent else []), f"author {author} {date}"]
        id = git_id("commit", "\n".join([*lines, "", title, "", message]).encode())
        self.commits[id] = Commit(id, parent, title, message, author, date, files)
        self.refs[ref] = id
        return self.commits[id]


@dataclass
class Collection:
    slug: str
    title: str
    owner: str
    private: bool
    description: str | None
    updated: str
    items: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class XetFile:
    """The pieces of a file: `bytes` from the chunks `start` to `end` of a xorb."""

    sha256: str
    pieces: tuple[tuple[str, int, int, int], ...]  # xorb, bytes, start, end


class Store:
    """The state of a Hub, and the folder with its files."""

    def __init__(self, folder: Path, lasting: bool) -> None:
        self.folder = folder
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.collections: dict[str, Collection] = {}
        self.xet: dict[str, XetFile] = {}  # by the hash of a file in xet
        self._seconds = 0
        self._lasting = lasting
        for name in ("regular", "large", "parts", "xorbs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if lasting and self._state.exists():
            kept = pickle.loads(self._state.read_bytes())
            self.repositories, self.collections, self.xet, self._seconds = kept

    @property
    def _state(self) -> Path:
        return self.folder / "state.pickle"

    def save(self) -> None:
        """Save the state, if it is to be restored later."""
        if self._lasting:
            partial = self._state.with_suffix(".partial")
            partial.write_bytes(pickle.dumps((self.repositories, self.collections, self.xet, self._seconds)))
            os.replace(partial, self._state)

    def now(self) -> str:
        """Return the time of a clock that advances one second per call, so that the same requests give the same ids."""
        self._seconds += 1
        return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._seconds)).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def create(self, kind: str, id: str, private: bool, author: str) -> Repository:
        """Create a repository as the Hub does, with an initial commit of `.gitattributes`."""
        repository = Repository(kind, id, private, self.now())
        files = {".gitattributes": self.add_regular(GITATTRIBUTES)}
        repository.commit("refs/heads/main", files, "initial commit", "", author, self.now())
        self.repositories[kind, id] = repository
        return repository

    def add_regular(self, content: bytes) -> Entry:
        entry = regular_file(content)
        self.path(entry).write_bytes(content)
        return entry

    def path(self, entry: Entry) -> Path:
        """Return the path of a file's bytes."""
        return self.large(entry.sha256) if entry.sha256 else self.folder / "regular" / entry.oid

    def large(self, sha256: str) -> Path:
        return self.folder / "large" / sha256

    def read(self, commit: Commit, path: str) -> bytes | None:
        """Return the bytes of a file in a commit, or None if there is no such file."""
        entry = commit.files.get(path)
        return None if entry is None else self.path(entry).read_bytes()

    def xet_hash(self, sha256: str | None) -> str | None:
        """Return the hash of a file in xet, or None if it wasn't uploaded by xet."""
        return next((hash for hash, file in self.xet.items() if file.sha256 == sha256), None)
