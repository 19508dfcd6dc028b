"""CoNLL reading, tasks, windows, exact loss, fine-tuning, and the grid as a user runs it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from helpers import ROOT, build_tiny_bert, build_tiny_head, build_tiny_tokenizer, load_script
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    BertTokenizer,
    DataCollatorForTokenClassification,
    RobertaConfig,
    RobertaModel,
    TrainingArguments,
    pipeline,
)
from transformers.modeling_outputs import TokenClassifierOutput

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import new_head, save_head
from bioptimus_hf.ner.finetuning import (
    HeadTrainer,
    evaluates_each_epoch,
    finetune,
    mean_cross_entropy,
    predict_tags,
    windows_dataset,
)
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import BLURB_NER, NerTask, label_names, load_ner, tags_of, task_files
from bioptimus_hf.ner.windows import sentence_windows

SAMPLE = Path(str(resources.files("bioptimus_hf") / "sample" / "ner"))
SCRIPT = ROOT / "scripts" / "finetune_ner.py"
GOOD = "Aspirin\tB-Chemical\nhelps\tO\n\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_task(folder: Path, train: str = GOOD, dev: str = GOOD, test: str = GOOD) -> Path:
    for name, content in (("train", train), ("dev", dev), ("test", test)):
        write(folder / f"{name}.tsv", content)
    return folder


# CoNLL


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Aspirin\tB-Chemical\nhelps\n", "line 2: a token and its tag are needed, not 'helps'"),
        ("Aspirin\tB-Chemical\nhelps\tsome\tO\n", "line 2: 3 columns, where line 1 has 2"),
        ("Aspirin\tB-Chemical\n\n\tO\n", "line 3: the token is empty"),
        ("Aspirin\tB-Chemical\n \tO\n", "line 2: the token is empty"),
        ("Aspirin\tX-Chemical\n", "line 1: unknown tag 'X-Chemical'"),
        ("Aspirin\tB\n", "line 1: unknown tag 'B'"),
        ("Aspirin\tB-\n", "line 1: unknown tag 'B-'"),
        ("Aspirin\tB-Chemical-\n", "line 1: unknown tag 'B-Chemical-'"),
        ("Aspirin\t\n", "line 1: unknown tag ''"),
        ("", "holds no sentence"),
        ("\n\n", "holds no sentence"),
        ("-DOCSTART-\tO\n\n", "holds no sentence"),
        (b"Aspirin\tB-Chemical\nna\xefve\tO\n", "line 2: not valid UTF-8 at byte 2 of the line"),
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
    with pytest.raises(InputError, match=r"train\.tsv cannot be read: No such file"):
        read_conll(tmp_path / "train.tsv")


def test_conll_of_other_systems_is_read_alike(tmp_path: Path) -> None:
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


def test_line_separators_inside_tokens_are_no_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\u2028b\tO\nc\u0085\x0cd\tB-X\n")
    assert read_conll(path) == [(["a\u2028b", "c\u0085\x0cd"], ["O", "B-X"])]


def test_inside_without_beginning_is_repaired_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tsv", "a\tI-X\nb\tI-X\nc\tI-Y\nd\tO\ne\tI-Y\n\nf\tI-Y\n")
    assert [tags for _, tags in read_conll(path)] == [["B-X", "I-X", "B-Y", "O", "B-Y"], ["B-Y"]]
    assert f"{path}: 4 I- tags continue nothing, read as B- (first: line 1)" in caplog.text


# Tasks


def test_real_sets_have_the_published_numbers_of_mentions(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = {}
    for name in BLURB_NER:
        dataset = load_ner(name, data_dir / "ner")
        labels = label_names(dataset["train"])
        assert len(labels) == 3, labels  # one class of mentions each, JNLPBA too
        found[name] = [sum(tag.startswith("B-") for row in tags_of(part) for tag in row) for part in dataset.values()]
    assert found == {
        "bc5-chem": [5203, 5347, 5385],
        "bc5-disease": [4182, 4246, 4424],
        "ncbi-disease": [5134, 787, 960],
        "bc2gm": [15197, 3061, 6325],
        "jnlpba": [46750, 4551, 8662],
    }
    assert caplog.text.count("as published") == 4
    assert "bc5-disease: mentions train 4182, validation 4246, test 4424: the copy in wide use" in caplog.text


def test_other_data_is_not_called_blurb(data_dir: Path, tmp_path: Path) -> None:
    files = task_files("ncbi-disease", data_dir / "ner")
    texts = {split: file.read_text(encoding="utf-8") for split, file in files.items()}
    folder = write_task(
        tmp_path / "NCBI-disease",
        texts["train"].replace("B-Disease", "O", 1).replace("I-Disease", "O"),
        texts["validation"],
        texts["test"],
    )
    with pytest.raises(
        InputError, match=r"this is not ncbi-disease: mentions are train 5133.*published are train 5134"
    ):
        load_ner("ncbi-disease", tmp_path)
    assert load_ner(NerTask("mine"), folder)["train"].num_rows == 5424


@pytest.mark.parametrize(
    "task", [NerTask("bc2gm"), replace(BLURB_NER["bc2gm"], mentions=(1, 1, 1)), NerTask("jnlpba", "JNLPBA")]
)
def test_no_other_task_takes_the_name_of_one_of_blurb(task: NerTask, tmp_path: Path) -> None:
    write_task(tmp_path)
    with pytest.raises(InputError, match=rf"{task.name} is a task of BLURB, .*: give another name"):
        load_ner(task, tmp_path)


def test_sample_is_a_task_of_its_own() -> None:
    dataset = load_ner(NerTask("sample"), SAMPLE)
    assert list(dataset) == ["train", "validation", "test"]
    assert dataset.column_names["test"] == ["tokens", "ner_tags"]
    assert label_names(dataset["train"]) == ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"]
    assert entity_scores(tags_of(dataset["test"]), tags_of(dataset["test"]))["support"] == 171
    for split, file in task_files(NerTask("sample"), SAMPLE).items():
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n") if line]
        assert [word for words in dataset[split]["tokens"] for word in words] == [word for word, _ in lines]
        assert [tag for tags in tags_of(dataset[split]) for tag in tags] == [tag for _, tag in lines]


def test_task_folder_or_files_themselves_and_any_label_set(tmp_path: Path) -> None:
    kinds = [f"Type{number:02d}" for number in range(16)]
    text = "".join(f"word\tB-{kind}\n" for kind in kinds) + "\n"
    write_task(tmp_path / "many", text, text, text)
    for task, source in ((NerTask("m", "many"), tmp_path), (NerTask("m"), tmp_path / "many")):
        assert label_names(load_ner(task, source)["test"])[1::2] == [f"B-{kind}" for kind in kinds]


def test_merged_types_are_one(tmp_path: Path) -> None:
    write_task(tmp_path, "a\tB-X\nb\tI-X\nc\tB-Y\nd\tO\n\n", "a\tB-Y\n\n", "a\tB-X\n\n")
    dataset = load_ner(NerTask("m", merged_type="Any"), tmp_path)
    assert tags_of(dataset["train"]) == [["B-Any", "I-Any", "B-Any", "O"]]
    assert label_names(dataset["train"]) == ["O", "B-Any", "I-Any"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_type_that_does_not_occur_in_train_is_refused(tmp_path: Path, split: str) -> None:
    write_task(tmp_path, **{split: "Pain\tO\nhurts\tB-Disease\n\n"})
    with pytest.raises(InputError, match=rf"{split}\.tsv, line 2: tag 'B-Disease' .* known are Chemical"):
        load_ner(NerTask("mine"), tmp_path)


def test_type_that_a_task_does_not_name_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path)
    with pytest.raises(InputError, match=r"train\.tsv, line 1: tag 'B-Chemical' .* known are Disease"):
        load_ner(NerTask("mine", types=("Disease",)), tmp_path)


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown task 'bc5chem': give one of bc5-chem, "):
        load_ner("bc5chem", tmp_path)
    with pytest.raises(InputError, match=r"no train\.tsv for the task bc2gm in .*BC2GM or "):
        load_ner("bc2gm", tmp_path)
    write(tmp_path / "train.tsv", GOOD)
    with pytest.raises(InputError, match=r"no dev\.tsv or devel\.tsv in "):
        load_ner(NerTask("mine"), tmp_path)
    write_task(tmp_path, train="word\tO\n")
    with pytest.raises(InputError, match=r"train\.tsv holds no entity: every tag is O"):
        load_ner(NerTask("mine"), tmp_path)


# Windows


@pytest.fixture(scope="module")
def tiny_tokenizer() -> BertTokenizer:
    return build_tiny_tokenizer()


class TagsByFirstPiece(torch.nn.Module):
    """A model whose tag at a position is a function of the piece there, so that any misplacement shows."""

    device = torch.device("cpu")

    def __init__(self, names: list[str], positions: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), max_position_embeddings=positions)
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, **_: Any) -> TokenClassifierOutput:
        assert input_ids.shape[1] <= self.config.max_position_embeddings
        self.calls += 1
        return TokenClassifierOutput(
            logits=torch.nn.functional.one_hot(input_ids % len(self.config.id2label), len(self.config.id2label))
        )


# "-" * n is n pieces; a zero-width space is dropped by the tokenizer; the others are a piece or several.
words = st.one_of(
    st.sampled_from(["aspirin", "the", "bronchoconstriction", "qwx", "IL-2", "\u200b", "é", "漢字"]),
    st.integers(1, 30).map(lambda n: "-" * n),
)


@given(st.lists(st.lists(words, max_size=25), max_size=5), st.integers(3, 24))
@settings(max_examples=200, deadline=None)
def test_each_word_is_tagged_once_in_windows_that_fit(sentences: list[list[str]], max_length: int) -> None:
    tokenizer = build_tiny_tokenizer()
    names = [f"tag{number}" for number in range(len(tokenizer))]

    def first_piece(word: str) -> int:
        return int((tokenizer(word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id])[0])

    cut = list(sentence_windows(sentences, tokenizer, max_length=max_length))
    assert len(cut) == len(sentences)
    for sentence, windows in zip(sentences, cut, strict=True):
        own = [word for window in windows for word in range(window.first_word, window.first_word + len(window.heads))]
        assert own == list(range(len(sentence)))
        assert all(len(window.input_ids) <= max_length and window.heads for window in windows)
        length = len(tokenizer(sentence, is_split_into_words=True)["input_ids"]) if sentence else 0
        assert len(windows) <= 1 or length + sentence.count("\u200b") > max_length
    model: Any = TagsByFirstPiece(names, positions=max_length)
    tags = predict_tags(model, tokenizer, sentences, batch_size=3, max_length=512)
    assert tags == [[names[first_piece(word)] for word in sentence] for sentence in sentences]


def test_words_at_the_edge_of_a_window_have_context(tiny_tokenizer: BertTokenizer) -> None:
    (windows,) = sentence_windows([["the"] * 100], tiny_tokenizer, max_length=22)
    assert len(windows) > 5
    for window in windows[1:]:
        assert window.heads[0] > 4  # [CLS] and words that belong to the window before
    for window in windows[:-1]:
        assert window.heads[-1] < len(window.input_ids) - 5


def test_windows_without_room_are_refused(tiny_tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match="a window of 2 pieces has no room"):
        list(sentence_windows([["the"]], tiny_tokenizer, max_length=2))


@pytest.mark.parametrize("max_length", [512, 12])
def test_every_label_survives_at_its_words_first_piece(tiny_tokenizer: BertTokenizer, max_length: int) -> None:
    dataset = load_ner(NerTask("sample"), SAMPLE)["test"]
    rows = windows_dataset(dataset, tiny_tokenizer, max_length=max_length)
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert (len(rows) > len(dataset)) == (max_length == 12)
    assert max(map(len, rows["input_ids"])) <= max_length
    labelled = [
        (piece, label)
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
        for piece, label in zip(ids, labels, strict=True)
        if label != -100
    ]
    expected = [
        (tiny_tokenizer(word, add_special_tokens=False)["input_ids"][0], tag)
        for words, tags in zip(dataset["tokens"], dataset["ner_tags"], strict=True)
        for word, tag in zip(words, tags, strict=True)
    ]
    assert labelled == expected


# Fine-tuning


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BertTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_tiny_bert(len(tiny_tokenizer)).save_pretrained(folder)
    # Without a length limit, as transformers 5 makes tokenizers: the limit of the saved head must be our doing.
    BertTokenizer(vocab=tiny_tokenizer.get_vocab()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sample() -> DatasetDict:
    return load_ner(NerTask("sample"), SAMPLE)


def train(base: Path, sample: DatasetDict, folder: Path, *, seed: int, **options: Any) -> tuple[Any, Any, Any]:
    model, tokenizer = new_head(base, label_names(sample["train"]), seed=seed)
    arguments = evaluates_each_epoch(
        folder, seed=seed, use_cpu=True, disable_tqdm=True, per_device_train_batch_size=16, **options
    )
    return model, tokenizer, finetune(model, tokenizer, sample, arguments)


@pytest.fixture(scope="module")
def head(base: Path, sample: DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A head trained on the sample and saved, and the log of its training. The rate is too high on purpose."""
    folder = tmp_path_factory.mktemp("head")
    options = {"learning_rate": 2e-2, "num_train_epochs": 4, "lr_scheduler_type": "constant"}
    model, tokenizer, history = train(base, sample, folder / "checkpoints", seed=1, **options)
    save_head(model, tokenizer, folder / "saved")
    return folder / "saved", history


def test_saved_head_is_that_of_the_best_epoch(head: tuple[Path, list[Any]], sample: DatasetDict) -> None:
    folder, history = head
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    best = max(row["f1"] for row in history)
    assert best > history[-1]["f1"] or best > history[0]["f1"], "every epoch is alike: this run proves nothing"
    model = BertForTokenClassification.from_pretrained(folder)
    tokenizer, sentences = AutoTokenizer.from_pretrained(folder), sample["validation"]["tokens"]
    predicted = predict_tags(model, tokenizer, sentences, batch_size=8)  # as in training: others are rounded otherwise
    assert entity_scores(tags_of(sample["validation"]), predicted)["f1"] == best > 0.1


def test_saved_head_works_in_a_pipeline_that_knows_transformers_alone(head: tuple[Path, list[Any]]) -> None:
    folder, _ = head
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"]
    assert (folder / "model.safetensors").is_file()
    assert (folder / "vocab.txt").is_file()
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 512
    text = "Leflunomide caused thrombocytopenia and nephrotoxicity in patients with bronchoconstriction."
    found = pipeline("ner", model=str(folder), aggregation_strategy="first", device="cpu")(text)
    assert found
    for entity in found:
        assert entity["entity_group"] in {"Chemical", "Disease"}
        edges = text[max(entity["start"] - 1, 0) : entity["end"] + 1]
        assert re.fullmatch(r"\W?\w.*?\W?", edges), f"{edges!r} is no whole word"
        for place in (entity["start"], entity["end"]):
            assert not re.fullmatch(r"\w\w", text[max(place - 1, 0) : place + 1]) or place == 0


def test_same_seed_same_weights(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    few = DatasetDict({split: part.select(range(24)) for split, part in sample.items()})
    once, again, other = (
        train(base, few, tmp_path / str(number), seed=seed, learning_rate=1e-3, num_train_epochs=2)[0].state_dict()
        for number, seed in enumerate((5, 5, 6))
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["classifier.weight"], other["classifier.weight"])


def test_a_head_that_diverges_is_refused(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    """The Trainer by default logs the mean of the other losses in place of one that is NaN."""
    few = DatasetDict({split: part.select(range(24)) for split, part in sample.items()})
    for epochs in (1, 2):  # after one step the weights are not finite; the loss shows it a step later
        with pytest.raises(InputError, match="Training of the head diverged: nothing was saved"):
            train(base, few, tmp_path / str(epochs), seed=5, learning_rate=1e38, num_train_epochs=epochs)


def test_weights_come_from_the_training_part_alone(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    few = sample["train"].select(range(24))
    once, again = (
        train(base, DatasetDict(train=few, validation=sample["train"].select(rows)), tmp_path / name, seed=5,
              learning_rate=1e-3, num_train_epochs=1)[0].state_dict()
        for name, rows in (("once", range(24, 40)), ("again", range(60, 90)))
    )  # fmt: skip
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_loss_and_gradient_do_not_depend_on_accumulation(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    model, tokenizer = new_head(base, label_names(sample["train"]), seed=0)
    rows = windows_dataset(sample["train"], tokenizer).select(range(4))
    assert len({len(row) for row in rows["input_ids"]}) > 1  # else a mean of means would pass

    def first_update(batch: int, accumulation: int) -> tuple[float, float]:
        head, _ = new_head(base, label_names(sample["train"]), seed=0)
        for module in head.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            max_grad_norm=1e9,
        )
        trainer = HeadTrainer(
            model=head,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_loss_func=mean_cross_entropy,
            max_length=512,
        )
        trainer.train()
        log = trainer.state.log_history[0]
        return log["loss"], log["grad_norm"]

    batch = DataCollatorForTokenClassification(tokenizer)([rows[number] for number in range(4)])
    loss = model.eval()(**batch).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        assert first_update(batch_size, accumulation) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


def test_order_of_training_is_by_length_and_by_seed_alone(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    """Processes that share the work must agree on the order, though dropout leaves torch's generator differing."""
    model, tokenizer = new_head(base, label_names(sample["train"]), seed=0)
    rows = windows_dataset(sample["train"], tokenizer)

    def order(seed: int, state: int) -> list[list[int]]:
        arguments = evaluates_each_epoch(tmp_path, seed=seed, use_cpu=True, per_device_train_batch_size=8)
        trainer = HeadTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, max_length=512)
        torch.manual_seed(state)
        sampler = trainer.get_train_dataloader().batch_sampler
        return [[row for batch in sampler for row in batch] for _ in range(2)]

    first, second = order(seed=3, state=0)
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second
    assert order(seed=3, state=1) == [first, second]
    assert order(seed=4, state=0) != [first, second]
    lengths = [len(ids) for ids in rows["input_ids"]]
    spread = [max(lengths[row] for row in first[i : i + 8]) - min(lengths[row] for row in first[i : i + 8])
              for i in range(0, len(rows), 8)]  # fmt: skip
    assert sum(spread) / len(spread) < 0.2 * (max(lengths) - min(lengths))


@pytest.mark.parametrize("tags", [["O", "B-Gene", "I-Gene"], ["O", "B-Gene", "I-Gene", "B-Cell", "I-Cell"]])
def test_the_head_of_another_task_is_dropped(tmp_path: Path, tiny_tokenizer: BertTokenizer, tags: list[str]) -> None:
    old = build_tiny_head(layers=1, tags=["O", "B-Disease", "I-Disease"])
    torch.nn.init.constant_(old.classifier.weight, 7.0)
    torch.nn.init.constant_(old.classifier.bias, 7.0)
    old.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    first, same, other = (new_head(tmp_path, tags, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.classifier.weight.abs().max() < 0.2
    assert first.classifier.weight.shape == (len(tags), 32)
    assert not first.classifier.bias.any()
    for name, values in old.bert.state_dict().items():
        assert torch.equal(values, first.bert.state_dict()[name])


def test_weights_of_another_shape_are_refused(tmp_path: Path, tiny_tokenizer: BertTokenizer) -> None:
    build_tiny_head(layers=1).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    with pytest.raises(InputError, match=r"word_embeddings\.weight has another shape"):
        new_head(tmp_path, ["O"], seed=0)


def test_what_is_no_bert_gets_no_head(tmp_path: Path, tiny_tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match="can't be loaded as a BertForTokenClassification"):
        new_head(tmp_path / "nothing", ["O"], seed=0)
    config = RobertaConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    RobertaModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a roberta model: give a BERT"):
        new_head(tmp_path, ["O"], seed=0)


# The script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def test_names_of_tasks_and_models(script: ModuleType, tmp_path: Path) -> None:
    assert script.chosen_tasks(["all"]) == list(BLURB_NER.values())
    assert script.chosen_tasks(["bc2gm", "mine"]) == [BLURB_NER["bc2gm"], NerTask("mine", "mine")]
    (tmp_path / "v0.4").mkdir()
    (tmp_path / "bert").mkdir()

    def chosen(*models: str) -> Any:
        base = str(tmp_path / "bert")
        return script.chosen_models(
            script.Options("data", output_dir=str(tmp_path), base_model=base, models=list(models))
        )

    assert chosen("base", "v0.4", "other/v0.1", "x=org/y") == {
        "base": f"{tmp_path}/bert",
        "v0.4": f"{tmp_path}/v0.4",
        "v0.1": "other/v0.1",
        "x": "org/y",
    }
    with pytest.raises(InputError, match=r"a/v0\.1 and b/v0\.1 are both called v0\.1: give label=FOLDER"):
        chosen("a/v0.1", "b/v0.1")
    with pytest.raises(InputError, match="--models a/b=c: give a folder"):
        chosen("a/b=c")


def run_script(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


def test_grid_is_resumed_where_it_stopped(
    script: ModuleType, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_task(tmp_path / "data" / "mine", GOOD * 20, GOOD * 3, GOOD * 4).parent
    command = [
        *("--ner_data", str(data), "--tasks", "mine", "--models", "base", f"other={base}", "--base_model", str(base)),
        *("--seeds", "2", "--num_train_epochs", "1", "--output_dir", str(tmp_path / "out")),
    ]
    first = run_script(*command)
    assert first.returncode == 0, first.stderr
    assert "mine: mentions train 20, validation 3, test 4" in first.stderr
    root = tmp_path / "out" / "ner"
    cells = {f"{model}/{seed}": root / "mine" / model / str(seed) for model in ("base", "other") for seed in (0, 1)}
    scores = json.loads((cells["other/1"] / "scores.json").read_text())
    assert (scores["task"], scores["model"], scores["seed"], scores["test"]["support"]) == ("mine", "other", 1, 4.0)
    assert sorted(path.name for path in cells["base/0"].iterdir()) == [
        *(
            "config.json",
            "made.json",
            "model.safetensors",
            "predictions.tsv",
            "scores.json",
            "tokenizer.json",
        ),
        *("tokenizer_config.json", "vocab.txt"),
    ]
    lines = (cells["base/0"] / "predictions.tsv").read_text().split("\n")
    assert [line.split("\t")[:2] for line in lines[:2]] == [["Aspirin", "B-Chemical"], ["helps", "O"]]
    rows = json.loads((root / "results.json").read_text())["rows"]
    assert [(row["task"], row["model"], row["seeds"]) for row in rows] == [
        ("mine", "base", [0, 1]),
        ("mine", "other", [0, 1]),
    ]
    before = {name: load_file(cell / "model.safetensors") for name, cell in cells.items()}
    # The label changes nothing, the seed does.
    assert all(torch.equal(before["base/0"][name], before["other/0"][name]) for name in before["base/0"])
    assert not torch.equal(before["base/0"]["classifier.weight"], before["base/1"]["classifier.weight"])

    made = {name: (cell / "made.json").read_bytes() for name, cell in cells.items()}
    (cells["base/1"] / "made.json").unlink()
    for file in cells["base/1"].iterdir():
        file.unlink()
    (root / "results.md").unlink()
    second = run_script(*command)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("made from the same inputs and settings: skipped") == 3
    assert all((cell / "made.json").read_bytes() == made[name] for name, cell in cells.items() if name != "base/1")
    again = load_file(cells["base/1"] / "model.safetensors")
    assert all(torch.equal(before["base/1"][name], again[name]) for name in again)
    assert "| mine | other |" in (root / "results.md").read_text()

    monkeypatch.setattr(sys, "argv", ["finetune_ner.py", *command, "--learning_rate", "1e-3"])
    with pytest.raises(InputError, match=r"was made with different learning_rate \(5e-05 then, 0\.001 now\)"):
        script.main()

    # Seeds that would have no mean with those there, and other test data, are seen before other tasks are trained.
    write_task(data / "another", GOOD * 20, GOOD * 3, GOOD * 4)
    changed = [*command, "--tasks", "another", "mine", "--seeds", "7", "8"]
    monkeypatch.setattr(sys, "argv", ["finetune_ner.py", *changed, "--learning_rate", "1e-3"])
    with pytest.raises(InputError, match=r"base/0 and .*base/7 are of other inputs or settings, and have no mean"):
        script.main()
    (data / "mine" / "test.tsv").write_text(GOOD * 5)
    monkeypatch.setattr(sys, "argv", ["finetune_ner.py", *changed, "--models", f"third={base}"])
    with pytest.raises(InputError, match=r"mine/.* and .*third/7 are scored on unlike test data"):
        script.main()
    assert not (root / "another").exists()


def test_grid_runs_on_two_processes(base: Path, tmp_path: Path, two_ranks: tuple[str, ...]) -> None:
    write_task(tmp_path / "mine", GOOD * 20, GOOD * 3, GOOD * 4)
    result = run_script(
        *("--ner_data", str(tmp_path), "--tasks", "mine", "--models", "base", "--base_model", str(base)),
        *("--seeds", "1", "--num_train_epochs", "2", "--output_dir", str(tmp_path / "out")),
        launcher=two_ranks,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out/ner/mine/base/0/made.json").read_text())["settings"]["processes"] == 2
    assert "| mine | base |" in (tmp_path / "out/ner/results.md").read_text()


@pytest.mark.parametrize(
    ("test", "model", "says"),
    [
        ("Aspirin\tB-Chemical\nhelps\n", "base", r"mine/test\.tsv, line 2: a token and its tag are needed"),
        (GOOD, "v0.4", "--models v0.4: there is no "),
    ],
)
def test_unusable_input_is_refused_before_any_training(
    script: ModuleType, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, model: str, says: str
) -> None:
    write_task(tmp_path / "mine", test=test)
    arguments = [
        *("finetune_ner.py", "--ner_data", str(tmp_path), "--tasks", "mine", "--base_model", str(base)),
        *("--models", f"x={base}", model, "--output_dir", str(tmp_path / "out")),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(InputError, match=says):
        script.main()
    assert not (tmp_path / "out").exists()
