"""Models by folder or name; how the Hub serves them is tested in `test_publish`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tiny_bert, tiny_vocabulary
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
)

from bioptimus_hf.annotation import Annotator
from bioptimus_hf.artifacts import InputError
from bioptimus_hf.distillation import load_masked_lm
from bioptimus_hf.finetuning import new_head
from bioptimus_hf.sources import load_by_name
from bioptimus_hf.vocabulary import save_tokenizer


def test_load_by_name(tokenizer: BertTokenizer, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    tiny_bert.save_pretrained(tmp_path)
    assert load_by_name(AutoTokenizer, str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    assert type(load_by_name(AutoModelForMaskedLM, str(tmp_path))) is BertForMaskedLM


@pytest.mark.parametrize("kind", [AutoTokenizer, AutoModelForMaskedLM])
def test_what_is_not_there_is_refused_in_one_line(kind: Any, tmp_path: Path) -> None:
    for name in (str(tmp_path / "missing"), "nobody/no-such-model", str(tmp_path)):
        with pytest.raises(InputError, match="neither a folder of a model nor one to be had") as error:
            load_by_name(kind, name)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(name)


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path: Path) -> None:
    """Of a folder that holds a config alone, transformers 5 makes a tokenizer of five tokens, in silence."""
    BertConfig().save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 5
    with pytest.raises(InputError, match="holds no vocabulary"):
        load_by_name(AutoTokenizer, str(tmp_path))


WAYS: list[Callable[[str], Any]] = [
    lambda name: load_masked_lm(name),
    lambda name: new_head(name, ["O"], seed=0),
    lambda name: Annotator(name),
    lambda name: load_by_name(AutoModelForTokenClassification, name),
]


class Harmful:
    """What runs code when it is unpickled by a reader that lets it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("load", WAYS)
def test_pickled_weights_run_no_code(tmp_path: Path, load: Callable[[str], Any]) -> None:
    build_tiny_bert(127).config.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tiny_vocabulary()))
    with pytest.raises(InputError, match="no file named"):  # as in a repository of an ONNX file, which is not fetched
        load(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Harmful(tmp_path / "ran")}, protocol=2))
    with pytest.raises(InputError, match="no mere tensors, and might run code") as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
