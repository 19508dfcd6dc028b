"""Tasks of named entity recognition: the five of BLURB and any other, from CoNLL files or the Hub."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset

from bioptimus_hf.artifacts import digest_of_rows, identity, read_yaml
from bioptimus_hf.corpus.conll import TAG, Sentence, begun, check_row, count_mentions, read_conll, types_of
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_FILES = {"train": ("train.tsv",), "validation": ("dev.tsv", "devel.tsv"), "test": ("test.tsv",)}
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class NerTask:
    """A task: three CoNLL files or a data set of the Hub, and what is known of them.

    Attributes:
        name: what results are filed under.
        folder: where its files lie below the source given to `load_ner`; empty: in the source itself.
        types: the entity types; by default those that occur in the training part.
        merged_type: name of the one type that all types are read as.
        mentions: published numbers of mentions in train, validation and test. Data with others is refused.
        common_copy: numbers of a copy in wide use that differs from the published ones; allowed, and named in the log.
        source: a folder or a data set of the Hub (`owner/name`, or `owner/name@revision`) that holds this task alone:
            what the caller of `load_ner` gives to it.
    """

    name: str
    folder: str = ""
    types: tuple[str, ...] | None = None
    merged_type: str | None = None
    mentions: tuple[int, int, int] | None = None
    common_copy: tuple[int, int, int] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise InputError(f"a task cannot be called {self.name!r}: give a name that a folder can have")
        types = [*(self.types or ()), *([] if self.merged_type is None else [self.merged_type])]
        for kind in types:
            if not TAG.fullmatch(f"B-{kind}"):
                raise InputError(f"task {self.name}: a type cannot be called {kind!r}: no blanks, no hyphen at an end")
        if self.types and len(set(self.types)) < len(self.types):
            raise InputError(f"task {self.name}: a type is given twice: {', '.join(self.types)}")


BLURB_NER: dict[str, NerTask] = {
    task.name: task
    for task in (
        NerTask("bc5-chem", "BC5-chem", types=("Chemical",), mentions=(5203, 5347, 5385)),
        NerTask(
            "bc5-disease",
            "BC5-disease",
            types=("Disease",),
            mentions=(4182, 4244, 4424),
            common_copy=(4182, 4246, 4424),
        ),
        NerTask("ncbi-disease", "NCBI-disease", types=("Disease",), mentions=(5134, 787, 960)),
        NerTask("bc2gm", "BC2GM", types=("GENE",), mentions=(15197, 3061, 6325)),
        # BLURB ignores the five types of JNLPBA.
        NerTask("jnlpba", "JNLPBA", merged_type="Entity", mentions=(46750, 4551, 8662)),
    )
}
"""The NER tasks of BLURB, with the splits of Crichton et al. (2017) and the mention counts of Gu et al. (2020)."""


JNLPBA_TYPES = NerTask(
    "jnlpba-types",
    "JNLPBA",
    types=("DNA", "RNA", "cell_line", "cell_type", "protein"),
    mentions=BLURB_NER["jnlpba"].mentions,
)
"""JNLPBA with its own five types, which is no task of BLURB."""

NER_TASKS = {**BLURB_NER, JNLPBA_TYPES.name: JNLPBA_TYPES}
"""The tasks that are known by name."""


def load_ner(task: str | NerTask, source: str | Path) -> DatasetDict:
    """Read a task's training, validation and test part, and check its numbers of mentions.

    Args:
        task: a key of `BLURB_NER`, `"jnlpba-types"`, or a task of your own: `NerTask("mine")`.
        source: the folder that holds the task's folder, or the files themselves (`train.tsv`, `dev.tsv` or `devel.tsv`,
            and `test.tsv`); or the name of a data set of the Hub, maybe with `@revision`, whose splits `train`,
            `validation` and `test` have the columns `tokens` and `ner_tags` (class labels).

    Returns:
        `train`, `validation` and `test` with the columns `tokens` (strings) and `ner_tags` (class labels: `O`, then
        `B-` and `I-` of each type; see `label_names`).

    Raises:
        InputError: no such task, files that are missing or malformed (file and line), a type in `validation` or `test`
            that does not occur in `train`, other numbers of mentions than those published, or another task under the
            name of one of BLURB.
    """
    task = _named(task)
    blurb = BLURB_NER.get(task.name)
    if blurb and replace(task, folder=blurb.folder, source=blurb.source) != blurb:
        raise InputError(
            f"{task.name} is a task of BLURB, with numbers of mentions and types of its own: give another name"
        )
    parts = _read_hub(task, str(source)) if is_hub_name(source) else _read_files(task, source)
    types = task.types or types_of(parts["train"])
    _check_mentions(task, {split: count_mentions(parts[split]) for split in SPLITS})
    if task.merged_type:
        parts = {split: _merged(sentences, task.merged_type) for split, sentences in parts.items()}
        types = (task.merged_type,)
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=_tags_of_types(types))))
    return DatasetDict({split: _dataset(parts[split], features) for split in SPLITS})


def read_task(path: str | Path) -> NerTask:
    """Read a task from YAML: a mapping with `name` and, as they are needed, the other attributes of `NerTask`.

    A `source` that is a folder is looked for beside the file. Without `source` and `folder`, files are looked for as
    for a task that is given by its name: in a folder of that name, or in the one that is given.

    Raises:
        InputError: it cannot be read, or a key or a value is not one of `NerTask`.
    """
    path = Path(path)
    content = read_yaml(path)
    fields = [field.name for field in dataclasses.fields(NerTask)]
    if not isinstance(content, dict) or "name" not in content:
        raise InputError(f"{path}: a task is a mapping with `name` and maybe {', '.join(fields[1:])}")
    for key, value in content.items():
        if key not in fields:
            raise InputError(f"{path}: {key} is unknown; a task has {', '.join(fields)}")
        content[key] = _field(f"{path}: {key}", key, value)
    if content.get("source") and (beside := path.parent / content["source"]).is_dir():
        content["source"] = str(beside)
    if "source" not in content:
        content.setdefault("folder", content["name"])
    return NerTask(**content)


def task_identity(task: str | NerTask, source: str | Path, dataset: DatasetDict) -> dict[str, str]:
    """Return what makes the parts of a task themselves, for `artifacts`: hashes of files, or of rows from the Hub.

    Args:
        dataset: what `load_ner` read from this source.
    """
    train = dataset["train"]
    labels = label_names(train)
    if is_hub_name(source):
        return {split: f"rows:{digest_of_rows(part)} {' '.join(labels)}" for split, part in dataset.items()}
    occurring = _tags_of_types(types_of(list(zip(train["tokens"], tags_of(train), strict=True))))
    named = "" if labels == occurring else f" {' '.join(labels)}"  # types that the task names, and not the files
    return {split: identity(file) + named for split, file in task_files(task, source).items()}


def is_hub_name(source: str | Path) -> bool:
    """Say whether this is the name of a data set of the Hub: none of a folder here, and of the form `owner/name`."""
    return not Path(source).exists() and _HUB_NAME.fullmatch(str(source)) is not None


def task_files(task: str | NerTask, source: str | Path) -> dict[str, Path]:
    """Return the file of each split.

    Raises:
        InputError: one is not there.
    """
    task = _named(task)
    places = list(dict.fromkeys((Path(source) / task.folder, Path(source))))
    folder = next((place for place in places if (place / "train.tsv").is_file()), None)
    if folder is None:
        raise InputError(f"no train.tsv for the task {task.name} in {' or '.join(map(str, places))}")
    files = {}
    for split, names in _FILES.items():
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise InputError(f"no {' or '.join(names)} in {folder}: a task needs train.tsv, dev.tsv and test.tsv")
        files[split] = found[0]
    return files


def label_names(dataset: Dataset) -> list[str]:
    """Return the tags of a data set from `load_ner`, in the order of their ids."""
    names: list[str] = dataset.features["ner_tags"].feature.names
    return names


def tags_of(dataset: Dataset) -> list[list[str]]:
    """Return the tags of a data set from `load_ner` as strings, for `entity_scores`."""
    names = label_names(dataset)
    return [[names[number] for number in numbers] for numbers in dataset["ner_tags"]]


def _named(task: str | NerTask) -> NerTask:
    if isinstance(task, NerTask):
        return task
    if task not in NER_TASKS:
        raise InputError(f"unknown task {task!r}: give one of {', '.join(NER_TASKS)}, or a NerTask of your own")
    return NER_TASKS[task]


def _read_files(task: NerTask, source: str | Path) -> dict[str, list[Sentence]]:
    files = task_files(task, source)
    train = read_conll(files["train"], types=task.types)
    types = _types(task, train, files["train"])
    return {"train": train} | {split: read_conll(files[split], types=types) for split in SPLITS[1:]}


def _read_hub(task: NerTask, source: str) -> dict[str, list[Sentence]]:
    name, revision = _HUB_NAME.fullmatch(source).groups()  # type: ignore[union-attr]  # else it is no such name
    try:
        found = load_dataset(name, revision=revision)
    except Exception as error:  # the client raises many kinds; all mean that this name cannot be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: neither a folder here nor a data set to be had from the Hub ({reason})") from error
    if missing := [split for split in SPLITS if split not in found]:
        raise InputError(f"{source} has no split {missing[0]!r}: it has {', '.join(found)}, a task needs {SPLITS}")
    train = _sentences(found["train"], f"{source}, train", task.types)
    types = _types(task, train, f"{source}, train")
    return {"train": train} | {split: _sentences(found[split], f"{source}, {split}", types) for split in SPLITS[1:]}


def _sentences(dataset: Dataset, where: str, types: Collection[str] | None) -> list[Sentence]:
    """Read the rows of a data set as `read_conll` reads the sentences of a file."""
    words_of, tags = (getattr(dataset.features.get(name), "feature", None) for name in ("tokens", "ner_tags"))
    if getattr(words_of, "dtype", None) not in ("string", "large_string") or not isinstance(tags, ClassLabel):
        raise InputError(
            f"{where}: the columns `tokens` (texts) and `ner_tags` (class labels) are needed: {dataset.features}"
        )
    sentences: list[Sentence] = []
    repaired = 0
    for number, (words, ids) in enumerate(zip(dataset["tokens"], dataset["ner_tags"], strict=True)):
        if words is None or ids is None or None in words or None in ids:
            raise InputError(f"{where}, row {number}: a token or a tag is missing (null)")
        if len(words) != len(ids):
            raise InputError(f"{where}, row {number}: {len(words)} tokens and {len(ids)} tags")
        if not all(0 <= one < len(tags.names) for one in ids):
            raise InputError(f"{where}, row {number}: a tag is none of the {len(tags.names)} class labels")
        read: Sentence = ([], [])
        for word, tag in zip(words, tags.int2str(ids), strict=True):
            token = " ".join(word.split())  # tabs and line ends part the columns and rows of what is saved
            check_row(f"{where}, row {number}", token, tag, types)
            mended = begun(tag, read[1])
            repaired += mended != tag
            read[0].append(token)
            read[1].append(mended)
        if words:
            sentences.append(read)
    if repaired:
        logger.warning("%s: %d I- tags continue nothing, read as B-", where, repaired)
    if not sentences:
        raise InputError(f"{where} holds no sentence")
    return sentences


def _tags_of_types(types: Iterable[str]) -> list[str]:
    return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def _types(task: NerTask, train: Sequence[Sentence], where: str | Path) -> tuple[str, ...]:
    types = task.types or types_of(train)
    if not types:
        raise InputError(f"{where} holds no entity: every tag is O")
    return types


def _field(where: str, key: str, value: Any) -> Any:
    kind, size = {"types": (str, None), "mentions": (int, 3), "common_copy": (int, 3)}.get(key, (None, None))
    if kind is None:
        if not isinstance(value, str):
            raise InputError(f"{where} must be text, not {value!r}")
        return value
    if not isinstance(value, list) or not value or not all(type(one) is kind for one in value):
        raise InputError(f"{where} must be a list of {'names' if kind is str else 'numbers'}, not {value!r}")
    if size and len(value) != size:
        raise InputError(f"{where} must be three numbers, of {', '.join(SPLITS)}, not {value!r}")
    return tuple(value)


def _check_mentions(task: NerTask, found: Mapping[str, int]) -> None:
    counts = tuple(found.values())
    shown = ", ".join(f"{split} {count}" for split, count in found.items())
    if task.mentions is None or counts == task.mentions:
        logger.info("%s: mentions %s%s", task.name, shown, ", as published" if task.mentions else "")
        return
    published = ", ".join(f"{split} {count}" for split, count in zip(SPLITS, task.mentions, strict=True))
    if counts != task.common_copy:
        raise InputError(
            f"this is not {task.name}: mentions are {shown}, published are {published}; "
            f"get the data with the published splits, or give the task a name of its own"
        )
    logger.info("%s: mentions %s: the copy in wide use; published are %s", task.name, shown, published)


def _merged(sentences: Sequence[Sentence], kind: str) -> list[Sentence]:
    return [(tokens, [tag if tag == "O" else f"{tag[:2]}{kind}" for tag in tags]) for tokens, tags in sentences]


def _dataset(sentences: Sequence[Sentence], features: Features) -> Dataset:
    tokens, tags = zip(*sentences, strict=True)
    label = features["ner_tags"].feature
    numbers = [label.str2int(row) for row in tags]
    return Dataset.from_dict({"tokens": list(tokens), "ner_tags": numbers}, features=features)
