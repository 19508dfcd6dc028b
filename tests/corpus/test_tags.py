"""Test that tags of all common schemes are read, and become the same IOB2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioptimus_hf.corpus.tags import Tag, parse_tag, to_iob2

SINGLES = {"IOB2": "B", "IOBES": "S", "BILOU": "U", "BMES": "S"}
LASTS = {"IOB2": "I", "IOBES": "E", "BILOU": "L", "BMES": "E"}
MIDDLES = {"IOB2": "I", "IOBES": "I", "BILOU": "I", "BMES": "M"}


def write(entities, scheme):
    """Return the tags of entities (type and length; None is a word outside) in a scheme."""
    tags = []
    for kind, length in entities:
        if kind is None:
            tags += ["O"] * length
        elif length == 1:
            tags.append(f"{SINGLES[scheme]}-{kind}")
        else:
            tags += [f"B-{kind}", *[f"{MIDDLES[scheme]}-{kind}"] * (length - 2), f"{LASTS[scheme]}-{kind}"]
    return tags


def iob2(tags):
    return ["-".join(filter(None, tag)) for tag in to_iob2(map(parse_tag, tags))]


@pytest.mark.parametrize(
    ("tag", "parsed"),
    [
        ("O", Tag("O")),
        ("o", Tag("O")),
        ("B-Chemical", Tag("B", "Chemical")),
        ("b-chem", Tag("B", "chem")),
        ("I_cell_line", Tag("I", "cell_line")),
        ("M-a", Tag("I", "a")),
        ("E-cell-line", Tag("E", "cell-line")),
        ("L-a", Tag("E", "a")),
        ("S-a", Tag("S", "a")),
        ("U-a", Tag("S", "a")),
        ("B", Tag("B")),
        ("i", Tag("I")),
        ("Chemical", None),
        ("LABEL_1", None),
        ("OUT", None),
        ("0", None),
        ("", None),
    ],
)
def test_a_tag_is_split_into_mark_and_type(tag, parsed):
    assert parse_tag(tag) == parsed


@pytest.mark.parametrize(
    ("tag", "parsed"),
    [("PER-B", Tag("B", "PER")), ("cell_line_I", Tag("I", "cell_line")), ("O", Tag("O")), ("B-PER", None)],
)
def test_a_mark_may_follow_the_type(tag, parsed):
    assert parse_tag(tag, suffixed=True) == parsed


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.integers(1, 4))), st.sampled_from(sorted(SINGLES)))
def test_all_schemes_become_the_same_iob2(entities, scheme):
    assert iob2(write(entities, scheme)) == write(entities, "IOB2")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-a I-a B-a O I-b I-a", "B-a I-a B-a O B-b B-a"),  # IOB1
        ("S-a I-a E-a I-a", "B-a B-a I-a B-a"),  # S and E end an entity
        ("B-a E-b S-b", "B-a B-b B-b"),
        ("E-a B-a O E-a", "B-a B-a O B-a"),
        ("B I O E", "B I O B"),  # without types
    ],
)
def test_a_tag_that_continues_nothing_begins_an_entity(tags, expected):
    assert " ".join(iob2(tags.split())) == expected
