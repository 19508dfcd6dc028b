"""Joint heads: the loss against a brute-force oracle, what a set says nothing about, and training on several sets."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from datasets import DatasetDict
from head_results import save_encoder, write_task
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from bioptimus_hf.artifacts import Run
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import IGNORED_LABEL, new_head
from bioptimus_hf.ner.experiments import make_heads
from bioptimus_hf.ner.finetuning import mean_cross_entropy, windows_dataset
from bioptimus_hf.ner.joint import JointData, join_tasks, keep_types, partial_cross_entropy
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.planning import chosen_tasks
from bioptimus_hf.ner.prediction import predict_tags, predict_tasks
from bioptimus_hf.ner.results import read_results
from bioptimus_hf.ner.tasks import BLURB_NER, NerTask, load_ner
from bioptimus_hf.publishing.report import make_report

Sentences = list[list[tuple[str, str]]]
"""Words with their tags."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("base"))


def conll(sentences: Sentences) -> str:
    return "".join("".join(f"{word}\t{tag}\n" for word, tag in sentence) + "\n" for sentence in sentences)


def sentence(text: str, *entities: str) -> list[tuple[str, str]]:
    """Tag words: `aspirin=Chemical` makes the word aspirin an entity."""
    kinds = dict(entity.split("=") for entity in entities)
    return [(word, f"B-{kinds[word]}" if word in kinds else "O") for word in text.split()]


def data_of(folder: Path, train: Sentences, *, types: tuple[str, ...] | None = None, held_out: str = "") -> DatasetDict:
    other = held_out or conll([sentence("nothing here x", f"x={kind}") for kind in types or ("Chemical",)])
    write_task(folder, conll(train), other, other)
    return load_ner(NerTask("t", types=types), folder)


def labels_of(data: JointData) -> list[list[set[str]]]:
    """Return the tags that each word's label is compatible with."""
    return [
        [{tag for tag, fits in zip(data.tags, data.compatible[label], strict=True) if fits} for label in labels]
        for labels in data.train["ner_tags"]
    ]


# Labels


def test_a_set_says_nothing_about_the_types_it_does_not_annotate(tmp_path: Path) -> None:
    a = data_of(tmp_path / "a", [sentence("aspirin helps", "aspirin=Chemical")], types=("Chemical",))
    b = data_of(tmp_path / "b", [sentence("fever and p53", "fever=Disease")], types=("Disease", "Gene"))
    joined = join_tasks({"b": b, "a": a})
    assert joined.tags == ["O", *(f"{p}-{kind}" for kind in ("Chemical", "Disease", "Gene") for p in "BI")]
    others = {"O", "B-Disease", "I-Disease", "B-Gene", "I-Gene"}
    assert joined.train["tokens"] == [["aspirin", "helps"], ["fever", "and", "p53"]]
    assert labels_of(joined) == [
        [{"B-Chemical"}, others],
        [{"B-Disease"}, {"O", "B-Chemical", "I-Chemical"}, {"O", "B-Chemical", "I-Chemical"}],
    ]
    assert join_tasks({"a": a, "b": b}).train["ner_tags"] == joined.train["ner_tags"]


def test_types_with_the_same_name_are_one_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    a = data_of(tmp_path / "a", [sentence("fever helps", "fever=Disease")], types=("Disease",))
    b = data_of(tmp_path / "b", [sentence("cancer and ibuprofen", "cancer=Disease", "ibuprofen=Chemical")],
                types=("Chemical", "Disease"))  # fmt: skip
    joined = join_tasks({"ncbi": a, "bc5": b})
    assert joined.tags == ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"]
    assert labels_of(joined) == [
        [{"B-Disease"}, {"O"}, {"B-Chemical"}],
        [{"B-Disease"}, {"O", "B-Chemical", "I-Chemical"}],
    ]
    (line,) = [record.getMessage() for record in caplog.records if "joint head with" in record.getMessage()]
    assert "types that several tasks share: Disease (bc5, ncbi)" in line


def test_sets_with_the_same_sentences_are_read_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    texts = ["aspirin against fever", "none of them", "lead poisoning"]
    chemicals = [sentence(texts[0], "aspirin=Chemical"), sentence(texts[1]), sentence(texts[2], "lead=Chemical")]
    diseases = [
        sentence(texts[0], "fever=Disease"),
        sentence(texts[1]),
        [("lead", "B-Disease"), ("poisoning", "I-Disease")],
    ]
    joined = join_tasks(
        {
            "c": data_of(tmp_path / "c", chemicals, types=("Chemical",)),
            "d": data_of(tmp_path / "d", diseases, types=("Disease",)),
        }
    )
    assert "sets with the same sentences, read as one: c and d" in caplog.text
    assert labels_of(joined) == [
        [{"B-Chemical"}, {"O"}, {"B-Disease"}],
        [{"O"}, {"O"}, {"O"}],
        [{"B-Chemical"}, {"O", "B-Disease", "I-Disease"}],  # both sets have an entity at this word, so they stay apart
        [{"B-Disease"}, {"I-Disease"}],
    ]
    # The same sentences with the same type are two annotations, not one with two types.
    twice = {name: data_of(tmp_path / name, chemicals, types=("Chemical",)) for name in ("e", "f")}
    assert len(join_tasks(twice).train) == 6


LONG = "Forty letters and digits are what the search for test sentences needs at least"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_sentences_that_another_task_is_evaluated_on_are_left_out(
    tmp_path: Path, split: str, warnings_of_package: Callable[[], list[str]]
) -> None:
    train = [
        sentence(f"{LONG} .", "Forty=Chemical"),
        sentence(f"We know : {LONG.upper()} ! Do we ?", "We=Chemical"),  # contains the sentence
        sentence(LONG[: LONG.index(" needs")], "Forty=Chemical"),  # is part of it
        sentence("Case report", "Case=Chemical"),  # short ones occur by chance
        sentence("Something else altogether that nobody is evaluated on anywhere", "nobody=Chemical"),
    ]
    a = data_of(tmp_path / "a", train)
    held_out = conll([sentence(LONG, "Forty=Disease"), sentence("Case report", "report=Disease")])
    write_task(
        tmp_path / "b",
        conll([sentence("fever", "fever=Disease")]),
        **{"dev": conll([sentence("fever", "fever=Disease")]), "test": conll([sentence("fever", "fever=Disease")])}
        | {split: held_out},
    )
    b = load_ner(NerTask("b"), tmp_path / "b")
    joined = join_tasks({"a": a, "b": b})
    assert joined.excluded == {"a": 3, "b": 0}
    assert [words[0] for words in joined.train["tokens"]] == ["Case", "Something", "fever"]
    (warning,) = [line for line in warnings_of_package() if "left out" in line]
    assert "left out: 3 of a; for example: Forty letters" in warning
    assert join_tasks({"a": a}).excluded == {"a": 0}
    alone = DatasetDict({**a, "train": a["train"].select([0, 1])})
    with pytest.raises(InputError, match="tasks: all training sentences of a are in the development or test sets"):
        join_tasks({"a": alone, "b": b})
    with pytest.raises(InputError, match="tasks: there is no task to join"):
        join_tasks({})
    with pytest.raises(InputError, match=r"^tasks\['b'\]: it has no split 'test', only train, validation$"):
        join_tasks({"a": a, "b": DatasetDict({split: b[split] for split in ("train", "validation")})})
    with pytest.raises(InputError, match=r"^tasks\['b'\]\['train'\]: the data set needs a column 'ner_tags', and has"):
        join_tasks({"a": a, "b": b.remove_columns("ner_tags")})


def test_sentences_of_a_set_read_as_one_are_not_held_out_by_its_other_half(tmp_path: Path) -> None:
    """The heads of single tasks are trained on them, too."""
    train = [sentence(LONG, "Forty=Chemical"), sentence("aspirin", "aspirin=Chemical")]
    other = [sentence(LONG, "letters=Disease"), sentence("aspirin")]
    a = data_of(tmp_path / "a", train, held_out=conll(train))
    b = data_of(tmp_path / "b", other, held_out=conll(other))
    assert join_tasks({"a": a, "b": b}).excluded == {"a and b": 0}


# Loss


def brute_force(logits: torch.Tensor, compatible: torch.Tensor, labels: torch.Tensor) -> float:
    """Sum the probabilities of the compatible tags of each word, in double precision."""
    total = 0.0
    for row, label in zip(logits.double().flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label == IGNORED_LABEL:
            continue
        highest = max(row)
        weights = [math.exp(value - highest) for value in row]
        total -= math.log(sum(itertools.compress(weights, compatible[label].tolist())) / sum(weights))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_sums_the_probabilities_of_compatible_tags(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 9, generator=generator) * 10
    compatible = torch.cat([torch.eye(9, dtype=torch.bool), torch.rand(4, 9, generator=generator) > 0.5])
    compatible[9:, 0] = True
    labels = torch.randint(0, 13, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) > 0.7] = IGNORED_LABEL
    loss = partial_cross_entropy({"logits": logits}, labels, 5, compatible=compatible)
    assert loss.item() == pytest.approx(brute_force(logits, compatible, labels) / 5, rel=1e-5)


def test_the_loss_is_the_cross_entropy_if_all_types_are_annotated() -> None:
    logits = (torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)) * 20).requires_grad_()
    labels = torch.arange(24).reshape(4, 6) % 5
    labels[0] = IGNORED_LABEL
    alone = torch.eye(5, dtype=torch.bool)
    for row, label in zip(logits.detach().flatten(0, 1), labels.flatten(), strict=True):  # word by word, it is exact
        if label != IGNORED_LABEL:
            ours = partial_cross_entropy({"logits": row[None, None]}, label[None, None], 1, compatible=alone)
            assert torch.equal(ours, cross_entropy(row, label))
    ours = partial_cross_entropy({"logits": logits}, labels, 18, compatible=alone)
    theirs = mean_cross_entropy({"logits": logits}, labels, 18)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_loss_is_finite_for_extreme_logits() -> None:
    compatible = torch.tensor([[True, False, False], [True, True, False]])
    logits = torch.tensor([[[-1e4, 0.0, 1e4], [-1e4, -1e4, 1e4]]], requires_grad=True)
    loss = partial_cross_entropy({"logits": logits}, torch.tensor([[0, 1]]), 2, compatible=compatible)
    assert loss.item() == pytest.approx(2e4 - math.log(2) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    nothing = partial_cross_entropy({"logits": logits}, torch.full((1, 2), IGNORED_LABEL), 2, compatible=compatible)
    assert torch.autograd.grad(nothing, logits)[0].eq(0).all()


def test_unannotated_types_are_not_pressed_towards_o(tmp_path: Path) -> None:
    """A set of diseases must not teach that its words aren't chemicals; a naive merge does."""
    a = data_of(tmp_path / "a", [sentence("aspirin helps", "aspirin=Chemical")], types=("Chemical",))
    b = data_of(tmp_path / "b", [sentence("ibuprofen against fever", "fever=Disease")], types=("Disease",))
    joined = join_tasks({"a": a, "b": b})
    labels = torch.tensor([joined.train["ner_tags"][1][:1]])  # ibuprofen, which this set doesn't annotate
    logits = torch.zeros(1, 1, 5)
    logits[..., joined.tags.index("B-Chemical")] = 3.0
    logits.requires_grad_()
    loss = partial_cross_entropy({"logits": logits}, labels, 1, compatible=joined.compatible)
    gradient = dict(zip(joined.tags, torch.autograd.grad(loss, logits)[0].flatten().tolist(), strict=True))
    assert gradient["B-Chemical"] < 0 < gradient["B-Disease"], "only diseases are ruled out"
    # The odds of a chemical against O stay as they are: both tags gain in proportion to their probability.
    assert gradient["B-Chemical"] / gradient["O"] == pytest.approx(math.exp(3.0), rel=1e-5)
    naive = torch.autograd.grad(cross_entropy(logits.flatten(0, 1), torch.tensor([0])), logits)[0].flatten()
    assert naive[joined.tags.index("B-Chemical")] > 0


# Decoding


def test_tags_of_other_types_are_outside() -> None:
    tags = [["B-Gene", "I-Gene", "O", "B-Disease"], ["I-Disease"]]
    assert keep_types(tags, ["Disease"]) == [["O", "O", "O", "B-Disease"], ["I-Disease"]]


def test_predictions_are_those_of_all_tags(base: Path, tmp_path: Path) -> None:
    """As for `annotate`, the best of all tags counts; each task keeps its own types."""
    of_a = [sentence("aspirin against fever in patients", "aspirin=Chemical", "fever=Disease")]
    of_b = [sentence("aspirin", "aspirin=Gene")]
    tasks = {
        "a": data_of(tmp_path / "a", of_a, types=("Chemical", "Disease"), held_out=conll(of_a)),
        "b": data_of(tmp_path / "b", of_b, types=("Gene",), held_out=conll(of_b)),
    }
    joined = join_tasks(tasks)
    model, tokenizer = new_head(base, joined.tags, seed=0)
    tests = {name: data["test"] for name, data in tasks.items()}
    predicted = predict_tasks(model, tokenizer, tests)
    for name, types in (("a", {"Chemical", "Disease"}), ("b", {"Gene"})):
        plain = predict_tags(model, tokenizer, tests[name]["tokens"])
        assert predicted[name] == [[tag if tag[2:] in types else "O" for tag in row] for row in plain]
    assert any(tag != "O" for rows in predicted.values() for row in rows for tag in row), "this proves nothing"


# Heads


def write_generated(folder: Path, kinds: dict[str, str], seed: int, count: int = 24, **counts: int) -> Path:
    """Write a task of sentences in which words of a few kinds occur, of which it annotates some.

    Args:
        kinds: type of each word that is annotated.
    """
    rng = random.Random(seed)
    words = ["aspirin", "ibuprofen", "fever", "cancer", "gene", "helps", "against", "in", "patients", "with", "the"]

    def text(number: int) -> str:
        rows = [[rng.choice(words) for _ in range(rng.randint(3, 9))] for _ in range(number)]
        rows[0] += list(kinds)
        return conll([[(word, f"B-{kinds[word]}" if word in kinds else "O") for word in row] for row in rows])

    return write_task(folder, text(count), text(6), text(counts.get("test", 8)))


CHEMICALS = {"aspirin": "Chemical", "ibuprofen": "Chemical"}
DISEASES = {"fever": "Disease", "cancer": "Disease"}


def options_of(folder: Path, base: Path, *tasks: str, **options: Any) -> HeadOptions:
    given: dict[str, Any] = {"models": ["base"], "base_model": str(base), "seeds": [1], "joint": True, **options}
    return HeadOptions(ner_data=str(folder), tasks=list(tasks), **given)


TRAINING = HeadTraining(num_train_epochs=2, learning_rate=5e-3)


def test_a_joint_head_is_a_plain_token_classifier_with_results_beside_single_heads(base: Path, tmp_path: Path) -> None:
    write_generated(tmp_path / "chem", CHEMICALS, 0)
    write_generated(tmp_path / "dis", DISEASES, 1)
    write_generated(tmp_path / "both", {**DISEASES, "gene": "Gene"}, 2)
    run = Run(str(tmp_path / "run"))
    options = options_of(tmp_path, base, "chem", "dis", "both", models=["base", f"v0.4={base}"])
    training = replace(TRAINING, num_train_epochs=6)
    root = make_heads(run, replace(options, joint=False), training)
    single = json.loads((root / "results.json").read_text())
    assert make_heads(run, options, training) == root
    head = root / "joint" / "base" / "0"
    config = json.loads((head / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == [
        *("O", "B-Disease", "I-Disease", "B-Gene", "I-Gene", "B-Chemical", "I-Chemical"),
    ]
    assert sorted(path.name for path in head.glob("*.tsv")) == [
        f"predictions-{task}.tsv" for task in ("both", "chem", "dis")
    ]
    scores = json.loads((head / "scores.json").read_text())
    assert (scores["task"], scores["model"], scores["seed"]) == ("joint", "base", 0)
    assert scores["tests"].keys() == {"both", "chem", "dis"}
    assert all(of_task["support"] > 0 for of_task in scores["tests"].values())
    epoch = scores["validation"][-1]
    assert epoch["f1"] == pytest.approx((epoch["chem_f1"] + epoch["dis_f1"] + epoch["both_f1"]) / 3)
    best = max(scores["validation"], key=lambda row: row["f1"])
    assert scores["best_epoch"] == best["epoch"]
    assert best["f1"] > 0.3, "nothing was learnt: this proves nothing"
    content = json.loads((root / "results.json").read_text())
    rows = [(row["task"], row["model"], row["seeds"]) for row in content["rows"]]
    models = ("base", "joint/base", "v0.4", "joint/v0.4")
    assert rows == [(task, model, [0]) for task in ("both", "chem", "dis") for model in models]
    assert [row for row in content["rows"] if "/" not in row["model"]] == single["rows"]
    compared = [(row["model"], row["minus"], len(row["seeds"])) for row in content["differences"][:4]]
    assert compared == [
        ("joint/base", "base", 1), ("v0.4", "base", 1), ("joint/v0.4", "joint/base", 1), ("joint/v0.4", "v0.4", 1),
    ]  # fmt: skip
    f1 = {(row["task"], row["model"]): row["f1"]["mean"] for row in content["rows"]}
    for row in content["differences"]:
        expected = f1[row["task"], row["model"]] - f1[row["task"], row["minus"]]
        assert row["mean"] == pytest.approx(expected)
    table = (root / "results.md").read_text()
    assert table.startswith("| task | model | F1 | F1 minus base | F1 minus single heads | conlleval F1 |")
    assert "| chem | joint/v0.4 |" in table


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    write_generated(tmp_path / "data" / "chem", CHEMICALS, 0)
    write_generated(tmp_path / "data" / "dis", DISEASES, 1)
    return tmp_path / "data"


def test_joint_heads_are_resumed_and_made_again_bit_by_bit(
    base: Path, two_tasks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run, options = Run(str(tmp_path / "run")), options_of(two_tasks, base, "chem", "dis", seeds=[2])
    heads = [make_heads(run, options, TRAINING) / "joint" / "base" / str(seed) for seed in (0, 1)]
    before = [load_file(head / "model.safetensors") for head in heads]
    record = (heads[0] / "made.json").read_bytes()
    shutil.rmtree(heads[1])
    caplog.clear()
    make_heads(run, replace(options, tasks=["dis", "chem"]), TRAINING)  # their order doesn't matter
    assert caplog.text.count("finished with the same inputs and settings, skipped") == 1
    assert (heads[0] / "made.json").read_bytes() == record
    again = load_file(heads[1] / "model.safetensors")
    assert all(torch.equal(before[1][name], again[name]) for name in again)
    assert not all(torch.equal(before[0][name], again[name]) for name in again)
    with pytest.raises(InputError, match=r"joint/base/0 was made with different learning_rate"):
        make_heads(run, options, replace(TRAINING, learning_rate=1e-4))
    write_generated(two_tasks / "third", {"gene": "Gene"}, 2)
    with pytest.raises(InputError, match=r"joint/base/0 was made with different"):
        make_heads(run, replace(options, tasks=["chem", "dis", "third"]), TRAINING)
    make_heads(replace(run, force=True), replace(options, tasks=["chem", "dis", "third"]), TRAINING)
    assert json.loads((heads[0] / "scores.json").read_text())["tests"].keys() == {"chem", "dis", "third"}


def test_a_joint_head_of_one_task_is_the_head_of_that_task(base: Path, two_tasks: Path, tmp_path: Path) -> None:
    run, options = Run(str(tmp_path / "run")), options_of(two_tasks, base, "chem")
    root = make_heads(run, options, TRAINING)
    make_heads(run, replace(options, joint=False), TRAINING)
    joint, single = (load_file(root / name / "base/0/model.safetensors") for name in ("joint", "chem"))
    for name in single:
        torch.testing.assert_close(joint[name], single[name], rtol=1e-3, atol=1e-5)
    (difference,) = json.loads((root / "results.json").read_text())["differences"]
    assert (difference["model"], difference["minus"], difference["mean"]) == ("joint/base", "base", 0)


def test_a_joint_head_with_a_set_without_entities(base: Path, two_tasks: Path, tmp_path: Path) -> None:
    """Its sentences say that there are no genes, and nothing about chemicals."""
    write_generated(two_tasks / "none", {}, 2)
    (tmp_path / "none.yaml").write_text(f"{{name: none, source: {two_tasks / 'none'}, types: [Gene]}}")
    options = options_of(two_tasks, base, "chem", str(tmp_path / "none.yaml"))
    root = make_heads(Run(str(tmp_path / "run")), options, TRAINING)
    scores = json.loads((root / "joint/base/0/scores.json").read_text())["tests"]
    assert (scores["none"]["support"], scores["none"]["f1"]) == (0.0, 0.0)
    rows = json.loads((root / "results.json").read_text())["rows"]
    assert [(row["task"], row["model"]) for row in rows] == [("chem", "joint/base"), ("none", "joint/base")]


def test_what_joint_heads_cannot_do_is_refused(base: Path, two_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cross_test: only scores heads of single tasks"):
        options_of(two_tasks, base, "chem", cross_test=["chem:dis"])
    with pytest.raises(InputError, match="tasks: joint: the folder joint is that of joint heads: rename the task"):
        chosen_tasks(["joint"])
    with pytest.raises(InputError, match="tasks: x/joint: the folder joint is that of joint heads"):
        chosen_tasks(["x/joint"])


def test_a_joint_head_that_diverges_is_a_gap(base: Path, two_tasks: Path, tmp_path: Path) -> None:
    run, options = Run(str(tmp_path / "run")), options_of(two_tasks, base, "chem", "dis")
    with pytest.raises(TrainingDiverged, match="1 of 1 heads are missing in the tables"):
        make_heads(run, options, replace(TRAINING, learning_rate=1e38))
    assert not (run.root / "ner/joint/base/0").exists()
    assert "- joint/base/0 is missing: " in (run.root / "ner/results.md").read_text()
    make_heads(run, options, TRAINING)
    assert "is missing" not in (run.root / "ner/results.md").read_text()


def test_heads_with_other_test_data_are_found_before_training(base: Path, two_tasks: Path, tmp_path: Path) -> None:
    run, options = Run(str(tmp_path / "run")), options_of(two_tasks, base, "chem", "dis")
    make_heads(run, replace(options, joint=False, tasks=["chem"]), TRAINING)
    write_generated(two_tasks / "chem", CHEMICALS, 0, test=9)
    with pytest.raises(InputError, match=r"chem/base/0 and .*joint/base/0 have different test sets"):
        make_heads(run, options, TRAINING)
    assert not (run.root / "ner" / "joint").exists()


def test_a_joint_head_annotates_and_is_checked_and_reported_like_any_other(
    base: Path, two_tasks: Path, tmp_path: Path, command: Command
) -> None:
    """All commands, on one run."""
    folder = tmp_path / "run"
    given = ("--ner_data", two_tasks, "--tasks", "chem", "dis", "--models", "base", "--base_model", base)
    trained = ("--seeds", "1", "--num_train_epochs", "6", "--learning_rate", "5e-3", "--output_dir", folder)
    command("finetune-ner", *given, "--joint", *trained)
    head = folder / "ner" / "joint" / "base" / "0"
    text = "the aspirin helps in fever"
    (tmp_path / "texts.txt").write_text(f"{text}\n")
    command("annotate", "--models", head, "--input", tmp_path / "texts.txt", "--output_dir", tmp_path / "found")
    (file,) = (tmp_path / "found").glob("texts*.jsonl")
    found = {(text[one["start"] : one["end"]], one["label"]) for one in json.loads(file.read_text())["entities"]}
    assert found == {("aspirin", "Chemical"), ("fever", "Disease")}
    command("check", folder)
    assert "| dis | joint/base |" in make_report(Run(str(folder)), text)
    (head / "predictions-dis.tsv").write_text("aspirin\tO\tO\n\n")
    assert "predictions-dis.tsv" in command("check", folder, status=2).out
    with pytest.raises(InputError, match=r"predictions-dis\.tsv"):
        read_results([head])


SCRIPT = """
import json, sys
import torch
from transformers import DataCollatorForTokenClassification, TrainingArguments
from functools import partial
from bioptimus_hf.hardware import leave_process_group
from bioptimus_hf.models import new_head
from bioptimus_hf.ner.finetuning import HeadTrainer, windows_dataset
from bioptimus_hf.ner.joint import join_tasks, partial_cross_entropy
from bioptimus_hf.ner.results import read_results
from bioptimus_hf.ner.tasks import BLURB_NER, NerTask, load_ner
from bioptimus_hf.publishing.report import make_report

base, data, output, batch, accumulation = sys.argv[1:]
joined = join_tasks({name: load_ner(NerTask(name), f"{data}/{name}") for name in ("chem", "dis")})
head, tokenizer = new_head(base, joined.tags, seed=0)
for module in head.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
arguments = TrainingArguments(
    output_dir=output, max_steps=1, logging_steps=1, per_device_train_batch_size=int(batch), use_cpu=True,
    gradient_accumulation_steps=int(accumulation), save_strategy="no", max_grad_norm=1e9, report_to=[],
    disable_tqdm=True, ddp_find_unused_parameters=False,
)
trainer = HeadTrainer(
    model=head, args=arguments, train_dataset=windows_dataset(joined.train, tokenizer).select(range(18, 30)),
    data_collator=DataCollatorForTokenClassification(tokenizer), max_length=64,
    compute_loss_func=partial(partial_cross_entropy, compatible=joined.compatible),
)
trainer.train()
if arguments.process_index == 0:
    log = trainer.state.log_history[0]
    print("RESULT", json.dumps([log["loss"], log["grad_norm"]]))
del trainer
leave_process_group()  # otherwise PyTorch may abort at the end of the process
"""


def test_loss_and_gradient_do_not_depend_on_accumulation_and_processes(
    base: Path, two_tasks: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def first_update(batch: int, accumulation: int, ranks: int) -> list[float]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(base), str(two_tasks), str(tmp_path), str(batch),
             str(accumulation)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout.partition("RESULT ")[2].splitlines()[0]))

    alone = first_update(12, 1, 1)
    assert first_update(3, 2, 2) == pytest.approx(alone, rel=1e-4)


def test_the_sets_of_blurb_overlap(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    joined = join_tasks({name: load_ner(name, data_dir / "ner") for name in BLURB_NER})
    assert joined.excluded == {"bc2gm": 25, "bc5-chem and bc5-disease": 0, "jnlpba": 27, "ncbi-disease": 0}
    assert len(joined.train) == 12574 + 4560 + 16807 + 5424 - 25 - 27  # no word of BC5 has entities of both types
    assert len(joined.compatible) == len(joined.tags) + 4
    assert "types that several tasks share: Disease (bc5-disease, ncbi-disease)" in caplog.text


def test_windows_of_all_sets_have_the_labels_of_their_words(base: Path, tmp_path: Path) -> None:
    a = data_of(tmp_path / "a", [sentence("aspirin helps", "aspirin=Chemical")], types=("Chemical",))
    b = data_of(tmp_path / "b", [sentence("fever helps", "fever=Disease")], types=("Disease",))
    joined = join_tasks({"a": a, "b": b})
    _, tokenizer = new_head(base, joined.tags, seed=0)
    rows = windows_dataset(joined.train, tokenizer)
    labels = [[label for label in row if label != IGNORED_LABEL] for row in rows["labels"]]
    assert labels == joined.train["ner_tags"]
    assert max(map(max, labels)) >= len(joined.tags)
