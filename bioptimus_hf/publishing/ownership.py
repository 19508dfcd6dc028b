"""Tell the commits and tags of a run from those of other runs and of people.

A commit of ours has the version as its title, and names version, run and model in its description. A tag is ours if the
mark in the files it points at (`bioptimus_hf.json`) is that of the same version.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import GitCommitInfo, HfApi, RepoFile

from bioptimus_hf.artifacts import RECORD, identity, read_record, sha256_of_file
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.versions import folder_name, version_numbers
from bioptimus_hf.publishing.checks import ENCODER, MARK, WEIGHTS
from bioptimus_hf.publishing.records import is_version, read_version

_SIGNATURE = re.compile(r"bioptimus_hf: version (\S+) of run (\w+), model (\w+)")


@dataclass(frozen=True)
class Signature:
    """What a commit says about the version it holds.

    Attributes:
        version: version of the encoder, such as `0.4`.
        run: fingerprint of the pre-training that made the version.
        model: fingerprint of the version, which depends on its weights. A head names that of its encoder.
    """

    version: str
    run: str
    model: str

    def __str__(self) -> str:
        return f"bioptimus_hf: version {self.version} of run {self.run}, model {self.model}"


@dataclass(frozen=True)
class State:
    """What a repository held when it was looked at.

    Attributes:
        branches: last commit of each branch.
        tags: commit of each tag.
        histories: commits of `main` and of `versions`, newest first.
    """

    branches: dict[str, str]
    tags: dict[str, str]
    histories: dict[str, list[GitCommitInfo]]

    def last(self, branch: str) -> GitCommitInfo:
        """Return the last commit of a branch."""
        return self.histories[branch][0]

    def signed(self) -> Iterator[tuple[GitCommitInfo, Signature]]:
        """Yield each signed commit, whichever run made it; on each branch the newest first."""
        for history in self.histories.values():
            for commit in history:
                if signature := read_signature(commit):
                    yield commit, signature


def sign(run: Path, version: str) -> Signature:
    """Return the signature of a version of a run."""
    folder = run / folder_name(version)
    return Signature(version, str(read_version(folder)["run"]), str(read_record(folder)["fingerprint"]))


def read_signature(commit: GitCommitInfo) -> Signature | None:
    """Return the signature of a commit, or None if a commit is not one of a version."""
    found = _SIGNATURE.search(f"{commit.title}\n{commit.message}")
    return Signature(*found.groups()) if found and commit.title == folder_name(found[1]) else None


class Owner:
    """Tells what in a repository belongs to a run.

    Args:
        api: client of the Hub.
        repo_id: the repository.
        run: folder of the run.
        architecture: class of the models in the repository.
    """

    def __init__(self, api: HfApi, repo_id: str, run: Path, architecture: str) -> None:
        self._api, self._repo_id, self._run, self._architecture = api, repo_id, run, architecture
        versions = [folder.name[1:] for folder in run.glob("v*") if is_version(folder)]
        self._own = {version: sign(run, version) for version in versions}
        self._marks: dict[str, dict[str, Any]] = {}

    def made(self, signature: Signature | None) -> bool:
        """Return whether a commit with this signature is one of this run."""
        if signature is None:
            return False
        own = self._own.get(signature.version)
        runs = {known.run for known in self._own.values()}
        return own.model == signature.model if own else signature.run in runs

    def tags(self, state: State) -> dict[str, str]:
        """Return the tags that name a version of ours, with their commits.

        Raises:
            InputError: a version is of another run, or another kind of model.
        """
        ours = {}
        for tag, commit in state.tags.items():
            mark = self.mark(commit) if version_numbers(tag) else {}
            if mark and folder_name(str(mark.get("version"))) == tag:
                self._check(tag, commit, mark)
                ours[tag] = commit
        return ours

    def untagged(self, state: State) -> dict[str, str]:
        """Return the newest commit of each version of this run that has no tag, by the tag that is missing."""
        found: dict[str, str] = {}
        for commit, signature in state.signed():
            tag = folder_name(signature.version)
            if tag not in state.tags and self.made(signature):
                found.setdefault(tag, commit.commit_id)
        return found

    def check_commit(self, commit: GitCommitInfo) -> None:
        """Raise if a commit is one of another run.

        Raises:
            InputError: it is; the message says whose, and what to do.
        """
        signature = read_signature(commit)
        if signature and not self.made(signature):
            raise InputError(
                f"{self._repo_id}: another run has published there, maybe just now: {described(commit)} is of run "
                f"{signature.run[:8]}, not of {self._run}: choose another repo_id"
            )

    def has_weights(self, tag: str, commit: str) -> bool:
        """Return whether a commit has the weights of the version in the run, as far as the run has that version."""
        local = self._run / tag / WEIGHTS
        if self._architecture != ENCODER or not local.is_file():  # the head can change when seeds are added
            return True
        return weights_of(self._api, self._repo_id, commit) == sha256_of_file(local)

    def mark(self, commit: str) -> dict[str, Any]:
        """Return the content of our mark in a commit, which is empty if there is none."""
        if commit not in self._marks:
            self._marks[commit] = self._read_mark(commit)
        return self._marks[commit]

    def _read_mark(self, commit: str) -> dict[str, Any]:
        if not self._api.get_paths_info(self._repo_id, [MARK], revision=commit):
            return {}
        with tempfile.TemporaryDirectory() as cache:
            path = self._api.hf_hub_download(self._repo_id, MARK, revision=commit, cache_dir=cache)
            mark: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return mark

    def _check(self, tag: str, commit: str, mark: dict[str, Any]) -> None:
        """Raise if a version that is published is of another kind of model, or of another run."""
        if mark.get("architecture") != self._architecture:
            raise InputError(
                f"{self._repo_id} {tag} is a {mark.get('architecture')}, not a {self._architecture}: choose another "
                f"repo_id"
            )
        if not self.has_weights(tag, commit):
            raise InputError(
                f"{self._repo_id} {tag} has other weights than {self._run / tag}, so it belongs to another run: choose "
                f"another repo_id"
            )
        encoder = mark["record"].get("inputs", {}).get("model") if self._architecture != ENCODER else None
        if encoder and (self._run / tag / RECORD).is_file() and encoder != identity(self._run / tag):
            raise InputError(
                f"{self._repo_id} {tag} was trained on another encoder than {self._run / tag}, so it belongs to "
                f"another run: choose another repo_id"
            )


def described(commit: GitCommitInfo) -> str:
    """Return title, id and authors of a commit, for errors."""
    authors = f" by {', '.join(commit.authors)}" if commit.authors else ""
    return f"{commit.title}, {commit.commit_id[:7]}{authors}"


def weights_of(api: HfApi, repo_id: str, revision: str) -> str | None:
    """Return the SHA-256 of the weights in a revision, or None if it has no weights."""
    found = api.get_paths_info(repo_id, [WEIGHTS], revision=revision)
    return next((file.lfs.sha256 for file in found if isinstance(file, RepoFile) and file.lfs), None)
