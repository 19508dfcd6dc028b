"""Publish the versions of a run, and NER heads trained on them, on the Hugging Face Hub.

    bioptimus publish --output_dir runs/mine --repo_id me/encoder --what encoder --license apache-2.0 --language en \\
        --corpus_description "abstracts of PubMed" --corpus_license "terms of the NLM"

Without --push, nothing is sent and no token is needed: the command builds and checks everything, shows what it would
publish, and writes the model cards to OUTPUT_DIR/cards. A version becomes a tag (v0.4) of the repository, whose main
branch is the newest version; a head goes to a repository of its own, me/encoder-<task>. The token comes from HF_TOKEN,
from the file that `hf auth login` writes, or from a trusted publisher. Repositories are private unless --public is
given. If publishing is interrupted, give the same command again to continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.publishing.options import CardOptions, PublishOptions, RunFolder, Selection
from bioptimus_hf.storage import atomic_file

if TYPE_CHECKING:
    from bioptimus_hf.publishing.publish import PublishedVersion

OPTIONS = (RunFolder, PublishOptions, Selection, CardOptions)


_OPTION = {"corpus": "corpus_description", "base_model": "base_model_id"}
"""The options that have another name than the fact they give."""


def execute(run: RunFolder, options: PublishOptions, selection: Selection, card: CardOptions) -> None:
    """Publish, or show what would be published."""
    from bioptimus_hf.publishing.checks import MissingFacts
    from bioptimus_hf.publishing.publish import publish

    try:
        versions = publish(
            run.output_dir,
            options.repo_id,
            versions=options.versions,
            private=not options.public,
            dry_run=not options.push,
            about=card.about(),
            selection=selection,
        )
    except MissingFacts as error:
        needed = [
            " ".join([f"--{_OPTION.get(name, name)}", *(f"{task}=TERMS" for task in tasks)])
            for name, tasks in error.facts.items()
        ]
        raise InputError(
            f"the model cards state facts that the run doesn't record: give {', '.join(needed)}; see bioptimus publish "
            f"--help"
        ) from error
    print(_summary(versions) if options.push else _plan(versions, options.public, Path(run.output_dir)))


def _plan(versions: Sequence[PublishedVersion], public: bool, run: Path) -> str:
    """Return a table of what would be published, and write the cards to files."""
    lines = ["| repository | tag | commit message | files | size | card |", "| --- | --- | --- | --- | --- | --- |"]
    for version in versions:
        size = sum(file.size for file in version.files)
        card = _write_card(version, run / "cards")
        columns = (version.repo_id, version.tag, version.tag, len(version.files), f"{size / 1e6:,.1f} MB", card)
        lines.append(f"| {' | '.join(map(str, columns))} |")
    total = sum({file.sha256: file.size for version in versions for file in version.files}.values())
    number, kind = len({version.repo_id for version in versions}), "public" if public else "private"
    repositories = f"{number} {kind} {'repository' if number == 1 else 'repositories'}"
    lines += [
        "",
        f"{counted(len(versions), 'version')} in {repositories}, {total / 1e6:,.1f} MB to upload at most. The "
        f"Hub wasn't asked: with --push, what is already there isn't sent again.",
        "Nothing was sent. Add --push to publish.",
    ]
    return "\n".join(lines)


def _write_card(version: PublishedVersion, folder: Path) -> str:
    """Write the card of a version to a file, and return the file's name, or why there is none."""
    file = folder / f"{version.repo_id.partition('/')[2]}-{version.tag}.md"
    try:
        with atomic_file(file) as temporary:
            temporary.write_text(version.card, encoding="utf-8")
    except OSError as error:
        return f"not written ({error.strerror})"
    return str(file)


def _summary(versions: Sequence[PublishedVersion]) -> str:
    """Return a table of what is published now."""
    lines = ["| repository | tag | commit | URL |", "| --- | --- | --- | --- |"]
    lines += [f"| {version.repo_id} | {version.tag} | {version.commit} | {version.url} |" for version in versions]
    return "\n".join(lines)
