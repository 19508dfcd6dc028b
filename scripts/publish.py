#!/usr/bin/env python
r"""Publish versions of a run, and NER heads on them, on the Hugging Face Hub; by default only say what would be done.

    python scripts/publish.py --output_dir runs/mine --repo_id me/encoder --license apache-2.0 --language en \
        --corpus_description "abstracts of PubMed" --corpus_license "as PubMed states for each" --what trunk
    python scripts/publish.py ... --what all --versions 0.3 0.4 --push

A version becomes a tag (v0.4) of the repository, the newest one also `main`; a head gets a repository of its own,
me/encoder-<task>. Without --push nothing is sent and no token is needed. With it, the token is that of HF_TOKEN, of the
file that `hf auth login` writes, or of a trusted publisher, and repositories are private unless --public is given. What
was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bioptimus_hf.cli.legacy import parse, run
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.facts import About
from bioptimus_hf.publishing.publish import PublishedVersion, publish

logger = logging.getLogger("publish")


@dataclass
class Options:
    """What is published, and where."""

    repo_id: str = field(metadata={"help": "Repository of the encoder, owner/name; heads add -<task> to it"})
    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run"})
    what: Literal["trunk", "heads", "all"] = field(
        default="all", metadata={"help": "The encoder, its NER heads, or both"}
    )
    versions: list[str] | None = field(default=None, metadata={"help": "As in 0.3 0.4; by default all of the run"})
    tasks: list[str] | None = field(default=None, metadata={"help": "Tasks whose heads; by default all there are"})
    push: bool = field(default=False, metadata={"help": "Do it; without, say what would be done"})
    public: bool = field(default=False, metadata={"help": "Repositories that everybody sees"})
    adopt: bool = field(
        default=False,
        metadata={
            "help": "Add versions to a repository that was not made by this script: as tags, which leave its branches "
            "as they are"
        },
    )
    collection: str | None = field(
        default=None, metadata={"help": "Title of a collection to gather the repositories in"}
    )


@dataclass
class CardOptions:
    """What the cards say, and no run knows."""

    license: str = field(metadata={"help": "Of the published weights, by its name on the Hub, as apache-2.0"})
    language: str = field(metadata={"help": "Of the text, by its ISO 639 code, as en"})
    corpus_description: str = field(metadata={"help": "What the text of pre-training is, and where it is from"})
    corpus_license: str = field(metadata={"help": "Terms of that text"})
    ner_licenses: list[str] = field(
        default_factory=list, metadata={"help": "Terms of the annotated data of each task: task=TERMS ..."}
    )
    ner_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Where a task's data is on the Hub, if it is: task=NAME or task=NAME:CONFIGURATION ..."},
    )
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub name of the model that was adapted, where the run was given a folder"}
    )
    hardware: str | None = field(
        default=None, metadata={"help": "What the run was made on, where it does not record that itself"}
    )

    def about(self) -> About:
        """Return them as the cards take them."""
        return About(
            license=self.license,
            language=self.language,
            corpus=self.corpus_description,
            corpus_license=self.corpus_license,
            ner_licenses=pairs("--ner_licenses", self.ner_licenses),
            ner_datasets=pairs("--ner_datasets", self.ner_datasets),
            base_model=self.base_model_id,
            hardware=self.hardware,
        )


def main() -> None:
    """Publish, or say what would be published."""
    options, card = parse(Options, CardOptions, section="publish", description=__doc__)
    published = publish(
        options.output_dir,
        options.repo_id,
        versions=options.versions,
        private=not options.public,
        dry_run=not options.push,
        about=card.about(),
        what=options.what,
        tasks=options.tasks,
        adopt=options.adopt,
        collection=options.collection,
    )
    print(summary(published) if options.push else plan(published, options.public))


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """Return task=value as a mapping."""
    found = {}
    for one in given:
        task, equals, value = one.partition("=")
        if not (task and equals and value):
            raise InputError(f"{option} {one}: give it as task=value")
        found[task] = value
    return found


def plan(versions: Sequence[PublishedVersion], public: bool) -> str:
    """Return all that would be done, with the cards in full."""
    lines = []
    for one in versions:
        lines += ["", f"## {one.repo_id} ({'public' if public else 'private'}), tag {one.tag}", ""]
        lines += ["| file | bytes | sha256 |", "| --- | --- | --- |"]
        lines += [f"| {file.path} | {file.size} | {file.sha256} |" for file in one.files]
        lines += ["", f"README.md of {one.repo_id} {one.tag}:", "", one.card]
    return "\n".join([*lines, "Nothing was sent: give --push to do it."])


def summary(versions: Sequence[PublishedVersion]) -> str:
    """Return a table of what is there now."""
    lines = ["| repository | tag | commit | URL |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {one.repo_id} | {one.tag} | {one.commit} | {one.url} |" for one in versions)])


if __name__ == "__main__":
    run(main)
