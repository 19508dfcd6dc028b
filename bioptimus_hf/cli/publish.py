"""Publish the versions of a run, and NER heads trained on them, on the Hugging Face Hub.

    bioptimus publish --output_dir runs/mine --repo_id me/encoder --what encoder --license apache-2.0 --language en \\
        --corpus_description "abstracts of PubMed" --corpus_license "terms of the NLM"

Without --push, nothing is sent and no token is needed: the command builds and checks everything, and shows what it
would publish. A version becomes a tag (v0.4) of the repository, whose main branch is the newest version; a head goes to
a repository of its own, me/encoder-<task>. The token comes from HF_TOKEN, from the file that `hf auth login` writes, or
from a trusted publisher. Repositories are private unless --public is given. If publishing is interrupted, give the same
command again to continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bioptimus_hf.publishing.options import CardOptions, PublishOptions, RunFolder, Selection

if TYPE_CHECKING:
    from bioptimus_hf.publishing.publish import PublishedVersion

OPTIONS = (RunFolder, PublishOptions, Selection, CardOptions)


def execute(run: RunFolder, options: PublishOptions, selection: Selection, card: CardOptions) -> None:
    """Publish, or show what would be published."""
    from bioptimus_hf.publishing.publish import publish

    versions = publish(
        run.output_dir,
        options.repo_id,
        versions=options.versions,
        private=not options.public,
        dry_run=not options.push,
        about=card.about(),
        selection=selection,
    )
    print(_summary(versions) if options.push else _plan(versions, options.public))


def _plan(versions: Sequence[PublishedVersion], public: bool) -> str:
    """Describe what would be published, with the complete cards."""
    lines = []
    for version in versions:
        lines += ["", f"## {version.repo_id} ({'public' if public else 'private'}), tag {version.tag}", ""]
        lines += ["| file | bytes | sha256 |", "| --- | --- | --- |"]
        lines += [f"| {file.path} | {file.size} | {file.sha256} |" for file in version.files]
        lines += ["", f"README.md of {version.repo_id} {version.tag}:", "", version.card]
    return "\n".join([*lines, "Nothing was sent. Add --push to publish."])


def _summary(versions: Sequence[PublishedVersion]) -> str:
    """Return a table of what is published now."""
    lines = ["| repository | tag | commit | URL |", "| --- | --- | --- | --- |"]
    lines += [f"| {version.repo_id} | {version.tag} | {version.commit} | {version.url} |" for version in versions]
    return "\n".join(lines)
