"""Split documents into training, development and test set, so that each has its share of every entity type.

The greedy method is iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, On the Stratification of
Multi-Label Data): types are dealt out from the rarest to the most frequent, each document to the split that lacks most
of the type.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bioptimus_hf.errors import InputError, counted

SHARES = (0.7, 0.15, 0.15)
"""Shares of training, development and test set unless others are given."""
_TRAIN = 0


@dataclass
class DocumentGroup:
    """Documents that must stay together, because they have the same id or the same text.

    Attributes:
        documents: numbers of the documents, in order.
        sentences: how many sentences they have.
        mentions: how many mentions of each type they have.
        text: of one of the documents; decides on the order, together with the seed.
    """

    text: str = ""
    documents: list[int] = field(default_factory=list)
    sentences: int = 0
    mentions: Counter[str] = field(default_factory=Counter)


def split_groups(groups: Sequence[DocumentGroup], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Return the numbers of the documents of each split, in order.

    Every type occurs in the first split, and every split has a mention: that is always possible if two more groups than
    types have mentions. The order of the groups doesn't matter.

    Args:
        shares: of each split, which add up to 1.
        seed: another one gives another split.

    Raises:
        InputError: there are too few documents for that.
    """
    splits = _Splits(groups, shares)
    waiting = sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group.text}".encode()).digest())
    while annotated := [group for group in waiting if group.mentions]:
        documents_with = Counter(kind for group in annotated for kind in group.mentions)
        rarest = min(documents_with, key=lambda kind: (documents_with[kind], kind))
        with_it = [group for group in annotated if rarest in group.mentions]
        for number, group in enumerate(with_it):
            splits.add(group, rarest, left=len(annotated) - number)
        waiting = [group for group in waiting if rarest not in group.mentions]
    for group in waiting:
        splits.add(group, "", left=0)
    if not all(map(Counter.total, splits.mentions)):
        raise InputError(
            f"{counted(len(groups), 'document')}, {sum(1 for group in groups if group.mentions)} with mentions, can't "
            f"be split so that training, development and test set have mentions and the training set has all types: "
            f"give more documents, or fewer types"
        )
    return list(map(sorted, splits.documents))


class _Splits:
    """What has been dealt out so far, and what each split still lacks.

    Attributes:
        documents: numbers of the documents of each split.
        mentions: number of mentions of each type in each split.
    """

    def __init__(self, groups: Sequence[DocumentGroup], shares: Sequence[float]) -> None:
        totals = sum((group.mentions for group in groups), Counter[str]())
        sentences = sum(group.sentences for group in groups)
        self._types = set(totals)
        self.documents: list[list[int]] = [[] for _ in shares]
        self.mentions: list[Counter[str]] = [Counter() for _ in shares]
        self._lacking = [{kind: share * total for kind, total in totals.items()} | {"": 0.0} for share in shares]
        self._lacking_sentences = [share * sentences for share in shares]

    def add(self, group: DocumentGroup, kind: str, *, left: int) -> None:
        """Put a group into the split that lacks most mentions of a type, and then most sentences.

        Args:
            left: number of groups with mentions, this one included, that aren't in a split yet.
        """
        split = self._best(group, kind, left)
        self.documents[split] += group.documents
        self.mentions[split] += group.mentions
        self._lacking_sentences[split] -= group.sentences
        for one, number in group.mentions.items():
            self._lacking[split][one] -= number

    def _best(self, group: DocumentGroup, kind: str, left: int) -> int:
        missing = self._types - self.mentions[_TRAIN].keys()
        if missing & group.mentions.keys():
            return _TRAIN
        empty = [split for split, mentions in enumerate(self.mentions) if not mentions]
        spare = left - len(missing)  # groups that no missing type may claim for training
        candidates = empty if kind and spare <= len(empty) else range(len(self.mentions))
        return max(candidates, key=lambda split: (self._lacking[split][kind], self._lacking_sentences[split], -split))
