"""Add versions to a repository on the Hub: each once, under its tag, without undoing anyone else's work."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError

from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.pretraining.versions import version_numbers
from bioptimus_hf.publishing.checks import MARK, PLOT
from bioptimus_hf.publishing.ownership import Owner, State, described, read_signature
from bioptimus_hf.publishing.records import version_key
from bioptimus_hf.publishing.retries import HubFailure, retry
from bioptimus_hf.publishing.staging import Release

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_TIMEOUT = 10.0  # seconds to wait for the first answer of the Hub
_MAIN, _SIDE = "main", "versions"  # the branch of the newest version, and that of versions that mustn't be on main
_ATTRIBUTES = ".gitattributes"  # written by the Hub itself when it creates a repository


class Repository:
    """A repository to which versions of one model are added.

    Args:
        api: client of the Hub.
        releases: versions to add, all of one repository and architecture, oldest first.
        run: folder of the run that made them.
        private: whether the repository is, or is to be, private.
        adopt: whether it may be a repository that this package didn't create.
    """

    def __init__(self, api: HfApi, releases: tuple[Release, ...], *, run: Path, private: bool, adopt: bool) -> None:
        self.api, self.releases = api, releases
        self.repo_id = releases[0].repo_id
        self.private, self.adopt, self.ours = private, adopt, True
        self._owner = Owner(api, self.repo_id, run, releases[0].architecture)

    def open(self) -> None:
        """Create the repository if it doesn't exist and check that we may write to it. First network call.

        Raises:
            InputError: it can't be created, its visibility is not the wanted one, or it holds someone else's files,
                tags or versions.
        """
        private: bool | None = None
        with contextlib.suppress(RepositoryNotFoundError):
            private = self._retry(f"look up {self.repo_id}", self._is_private, may_be_absent=True)
        for release in self.releases:
            self._retry(f"check the card of {self.repo_id}", lambda card=release.card: _validate(card))  # type: ignore[misc]
        if private is None:
            self._retry(
                f"create {self.repo_id}",
                lambda: self.api.create_repo(self.repo_id, private=self.private, exist_ok=True),
            )
            private = self.private  # a repository that this token can see would have been found above
            logger.info("created %s", self.repo_id)
        if private != self.private:
            actual, wanted = ("private", "public") if private else ("public", "private")
            raise InputError(
                f"{self.repo_id} is {actual}, but should be {wanted}: publish with private={private} "
                f"({'without' if private else 'with'} public, as a command), or change the visibility in its settings"
            )
        self.ours = self._retry(f"look into {self.repo_id}", self._is_ours)
        if not self.ours and not self.adopt:
            raise InputError(
                f"{self.repo_id} holds files that this package didn't publish: choose another repo_id, or set adopt to "
                f"add versions as tags and leave its branches as they are"
            )
        self._retry(f"look into {self.repo_id}", self._check)

    def publish(self) -> dict[str, str]:
        """Publish and verify the versions; return the commit of each tag.

        Raises:
            InputError: a tag or branch belongs to someone else or isn't what was sent, or the Hub refuses.
        """
        commits = {}
        for release in self.releases:
            commit = self._retry(f"publish {self.repo_id} {release.tag}", lambda release=release: self._add(release))  # type: ignore[misc]
            logger.info("%s %s is commit %s", self.repo_id, release.tag, commit)
            commits[release.tag] = commit
        self._retry(f"list the tags of {self.repo_id}", lambda: self._verify(commits))
        return commits

    def _retry(self, description: str, action: Callable[[], _Result], *, may_be_absent: bool = False) -> _Result:
        return retry(description, action, target=self.repo_id, may_be_absent=may_be_absent)

    def _is_private(self) -> bool:
        return bool(self.api.model_info(self.repo_id, timeout=_TIMEOUT).private)

    def _is_ours(self) -> bool:
        paths = self._paths(_MAIN)
        return MARK in paths or (paths <= {_ATTRIBUTES} and not self.api.list_repo_refs(self.repo_id).tags)

    def _paths(self, revision: str) -> set[str]:
        return {item.path for item in self.api.list_repo_tree(self.repo_id, revision=revision)}

    def _state(self) -> State:
        refs = self.api.list_repo_refs(self.repo_id)
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        if _MAIN not in branches:
            raise InputError(f"{self.repo_id} has no branch {_MAIN}: create it, or choose another repo_id")
        histories = {
            branch: self.api.list_repo_commits(self.repo_id, revision=branches[branch])
            for branch in (_MAIN, _SIDE)
            if branch in branches
        }
        return State(branches, {tag.name: tag.target_commit for tag in refs.tags}, histories)

    def _check(self) -> None:
        """Raise if a version can't be sent because of what the repository holds now."""
        state = self._state()
        ours = self._owner.tags(state)
        for release in self.releases:
            if release.tag in state.tags:
                self._check_tag(release, state.tags[release.tag])
            elif self._find(release, state) is None:
                self._check_head(self._branch_for(release, state, ours), state, ours)

    def _add(self, release: Release) -> str:
        """Publish one version if it isn't there yet, and return its commit.

        Another process may be doing the same, or may have been killed while doing it. Whatever exists is kept if it
        is identical to the byte.
        """
        state = self._state()
        ours = self._owner.tags(state)
        self._repair(state)
        if release.tag in state.tags:
            return self._check_tag(release, state.tags[release.tag])
        commit = self._find(release, state)
        if commit is None:
            branch = self._branch_for(release, state, ours)
            self._check_head(branch, state, ours)
            commit = self._commit(release, branch, state)
            if different := self._differences(release, commit):
                raise InputError(
                    f"{self.repo_id}: {different[0]} of {release.tag} arrived changed (commit {commit}), so no tag was "
                    f"created: give the same command again"
                )
        else:
            logger.info("%s: %s was sent before, and only gets its tag now", self.repo_id, release.tag)
        return self._check_tag(release, self._tag(release.tag, commit))

    def _repair(self, state: State) -> None:
        """Tag each earlier version that was sent but not tagged: a publisher was killed, or is about to tag it."""
        sending = {release.tag for release in self.releases}
        for tag, commit in self._owner.untagged(state).items():
            if tag not in sending and self._owner.has_weights(tag, commit):
                logger.info("%s: %s was sent before, and only gets its tag now", self.repo_id, tag)
                self._tag(tag, commit)

    def _tag(self, tag: str, commit: str) -> str:
        """Create a tag unless it exists, and return the commit that it points at.

        With exist_ok the client doesn't look where an existing tag points, and any answer is a success for it.
        """
        self.api.create_tag(self.repo_id, tag=tag, revision=commit, exist_ok=True)
        for found in self.api.list_repo_refs(self.repo_id).tags:
            if found.name == tag:
                return found.target_commit
        raise HubFailure(f"the Hub accepted the tag {tag}, but doesn't list it")

    def _find(self, release: Release, state: State) -> str | None:
        """Return the commit of a version that was sent but not tagged, if any.

        The last commit of a branch is only taken if it is identical. An earlier one may differ in the card.
        """
        commit = self._owner.untagged(state).get(release.tag)
        if commit is None:
            return None
        different = self._differences(release, commit)
        is_last = commit in {history[0].commit_id for history in state.histories.values()}
        return None if different and (is_last or not all(map(_belongs_to_card, different))) else commit

    def _branch_for(self, release: Release, state: State, ours: dict[str, str]) -> str:
        """Return the branch that a version is sent to: `main` only if it is ours, and has no newer version."""
        published = [*ours, *self._owner.untagged(state)]
        is_newest = all(version_key(tag[1:]) <= version_key(release.version) for tag in published)
        return _MAIN if self.ours and is_newest else _SIDE

    def _check_tag(self, release: Release, commit: str) -> str:
        """Return the commit of a tag if it holds this version to the byte, whoever created it.

        The card may differ: more heads may have been trained since it was published.
        """
        different = self._differences(release, commit)
        if different and all(map(_belongs_to_card, different)):
            logger.warning(
                "%s %s: tags never move, so the card stays as it was published; it differs in %s",
                self.repo_id,
                release.tag,
                ", ".join(different),
            )
        elif different:
            raise InputError(
                f"{self.repo_id}: the tag {release.tag} already points at {commit}, where {different[0]} differs, so "
                f"it is somebody else's or another run's; tags never move: choose another repo_id, or delete the tag "
                f"yourself"
            )
        return commit

    def _commit(self, release: Release, branch: str, state: State) -> str:
        """Commit a version to a branch, unless somebody has committed there since `state` was read."""
        if branch not in state.branches:
            head = state.branches[_MAIN]
            self.api.create_branch(self.repo_id, branch=branch, revision=head, exist_ok=True)
        else:
            head = state.branches[branch]
        return self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=release.folder,
            revision=branch,
            parent_commit=head,
            commit_message=release.tag,
            commit_description=str(release.signature),
            delete_patterns="*",
        ).oid

    def _check_head(self, branch: str, state: State, ours: dict[str, str]) -> None:
        """Raise if the last commit of a branch isn't ours, because a version replaces every file.

        If another publisher moves the branch after that, the upload fails.
        """
        head = state.branches.get(branch)
        if head is None or (branch == _SIDE and head == state.branches[_MAIN]):  # new, and without an owner
            return
        last = state.last(branch)
        self._owner.check_commit(last)
        if head in ours.values() or read_signature(last) or (branch == _MAIN and self._paths(head) <= {_ATTRIBUTES}):
            return
        if branch == _SIDE and not self._owner.mark(head):
            raise InputError(
                f"{self.repo_id} has a branch {branch} that holds no version of ours: rename it, delete it if it is "
                f"left over from an interrupted attempt, or choose another repo_id"
            )
        raise InputError(
            f"{self.repo_id}: the last commit of {branch} is not ours ({described(last)}), and the next version would "
            f"undo it: move it to another branch first"
        )

    def _verify(self, commits: dict[str, str]) -> None:
        """Raise unless each tag points at its commit, and `main` is the newest version."""
        state = self._state()
        for tag, commit in commits.items():
            if state.tags.get(tag) != commit:
                raise InputError(f"{self.repo_id}: {tag} now points at {state.tags.get(tag)}, not at {commit}")
        ours = self._owner.tags(state)
        newest = max(ours, key=version_numbers)
        last = state.last(_MAIN)
        if self.ours and last.commit_id != ours[newest] and not self._owner.made(read_signature(last)):
            raise InputError(
                f"{self.repo_id}: {_MAIN} is not {newest}, its newest version: someone else has changed it "
                f"({described(last)})"
            )

    def _differences(self, release: Release, revision: str) -> list[str]:
        """Return the files that differ between a revision and the folder, by checksum, or are in only one of them."""
        found = self.api.verify_repo_checksums(self.repo_id, local_dir=release.folder, revision=revision)
        unknown = [path for path in found.missing_paths if path != _ATTRIBUTES]
        return [*(str(mismatch["path"]) for mismatch in found.mismatches), *unknown, *found.extra_paths]


def _validate(card: str) -> None:
    try:
        ModelCard(card).validate()
    except json.JSONDecodeError:  # the error page of a gateway, which may be transient
        raise
    except ValueError as error:
        raise InputError(f"the Hub rejects the card: {format_error(error, limit=500)}") from error


def _belongs_to_card(path: str) -> bool:
    return path in ("README.md", PLOT) or path.startswith(".eval_results/")
