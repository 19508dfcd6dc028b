"""Publish versions of a run on the Hub: upload each once, tag it, verify it and load it back."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, OIDCError, RepositoryNotFoundError  # type: ignore[attr-defined]

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import sha256_of_file
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.publishing import load_back as load_back_script
from bioptimus_hf.publishing.checks import WEIGHTS
from bioptimus_hf.publishing.options import About, Selection
from bioptimus_hf.publishing.ownership import weights_of
from bioptimus_hf.publishing.repository import Repository
from bioptimus_hf.publishing.retries import retry, single_attempts
from bioptimus_hf.publishing.staging import Release, StagedFile, stage
from bioptimus_hf.storage import remove_leftovers, temporary_name

logger = logging.getLogger(__name__)

_ALL = Selection()
# Environment variables that give a process personal access, or a cache in which it might find files.
_PERSONAL = (
    "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN", "HF_HOME",
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedVersion:
    """A version that was published or, in a dry run, would be.

    Attributes:
        repo_id: repository of the version.
        tag: name of the tag that points at it.
        files: every file of the version.
        card: text of its model card (README.md).
        commit: commit that the tag points at; None in a dry run.
        url: web page of the version; None in a dry run.
    """

    repo_id: str
    tag: str
    files: tuple[StagedFile, ...]
    card: str
    commit: str | None = None
    url: str | None = None


@check_call()
def publish(
    run_dir: str | Path,
    repo_id: str,
    *,
    versions: Sequence[str | float] | None = None,
    private: bool = True,
    dry_run: bool = True,
    token: str | None = None,
    about: About | None = None,
    selection: Selection = _ALL,
) -> list[PublishedVersion]:
    """Publish versions of a run and load each back. After an interruption, the same call completes what is missing.

    Args:
        run_dir: folder of the run.
        repo_id: repository of the encoder, `owner/name`; that of a head is `<repo_id>-<task>`.
        versions: versions to publish; by default all versions of the run. YAML reads them as numbers.
        private: visibility of repositories that are created. An existing repository must already have it.
        dry_run: build and check everything and return what would be published, without using the network.
        token: token of the Hub; by default from the environment or the token file, as huggingface_hub finds it.
        about: facts for the cards that the run didn't record; required.
        selection: whether to publish the encoder, its heads, or (by default) all there is, and where it may go.

    Returns:
        The versions, first those of the encoder and then those of the heads, oldest first.

    Raises:
        InputError: something isn't fit to be published, a repository or tag belongs to someone else, or the Hub can't
            be reached or refuses. What was done until then stays, and isn't repeated by the next call.
    """
    if about is None:
        raise InputError("the cards state a licence, a language and the text, which no run records", argument="about")
    token = None if dry_run else usable_token(token)
    with _work_folder(Path(run_dir)) as work:
        releases = stage(run_dir, repo_id, work, about, versions=versions, selection=selection)
        planned = [PublishedVersion(release.repo_id, release.tag, release.files, release.card) for release in releases]
        if dry_run:
            return planned
        api = HfApi(token=token)
        with single_attempts():
            if selection.what == "heads":
                _check_encoder(api, repo_id, Path(run_dir), releases)
            repositories = [
                Repository(api, tuple(group), run=Path(run_dir), private=private, adopt=selection.adopt)
                for _, group in groupby(releases, key=lambda release: release.repo_id)
            ]
            commits = _upload(repositories, token if private else None)
            if selection.collection:
                _add_to_collection(api, selection.collection, repositories, private)
    return [
        replace(
            version,
            commit=commits[version.repo_id, version.tag],
            url=f"{constants.ENDPOINT}/{version.repo_id}/tree/{version.tag}",
        )
        for version in planned
    ]


@contextmanager
def _work_folder(run: Path) -> Iterator[Path]:
    """Yield an empty folder to build in, and remove those of publishers that were killed.

    It is in the run, where weights can be hard links, if the run can be written to.
    """
    if not (run.is_dir() and os.access(run, os.W_OK)):
        with tempfile.TemporaryDirectory(prefix="publishing-") as work:
            yield Path(work)
        return
    place = run / "publishing"
    for leftover in remove_leftovers(place):
        logger.warning("removed %s, which a publisher left behind when it was killed", leftover)
    own = temporary_name(place)
    for other in sorted({*run.glob(f"{place.name}.*"), *run.glob(f"{place.name}-*")} - {own}):
        logger.warning("%s belongs to a publisher elsewhere: if that was killed, remove the folder", other)
    own.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=own) as work:  # a process may publish several times at once, in threads
            yield Path(work)
    finally:
        with suppress(OSError):  # another thread still works there
            own.rmdir()


def usable_token(token: str | None) -> str:
    """Return the token to publish with.

    Raises:
        InputError: there is none, or huggingface_hub is in offline mode.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, but publishing needs the Hub: unset it, or make a dry run")
    try:
        token = token or get_token()
    except (OIDCError, HTTPError) as error:
        raise InputError(f"the trusted publisher gave no token ({format_error(error)})") from error
    if not token:
        raise InputError("no token to publish with: set HF_TOKEN, or run `hf auth login`; a dry run needs none")
    return token


def load_back(releases: Sequence[Release], token: str | None) -> None:
    """Load published versions as a user would, in a new process with an empty cache, and compare them.

    Args:
        token: token for private repositories; None loads the versions anonymously.

    Raises:
        InputError: a version can't be loaded, or differs in a tensor, label or token.
    """
    versions = [
        argument
        for release in releases
        for argument in (release.repo_id, release.tag, release.architecture, str(release.folder))
    ]
    kept = {name: value for name, value in os.environ.items() if name not in _PERSONAL}

    def attempt() -> None:
        with tempfile.TemporaryDirectory() as home:
            identity = {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
            process = subprocess.run(
                [sys.executable, "-P", load_back_script.__file__, *versions],
                env={**kept, **identity, "HF_HOME": home, "DISABLE_SAFETENSORS_CONVERSION": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        message = (process.stderr.strip().splitlines() or ["no message"])[-1]
        if process.returncode == load_back_script.DIFFERENT:
            raise InputError(f"what was loaded back is not what was published: {message}")
        if process.returncode:
            raise ConnectionError(message[:200])

    retry("load the published versions back", attempt, target=versions[0])


def _upload(repositories: Sequence[Repository], token: str | None) -> dict[tuple[str, str], str]:
    """Publish to each repository and load the versions back; return the commit of each repository and tag."""
    for repository in repositories:
        repository.open()  # all of them, before anything is uploaded to one
    commits: dict[tuple[str, str], str] = {}
    for repository in repositories:
        commits |= {(repository.repo_id, tag): commit for tag, commit in repository.publish().items()}
    load_back([release for repository in repositories for release in repository.releases], token)
    logger.info("every version was loaded back and compared")
    return commits


def _check_encoder(api: HfApi, repo_id: str, run: Path, releases: Sequence[Release]) -> None:
    """Raise unless the versions that the heads were trained on are published with the weights of this run."""
    try:
        refs = retry(f"look up {repo_id}", lambda: api.list_repo_refs(repo_id), target=repo_id, may_be_absent=True)
        tags = [tag.name for tag in refs.tags]
    except RepositoryNotFoundError:
        tags = []
    for tag in dict.fromkeys(release.tag for release in releases):
        if tag not in tags:
            raise InputError(f"the heads' cards refer to {repo_id} {tag}, which is not published: publish all")
        published = retry(
            f"look up {repo_id} {tag}",
            lambda tag=tag: weights_of(api, repo_id, tag),  # type: ignore[misc]
            target=repo_id,
        )
        if published != sha256_of_file(run / tag / WEIGHTS):
            raise InputError(f"the heads' cards refer to {repo_id} {tag}, whose weights are not those of {run / tag}")


def _add_to_collection(api: HfApi, title: str, repositories: Sequence[Repository], private: bool) -> None:
    owner = repositories[0].repo_id.partition("/")[0]
    description = f"add to the collection {title}"
    slug = retry(
        description,
        lambda: api.create_collection(title, namespace=owner, private=private, exists_ok=True).slug,
        target=f"the collections of {owner}",
    )
    for repository in repositories:
        retry(
            description,
            lambda name=repository.repo_id: api.add_collection_item(slug, name, "model", exists_ok=True),  # type: ignore[misc]
            target=f"the collections of {owner}",
        )
    logger.info("added to the collection %s/collections/%s", constants.ENDPOINT, slug)
