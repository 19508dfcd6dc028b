"""Check the options of heads before anything is read."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.tasks import BLURB_NER, JNLPBA_TYPES


def test_a_single_number_counts_seeds_and_several_are_the_seeds() -> None:
    assert HeadOptions(seeds=[5]).seeds_from(0) == [0, 1, 2, 3, 4]
    assert HeadOptions(seeds=[1]).seeds_from(0) == [0]
    assert HeadOptions(seeds=[2]).seeds_from(40) == [40, 41]
    assert HeadOptions(seeds=[0, 1, 2]).seeds_from(40) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": [0]}, r"seeds: 0: a single number is how many seeds to use \(1: one seed\)"),
        ({"seeds": [3, -1]}, "seeds: -1: seeds can't be negative"),
        ({"seeds": [3, 2**32]}, "seeds: 4294967296: seeds can't be above 4294967295"),
        ({"seeds": []}, "seeds: name at least one"),
        ({"seeds": [7, 8, 7]}, "seeds: 7 is given twice: name each value once. For a single seed of your choice"),
        ({"references": ["base", "base"]}, "references: base is given twice"),
        ({"tasks": []}, "tasks: name at least one"),
        ({"tasks": ["x="]}, "tasks: x=: expected NAME=SOURCE"),
        ({"tasks": ["=x"]}, "tasks: =x: expected NAME=SOURCE"),
        ({"models": []}, "models: name at least one"),
        ({"models": ["a/v0.1", "b/v0.1"]}, r"models: a/v0\.1 and b/v0\.1 are both called v0\.1: use LABEL=MODEL"),
        ({"models": ["a|b=c"]}, r"models: a\|b=c: expected a folder, a name on the Hub, or LABEL=MODEL"),
        ({"models": ["a/b=c"]}, "models: a/b=c: expected a folder, a name on the Hub, or LABEL=MODEL"),
        ({"models": ["=c"]}, "models: =c: expected a folder"),
        ({"models": ["c="]}, "models: c=: expected a folder"),
        ({"cross_test": ["a"]}, "cross_test: a: expected TASK:OTHER, or all"),
        ({"cross_test": ["a:"]}, "cross_test: a:: expected TASK:OTHER"),
        ({"max_length": 2}, "max_length: 2 leaves no room for a word"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        HeadOptions(**options)
    assert caught.value.argument == next(iter(options))


@pytest.mark.parametrize(
    "options",
    [
        {name: value}
        for name, kind in (
            ("num_train_epochs", 0),
            ("per_device_train_batch_size", 0),
            ("gradient_accumulation_steps", 0),
            ("learning_rate", 0),
            ("warmup_steps", None),
            ("weight_decay", None),
        )
        for value in (-1, kind, math.nan, math.inf)
        if value is not None
    ],
    ids=str,
)
def test_unusable_training_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(options))}: must be "):
        HeadTraining(**options)


def test_a_grid_is_every_combination_of_its_values() -> None:
    grid = HeadTraining(learning_rate=[1e-4, 5e-5], per_device_train_batch_size=[16, 32], weight_decay=0.1)
    assert grid.grid == {"learning_rate": [1e-4, 5e-5], "per_device_train_batch_size": [16, 32]}
    assert [(one.learning_rate, one.per_device_train_batch_size) for one in grid.candidates()] == [
        *((1e-4, 16), (1e-4, 32), (5e-5, 16), (5e-5, 32))
    ]
    assert all(one.weight_decay == 0.1 and not one.grid for one in grid.candidates())
    # As the command line gives a single value.
    fixed = HeadTraining(learning_rate=[1e-4], per_device_train_batch_size=[32])
    assert fixed == HeadTraining(learning_rate=1e-4, per_device_train_batch_size=32)
    assert fixed.candidates() == [fixed]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rate": [1e-4, 1e-4]}, "learning_rate: 0.0001 is given twice"),
        ({"learning_rate": []}, "learning_rate: name at least one"),
        ({"learning_rate": [1e-4, 0.0]}, "learning_rate: must be a number above 0, not 0.0"),
        ({"per_device_train_batch_size": [16, 0]}, "per_device_train_batch_size: must be at least 1, not 0"),
    ],
)
def test_an_unusable_grid_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"^{says}"):
        HeadTraining(**options)


def test_the_help_names_the_tasks() -> None:
    (text,) = (field.metadata["help"] for field in fields(HeadOptions) if field.name == "tasks")
    assert f"({', '.join(BLURB_NER)}, or all" in text
    assert JNLPBA_TYPES.name in text
