"""Models by folder or name; how the Hub serves them is tested in `test_publish`."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import build_tiny_bert, build_tiny_head, build_tiny_tokenizer, tiny_vocabulary
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertTokenizer,
    CTRLConfig,
    CTRLModel,
    set_seed,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bioptimus_hf import models
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.onnx_export import export_onnx
from bioptimus_hf.artifacts import RECORD, Run, identity, is_finished, write_record
from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.distillation.initialization import initial_rows
from bioptimus_hf.distillation.token_distillation import distill_tokens
from bioptimus_hf.distillation.transplant import transplant_vocabulary
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import (
    Source,
    base_of_run,
    check_base,
    check_tokenizer,
    is_hub_name,
    load_by_name,
    load_masked_lm,
    load_token_classifier,
    new_head,
    save_head,
    save_masked_lm,
    save_tokenizer,
)
from bioptimus_hf.ner.options import HeadOptions
from bioptimus_hf.ner.planning import find_encoders
from bioptimus_hf.ner.prediction import predict_tags


def test_load_by_name(tokenizer: BertTokenizer, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    tiny_bert.save_pretrained(tmp_path)
    assert load_by_name(AutoTokenizer, str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    assert type(load_by_name(AutoModelForMaskedLM, str(tmp_path))) is BertForMaskedLM


@pytest.mark.parametrize("kind", [AutoTokenizer, AutoModelForMaskedLM])
def test_what_is_not_there_is_refused_in_one_line(kind: Any, tmp_path: Path) -> None:
    on_hub = "not a local model folder and not available on the Hub"
    for name, message in (
        (str(tmp_path / "missing"), on_hub),
        ("nobody/no-such-model", f"{on_hub} (it isn't in the cache, and HF_HUB_OFFLINE is set)"),
        (str(tmp_path), "no model can be loaded from this folder"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            load_by_name(kind, name)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(name)


def test_the_folder_of_heads_is_not_a_head(tmp_path: Path, tiny_head: Path) -> None:
    shutil.copytree(tiny_head, tmp_path / "v0.4" / "0")
    with pytest.raises(InputError, match=r"v0\.4/0\?$"):
        load_token_classifier(tmp_path / "v0.4")


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path: Path) -> None:
    """Of a folder that holds a config alone, transformers 5 makes a tokenizer of five tokens, in silence."""
    BertConfig().save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 5
    with pytest.raises(InputError, match="has no vocabulary"):
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
    with pytest.raises(InputError, match="more than tensors, and could run code") as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def spoiled(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Change one weight of a saved model, or take it out."""
    weights = load_file(folder / "model.safetensors")
    changed = change(weights.pop(name))
    save_file(
        weights if changed is None else {**weights, name: changed}, folder / "model.safetensors", {"format": "pt"}
    )


NOT_HEADS: dict[str, tuple[Callable[[Path], object], str]] = {
    "encoder": (
        lambda folder: build_tiny_bert(127).save_pretrained(folder),
        r"BertForMaskedLM, not .*classifier.weight",
    ),
    "bare encoder": (lambda folder: build_tiny_bert(127).bert.save_pretrained(folder), "BertModel, not as a trained"),
    "classifier of texts": (
        lambda folder: BertForSequenceClassification(build_tiny_bert(127).config).save_pretrained(folder),
        "BertForSequenceClassification, not as a trained",
    ),
    "missing weight": (
        lambda folder: spoiled(folder, "bert.encoder.layer.0.output.dense.weight", lambda _: None),
        "lacks weights of one .*layer.0.output.dense.weight",
    ),
    "another shape": (
        lambda folder: spoiled(folder, "classifier.bias", lambda values: values[:3].clone()),
        "lacks weights",
    ),
    "NaN": (lambda folder: spoiled(folder, "classifier.bias", lambda values: values * math.nan), "contains NaN or inf"),
    "infinity": (
        lambda folder: spoiled(folder, "classifier.bias", lambda values: values + math.inf),
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("kind", NOT_HEADS)
@pytest.mark.parametrize("use", [Annotator, lambda name: export_onnx(name, name.with_name("onnx"))])
def test_only_a_trained_head_is_used_as_one(kind: str, use: Callable[[Path], Any], tmp_path: Path) -> None:
    """transformers would initialise what is missing at random, and go on."""
    folder = tmp_path / "head"
    build_tiny_head(layers=1).save_pretrained(folder)
    save_tokenizer(build_tiny_tokenizer(), folder)
    Annotator(folder)
    spoil, says = NOT_HEADS[kind]
    spoil(folder)
    with pytest.raises(InputError, match=says) as error:
        use(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "load",
    [
        lambda folder, seed: load_masked_lm(folder, seed=seed),
        lambda folder, seed: new_head(folder, ["O", "B-a"], seed=seed),
    ],
)
def test_new_weights_depend_on_the_seed_alone(load: Callable[[Path, int], Any], tmp_path: Path) -> None:
    """Random numbers drawn before and after loading are those of the caller."""
    build_tiny_bert(127).bert.save_pretrained(tmp_path / "encoder")
    build_tiny_bert(127, seed=1).bert.save_pretrained(tmp_path / "other")
    for folder in (tmp_path / "encoder", tmp_path / "other"):
        save_tokenizer(build_tiny_tokenizer(), folder)

        def weights(seed: int, folder: Path = folder) -> dict[str, torch.Tensor]:
            state: dict[str, torch.Tensor] = load(folder, seed)[0].state_dict()
            return state

        set_seed(7)
        expected = random.random(), np.random.random(), torch.rand(1).item()
        set_seed(7)
        first = weights(3)
        assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
        second, other = weights(3), weights(4)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_model_given_as_an_object_is_looked_at_too() -> None:
    with pytest.raises(InputError, match="is a BertForMaskedLM, not a token classifier"):
        Annotator(build_tiny_bert(127), build_tiny_tokenizer())
    head = build_tiny_head(layers=1)
    head.classifier.bias.data[0] = math.nan
    with pytest.raises(InputError, match=r"^the model: classifier\.bias contains NaN"):
        Annotator(head, build_tiny_tokenizer())


def test_a_model_that_computes_nan_annotates_nothing() -> None:
    """Finite weights may be too large to be added up, and an ONNX file's weights are not looked at."""
    head = build_tiny_head(layers=1)
    annotator = Annotator(head, build_tiny_tokenizer())
    head.bert.encoder.layer[0].output.LayerNorm.weight.data[:] = 1e38
    head.classifier.weight.data *= 1e38
    with pytest.raises(InputError, match="the model computes NaN"):
        list(annotator.annotate(["aspirin in asthma"]))


@pytest.mark.parametrize(
    ("load", "change", "says"),
    [
        (lambda name: new_head(name, ["O"], seed=0), lambda _: None, "layer.0.output.dense.weight is missing"),
        (
            lambda name: new_head(name, ["O"], seed=0),
            lambda values: values * math.nan,
            "contains NaN or infinity: give",
        ),
        (lambda name: load_masked_lm(name), lambda _: None, "lacks weights of a BERT encoder"),
        (lambda name: load_masked_lm(name), lambda values: values * math.nan, "contains NaN or infinity"),
    ],
)
def test_an_encoder_to_train_on_is_whole(
    load: Callable[[Path], Any], change: Callable[[torch.Tensor], torch.Tensor | None], says: str, tmp_path: Path
) -> None:
    build_tiny_bert(127).save_pretrained(tmp_path)
    save_tokenizer(build_tiny_tokenizer(), tmp_path)
    spoiled(tmp_path, "bert.encoder.layer.0.output.dense.weight", change)
    with pytest.raises(InputError, match=says):
        load(tmp_path)


def test_the_base_of_a_run_is_the_one_it_records(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("other", 1)):
        build_tiny_bert(127, seed=seed).save_pretrained(tmp_path / name)
    base, other, run = (str(tmp_path / name) for name in ("base", "other", "run"))
    with pytest.raises(InputError, match=r"^base_model: .*tokenizer doesn't record the base model of the run: name it"):
        base_of_run(run)
    assert base_of_run(run, other).folder == other  # a tokenizer of one's own says nothing
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    inputs = {"base_model": identity(base)}
    write_record(tmp_path / "run" / "tokenizer" / RECORD, inputs, {}, facts={"base_model": base}, seconds=0)
    assert base_of_run(run).folder == base_of_run(run, base).folder == base
    with pytest.raises(
        InputError, match=f"base_model: {other} isn't the model that .*tokenizer was made for; name {base}"
    ):
        base_of_run(run, other)
    build_tiny_bert(127, seed=2).save_pretrained(base)
    with pytest.raises(InputError, match="it may have changed since: name the original model"):
        base_of_run(run)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("owner/name@v0.1", True),
        ("imdb", True),
        ("a/b/c", False),
        ("../a", False),
        ("a b", False),
    ],
)
def test_names_on_the_hub(name: str, expected: bool) -> None:
    assert is_hub_name(name) is expected


def test_a_local_folder_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_name("owner/name")


@pytest.mark.parametrize("tags", [["O", "B-Gene", "I-Gene"], ["O", "B-Gene", "I-Gene", "B-Cell", "I-Cell"]])
def test_the_head_of_another_task_is_dropped(tmp_path: Path, tokenizer: BertTokenizer, tags: list[str]) -> None:
    old = build_tiny_head(layers=1, tags=["O", "B-Disease", "I-Disease"])
    torch.nn.init.constant_(old.classifier.weight, 7.0)
    torch.nn.init.constant_(old.classifier.bias, 7.0)
    old.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    first, same, other = (new_head(tmp_path, tags, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.classifier.weight.abs().max() < 0.2
    assert first.classifier.weight.shape == (len(tags), 32)
    assert not first.classifier.bias.any()
    for name, values in old.bert.state_dict().items():
        assert torch.equal(values, first.bert.state_dict()[name])


def test_weights_of_another_shape_are_refused(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    build_tiny_head(layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    with pytest.raises(InputError, match=r"word_embeddings\.weight has another shape"):
        new_head(tmp_path, ["O"], seed=0)


def test_only_a_kind_with_token_classifiers_gets_a_head(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match="not a local model folder"):
        new_head(tmp_path / "nothing", ["O"], seed=0)
    config = CTRLConfig(vocab_size=99, n_embd=8, dff=8, n_layer=1, n_head=1)
    CTRLModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a ctrl model, which can't label tokens: give an encoder"):
        new_head(tmp_path, ["O"], seed=0)


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def zero(content: bytes) -> bytes:
    return halve(content) + bytes(len(content) - len(content) // 2)


def flip(content: bytes) -> bytes:
    place = len(content) // 3
    return content[:place] + bytes([content[place] ^ 0x95]) + content[place + 1 :]


LOADERS: dict[str, Callable[[Path], object]] = {
    "base": check_base,
    "masked language model": load_masked_lm,
    "tokenizer": lambda folder: load_by_name(AutoTokenizer, folder),
    "new head": lambda folder: new_head(folder, ["O"], seed=0),
    "head": load_token_classifier,
}


@pytest.mark.parametrize("damage", [halve, empty, zero, flip])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_damaged_model_without_a_record_gives_one_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], pickled: bool
) -> None:
    """Of a model that isn't ours, damage may go unnoticed; where it is noticed, the error names the model."""
    folder = tmp_path / "model"
    build_tiny_head(layers=1).save_pretrained(folder)
    save_tokenizer(build_tiny_tokenizer(), folder)
    if pickled:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    noticed: dict[tuple[str, str], str] = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(damage(content))
        for name, load in LOADERS.items():
            try:
                load(folder)
            except InputError as error:
                noticed[name, file.name] = str(error)
        file.write_bytes(content)
    assert all(str(folder) in error and "\n" not in error for error in noticed.values())
    if damage is not flip:
        weights = "pytorch_model.bin" if pickled else "model.safetensors"
        loaders = {"masked language model", "new head", "head"} if damage is not zero or pickled else set()
        assert {(name, weights) for name in loaders} <= noticed.keys()
        assert {("tokenizer", "tokenizer.json"), ("head", "config.json"), ("base", "config.json")} <= noticed.keys()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "bert", "hidden_size": "x"}'),
        ("config.json", '{"model_type": "bert", "num_attention_heads": 0}'),
        ("config.json", '{"model_type": "bert", "vocab_size": 5}'),
        ("config.json", '{"model_type": "bert", "id2label": []}'),
        ("tokenizer.json", "null"),
        ("tokenizer_config.json", "5"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
    ],
)
def test_files_of_a_model_that_make_no_sense_give_one_line(tmp_path: Path, name: str, content: str) -> None:
    build_tiny_head(layers=1).save_pretrained(tmp_path)
    save_tokenizer(build_tiny_tokenizer(), tmp_path)
    (tmp_path / name).write_text(content)
    for load in (lambda folder: new_head(folder, ["O"], seed=0), Annotator):
        with pytest.raises(InputError, match=re.escape(str(tmp_path))) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_a_lack_of_memory_is_not_taken_for_a_damaged_model(tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(AutoModelForTokenClassification, "from_pretrained", fail)
        with pytest.raises(type(error)) as raised:
            load_token_classifier(tiny_head)
        assert raised.value is error


@pytest.mark.parametrize("positions", [64, 1024])
def test_a_saved_head_reads_as_much_as_its_encoder(tokenizer: BertTokenizer, tmp_path: Path, positions: int) -> None:
    head = build_tiny_head(layers=1, positions=positions)
    tokenizer.model_max_length = VERY_LARGE_INTEGER  # as for many models on the Hub
    save_head(head, tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == positions
    with pytest.raises(InputError, match=r"^the model is a BertForMaskedLM, not a token classifier"):
        save_head(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path)


def test_a_folder_with_memory_in_its_name_is_read_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "memory-bert"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="memory-bert"):
        load_masked_lm(folder)


HEADS = {
    "token classifier": lambda: build_tiny_head(layers=2),
    "classifier of texts": lambda: BertForSequenceClassification(build_tiny_bert(127).config),
    "answers to questions": lambda: BertForQuestionAnswering(build_tiny_bert(127).config),
}


@pytest.mark.parametrize("named", [True, False], ids=["named", "without architectures"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("use", [check_base, load_masked_lm])
def test_a_fine_tuned_head_is_no_base(use: Callable[[Path], Any], kind: str, named: bool, tmp_path: Path) -> None:
    HEADS[kind]().save_pretrained(tmp_path)
    if not named:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["architectures"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="fine-tuned for a task: give the encoder that it was made from") as error:
        use(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


def test_an_encoder_saved_alone_is_a_base(tmp_path: Path) -> None:
    """The advice of the error works: the encoder of a head may be wanted."""
    HEADS["token classifier"]().base_model.save_pretrained(tmp_path)
    check_base(tmp_path)
    load_masked_lm(tmp_path)


def test_heads_are_not_compared_as_encoders(tmp_path: Path, tiny_head: Path) -> None:
    with pytest.raises(InputError, match=r"x=.* is a BertForTokenClassification, fine-tuned for a task"):
        find_encoders(Run(str(tmp_path)), HeadOptions(tasks=["mine"], models=[f"x={tiny_head}"]))


def test_a_replaced_head_is_said(tiny_head: Path, warnings_of_package: Callable[[], list[str]]) -> None:
    new_head(tiny_head, ["O", "B-Gene", "I-Gene"], seed=0)
    assert warnings_of_package() == [
        f"{tiny_head} has the head of another task, which is replaced; its encoder was fine-tuned for it"
    ]


def larger_tokenizer() -> BertTokenizer:
    vocabulary = [*tiny_vocabulary(), *(f"word{number}" for number in range(50))]
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, model_max_length=512)


def uses_of_a_tokenizer(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """Everything that takes a model and a tokenizer, with a model of the tiny tokenizer."""
    size = len(tiny_vocabulary())
    bert, head = build_tiny_bert(size), build_tiny_head(layers=1)
    contexts = Dataset.from_dict({"token": ["asthma"], "text": ["asthma"], "start": [0], "end": [6]})
    rows = {"asthma": torch.ones(32)}
    tiny = build_tiny_tokenizer()
    return {
        "annotate": lambda tokenizer: Annotator(head, tokenizer),
        "predict": lambda tokenizer: predict_tags(head, tokenizer, [["asthma"]]),
        "contextual": lambda tokenizer: contextual_embeddings(bert, tokenizer, contexts),
        "distill": lambda tokenizer: distill_tokens(bert, tokenizer, contexts, rows),
        "initialise": lambda tokenizer: initial_rows(bert, tokenizer, tiny, initializer="subtoken_mean"),
        "transplant": lambda tokenizer: transplant_vocabulary(build_tiny_bert(size), tokenizer, tiny, {}),
        "save head": lambda tokenizer: save_head(head, tokenizer, folder / "head"),
        "save": lambda tokenizer: save_masked_lm(bert, tokenizer, folder / "bert"),
    }


@pytest.mark.parametrize("use", uses_of_a_tokenizer(Path()))
def test_a_tokenizer_must_fit_its_model(use: str, tmp_path: Path) -> None:
    uses_of_a_tokenizer(tmp_path)[use](build_tiny_tokenizer())
    larger = larger_tokenizer()
    with pytest.raises(InputError, match=rf"^tokenizer: it has {len(larger)} tokens, but .* embeddings: give"):
        uses_of_a_tokenizer(tmp_path)[use](larger)


def test_the_tokenizer_beside_a_model_must_fit_it(tmp_path: Path) -> None:
    build_tiny_head(layers=1).save_pretrained(tmp_path)
    save_tokenizer(larger_tokenizer(), tmp_path)
    for use in (Annotator, lambda name: new_head(name, ["O", "B-a"], seed=0)):
        with pytest.raises(InputError, match=f"tokenizer: .* but {tmp_path} has"):
            use(tmp_path)


def test_a_tokenizer_given_with_a_head_must_be_its_own(tiny_head: Path) -> None:
    """Of the same size, so that only the folder's own tokenizer shows it."""
    Annotator(tiny_head, build_tiny_tokenizer())
    tokens = tiny_vocabulary()
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    swapped = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=512)
    with pytest.raises(InputError, match=f"tokenizer: it has other tokens than the tokenizer of {tiny_head}"):
        Annotator(tiny_head, swapped)


@pytest.mark.parametrize(("size", "pad"), [(5000, 0), (127, 3)])
def test_a_tokenizer_that_probably_belongs_to_another_model_is_noted_once(
    size: int, pad: int, warnings_of_package: Callable[[], list[str]]
) -> None:
    config = BertConfig(vocab_size=size, pad_token_id=pad)
    name = f"model {size} {pad}"
    for _ in range(2):
        check_tokenizer(build_tiny_tokenizer(), config, name=name)
    (warning,) = warnings_of_package()
    assert warning.endswith("is it another model's?")
    assert name in warning


def test_a_revision_that_moved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tiny_bert(127).save_pretrained(tmp_path / "new")
    monkeypatch.setattr(models, "find_model", lambda _: Source(str(tmp_path / "new"), "me/base@bbb"))
    record = tmp_path / "run" / "tokenizer" / RECORD
    record.parent.mkdir(parents=True)
    inputs = {"base_model": "name:me/base@aaa"}
    write_record(record, inputs, {}, facts={"base_model": "me/base@aaa"}, seconds=0)
    moved = "me/base has moved on the Hub from aaa to bbb: give me/base@aaa to stay with the first"
    with pytest.raises(InputError, match=f"^base_model: me/base isn't the model that .* was made for; {moved}$"):
        base_of_run(tmp_path / "run", "me/base")
    with pytest.raises(InputError, match=f"choose another output_dir, or use force to redo it; {moved}$"):
        is_finished(record.parent, {"base_model": "name:me/base@bbb"}, {})
    with pytest.raises(InputError, match=r"use force to redo it$"):
        is_finished(record.parent, {"base_model": "name:you/base@bbb"}, {})


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_saved_weights_follow_the_umask(tokenizer: BertTokenizer, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_head(build_tiny_head(layers=0), tokenizer, tmp_path / "head")
        save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "encoder")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
