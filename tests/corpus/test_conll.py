"""Read CoNLL files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.errors import InputError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Aspirin\tB-Chemical\nhelps\n", "line 2: expected a token and its tag, not 'helps'"),
        ("Aspirin\tB-Chemical\nhelps\tsome\tO\n", "line 2: 3 columns, but line 1 has 2"),
        ("Aspirin\tB-Chemical\n\n\tO\n", "line 3: the token is empty"),
        ("Aspirin\tB-Chemical\n \tO\n", "line 2: the token is empty"),
        ("Aspirin\tX-Chemical\n", "line 1: unknown tag 'X-Chemical'"),
        (
            "Aspirin\tB\n",
            "line 1: the tag 'B' has no type: name the type of all entities (type_name, or merged_type of",
        ),
        ("Aspirin\tB-Chemical\nhelps\tI\n", "line 2: the tag 'I' has no type"),
        ("Aspirin\tB-Chemical\n#\tx\tO\n", "line 2: 3 columns, but line 1 has 2"),
        ("#\tX\n", "line 1: unknown tag 'X'"),
        ("O\tAspirin\n", "line 1: unknown tag 'Aspirin'"),
        ("# only\n# comments\n", "has no sentence"),
        ("Aspirin\tO\r\rhelps\r", "line 3: expected a token and its tag, not 'helps'"),
        ("Aspirin\tB-\n", "line 1: unknown tag 'B-'"),
        ("Aspirin\tB-Chemical-\n", "line 1: unknown tag 'B-Chemical-'"),
        ("Aspirin\t\n", "line 1: unknown tag ''"),
        ("", "has no sentence"),
        ("\n\n", "has no sentence"),
        ("-DOCSTART-\tO\n\n", "has no sentence"),
        (b"Aspirin\tB-Chemical\nna\xefve\tO\n", "line 2: not valid UTF-8 at byte 21 of the file"),
    ],
)
def test_bad_conll_is_refused_in_one_line_that_names_file_and_line(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    path = write(tmp_path / "train.tsv", content)
    with pytest.raises(InputError) as caught:
        read_conll(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_conll_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.tsv can't be read \(No such file"):
        read_conll(tmp_path / "train.tsv")


def test_variants_of_the_format_are_read(tmp_path: Path) -> None:
    expected = [(["Aspirin", "helps"], ["B-Chemical", "O"]), (["pain"], ["B-Disease"])]
    for number, content in enumerate(
        (
            "Aspirin\tB-Chemical\nhelps\tO\n\npain\tB-Disease\n\n",
            "Aspirin\tB-Chemical\nhelps\tO\n\n\n \npain\tB-Disease",
            "\ufeffAspirin\tB-Chemical\r\nhelps\tO\r\n\r\npain\tB-Disease\r\n",
            "-DOCSTART- -X- -X- O\n\nAspirin NN x B-Chemical\nhelps VB x O\n\npain NN x B-Disease\n",
            "-DOCSTART-\n\nAspirin\tB-Chemical\nhelps\tO\n\n-DOCSTART- -X- O O\n\npain\tB-Disease\n",
        )
    ):
        assert read_conll(write(tmp_path / f"{number}.tsv", content)) == expected, content


def test_unicode_line_separators_do_not_end_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\u2028b\tO\nc\u0085\x0cd\tB-X\n")
    assert read_conll(path) == [(["a\u2028b", "c\u0085\x0cd"], ["O", "B-X"])]


def test_inside_tags_that_continue_nothing_are_repaired_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tsv", "a\tI-X\nb\tI-X\nc\tI-Y\nd\tO\ne\tI-Y\n\nf\tI-Y\n")
    assert [tags for _, tags in read_conll(path)] == [["B-X", "I-X", "B-Y", "O", "B-Y"], ["B-Y"]]
    assert (
        f"{path}: I- tags that begin an entity (as in IOB1), read as B-: 4 (for example line 1, 'I-X')" in caplog.text
    )


def test_compressed_conll_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv.gz", gzip.compress(b"pain\tB-Disease\n"))
    assert read_conll(path) == [(["pain"], ["B-Disease"])]
