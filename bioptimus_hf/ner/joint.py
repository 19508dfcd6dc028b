"""Join the training sets of several tasks, each of which annotates only some of the types, for one head.

A set without chemicals says nothing about chemicals: where it has no entity, a chemical may be. So a word that a set
leaves untagged is charged for the summed probability of all tags that don't contradict the set (the marginal likelihood
of partially annotated data; Greenberg et al. 2018, EMNLP). A word inside an entity has a single tag, as always.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset, DatasetDict, Features, List, Value

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.decontamination import find_within, normalised
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import IGNORED_LABEL
from bioptimus_hf.ner.tasks import SPLITS, check_splits, label_names, tags_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JointData:
    """The training sets of several tasks as one set, with the development sets of all tasks.

    Attributes:
        tags: of the head: `O`, then `B-` and `I-` of every type of every task.
        compatible: (labels, tags), true where a tag doesn't contradict a label. Label n below the number of tags is tag
            n alone; each further label is the `O` of sets that don't annotate all types.
        train: `tokens` and `ner_tags`, the label of each word.
        validation: development set of each task, from `load_ner`.
        excluded: number of training sentences left out of each set, because another task is evaluated on them. Tasks
            that are read as one set are joined by `and`.
    """

    tags: list[str]
    compatible: torch.Tensor
    train: Dataset
    validation: dict[str, Dataset]
    excluded: dict[str, int]


@check_call()
def join_tasks(tasks: Mapping[str, DatasetDict]) -> JointData:
    """Make one training set of those of several tasks.

    Types with the same name are one type. Tasks whose training sets have the same sentences with different types, such
    as bc5-chem and bc5-disease, are read as one set with all their types; only a sentence in which a word belongs to
    entities of two tasks is kept once for each. Training sentences that are in the development or test set of another
    task are left out, since the heads of single tasks aren't trained on them either. As in `decontaminate`, spacing,
    case and punctuation don't matter, and sentences with fewer than 40 letters and digits aren't searched for; one of
    the two sentences may be part of the other.

    Args:
        tasks: data from `load_ner` by name. Their order doesn't matter.

    Raises:
        InputError: there is no task, or one lacks a split or column; or all training sentences of a task are in the
            development or test sets of others.
    """
    if not tasks:
        raise InputError("there is no task to join", argument="tasks")
    for name, data in tasks.items():
        check_splits(data, SPLITS, argument=f"tasks[{name!r}]")
    tasks = {name: tasks[name] for name in sorted(tasks)}
    types = {name: types_of_labels(data["train"]) for name, data in tasks.items()}
    all_types = list(dict.fromkeys(kind for of_task in types.values() for kind in of_task))
    tags = ["O", *(f"{prefix}-{kind}" for kind in all_types for prefix in "BI")]
    groups = _tasks_with_equal_sentences(tasks, types)
    _report_types(types, groups)
    excluded = _excluded_rows(tasks, groups)
    _report_excluded(tasks, excluded)
    ids = {tag: number for number, tag in enumerate(tags)}
    outside = {frozenset(all_types): 0}  # the label of O, by the types that the sentence is annotated with
    words: list[list[str]] = []
    labels: list[list[int]] = []
    for group in groups:
        of_group = {frozenset(types[name]): tags_of(tasks[name]["train"]) for name in group}
        for row, sentence in enumerate(tasks[group[0]]["train"]["tokens"][:]):
            if row in excluded[group]:
                continue
            for annotated, row_tags in _annotations({kinds: rows[row] for kinds, rows in of_group.items()}):
                outside_label = outside.setdefault(annotated, len(tags) - 1 + len(outside))
                words.append(sentence)
                labels.append([outside_label if tag == "O" else ids[tag] for tag in row_tags])
    features = Features(tokens=List(Value("string")), ner_tags=List(Value("int64")))
    return JointData(
        tags=tags,
        compatible=_compatible(tags, outside),
        train=Dataset.from_dict({"tokens": words, "ner_tags": labels}, features=features),
        validation={name: data["validation"] for name, data in tasks.items()},
        excluded={" and ".join(group): len(rows) for group, rows in excluded.items()},
    )


def types_of_labels(dataset: Dataset) -> list[str]:
    """Return the entity types of a data set from `load_ner`, in the order of their tags."""
    return list(dict.fromkeys(tag[2:] for tag in label_names(dataset) if tag != "O"))


def keep_types(tags: Sequence[Sequence[str]], types: Collection[str]) -> list[list[str]]:
    """Return predicted tags with those of other types as `O`, to score a joint head on a task."""
    return [[tag if tag[2:] in types else "O" for tag in sentence] for sentence in tags]


def partial_cross_entropy(
    outputs: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int,
    *,
    compatible: torch.Tensor,
) -> torch.Tensor:
    """Return the negative log of the summed probability of all compatible tags (nats), summed over words.

    Like `mean_cross_entropy`, it is divided by the number of labels of the whole update; the two are equal if every
    label is compatible with one tag.

    Args:
        outputs: with `logits` (..., tags).
        labels: (...), of the same shape; rows of `compatible`; -100 is ignored.
        num_items_in_batch: number of labels of the update.
        compatible: (labels, tags), from `join_tasks`.
    """
    labelled = labels != IGNORED_LABEL
    log_probabilities = torch.log_softmax(outputs["logits"][labelled].float(), dim=-1)
    contradicting = ~compatible.to(labels.device)[labels[labelled]]
    total = -log_probabilities.masked_fill(contradicting, -math.inf).logsumexp(dim=-1).sum()
    return total / num_items_in_batch


def _tasks_with_equal_sentences(
    tasks: Mapping[str, DatasetDict], types: Mapping[str, Sequence[str]]
) -> list[tuple[str, ...]]:
    """Group tasks whose training sets have the same sentences in the same order, but no type in common."""
    groups: list[tuple[str, ...]] = []
    sentences: list[list[list[str]]] = []
    for name, data in tasks.items():
        words = data["train"]["tokens"][:]
        for number, group in enumerate(groups):
            if sentences[number] == words and not any(set(types[name]) & set(types[other]) for other in group):
                groups[number] = (*group, name)
                break
        else:
            groups.append((name,))
            sentences.append(words)
    return groups


def _report_types(types: Mapping[str, Sequence[str]], groups: Sequence[Sequence[str]]) -> None:
    tasks_of: dict[str, list[str]] = {}
    for name, of_task in types.items():
        for kind in of_task:
            tasks_of.setdefault(kind, []).append(name)
    shared = [f"{kind} ({', '.join(names)})" for kind, names in tasks_of.items() if len(names) > 1]
    equal = [" and ".join(group) for group in groups if len(group) > 1]
    logger.info(
        "joint head with the types %s; types that several tasks share: %s; sets with the same sentences, read as one: "
        "%s",
        ", ".join(tasks_of),
        "; ".join(shared) or "none",
        "; ".join(equal) or "none",
    )


def _excluded_rows(
    tasks: Mapping[str, DatasetDict], groups: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], set[int]]:
    """Return which training sentences of each group are in the development or test set of a task of another group.

    Raises:
        InputError: all are.
    """
    tasks_of: dict[str, set[str]] = {}  # by sentences in their development and test sets
    for name, data in tasks.items():
        for split in ("validation", "test"):
            for words in data[split]["tokens"][:]:
                tasks_of.setdefault(normalised(" ".join(words)), set()).add(name)
    train = {
        group: [normalised(" ".join(words)) for words in tasks[group[0]]["train"]["tokens"][:]] for group in groups
    }
    every = [form for forms in train.values() for form in forms]
    containing: dict[str, set[str]] = {}  # tasks whose held-out sentences contain a training sentence
    for form, parts in zip(tasks_of, find_within(tasks_of, every), strict=True):
        for part in parts:
            containing.setdefault(part, set()).update(tasks_of[form])
    contained = find_within(every, tasks_of)
    excluded: dict[tuple[str, ...], set[int]] = {}
    for group, forms in train.items():
        rows = excluded[group] = set()
        for row, (form, found) in enumerate(zip(forms, contained, strict=False)):  # which goes on with the next group
            others = containing.get(form, set()).union(*(tasks_of[one] for one in found))
            if others - set(group):
                rows.add(row)
        if len(rows) == len(forms):
            raise InputError(
                f"all training sentences of {' and '.join(group)} are in the development or test sets of other tasks, "
                f"so these tasks can't be learned jointly",
                argument="tasks",
            )
    return excluded


def _report_excluded(tasks: Mapping[str, DatasetDict], excluded: Mapping[tuple[str, ...], set[int]]) -> None:
    groups = [group for group, rows in excluded.items() if rows]
    if groups:
        counts = ", ".join(f"{len(excluded[group])} of {' and '.join(group)}" for group in groups)
        example = tasks[groups[0][0]]["train"][min(excluded[groups[0]])]["tokens"]
        logger.warning(
            "training sentences that are in the development or test set of another task are left out: %s; for example: "
            "%s",
            counts,
            " ".join(example),
        )


def _annotations(rows: Mapping[frozenset[str], Sequence[str]]) -> Iterator[tuple[frozenset[str], list[str]]]:
    """Yield the tags of a sentence, with the types that it is annotated with; of several sets as one, if possible.

    Args:
        rows: tags of the sentence in each set, by the types of that set.
    """
    columns = [{tag for tag in column if tag != "O"} for column in zip(*rows.values(), strict=True)]
    if all(len(found) < 2 for found in columns):
        yield frozenset().union(*rows), [next(iter(found), "O") for found in columns]
    else:
        yield from ((types, list(tags)) for types, tags in rows.items())


def _compatible(tags: Sequence[str], outside: Mapping[frozenset[str], int]) -> torch.Tensor:
    """Return which tags each label is compatible with.

    Args:
        outside: the label of `O`, by the types that a sentence is annotated with.
    """
    compatible = torch.eye(max(len(tags), *(label + 1 for label in outside.values())), len(tags), dtype=torch.bool)
    for annotated, label in outside.items():
        compatible[label] = torch.tensor([tag[2:] not in annotated for tag in tags])
    return compatible
