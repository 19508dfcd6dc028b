"""Define NER tasks (the five of BLURB, or your own) and read their data from annotated files or the Hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bioptimus_hf.argument_checks import check_call, check_columns
from bioptimus_hf.artifacts import identity, read_yaml
from bioptimus_hf.corpus.conll import Sentence, has_types, read_conll_with_documents, types_of
from bioptimus_hf.corpus.hub import load_pinned, pin_dataset
from bioptimus_hf.corpus.ner_files import SPLIT_NAMES, UNSPLIT, LabelFiles, find_labels
from bioptimus_hf.corpus.reading import Notes, ReadOptions
from bioptimus_hf.corpus.tags import TAG, TagConverter, parse_tag
from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.models import MAX_LENGTH, is_hub_name
from bioptimus_hf.ner.document_splits import SplitSentences, read_split_documents, split_documents, types_found
from bioptimus_hf.ner.splitting import SHARES

logger = logging.getLogger(__name__)

SPLITS = tuple(SPLIT_NAMES)
READ_KEYS = ("text_column", "id_column", "encoding", "errors", "max_document_megabytes", "type_name")
"""What `read` in a task's YAML file may say."""
_RARE, _RARE_VARIANT = 200, 20  # how many times as often another type occurs, or one with a similar name


@check_call()
@dataclass(frozen=True)
class NerTask:
    """A task: files with annotations or a data set on the Hub, and what is known about them.

    Attributes:
        name: names the folder of the results.
        folder: sub-folder with the task's files, relative to the source given to `load_ner`; by default, `name`. Files
            in the source itself are found, too.
        types: entity types; by default those that occur in the training set. In CoNLL files and on the Hub, others are
            errors; of annotated documents in other formats, they are left out.
        merged_type: if given, all types are read as this one. Tags without a type (`B` and `I`) get this type, the
            only one of `types`, or the name of the task.
        mentions: published numbers of mentions in train, validation and test. Other data is rejected.
        common_copy: numbers of mentions of a widely used copy that differs from the published data; accepted and
            logged.
        source: file, folder or Hub data set (`owner/name` or `owner/name@revision`) to pass to `load_ner`, for a task
            with a source of its own.
        shares: of training, development and test set, if the source isn't split; by default 0.7, 0.15 and 0.15.
        split_seed: another one gives another split; by default 0.
        read: how files are read.

    Raises:
        InputError: a name, type, share or seed is invalid.
    """

    name: str
    folder: str = ""
    types: tuple[str, ...] | None = None
    merged_type: str | None = None
    mentions: tuple[int, int, int] | None = None
    common_copy: tuple[int, int, int] | None = None
    source: str = ""
    shares: tuple[float, float, float] | None = None
    split_seed: int | None = None
    read: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise InputError(f"a task can't be called {self.name!r}: give a name that works as a folder name")
        types = [*(self.types or ()), *([] if self.merged_type is None else [self.merged_type])]
        for kind in types:
            if not TAG.fullmatch(f"B-{kind}"):
                raise InputError(
                    f"task {self.name}: a type can't be called {kind!r}: no spaces, no hyphen at either end"
                )
        if self.types and len(set(self.types)) < len(self.types):
            raise InputError(f"task {self.name}: a type occurs twice: {', '.join(self.types)}")
        shares = SHARES if self.shares is None else self.shares
        if len(shares) != len(SPLITS) or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1):
            given = ", ".join(map(str, shares))
            raise InputError(
                f"task {self.name}: must be the shares of {', '.join(SPLITS)}, above 0 and 1 in all, not {given}",
                argument="shares",
            )
        if self.split_seed is not None and self.split_seed < 0:
            raise InputError(f"task {self.name}: can't be negative", argument="split_seed")


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
"""JNLPBA with its original five types; not part of BLURB."""

NER_TASKS = {**BLURB_NER, JNLPBA_TYPES.name: JNLPBA_TYPES}
"""Tasks that can be given by name."""


@check_call()
def load_ner(task: str | NerTask, source: str | Path) -> DatasetDict:
    """Read the training, validation and test set of a task, and check the numbers of mentions.

    Files may be CoNLL for each split, or annotated documents in any format (see `corpus.formats.ANNOTATED`): a file or
    folder for each split, or a single file or folder, whose documents are split at random (see `NerTask`) so that
    documents stay whole, and each split has its share of every type. Their text is divided into sentences and words as
    annotation does; what can't be kept is logged with a count and an example.

    The number of mentions of each type is logged for each split, and a warning names types that look like errors.

    Args:
        task: a key of `BLURB_NER`, `"jnlpba-types"`, or your own task, e.g. `NerTask("mine")`.
        source: folder that holds the task's folder or the files themselves (see `corpus.ner_files.find_labels`); a file
            with annotated documents; or a data set on the Hub (`owner/name` or `owner/name@revision`) with the splits
            `train`, `validation` and `test` and the columns `tokens` (list of strings) and `ner_tags` (list of class
            labels). Tags as for `read_conll`.

    Returns:
        `train`, `validation` and `test` with the columns `tokens` (list of strings) and `ner_tags` (list of class
        labels: `O`, then `B-` and `I-` of each type; see `label_names`). If files say which document a sentence is
        from, there is a column `document` (string; null where it isn't known), and if documents consist of several
        passages, such as title and abstract, a column `passage` (their numbers). Sentences are in the order of the
        source.

    Raises:
        InputError: the task is unknown; files are missing or malformed (names file and line); a type in `validation` or
            `test` doesn't occur in `train`; a split has no mention, and the task names no types; the numbers of
            mentions differ from the published ones; or a task of your own has the name of a BLURB task.
    """
    task = _named(task)
    blurb = BLURB_NER.get(task.name)
    if blurb and replace(task, folder=blurb.folder, source=blurb.source) != blurb:
        raise InputError(f"{task.name} is a BLURB task with fixed types and mention counts: choose another name")
    splits = _read_hub(task, str(source)) if is_hub_name(source) else _read_files(task, source)
    types = task.types or types_of(splits["train"].sentences)
    mentions = {split: mentions_by_type(splits[split].sentences) for split in SPLITS}
    _check_mentions(task, {split: counts.total() for split, counts in mentions.items()})
    _report_splits(task, splits, mentions)
    for split in SPLITS:
        _check_sentences(task, splits[split], mentions[split])
    if task.merged_type:
        merged = task.merged_type
        splits = {name: replace(split, sentences=_merged(split.sentences, merged)) for name, split in splits.items()}
        types = (task.merged_type,)
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=_tags_of_types(types))))
    if any(document is not None for split in splits.values() for document in split.documents):
        features["document"] = Value("string")
    if any(number > 1 for split in splits.values() for number in split.passages):
        features["passage"] = Value("int64")
    return DatasetDict({split: _dataset(splits[split], features) for split in SPLITS})


def read_task(path: str | Path) -> NerTask:
    """Read a task from a YAML file: a mapping with `name` and, optionally, the other attributes of `NerTask`.

    A `source` that names a file or folder beside the YAML file means that one. Without `source` and `folder`, `folder`
    is the name of the task.

    Raises:
        InputError: the file can't be read, or a key or value is invalid.
    """
    path = Path(path)
    content = read_yaml(path)
    fields = [field.name for field in dataclasses.fields(NerTask)]
    if not isinstance(content, dict) or "name" not in content:
        raise InputError(f"{path}: a task is a mapping with `name` and, optionally, {', '.join(fields[1:])}")
    for key, value in content.items():
        if key not in fields:
            raise InputError(f"{path}: unknown key {key}; a task has {', '.join(fields)}")
        content[key] = _field(f"{path}: {key}", key, value)
    if content.get("source") and (beside := path.parent / content["source"]).exists():
        content["source"] = str(beside)
    if "source" not in content:
        content.setdefault("folder", content["name"])
    try:
        return NerTask(**content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def task_identity(task: str | NerTask, source: str | Path, dataset: DatasetDict) -> dict[str, str]:
    """Return the identity of each split, for `artifacts`.

    It is the hash of a CoNLL file, the name and commit of a Hub data set, or, where the split is made of annotated
    documents, the hash of its sentences.

    Args:
        source: as given to `load_ner`; pin a Hub data set with `pin_source` first, so that both mean the same commit.
        dataset: what `load_ner` returned.
    """
    train = dataset["train"]
    labels = label_names(train)
    occurring = _tags_of_types(types_of(list(zip(train["tokens"], tags_of(train), strict=True))))
    named = f" {' '.join(labels)}"  # types that the task names, and the data doesn't
    if is_hub_name(source):
        pinned = pin_source(source)
        names = load_pinned(pinned)["train"].features["ner_tags"].feature.names
        typed = any(tag.type for tag in map(parse_tag, names) if tag)
        suffix = "" if labels == occurring and typed else named
        return {split: identity(f"{pinned}:{split}") + suffix for split in SPLITS}
    task = _named(task)
    if not _is_read_as_conll(task, _find_labels(task, source, report=False)):
        return {
            split: f"sentences:{_digest(dataset[split])}" + ("" if labels == occurring else named) for split in SPLITS
        }
    files = task_files(task, source)
    suffix = "" if labels == occurring and has_types(files["train"]) else named
    return {split: identity(file) + suffix for split, file in files.items()}


def pin_source(source: str | Path) -> str:
    """Return a Hub data set as `name@commit`, and a folder unchanged.

    Offline, the commit is the one that the revision pointed to when it was last looked up online.

    Raises:
        InputError: the data set isn't available.
    """
    return pin_dataset(str(source)) if is_hub_name(source) else str(source)


def task_files(task: str | NerTask, source: str | Path) -> dict[str, Path]:
    """Return the path of each split's CoNLL file.

    Files are called `train`, `dev` (or `devel`, `valid`, `validation`, `val`) and `test`, and end in `.tsv`, `.conll`,
    `.iob`, `.iob2`, `.bio` or, if there are no such files, `.txt`; `.gz` may follow.

    Raises:
        InputError: a file is missing or has another format, or there are several for a split.
    """
    found = _find_labels(_named(task), source, report=False)
    if not found.is_conll:
        raise InputError(f"{found.place} has no CoNLL file for each of {', '.join(SPLITS)}: add those that are missing")
    return {split: next(iter(files)) for split, files in found.files.items()}


def check_splits(dataset: DatasetDict, splits: Iterable[str], *, argument: str) -> None:
    """Raise if a data set isn't like one from `load_ner`.

    Raises:
        InputError: it lacks one of the splits, or a split lacks a column.
    """
    for split in splits:
        if split not in dataset:
            raise InputError(f"it has no split {split!r}, only {', '.join(dataset) or 'none'}", argument=argument)
        check_columns(dataset[split], ("tokens", "ner_tags"), argument=f"{argument}[{split!r}]")


def label_names(dataset: Dataset) -> list[str]:
    """Return the tags of a data set from `load_ner` in the order of their ids."""
    names: list[str] = dataset.features["ner_tags"].feature.names
    return names


def tags_of(dataset: Dataset) -> list[list[str]]:
    """Return the tags of each sentence of a data set from `load_ner` as strings, for `entity_scores`."""
    names = label_names(dataset)
    return [[names[number] for number in numbers] for numbers in dataset["ner_tags"][:]]


def documents_of(dataset: Dataset) -> list[tuple[Any, ...]]:
    """Return what is equal for neighbouring sentences that are read together, for a data set from `load_ner`.

    It is the document and its passage, which annotation reads apart, too. A sentence whose document isn't known is read
    by itself, unless no document is: then all sentences count as one document.
    """
    if "document" not in dataset.column_names:
        return [()] * len(dataset)
    passages = dataset["passage"][:] if "passage" in dataset.column_names else [0] * len(dataset)
    pairs = enumerate(zip(dataset["document"][:], passages, strict=True))
    return [(number,) if document is None else (document, passage) for number, (document, passage) in pairs]


def _named(task: str | NerTask) -> NerTask:
    if isinstance(task, NerTask):
        return task
    if task not in NER_TASKS:
        raise InputError(f"unknown task {task!r}: give one of {', '.join(NER_TASKS)}, or your own NerTask")
    return NER_TASKS[task]


def mentions_by_type(sentences: Iterable[Sentence]) -> Counter[str]:
    """Return the number of mentions of each entity type."""
    return Counter(tag[2:] for _, tags in sentences for tag in tags if tag.startswith("B-"))


def _type_name(task: NerTask, types: Sequence[str] | None) -> str | None:
    """Return the type of tags that carry none, given the types that are known; None if it isn't clear.

    The name of a task may not be possible as that of a type.
    """
    if task.merged_type or types:
        return task.merged_type or (types[0] if types and len(types) == 1 else None)
    return task.name if TAG.fullmatch(f"B-{task.name}") else None


def _find_labels(task: NerTask, source: str | Path, *, report: bool) -> LabelFiles:
    return find_labels(task.name, source, task.folder or task.name, nested=bool(task.source), report=report)


def _is_read_as_conll(task: NerTask, files: LabelFiles) -> bool:
    return files.is_conll and task.read == ReadOptions()


def _read_files(task: NerTask, source: str | Path) -> dict[str, SplitSentences]:
    found = _find_labels(task, source, report=True)
    options = replace(task.read, type_name=task.read.type_name or _type_name(task, task.types))
    if UNSPLIT in found.files:
        given = SHARES if task.shares is None else task.shares, task.split_seed or 0
        return split_documents(task.name, found, options, task.types, *given)
    _check_is_to_be_split(task, found.place)
    if not _is_read_as_conll(task, found):
        return read_split_documents(found, options, task.types)
    files = {split: next(iter(files)) for split, files in found.files.items()}
    train = _read_conll(files["train"], task.types, _type_name(task, task.types))
    types = types_found(task.types, train.sentences, files["train"])
    name = _type_name(task, types)
    return {"train": train} | {split: _read_conll(files[split], types, name) for split in SPLITS[1:]}


def _read_conll(path: Path, types: Collection[str] | None, type_name: str | None) -> SplitSentences:
    return SplitSentences(str(path), *read_conll_with_documents(path, types=types, type_name=type_name))


def _check_is_to_be_split(task: NerTask, where: str | Path) -> None:
    """Raise if a task says how to split what is split already."""
    for name in ("shares", "split_seed"):
        if getattr(task, name) is not None:
            raise InputError(f"task {task.name}: {where} is split already: leave it out", argument=name)


def _read_hub(task: NerTask, source: str) -> dict[str, SplitSentences]:
    _check_is_to_be_split(task, source)
    if task.read != ReadOptions():
        raise InputError(f"task {task.name}: {source} is no file: leave it out", argument="read")
    found = load_pinned(pin_source(source))
    if missing := [split for split in SPLITS if split not in found]:
        raise InputError(
            f"{source} has no split {missing[0]!r}: it has {', '.join(found)}; a task needs {', '.join(SPLITS)}"
        )
    train = _read_rows(found["train"], f"{source}, train", task.types, _type_name(task, task.types))
    types = types_found(task.types, train.sentences, f"{source}, train")
    name = _type_name(task, types)
    rest = {split: _read_rows(found[split], f"{source}, {split}", types, name) for split in SPLITS[1:]}
    return {"train": train} | rest


def _read_rows(dataset: Dataset, where: str, types: Collection[str] | None, type_name: str | None) -> SplitSentences:
    """Check the rows of a Hub data set and return its sentences, as `read_conll` does for a file."""
    tokens, tags = (getattr(dataset.features.get(name), "feature", None) for name in ("tokens", "ner_tags"))
    if getattr(tokens, "dtype", None) not in ("string", "large_string") or not isinstance(tags, ClassLabel):
        raise InputError(
            f"{where}: expected the columns `tokens` (strings) and `ner_tags` (class labels), found {dataset.features}"
        )
    sentences: list[Sentence] = []
    notes = Notes(where)
    converter = TagConverter(notes.note, types, type_name)
    for number, (words, ids) in enumerate(zip(dataset["tokens"], dataset["ner_tags"], strict=True)):
        row = f"{where}, row {number}"
        _check_columns(row, words, ids, len(tags.names))
        # Tabs and line breaks separate columns and rows in CoNLL files.
        cleaned = [" ".join(word.split()) for word in words]
        if "" in cleaned:
            raise InputError(f"{row}: the token is empty")
        names = tags.int2str(ids)
        parsed = [converter.parse(row, name) for name in names]
        if words:
            sentences.append((cleaned, converter.convert(names, parsed, "row", [number] * len(names))))
    notes.report()
    if not sentences:
        raise InputError(f"{where} contains no sentences")
    return SplitSentences(where, sentences, [None] * len(sentences))


def _check_columns(row: str, words: list[str | None] | None, ids: list[int | None] | None, labels: int) -> None:
    if words is None or ids is None or None in words or None in ids:
        raise InputError(f"{row}: a token or a tag is missing (null)")
    if len(words) != len(ids):
        raise InputError(f"{row}: {len(words)} tokens and {len(ids)} tags")
    if not all(number is not None and 0 <= number < labels for number in ids):
        raise InputError(f"{row}: a tag is not one of the {labels} class labels")


def _tags_of_types(types: Iterable[str]) -> list[str]:
    return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def _field(where: str, key: str, value: Any) -> Any:
    """Check the value of a key of a task's YAML file, turn lists into tuples, and what is read into its options."""
    if key == "read":
        return _read_options(where, value)
    if key == "split_seed":
        if type(value) is not int:
            raise InputError(f"{where} must be a whole number, not {value!r}")
        return value
    kinds: tuple[type, ...]
    kinds, size = {
        "types": ((str,), None),
        "mentions": ((int,), 3),
        "common_copy": ((int,), 3),
        "shares": ((int, float), 3),
    }.get(key, ((), None))
    if not kinds:
        if not isinstance(value, str):
            raise InputError(f"{where} must be a string, not {value!r}")
        return value
    if not isinstance(value, list) or not value or not all(type(item) in kinds for item in value):
        raise InputError(f"{where} must be a list of {'names' if str in kinds else 'numbers'}, not {value!r}")
    if size and len(value) != size:
        raise InputError(f"{where} must be three numbers ({', '.join(SPLITS)}), not {value!r}")
    return tuple(value)


def _read_options(where: str, value: Any) -> ReadOptions:
    if not isinstance(value, dict) or not value.keys() <= set(READ_KEYS):
        raise InputError(f"{where} must be a mapping with some of {', '.join(READ_KEYS)}, not {value!r}")
    try:
        return ReadOptions(**value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_mentions(task: NerTask, found: Mapping[str, int]) -> None:
    counts = tuple(found.values())
    shown = ", ".join(f"{split} {count}" for split, count in found.items())
    if task.mentions is None or counts == task.mentions:
        logger.info("%s: mentions %s%s", task.name, shown, ", as published" if task.mentions else "")
        return
    published = ", ".join(f"{split} {count}" for split, count in zip(SPLITS, task.mentions, strict=True))
    if counts != task.common_copy:
        raise InputError(
            f"this is not {task.name}: it has mentions {shown}, but the published data has {published}; get the "
            f"data with the published splits, or give your task another name"
        )
    logger.info("%s: mentions %s: a widely used copy; the published data has %s", task.name, shown, published)


def _report_splits(task: NerTask, splits: Mapping[str, SplitSentences], mentions: Mapping[str, Counter[str]]) -> None:
    """Log how many sentences, documents and mentions of each type there are; warn of types that look like errors."""
    total = sum(mentions.values(), Counter[str]())
    types = sorted({*total, *(task.types or ())})
    for split, counts in mentions.items():
        documents = set(splits[split].documents) - {None}
        size = counted(len(splits[split].sentences), "sentence")
        size += f" of {counted(len(documents), 'document')}" if documents else ""
        shown = ", ".join(f"{kind} {counts[kind]}" for kind in types)
        logger.info("%s, %s: %s, mentions by type: %s", task.name, split, size, shown)
    if task.merged_type:
        return
    for kind in types:
        if not mentions["train"][kind]:
            logger.warning("%s: the training set has no %s: a head can't learn it", task.name, kind)
        elif suspicion := _suspicion(kind, total):
            logger.warning("%s: %s", task.name, suspicion)


def _suspicion(kind: str, total: Counter[str]) -> str:
    """Return why a type looks like an error; empty if it doesn't.

    It does if a more frequent type differs from it in case or punctuation only, or if it is rare.
    """
    letters = _letters(kind)
    others = [other for other, count in total.most_common() if (count, other) > (total[kind], kind)]
    if letters and (same := next((other for other in others if _letters(other) == letters), None)):
        return (
            f"the types {kind} ({total[kind]} mentions in all) and {same} ({total[same]}) differ only in case or "
            f"punctuation: are they the same?"
        )
    similar = [
        other
        for other in others
        if letters and (_letters(other).startswith(letters) or _letters(other).endswith(letters))
    ]
    similar += get_close_matches(kind, others)
    for found, times in ((similar, _RARE_VARIANT), (others, _RARE)):
        if found and total[found[0]] >= times * total[kind]:
            return f"the type {kind} is rare ({total[kind]} in all, and {total[found[0]]} {found[0]}): is it an error?"
    return ""


def _letters(kind: str) -> str:
    return "".join(filter(str.isalnum, kind)).casefold()


def _check_sentences(task: NerTask, split: SplitSentences, mentions: Counter[str]) -> None:
    """Raise if a split has no mention; warn if it has a single sentence, and of those that don't fit into a window.

    Without a mention in the development set, no epoch is better than another; without one in the test set, there is no
    F1. If the task names its types, this is only a warning: for a joint head, sentences without a type are data, too.
    """
    if not mentions.total():
        problem = f"{split.where} contains no entities: every tag is O"
        if not task.types:
            raise InputError(problem)
        logger.warning("%s", problem)
    if len(split.sentences) == 1:
        logger.warning(
            "%s has a single sentence: a head learns nothing from it, and its score says nothing", split.where
        )
    room = MAX_LENGTH - 2
    if long := [number for number, (words, _) in enumerate(split.sentences, start=1) if len(words) > room]:
        logger.warning(
            "%s: sentences of more than %d words, which don't fit into a window of %d word pieces and are read in "
            "several: %d (for example sentence %d, %d words)",
            *(split.where, room, MAX_LENGTH, len(long), long[0], len(split.sentences[long[0] - 1][0])),
        )


def _merged(sentences: Sequence[Sentence], kind: str) -> list[Sentence]:
    return [(tokens, [tag if tag == "O" else f"{tag[:2]}{kind}" for tag in tags]) for tokens, tags in sentences]


def _dataset(split: SplitSentences, features: Features) -> Dataset:
    ids = {name: number for number, name in enumerate(features["ner_tags"].feature.names)}
    columns = {
        "tokens": [words for words, _ in split.sentences],
        "ner_tags": [[ids[tag] for tag in tags] for _, tags in split.sentences],
        "document": list(split.documents),
        "passage": list(split.passages),
    }
    return Dataset.from_dict({name: columns[name] for name in features}, features=features)


def _digest(dataset: Dataset) -> str:
    """Return a hash of the sentences of a data set, their tags, and where documents begin."""
    documents = dataset["document"][:] if "document" in dataset.column_names else range(len(dataset))
    rows = zip(dataset["tokens"], tags_of(dataset), [None, *documents], documents, strict=False)
    content = [[words, tags, before != document] for words, tags, before, document in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
