"""Add versions to a repository on the Hub: each once, under its tag, without undoing anyone else's work."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import GitRefs, HfApi, ModelCard, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError

from bioptimus_hf.artifacts import sha256_of_file
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.pretraining.versions import folder_name, version_numbers
from bioptimus_hf.publishing.checks import ENCODER, MARK, PLOT, WEIGHTS
from bioptimus_hf.publishing.records import version_key
from bioptimus_hf.publishing.retries import retry
from bioptimus_hf.publishing.staging import Release

logger = logging.getLogger(__name__)

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
        self.api, self.releases, self.run = api, releases, run
        self.repo_id = releases[0].repo_id
        self.private, self.adopt, self.ours = private, adopt, True

    def open(self) -> None:
        """Create the repository if it doesn't exist and check that we may write to it. First network call.

        Raises:
            InputError: it can't be created, its visibility is not the wanted one, or it holds someone else's files.
        """
        private: bool | None = None
        # This first request has a timeout, unlike later ones: it shows whether the Hub answers at all.
        with contextlib.suppress(RepositoryNotFoundError):
            private = retry(f"look up {self.repo_id}", lambda: self._is_private(), may_be_absent=True)
        for release in self.releases:
            retry(f"check the card of {self.repo_id}", lambda card=release.card: _validate(card))  # type: ignore[misc]
        if private is None:
            retry(
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
        self.ours = retry(f"look into {self.repo_id}", lambda: self._is_ours())
        if not self.ours and not self.adopt:
            raise InputError(
                f"{self.repo_id} holds files that this package didn't publish: choose another repo_id, or set adopt to "
                f"add versions as tags and leave its branches as they are"
            )
        retry(f"look into {self.repo_id}", lambda: self._check_versions())

    def publish(self) -> dict[str, str]:
        """Publish and verify the versions; return the commit of each tag.

        Raises:
            InputError: a tag or branch belongs to someone else or isn't what was sent, or the Hub refuses.
        """
        commits = {}
        for release in self.releases:
            commit = retry(f"publish {self.repo_id} {release.tag}", lambda release=release: self._add(release))  # type: ignore[misc]
            logger.info("%s %s is commit %s", self.repo_id, release.tag, commit)
            commits[release.tag] = commit
        refs = retry(f"list the tags of {self.repo_id}", lambda: self._refs())
        tags = tags_of(refs)
        for tag, commit in commits.items():
            if tags.get(tag) != commit:
                raise InputError(f"{self.repo_id}: {tag} now points at {tags.get(tag)}, not at {commit}")
        newest = max(filter(version_numbers, tags), key=version_numbers)
        changed = self.ours and _branches(refs).get(_MAIN) != tags[newest]
        if changed and not retry(f"look into {self.repo_id}", lambda: self._pending(refs)):
            raise InputError(
                f"{self.repo_id}: {_MAIN} is not {newest}, its newest version: someone else has changed it"
            )
        return commits

    def _is_private(self) -> bool:
        return bool(self.api.model_info(self.repo_id, timeout=_TIMEOUT).private)

    def _is_ours(self) -> bool:
        return self._is_marked(_MAIN) or (self._paths(_MAIN) <= {_ATTRIBUTES} and not tags_of(self._refs()))

    def _is_marked(self, revision: str) -> bool:
        return MARK in self._paths(revision)

    def _check_versions(self) -> None:
        """Raise if the repository already holds versions of another model."""
        architecture = self.releases[0].architecture
        for tag, commit in tags_of(self._refs()).items():
            mark = self._mark(commit) if version_numbers(tag) else {}
            if not mark:
                continue
            if mark.get("architecture") != architecture:
                raise InputError(
                    f"{self.repo_id} {tag} is a {mark.get('architecture')}, not a {architecture}: choose another "
                    f"repo_id"
                )
            local = self.run / tag / WEIGHTS
            if architecture != ENCODER or not local.is_file():  # the head to publish can change when seeds are added
                continue
            if weights_of(self.api, self.repo_id, commit) != sha256_of_file(local):
                raise InputError(
                    f"{self.repo_id} {tag} has other weights than {local.parent}, so it belongs to another run: choose "
                    f"another repo_id"
                )

    def _pending(self, refs: GitRefs) -> str | None:
        """Return the version that another publisher has committed to main but not tagged yet, if any."""
        return self._untagged_version(_branches(refs)[_MAIN], tags_of(refs))

    def _untagged_version(self, commit: str, tags: dict[str, str]) -> str | None:
        """Return the version that a commit of ours holds, if its tag doesn't exist."""
        title = self.api.list_repo_commits(self.repo_id, revision=commit)[0].title
        version = str(self._mark(commit).get("version"))
        return version if title == folder_name(version) and title not in tags else None

    def _mark(self, revision: str) -> dict[str, Any]:
        """Return the content of our mark in a revision, which is empty if there is none."""
        if not self._is_marked(revision):
            return {}
        with tempfile.TemporaryDirectory() as cache:
            path = self.api.hf_hub_download(self.repo_id, MARK, revision=revision, cache_dir=cache)
            mark: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return mark

    def _paths(self, revision: str) -> set[str]:
        return {item.path for item in self.api.list_repo_tree(self.repo_id, revision=revision)}

    def _refs(self) -> GitRefs:
        return self.api.list_repo_refs(self.repo_id)

    def _add(self, release: Release) -> str:
        """Publish one version if it isn't there yet, and return its commit.

        Another process may be doing the same, or may have been killed while doing it. Whatever exists is kept if it
        is identical to the byte.
        """
        refs = self._refs()
        tags = tags_of(refs)
        if release.tag in tags:
            return self._check_tag(release, tags[release.tag])
        published = [tag[1:] for tag in tags if version_numbers(tag)]
        if pending := self._pending(refs):
            published.append(pending)
        is_newest = all(version_key(version) <= version_key(release.version) for version in published)
        branch = _MAIN if self.ours and is_newest else _SIDE
        commit = self._commit(release, branch, refs)
        if different := self._differences(release, commit):
            raise InputError(
                f"{self.repo_id}: {different[0]} of {release.tag} arrived changed (commit {commit}), so no tag was "
                f"created: give the same command again"
            )
        # With exist_ok the client doesn't look where an existing tag points, so this is checked below.
        self.api.create_tag(self.repo_id, tag=release.tag, revision=commit, exist_ok=True)
        return self._check_tag(release, tags_of(self._refs()).get(release.tag, commit))

    def _check_tag(self, release: Release, commit: str) -> str:
        """Return the commit of a tag if it holds this version to the byte, whoever created it.

        The card may differ: more heads may have been trained since it was published.
        """
        different = self._differences(release, commit)
        if different and all(_belongs_to_card(path) for path in different):
            logger.warning(
                "%s %s: tags never move, so the card stays as it was published; it differs in %s",
                self.repo_id,
                release.tag,
                ", ".join(different),
            )
        elif different:
            raise InputError(
                f"{self.repo_id}: the tag {release.tag} already points at {commit}, where {different[0]} differs; "
                f"tags never move: choose another repo_id, or delete the tag yourself"
            )
        return commit

    def _commit(self, release: Release, branch: str, refs: GitRefs) -> str:
        """Return the last commit of a branch if it holds this version, and otherwise create such a commit."""
        branches = _branches(refs)
        if branch not in branches:
            self.api.create_branch(self.repo_id, branch=branch, revision=branches[_MAIN], exist_ok=True)
            branches = _branches(self._refs())
        elif branch == _SIDE and branches[branch] != branches[_MAIN] and not self._is_marked(branch):
            raise InputError(
                f"{self.repo_id} has a branch {branch} that holds no version of ours: rename it, delete it if it is "
                f"left over from an interrupted attempt, or choose another repo_id"
            )
        if not self._differences(release, branches[branch]):
            return branches[branch]  # the answer to the upload was lost, or the tag was never created
        if branch == _MAIN or branches[branch] != branches[_MAIN]:  # otherwise the branch is new and has no owner
            self._check_head(branch, branches[branch], tags_of(refs))
        return self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=release.folder,
            revision=branch,
            parent_commit=branches[branch],
            commit_message=release.tag,
            delete_patterns="*",
        ).oid

    def _check_head(self, branch: str, head: str, tags: dict[str, str]) -> None:
        """Raise if the last commit of a branch isn't ours, because a version replaces every file.

        The commit is looked up by its id. If another publisher moves the branch meanwhile, the upload fails.
        """
        is_tagged = any(commit == head and version_numbers(tag) for tag, commit in tags.items())
        if not is_tagged and not self._untagged_version(head, tags) and self._paths(head) - {_ATTRIBUTES}:
            last = self.api.list_repo_commits(self.repo_id, revision=head)[0]
            raise InputError(
                f"{self.repo_id}: the last commit of {branch} is not ours ({last.title}, {last.commit_id[:7]}), and "
                f"the next version would undo it: move it to another branch first"
            )

    def _differences(self, release: Release, revision: str) -> list[str]:
        """Return the files that differ between a revision and the folder, by checksum, or are in only one of them."""
        found = self.api.verify_repo_checksums(self.repo_id, local_dir=release.folder, revision=revision)
        unknown = [path for path in found.missing_paths if path != _ATTRIBUTES]
        return [*(str(mismatch["path"]) for mismatch in found.mismatches), *unknown, *found.extra_paths]


def tags_of(refs: GitRefs) -> dict[str, str]:
    """Return the commit of each tag."""
    return {tag.name: tag.target_commit for tag in refs.tags}


def weights_of(api: HfApi, repo_id: str, revision: str) -> str | None:
    """Return the SHA-256 of the weights in a revision, or None if it has no weights."""
    found = api.get_paths_info(repo_id, [WEIGHTS], revision=revision)
    return next((file.lfs.sha256 for file in found if isinstance(file, RepoFile) and file.lfs), None)


def _validate(card: str) -> None:
    try:
        ModelCard(card).validate()
    except json.JSONDecodeError:  # the error page of a gateway, which may be transient
        raise
    except ValueError as error:
        raise InputError(f"the Hub rejects the card: {format_error(error, limit=500)}") from error


def _belongs_to_card(path: str) -> bool:
    return path in ("README.md", PLOT) or path.startswith(".eval_results/")


def _branches(refs: GitRefs) -> dict[str, str]:
    return {branch.name: branch.target_commit for branch in refs.branches}
