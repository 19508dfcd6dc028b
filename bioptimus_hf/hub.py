"""Finished versions -> the Hub: a repository with a tag for each, made once, verified, and safe to begin again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import GitRefs, HfApi, ModelCard, RepoFile, constants, get_token
from huggingface_hub.errors import HTTPError, OIDCError, RepositoryNotFoundError  # type: ignore[attr-defined]

from bioptimus_hf.artifacts import InputError, sha256_of_file
from bioptimus_hf.records import About, name_of, version_key
from bioptimus_hf.retrying import again
from bioptimus_hf.staging import ENCODER, MARK, PLOT, WEIGHTS, Release, StagedFile, stage

logger = logging.getLogger(__name__)

What = Literal["trunk", "heads", "all"]
_PATIENCE = 10.0  # seconds until an endpoint that does not answer is given up
_MAIN, _ASIDE = "main", "versions"  # branches: that of the newest version, and that of versions which are not to be it
_ATTRIBUTES = ".gitattributes"  # the Hub's own, in every repository from the beginning
# Of the environment, what would let a process read more than anybody can, or find files in a cache.
_PERSONAL = (
    "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN", "HF_HOME",
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedVersion:
    """A version that is published, or, in a dry run, would be.

    Attributes:
        repo_id: of the repository.
        tag: that names the version there.
        files: all that it consists of.
        card: the text of its README.md.
        commit: that the tag points at; None in a dry run.
        url: of the version's page; None in a dry run.
    """

    repo_id: str
    tag: str
    files: tuple[StagedFile, ...]
    card: str
    commit: str | None = None
    url: str | None = None


def publish(
    run_dir: str | Path,
    repo_id: str,
    *,
    versions: Sequence[str] | None = None,
    private: bool = True,
    dry_run: bool = True,
    token: str | None = None,
    about: About | None = None,
    what: What = "trunk",
    tasks: Sequence[str] | None = None,
    adopt: bool = False,
    collection: str | None = None,
) -> list[PublishedVersion]:
    """Publish versions of a run, and load each back. Given again after any interruption, it finishes what is missing.

    Args:
        run_dir: folder of the run.
        repo_id: repository of the encoder, `owner/name`; that of a head is `<repo_id>-<task>`.
        versions: by default all of the run.
        private: of repositories that are made; those that are there must be so already.
        dry_run: build and check everything, touch no network, and return what would be published.
        token: by default that of the environment or of the token file, as huggingface_hub finds it.
        about: what the cards say and no run knows.
        what: the encoder ("trunk"), its NER heads, or all.
        tasks: whose heads; by default all that there are.
        adopt: whether versions may be added to a repository that this did not make. What is on its branches stays.
        collection: title of a collection of the owner, in which the repositories are gathered.

    Returns:
        The versions, the encoder's before the heads', the oldest first.

    Raises:
        InputError: something is not fit to be published, a repository or tag is not ours to write, or the Hub cannot be
            reached or refuses; what was done until then stays, and is not done again.
    """
    if about is None:
        raise InputError("the cards state a licence, a language and what the text was, which no run knows: give about")
    token = None if dry_run else usable_token(token)
    beside = run_dir if Path(run_dir).is_dir() and os.access(run_dir, os.W_OK) else None  # where weights need no copy
    with tempfile.TemporaryDirectory(prefix="publishing-", dir=beside) as work:
        releases = stage(run_dir, repo_id, Path(work), about, what=what, versions=versions, tasks=tasks)
        plan = [PublishedVersion(one.repo_id, one.tag, one.files, one.card) for one in releases]
        if dry_run:
            return plan
        api = HfApi(token=token)
        repositories = [
            _Repository(api, name, tuple(group), Path(run_dir), private, adopt)
            for name, group in groupby(releases, key=lambda one: one.repo_id)
        ]
        if what == "heads":
            _check_trunk(api, repo_id, Path(run_dir), releases)
        for repository in repositories:
            repository.open()
        commits = {(one.repo_id, tag): commit for one in repositories for tag, commit in one.publish().items()}
        if collection:
            _gather(api, collection, [one.repo_id for one in repositories], private)
    return [
        replace(one, commit=commits[one.repo_id, one.tag], url=f"{constants.ENDPOINT}/{one.repo_id}/tree/{one.tag}")
        for one in plan
    ]


def usable_token(token: str | None) -> str:
    """Return the token to publish with.

    Raises:
        InputError: there is none, or the libraries are told to keep off the network.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, and publishing needs the Hub: unset it, or leave out --push")
    try:
        token = token or get_token()
    except (OIDCError, HTTPError) as error:
        raise InputError(f"no token by trusted publisher ({' '.join(str(error).split())})") from error
    if not token:
        raise InputError("no token to publish with: set HF_TOKEN, or run `hf auth login`; a dry run needs none")
    return token


class _Repository:
    """A repository to which versions are added."""

    def __init__(
        self, api: HfApi, repo_id: str, releases: tuple[Release, ...], run: Path, private: bool, adopt: bool
    ) -> None:
        self.api, self.repo_id, self.releases, self.run = api, repo_id, releases, run
        self.private, self.adopt, self.ours = private, adopt, True

    def open(self) -> None:
        """See to it that the repository is there, and ours to write to; the first thing that needs the network."""
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
        """Publish, verify and load back; return the commit of each tag."""
        commits = {}
        for release in self.releases:
            commits[release.tag] = again(f"publish {self.repo_id} {release.tag}", lambda one=release: self._add(one))  # type: ignore[misc]
            logger.info("%s %s is commit %s", self.repo_id, release.tag, commits[release.tag])
        refs = again(f"look at the tags of {self.repo_id}", lambda: self._refs())
        tags = _tags(refs)
        for tag, commit in commits.items():
            if tags.get(tag) != commit:
                raise InputError(f"{self.repo_id}: {tag} points at {tags.get(tag)} now, not at {commit}")
        newest = max(filter(_is_version, tags), key=lambda tag: version_key(tag[1:]))
        pending = again(f"look into {self.repo_id}", lambda: self._pending(refs))
        if self.ours and _branches(refs).get(_MAIN) != tags[newest] and pending is None:
            raise InputError(
                f"{self.repo_id}: {_MAIN} is not {newest}, its newest version: someone else has changed it"
            )
        load_back(self.releases, self.api.token if self.private else None)
        logger.info("%s: loaded back, and the same", self.repo_id)
        return commits

    def _visibility(self) -> bool:
        return bool(self.api.model_info(self.repo_id, timeout=_PATIENCE).private)

    def _is_ours(self) -> bool:
        return self._is_marked(_MAIN) or (self._paths(_MAIN) <= {_ATTRIBUTES} and not _tags(self._refs()))

    def _is_marked(self, branch: str) -> bool:
        return MARK in self._paths(branch)

    def _check_siblings(self) -> None:
        """Refuse to add to a repository what is no version of the same model."""
        refs, first = self._refs(), self.releases[0]
        tags = {tag: commit for tag, commit in _tags(refs).items() if _is_version(tag)}
        for tag in sorted(tags, key=lambda tag: version_key(tag[1:]), reverse=True):
            mark = self._mark(tags[tag])
            if not mark:
                continue
            if mark.get("architecture") != first.architecture:
                raise InputError(
                    f"{self.repo_id} {tag} is a {mark.get('architecture')}, and no version of what is published now: "
                    f"choose another --repo_id"
                )
            own = self.run / tag / WEIGHTS
            # Of this run's versions, those that are there must be these; a head is chosen anew when seeds are added.
            if first.architecture == ENCODER and own.is_file() and not self._has_weights(tags[tag], own):
                raise InputError(
                    f"{self.repo_id} {tag} has other weights than {own.parent}, and is of another run: choose another "
                    f"--repo_id"
                )

    def _has_weights(self, revision: str, file: Path) -> bool:
        return _weights_of(self.api, self.repo_id, revision) == sha256_of_file(file)

    def _pending(self, refs: GitRefs) -> str | None:
        """Return the version that is the last commit of main, and that another publisher has not yet given its tag."""
        return self._untagged(_branches(refs)[_MAIN], _tags(refs))

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
        tags = _tags(refs)
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
        return self._checked(release, _tags(self._refs()).get(release.tag, commit))

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
            self._check_head(branch, branches[branch], _tags(refs))
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


def load_back(releases: Sequence[Release], token: str | bool | None) -> None:
    """Load the versions of a repository as a user would, in a process of its own with an empty cache, and compare.

    Args:
        token: of a private repository; without one, the versions are loaded by nobody in particular.

    Raises:
        InputError: one cannot be loaded, or differs in any tensor, label or token.
    """
    first = releases[0]
    script = Path(__file__).with_name("loading.py")
    versions = [f"{one.tag}={one.folder}" for one in releases]
    kept = {name: value for name, value in os.environ.items() if name not in _PERSONAL}

    def attempt() -> None:
        with tempfile.TemporaryDirectory() as home:
            identity = {"HF_TOKEN": str(token)} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
            ended = subprocess.run(
                [sys.executable, "-P", str(script), first.repo_id, first.architecture, *versions],
                env={**kept, **identity, "HF_HOME": home, "DISABLE_SAFETENSORS_CONVERSION": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        said = (ended.stderr.strip().splitlines() or ["no word"])[-1]
        if ended.returncode == 3:
            raise InputError(f"{first.repo_id}: what was loaded back is not what was published: {said}")
        if ended.returncode:
            raise ConnectionError(said[:200])

    again(f"load {first.repo_id} back", attempt)


def _check_trunk(api: HfApi, repo_id: str, run: Path, releases: Sequence[Release]) -> None:
    """Refuse heads on versions of an encoder that nobody can look at, or that are others than the run's."""
    try:
        tags = again(f"look at {repo_id}", lambda: _tags(api.list_repo_refs(repo_id)), may_be_absent=True)
    except RepositoryNotFoundError:
        tags = {}
    for tag in dict.fromkeys(release.tag for release in releases):
        if tag not in tags:
            raise InputError(f"the heads' cards name {repo_id} {tag}, which is not published: --what all")
        published = again(f"look into {repo_id}", lambda tag=tag: _weights_of(api, repo_id, tag))  # type: ignore[misc]
        if published != sha256_of_file(run / tag / WEIGHTS):
            raise InputError(f"the heads' cards name {repo_id} {tag}, whose weights are not those of {run / tag}")


def _weights_of(api: HfApi, repo_id: str, revision: str) -> str | None:
    """Return the sha256 of a version's weights."""
    found = api.get_paths_info(repo_id, [WEIGHTS], revision=revision)
    return next((file.lfs.sha256 for file in found if isinstance(file, RepoFile) and file.lfs), None)


def _is_of_card(path: str) -> bool:
    return path in ("README.md", PLOT) or path.startswith(".eval_results/")


def _gather(api: HfApi, title: str, repo_ids: Sequence[str], private: bool) -> None:
    owner = repo_ids[0].partition("/")[0]
    what = f"gather the collection {title}"
    slug = again(what, lambda: api.create_collection(title, namespace=owner, private=private, exists_ok=True).slug)
    for repo_id in repo_ids:
        again(what, lambda name=repo_id: api.add_collection_item(slug, name, "model", exists_ok=True))  # type: ignore[misc]
    logger.info("gathered in %s/collections/%s", constants.ENDPOINT, slug)


def _validate(card: str) -> None:
    try:
        ModelCard(card).validate()
    except json.JSONDecodeError:  # the page of a gateway
        raise
    except ValueError as error:
        raise InputError(f"the Hub refuses the card: {' '.join(str(error).split())}") from error


def _tags(refs: GitRefs) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in refs.tags}


def _branches(refs: GitRefs) -> dict[str, str]:
    return {branch.name: branch.target_commit for branch in refs.branches}


def _is_version(tag: str) -> bool:
    return tag.startswith("v") and all(part.isdecimal() for part in tag[1:].split("."))
