"""Define the options of publishing, of packages and of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.wheel import normal_license, normal_name, normal_version

What = Literal["encoder", "heads", "all"]


@dataclass(frozen=True)
class RunFolder:
    """Which run to read."""

    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run", "path": "output"})


@check_call()
@dataclass(frozen=True)
class Selection:
    """What to publish of a run, and where it may go.

    Attributes:
        what: the encoder, its NER heads (at least one), or all: the encoder and the heads that exist.
        tasks: tasks whose heads are published; by default every task that has a head.
        adopt: whether versions may be added to a repository that `publish` didn't create. Branches stay as they are.
        collection: title of a collection of the owner; the repositories are added to it.
    """

    what: What = field(
        default="all",
        metadata={"help": "Publish the encoder, its NER heads, or all: the encoder and the heads that exist"},
    )
    tasks: list[str] | None = field(
        default=None, metadata={"help": "Tasks whose heads are published; by default every task that has a head"}
    )
    adopt: bool = field(
        default=False,
        metadata={
            "help": "Add versions to a repository that wasn't created by this command, as tags; its branches stay as "
            "they are"
        },
    )
    collection: str | None = field(
        default=None, metadata={"help": "Title of a collection of the owner to add the repositories to"}
    )


@dataclass(frozen=True)
class PublishOptions:
    """Where to publish, and whether to do it or only to show what would be done."""

    repo_id: str = field(metadata={"help": "Repository of the encoder, owner/name; a head goes to owner/name-<task>"})
    versions: list[str] | None = field(
        default=None, metadata={"help": "Versions to publish, such as 0.3 0.4; by default all versions of the run"}
    )
    push: bool = field(default=False, metadata={"help": "Publish; without it, only show what would be published"})
    public: bool = field(default=False, metadata={"help": "Make the repositories public"})


@check_call()
@dataclass(frozen=True)
class PackageOptions:
    """Which head becomes a package, and what the package says about itself.

    Raises:
        InputError: the name isn't that of a package and a module, the licence is missing or not an SPDX expression, or
            the version can't be read.
    """

    head: str = field(
        metadata={"help": "Folder, installed package or Hub name of a NER head", "positional": True, "path": True}
    )
    name: str = field(metadata={"help": "Name of the package, such as disease-finder"})
    license: str = field(
        default="", metadata={"help": "Licence of the weights, as an SPDX expression: Apache-2.0 (needed)"}
    )
    version: str | None = field(
        default=None,
        metadata={"help": "Version of the package; by default that of the encoder, such as 0.4, or 0.1.0"},
    )
    license_file: str | None = field(
        default=None, metadata={"help": "File with the text of the licence, to put into the package", "path": True}
    )
    output_dir: str = field(default="dist", metadata={"help": "Folder for the wheel", "path": "output"})
    force: bool = field(default=False, metadata={"help": "Replace another wheel of the same name and version"})

    def __post_init__(self) -> None:
        for name in ("head", "output_dir"):
            if not getattr(self, name):
                raise InputError("is empty: name a folder", argument=name)
        normal_name(self.name)
        normal_license(self.license)
        if self.version is not None:
            normal_version(self.version)


@check_call()
@dataclass(frozen=True)
class About:
    """Facts for the model cards that no run records.

    Attributes:
        license: licence of the published weights, by its identifier on the Hub (`apache-2.0`).
        language: language of the text, as an ISO 639 code.
        corpus: what the pre-training text is and where it comes from.
        corpus_license: terms of use of that text.
        ner_licenses: terms of use of the annotated data, by task.
        base_model: Hub name (`name@revision`) of the model that was adapted; needed only if the run was given a folder.
        ner_datasets: data set on the Hub, as `name` or `name:configuration`, by task; leave out tasks that have none.
        other_encoders: descriptions of encoders whose heads are compared with those of the run, besides the model that
            was adapted, by the label of these heads: for example what a control was trained on.
    """

    license: str
    language: str
    corpus: str
    corpus_license: str
    ner_licenses: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None
    ner_datasets: Mapping[str, str] = field(default_factory=dict)
    other_encoders: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CardOptions:
    """Facts for the model cards that no run records, in the form that a command line can give them."""

    # All are needed, but a missing one is reported by `stage`, together with what else the run needs.
    license: str = field(
        default="", metadata={"help": "Licence of the published weights, as named on the Hub: apache-2.0 (needed)"}
    )
    language: str = field(default="", metadata={"help": "Language of the text, as an ISO 639 code: en (needed)"})
    corpus_description: str = field(
        default="", metadata={"help": "What the pre-training text is and where it comes from (needed)"}
    )
    corpus_license: str = field(default="", metadata={"help": "Terms of use of the pre-training text (needed)"})
    ner_licenses: list[str] = field(
        default_factory=list, metadata={"help": "Terms of use of the annotated data, for each task: task=TERMS ..."}
    )
    ner_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets of the tasks on the Hub: task=NAME or task=NAME:CONFIGURATION ..."},
    )
    other_encoders: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Other encoders whose heads the cards compare with those of the run, each by its label in "
            "finetune-ner --models and with a description: control='the base, pre-trained on the same text' ..."
        },
    )
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub name of the model that was adapted, if the run was given a folder"}
    )

    def __post_init__(self) -> None:
        self.about()

    def about(self) -> About:
        """Return the facts as `publish` takes them.

        Raises:
            InputError: an entry of `ner_licenses`, `ner_datasets` or `other_encoders` isn't written as name=value.
        """
        return About(
            license=self.license,
            language=self.language,
            corpus=self.corpus_description,
            corpus_license=self.corpus_license,
            ner_licenses=_by_name("ner_licenses", "task=TERMS", self.ner_licenses),
            ner_datasets=_by_name("ner_datasets", "task=NAME", self.ner_datasets),
            other_encoders=_by_name("other_encoders", "LABEL=DESCRIPTION", self.other_encoders),
            base_model=self.base_model_id,
        )


@dataclass(frozen=True)
class ReportOptions:
    """What to add to the report."""

    text: str | None = field(
        default=None, metadata={"help": "Sentence whose entities are shown, found by a head of the newest version"}
    )
    note: str | None = field(
        default=None, metadata={"help": "What a reader should know before the figures, such as where the text is from"}
    )


def _by_name(argument: str, form: str, entries: Sequence[str]) -> dict[str, str]:
    values = {}
    for entry in entries:
        name, value = (part.strip() for part in entry.partition("=")[::2])
        if not (name and value):
            raise InputError(f"{entry} must have the form {form}", argument=argument)
        if name in values:
            raise InputError(f"{name} is given twice", argument=argument)
        values[name] = value
    return values
