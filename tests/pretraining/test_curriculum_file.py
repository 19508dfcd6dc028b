"""A curriculum in YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.curriculum import Phase, read_curriculum
from bioptimus_hf.pretraining.masking import MaskingStrategy

GOOD = "{version: 0.1, unit: token, rate: 0.15, corrupt: true, share: 0.5}"


def test_a_curriculum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "curriculum.yaml"
    path.write_text(f"- {GOOD}\n- {{version: two, unit: word, rate: 1, corrupt: false, share: 0.5, last_rate: 0.3}}\n")
    assert read_curriculum(path) == (
        Phase("0.1", MaskingStrategy("token", 0.15, True), 0.5),
        Phase("two", MaskingStrategy("word", 1, False), 0.5, 0.3),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "must be a list of phases"),
        ("- 5", "phase 1: must be a mapping with version, unit"),
        (f"- {GOOD}\n- {{version: 0.1}}", "phase 2: corrupt is unknown or missing"),
        ("- " + GOOD.replace("unit", "units"), "phase 1: units is unknown or missing"),
        ("- " + GOOD.replace("0.15", "high"), "phase 1: rate can't be 'high'"),
        ("- " + GOOD.replace("0.15", "true"), "phase 1: rate can't be True"),
        ("- " + GOOD.replace("true", "1"), "phase 1: corrupt can't be 1"),
        ("- " + GOOD.replace("0.15", "1.5"), "phase 1: the masking rate must be above 0"),
        ("- [", "is not YAML"),
    ],
)
def test_a_curriculum_that_cannot_be(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "curriculum.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path}.*{said}"):
        read_curriculum(path)


@pytest.mark.parametrize(("name", "unit"), [("tokens", "token"), ("words_always", "word")])
def test_curricula_of_the_package_are_found_by_name(name: str, unit: str) -> None:
    phases = read_curriculum(name)
    assert [phase.version for phase in phases] == ["0.1", "0.2", "0.3", "0.4"]
    assert {phase.masking.unit for phase in phases} == {unit}
    with pytest.raises(InputError, match="tokenz is neither a file nor one of tokens, words_always"):
        read_curriculum("tokenz")
