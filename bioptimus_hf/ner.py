"""Named entity recognition: the five BLURB tasks and any other, strict entity scores, results over seeds."""

from __future__ import annotations

import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from seqeval.scheme import IOB2, Entities

from bioptimus_hf.artifacts import InputError
from bioptimus_hf.conll import Sentence, count_mentions, read_conll, types_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SCORER = "seqeval, strict IOB2, micro average over entities"
_FILES = {"train": ("train.tsv",), "validation": ("dev.tsv", "devel.tsv"), "test": ("test.tsv",)}


@dataclass(frozen=True)
class NerTask:
    """A task: three CoNLL files and what is known of them.

    Attributes:
        name: what results are filed under.
        folder: where its files lie below the source given to `load_ner`; empty: in the source itself.
        types: the entity types; by default those that occur in the training part.
        merged_type: name of the one type that all types are read as.
        mentions: published numbers of mentions in train, validation and test. Data with others is refused.
        common_copy: numbers of a copy in wide use that differs from the published ones; allowed, and named in the log.
    """

    name: str
    folder: str = ""
    types: tuple[str, ...] | None = None
    merged_type: str | None = None
    mentions: tuple[int, int, int] | None = None
    common_copy: tuple[int, int, int] | None = None


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


def load_ner(task: str | NerTask, source: str | Path) -> DatasetDict:
    """Read a task's `train.tsv`, `dev.tsv` (or `devel.tsv`) and `test.tsv`.

    Args:
        task: a key of `BLURB_NER`, or a task of your own: `NerTask("mine")`.
        source: the folder that holds the task's folder, or the files themselves.

    Returns:
        `train`, `validation` and `test` with the columns `tokens` (strings) and `ner_tags` (class labels: `O`, then
        `B-` and `I-` of each type; see `label_names`).

    Raises:
        InputError: no such task, files that are missing or malformed (file and line), a type in `validation` or `test`
            that does not occur in `train`, or other numbers of mentions than those published.
    """
    task = _named(task)
    files = task_files(task, source)
    train = read_conll(files["train"], types=task.types)
    types = task.types or types_of(train)
    if not types:
        raise InputError(f"{files['train']} holds no entity: every tag is O")
    parts = {"train": train} | {split: read_conll(files[split], types=types) for split in SPLITS[1:]}
    _check_mentions(task, {split: count_mentions(parts[split]) for split in SPLITS})
    if task.merged_type:
        parts = {split: _merged(sentences, task.merged_type) for split, sentences in parts.items()}
        types = (task.merged_type,)
    names = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=names)))
    return DatasetDict({split: _dataset(parts[split], features) for split in SPLITS})


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


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Score entities in strict IOB2, as seqeval does with `mode="strict", scheme=IOB2`.

    An entity begins with `B-`, and is right if its first word, last word and type are. An `I-` that continues nothing
    is no entity; seqeval's default, as conlleval, takes it for one and gives higher figures.

    Args:
        gold: the tags of each sentence.
        predicted: as many.

    Returns:
        `precision`, `recall`, `f1` (shares between 0 and 1, micro average) and `support` (entities in `gold`); the same
        for each type as `<type>_precision` and so on. A share of nothing is 0.

    Raises:
        InputError: the two differ in length, or a tag is not of IOB2.
    """
    if len(gold) != len(predicted):
        raise InputError(f"{len(gold)} sentences in gold, {len(predicted)} predicted")
    for number, (right, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(guess):
            raise InputError(f"sentence {number} has {len(right)} tags in gold, {len(guess)} predicted")
    true, found = _entities(gold), _entities(predicted)
    scores = _shares(len(true & found), len(found), len(true))
    counts = [Counter(entity.tag for entity in entities) for entities in (true & found, found, true)]
    for kind in sorted({*counts[1], *counts[2]}):
        scores |= {f"{kind}_{name}": value for name, value in _shares(*(count[kind] for count in counts)).items()}
    return scores


def summarize(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bring the results of several seeds together.

    Args:
        cells: each with `task`, `model`, `seed` and `test`, the `entity_scores` on the test part.

    Returns:
        A row a task and model, in the order of `cells`: `seeds`, `support`, and `f1`, `precision` and `recall`, each
        with `mean` and `deviation` (of a sample; None for a single seed), in shares between 0 and 1.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["task"], cell["model"]].append(cell)
    return [
        {
            "task": task,
            "model": model,
            "seeds": [cell["seed"] for cell in group],
            "support": int(group[0]["test"]["support"]),
            **{name: _spread([cell["test"][name] for cell in group]) for name in ("f1", "precision", "recall")},
        }
        for (task, model), group in groups.items()
    ]


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows of `summarize` as a Markdown table, in percent."""
    lines = [
        "| task | model | F1 | precision | recall | seeds | test mentions |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shares = " | ".join(_percent(row[name]) for name in ("f1", "precision", "recall"))
        lines.append(f"| {row['task']} | {row['model']} | {shares} | {len(row['seeds'])} | {row['support']} |")
    return "\n".join([*lines, "", f"Mean ± sample standard deviation over seeds. Scorer: {SCORER}.", ""])


def _named(task: str | NerTask) -> NerTask:
    if isinstance(task, NerTask):
        return task
    if task not in BLURB_NER:
        raise InputError(f"unknown task {task!r}: give one of {', '.join(BLURB_NER)}, or a NerTask of your own")
    return BLURB_NER[task]


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


def _entities(sequences: list[list[str]]) -> set[Any]:
    try:
        return set(chain.from_iterable(Entities(sequences, IOB2).entities))
    except (KeyError, IndexError, ValueError) as error:  # what seqeval says of a tag that it cannot read
        raise InputError(f"tags must be O, B-<type> or I-<type> ({error})") from error


def _shares(right: int, found: int, true: int) -> dict[str, float]:
    precision = right / found if found else 0.0
    recall = right / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": float(true)}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def _percent(spread: Mapping[str, float | None]) -> str:
    mean, deviation = (None if value is None else f"{100 * value:.2f}" for value in spread.values())
    return f"{mean} ± {deviation}" if deviation else f"{mean}"
