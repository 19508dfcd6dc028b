"""Split documents so that each split has its share of every type."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.splitting import SHARES, DocumentGroup, split_groups


def groups_of_counts(counts: Sequence[Counter[str]]) -> list[DocumentGroup]:
    return [DocumentGroup(f"text {number}", [number], 3, count) for number, count in enumerate(counts)]


@given(
    counts=st.lists(st.dictionaries(st.sampled_from("ABC"), st.integers(1, 9)).map(Counter), max_size=30),
    shares=st.sampled_from([SHARES, (0.1, 0.1, 0.8), (0.98, 0.01, 0.01)]),
    seed=st.integers(0, 3),
)
@settings(deadline=None)
def test_every_document_is_in_one_split_and_every_type_in_train(
    counts: list[Counter[str]], shares: tuple[float, ...], seed: int
) -> None:
    groups = groups_of_counts(counts)
    shuffled = random.Random(seed).sample(groups, len(groups))
    kinds_in_all = {kind for count in counts for kind in count}
    try:
        splits = split_groups(groups, shares, seed)
    except InputError:
        # Each type may need a document of its own in the training set, and two others are needed.
        assert sum(map(bool, counts)) < len(kinds_in_all) + 2 or not kinds_in_all
        with pytest.raises(InputError, match=f"{len(groups)} document"):
            split_groups(shuffled, shares, seed)
        return
    assert sorted(number for split in splits for number in split) == list(range(len(counts)))
    assert splits == split_groups(shuffled, shares, seed)
    assert all(split == sorted(split) for split in splits)
    kinds = [{kind for number in split for kind in counts[number]} for split in splits]
    assert kinds[0] == kinds_in_all
    assert all(kinds)


@pytest.mark.parametrize("shares", [SHARES, (0.5, 0.2, 0.3)])
def test_splits_have_their_share_of_every_type(shares: tuple[float, ...]) -> None:
    draw = random.Random(3)
    counts = [
        Counter(
            {kind: draw.randint(1, 6) for kind, often in (("A", 0.9), ("B", 0.3), ("C", 0.05)) if draw.random() < often}
        )
        for _ in range(600)
    ]
    totals = sum(counts, Counter[str]())
    seen = set()
    for seed in range(3):
        splits = split_groups(groups_of_counts(counts), shares, seed)
        for split, share in zip(splits, shares, strict=True):
            found = sum((counts[number] for number in split), Counter[str]())
            assert all(abs(found[kind] - share * total) <= 6 for kind, total in totals.items()), (found, totals)
            assert abs(len(split) - share * 600) < 30
        seen.add(tuple(splits[2]))
    assert len(seen) == 3
