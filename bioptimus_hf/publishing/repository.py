"""A repository on the Hub to which versions are added: each once, under its tag, and nothing of others undone."""

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
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.facts import name_of, version_key
from bioptimus_hf.publishing.retries import again
from bioptimus_hf.publishing.staging import ENCODER, MARK, PLOT, WEIGHTS, Release

logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds until an endpoint that does not answer is given up
_MAIN, _ASIDE = "main", "versions"  # branches: that of the newest version, and that of versions which are not to be it
_ATTRIBUTES = ".gitattributes"  # the Hub's own, in every repository from the beginning


class Repository:
    """A repository to which versions of one model are added.

    Args:
        releases: what is added, of one architecture, the oldest version first.
        run: folder of the run that they are of.
        private: whether it is to be.
        adopt: whether it may be one that this did not make.
    """

    def __init__(
        self, api: HfApi, repo_id: str, releases: tuple[Release, ...], run: Path, private: bool, adopt: bool
    ) -> None:
        self.api, self.repo_id, self.releases, self.run = api, repo_id, releases, run
        self.private, self.adopt, self.ours = private, adopt, True

    def open(self) -> None:
        """See to it that the repository is there, and ours to write to; the first thing that needs the network.

        Raises:
            InputError: it is not to be had, not as private as it should be, or holds what is none of ours.
        """
        private: bool | None = None
        # The first look has a deadline, which what follows has not: it tells whether the Hub answers at all.
        with contextlib.suppress(RepositoryNotFoundError):
            private = again(f"look at {self.repo_id}", lambda: self._visibility(), may_be_absent=True)
        for release in self.releases:
            again(f"check the card of {self.repo_id}", lambda card=release.card: _validate(card))  # type: ignore[misc]
        if private is None:
            again(
                f"make {self.repo_id}",
                lambda: self.api.create_repo(self.repo_id, private=self.private, exist_ok=True),
            )
            private = self.private  # had it been there for this token, it would have been seen
            logger.info("made %s", self.repo_id)
        if private != self.private:
            is_, wanted = ("private", "public") if private else ("public", "private")
            raise InputError(
                f"{self.repo_id} is {is_}, and was to be {wanted}: "
                f"{'leave out' if private else 'give'} --public, or change it in its settings"
            )
        self.ours = again(f"look into {self.repo_id}", lambda: self._is_ours())
        if not self.ours and not self.adopt:
            raise InputError(
                f"{self.repo_id} holds what was not published by this project: choose another --repo_id, or --adopt to "
                f"add versions as tags, which leaves all of its branches as they are"
            )
        again(f"look into {self.repo_id}", lambda: self._check_siblings())

    def publish(self) -> dict[str, str]:
        """Publish and verify; return the commit of each tag.

        Raises:
            InputError: a tag or a branch is not ours to write, or not what was sent; or the Hub refuses.
        """
        commits = {}
        for release in self.releases:
            commits[release.tag] = again(f"publish {self.repo_id} {release.tag}", lambda one=release: self._add(one))  # type: ignore[misc]
            logger.info("%s %s is commit %s", self.repo_id, release.tag, commits[release.tag])
        refs = again(f"look at the tags of {self.repo_id}", lambda: self._refs())
        tags = tags_of(refs)
        for tag, commit in commits.items():
            if tags.get(tag) != commit:
                raise InputError(f"{self.repo_id}: {tag} points at {tags.get(tag)} now, not at {commit}")
        newest = max(filter(_is_version, tags), key=lambda tag: version_key(tag[1:]))
        changed = self.ours and _branches(refs).get(_MAIN) != tags[newest]
        if changed and not again(f"look into {self.repo_id}", lambda: self._pending(refs)):
            raise InputError(
                f"{self.repo_id}: {_MAIN} is not {newest}, its newest version: someone else has changed it"
            )
        return commits

    def _visibility(self) -> bool:
        return bool(self.api.model_info(self.repo_id, timeout=_PATIENCE).private)

    def _is_ours(self) -> bool:
        return self._is_marked(_MAIN) or (self._paths(_MAIN) <= {_ATTRIBUTES} and not tags_of(self._refs()))

    def _is_marked(self, branch: str) -> bool:
        return MARK in self._paths(branch)

    def _check_siblings(self) -> None:
        """Refuse to add to a repository what is no version of the same model."""
        kind = self.releases[0].architecture
        for tag, commit in tags_of(self._refs()).items():
            mark = self._mark(commit) if _is_version(tag) else {}
            if not mark:
                continue
            if mark.get("architecture") != kind:
                raise InputError(
                    f"{self.repo_id} {tag} is a {mark.get('architecture')}, and no version of what is published now: "
                    f"choose another --repo_id"
                )
            own = self.run / tag / WEIGHTS
            # Of this run's versions, those that are there must be these; a head is chosen anew when seeds are added.
            if kind == ENCODER and own.is_file() and weights_of(self.api, self.repo_id, commit) != sha256_of_file(own):
                raise InputError(
                    f"{self.repo_id} {tag} has other weights than {own.parent}, and is of another run: choose another "
                    f"--repo_id"
                )

    def _pending(self, refs: GitRefs) -> str | None:
        """Return the version that is the last commit of main, and that another publisher has not yet given its tag."""
        return self._untagged(_branches(refs)[_MAIN], tags_of(refs))

    def _untagged(self, commit: str, tags: dict[str, str]) -> str | None:
        """Return the version that a commit of ours holds, if its tag was never made."""
        title = self.api.list_repo_commits(self.repo_id, revision=commit)[0].title
        version = str(self._mark(commit).get("version"))
        return version if title == name_of(version) and title not in tags else None

    def _mark(self, revision: str) -> dict[str, Any]:
        """Return what a version of ours says of itself; nothing, where there is none."""
        if not self._is_marked(revision):
            return {}
        with tempfile.TemporaryDirectory() as cache:
            path = self.api.hf_hub_download(self.repo_id, MARK, revision=revision, cache_dir=cache)
            said: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return said

    def _paths(self, revision: str) -> set[str]:
        return {item.path for item in self.api.list_repo_tree(self.repo_id, revision=revision)}

    def _refs(self) -> GitRefs:
        return self.api.list_repo_refs(self.repo_id)

    def _add(self, release: Release) -> str:
        """Publish one version where it is not there yet; return its commit.

        Another process may be doing the same, or have been killed at it: whatever was done is taken as it is, if it
        is the same to the byte.
        """
        refs = self._refs()
        tags = tags_of(refs)
        if release.tag in tags:
            return self._checked(release, tags[release.tag])
        there = [tag[1:] for tag in tags if _is_version(tag)]
        if pending := self._pending(refs):
            there.append(pending)
        newer = any(version_key(version) > version_key(release.version) for version in there)
        branch = _MAIN if self.ours and not newer else _ASIDE
        commit = self._commit(release, branch, refs)
        if wrong := self._differences(release, commit):
            raise InputError(
                f"{self.repo_id}: {wrong[0]} of {release.tag} is not there as it was sent (commit {commit}), and no "
                f"tag was set: give the same command again"
            )
        # The client would take a tag that is there for the right one, wherever it points: what it says is not asked.
        self.api.create_tag(self.repo_id, tag=release.tag, revision=commit, exist_ok=True)
        return self._checked(release, tags_of(self._refs()).get(release.tag, commit))

    def _checked(self, release: Release, commit: str) -> str:
        """Return the commit that a tag points at, if it holds this version to the byte, whoever made it.

        What its card says may have grown since, by heads that were trained later.
        """
        wrong = self._differences(release, commit)
        if wrong and all(_is_of_card(path) for path in wrong):
            logger.warning(
                "%s %s: the card stays as it was published, since a tag is never moved; it differs in %s",
                *(self.repo_id, release.tag, ", ".join(wrong)),
            )
        elif wrong:
            raise InputError(
                f"{self.repo_id}: the tag {release.tag} is there, and points at {commit}, where {wrong[0]} is "
                f"another: a tag is never moved; choose another --repo_id, or delete the tag yourself"
            )
        return commit

    def _commit(self, release: Release, branch: str, refs: GitRefs) -> str:
        """Return the commit of a branch that holds this version; make it, if the last one does not."""
        branches = _branches(refs)
        if branch not in branches:
            self.api.create_branch(self.repo_id, branch=branch, revision=branches[_MAIN], exist_ok=True)
            branches = _branches(self._refs())
        elif branch == _ASIDE and branches[branch] != branches[_MAIN] and not self._is_marked(branch):
            raise InputError(
                f"{self.repo_id} has a branch {branch} that holds no version of ours: rename it, or delete it if it "
                f"is left of a try that was interrupted; or choose another --repo_id"
            )
        if not self._differences(release, branches[branch]):
            return branches[branch]  # its answer was lost, or its tag was never made
        if branch == _MAIN or branches[branch] != branches[_MAIN]:  # else it is new, and nobody's
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
        """Refuse to build on a branch whose last commit is not ours, since a version replaces all that is there.

        It is looked at by its id: another publisher may move the branch meanwhile, which the upload then finds out.
        """
        is_tagged = any(commit == head and _is_version(tag) for tag, commit in tags.items())
        if not is_tagged and not self._untagged(head, tags) and self._paths(head) - {_ATTRIBUTES}:
            last = self.api.list_repo_commits(self.repo_id, revision=head)[0]
            raise InputError(
                f"{self.repo_id}: the last commit of {branch} is not ours ({last.title}, {last.commit_id[:7]}), and "
                f"would be undone by the next version: move it to another branch first"
            )

    def _differences(self, release: Release, revision: str) -> list[str]:
        """Return the files in which a revision differs from the folder, by checksum; missing and further ones too."""
        found = self.api.verify_repo_checksums(self.repo_id, local_dir=release.folder, revision=revision)
        others = [path for path in found.missing_paths if path != _ATTRIBUTES]
        return [*(str(one["path"]) for one in found.mismatches), *others, *found.extra_paths]


def tags_of(refs: GitRefs) -> dict[str, str]:
    """Return the commit of each tag."""
    return {tag.name: tag.target_commit for tag in refs.tags}


def weights_of(api: HfApi, repo_id: str, revision: str) -> str | None:
    """Return the sha256 of a version's weights."""
    found = api.get_paths_info(repo_id, [WEIGHTS], revision=revision)
    return next((file.lfs.sha256 for file in found if isinstance(file, RepoFile) and file.lfs), None)


def _validate(card: str) -> None:
    try:
        ModelCard(card).validate()
    except json.JSONDecodeError:  # the page of a gateway
        raise
    except ValueError as error:
        raise InputError(f"the Hub refuses the card: {' '.join(str(error).split())}") from error


def _is_of_card(path: str) -> bool:
    return path in ("README.md", PLOT) or path.startswith(".eval_results/")


def _branches(refs: GitRefs) -> dict[str, str]:
    return {branch.name: branch.target_commit for branch in refs.branches}


def _is_version(tag: str) -> bool:
    return tag.startswith("v") and all(part.isdecimal() for part in tag[1:].split("."))
