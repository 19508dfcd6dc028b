"""Finished versions -> the Hub: a repository with a tag for each, made once, verified, and safe to begin again."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, OIDCError, RepositoryNotFoundError  # type: ignore[attr-defined]

from bioptimus_hf.artifacts import sha256_of_file
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.facts import About
from bioptimus_hf.publishing.repository import Repository, tags_of, weights_of
from bioptimus_hf.publishing.retries import again
from bioptimus_hf.publishing.staging import WEIGHTS, Release, StagedFile, stage

logger = logging.getLogger(__name__)

What = Literal["trunk", "heads", "all"]
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
            Repository(api, name, tuple(group), Path(run_dir), private, adopt)
            for name, group in groupby(releases, key=lambda one: one.repo_id)
        ]
        if what == "heads":
            _check_trunk(api, repo_id, Path(run_dir), releases)
        for repository in repositories:
            repository.open()
        commits: dict[tuple[str, str], str] = {}
        for one in repositories:
            commits |= {(one.repo_id, tag): commit for tag, commit in one.publish().items()}
            load_back(one.releases, token if private else None)
            logger.info("%s: loaded back, and the same", one.repo_id)
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


def load_back(releases: Sequence[Release], token: str | bool | None) -> None:
    """Load the versions of a repository as a user would, in a process of its own with an empty cache, and compare.

    Args:
        token: of a private repository; without one, the versions are loaded by nobody in particular.

    Raises:
        InputError: one cannot be loaded, or differs in any tensor, label or token.
    """
    first = releases[0]
    script = Path(__file__).with_name("load_back.py")
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
        tags = again(f"look at {repo_id}", lambda: tags_of(api.list_repo_refs(repo_id)), may_be_absent=True)
    except RepositoryNotFoundError:
        tags = {}
    for tag in dict.fromkeys(release.tag for release in releases):
        if tag not in tags:
            raise InputError(f"the heads' cards name {repo_id} {tag}, which is not published: --what all")
        published = again(f"look into {repo_id}", lambda tag=tag: weights_of(api, repo_id, tag))  # type: ignore[misc]
        if published != sha256_of_file(run / tag / WEIGHTS):
            raise InputError(f"the heads' cards name {repo_id} {tag}, whose weights are not those of {run / tag}")


def _gather(api: HfApi, title: str, repo_ids: Sequence[str], private: bool) -> None:
    owner = repo_ids[0].partition("/")[0]
    what = f"gather the collection {title}"
    slug = again(what, lambda: api.create_collection(title, namespace=owner, private=private, exists_ok=True).slug)
    for repo_id in repo_ids:
        again(what, lambda name=repo_id: api.add_collection_item(slug, name, "model", exists_ok=True))  # type: ignore[misc]
    logger.info("gathered in %s/collections/%s", constants.ENDPOINT, slug)
