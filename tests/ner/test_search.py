"""Choose the settings of each task and model on the development set, resume the search, and report what was chosen."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from head_results import save_encoder, write_small_task

from bioptimus_hf.artifacts import Run, fingerprint, read_record
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import new_head, save_head
from bioptimus_hf.ner import head_stage, search
from bioptimus_hf.ner.experiments import make_heads, plan_experiment, planned_trainings
from bioptimus_hf.ner.head_stage import TrainedHead
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.planning import PlannedHead

GRID = HeadTraining(learning_rate=[1e-4, 1e-3], per_device_train_batch_size=[16, 32], num_train_epochs=2)
Fitted = tuple[str, str, float, int, int]


class Trainings:
    """Stand in for `fit`, and write down what was trained.

    Attributes:
        done: task, model, learning rate, batch size and seed of each training.
        dev_f1: of a training.
    """

    def __init__(self, head: Path, dev_f1: Callable[[Fitted], float]) -> None:
        self.head = head
        self.done: list[Fitted] = []
        self.dev_f1 = dev_f1

    def stop_after(self, number: int) -> None:
        """Be interrupted in the training after this number of them."""

        def dev_f1(fitted: Fitted) -> float:
            if len(self.done) == number:
                raise KeyboardInterrupt
            return f1_of(fitted)

        self.dev_f1 = dev_f1

    def fit(self, head: PlannedHead, folder: Path, run: Run) -> TrainedHead:
        training: Any = head.training
        fitted = (head.task, head.model, training.learning_rate, training.per_device_train_batch_size, head.seed)
        best = self.dev_f1(fitted)
        if math.isnan(best):
            raise TrainingDiverged("epoch 1: the loss is nan: training diverged")
        self.done.append(fitted)
        rows = [{"epoch": epoch + 1.0, "precision": f1, "recall": f1, "f1": f1} for epoch, f1 in enumerate((best, 0.1))]
        return TrainedHead(rows, lambda path: shutil.copytree(self.head, path, dirs_exist_ok=True) and None)


def f1_of(fitted: Fitted) -> float:
    """Return a dev F1 that is best for 1e-3 and 16 with the model x, and for 1e-4 and 32 with others."""
    _, model, rate, batch, _ = fitted
    return 0.5 + 0.2 * (rate == (1e-3 if model == "x" else 1e-4)) + 0.1 * (batch == (16 if model == "x" else 32))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    save_head(*new_head(str(base), ["O", "B-Chemical", "I-Chemical"], seed=0), folder)
    return folder


@pytest.fixture
def trainings(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    trainings = Trainings(trained, f1_of)
    monkeypatch.setattr(search, "fit", trainings.fit)
    monkeypatch.setattr(head_stage, "fit", trainings.fit)
    return trainings


@pytest.fixture
def options(base: Path, tmp_path: Path) -> HeadOptions:
    write_small_task(tmp_path / "data" / "a")
    return HeadOptions(ner_data=str(tmp_path / "data"), tasks=["a"], models=[f"x={base}", f"y={base}"], seeds=[2])


def results_of(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.root / "ner" / "results.json").read_text())
    return content


def test_each_model_gets_the_settings_that_are_best_on_dev(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    root = make_heads(run, options, GRID)
    every = [(rate, batch) for rate in (1e-4, 1e-3) for batch in (16, 32)]
    # The search has trained the head of the first seed.
    assert trainings.done == [
        *(("a", "x", rate, batch, 0) for rate, batch in every),
        ("a", "x", 1e-3, 16, 1),
        *(("a", "y", rate, batch, 0) for rate, batch in every),
        ("a", "y", 1e-4, 32, 1),
    ]
    record = read_record(root / "a" / "x" / "0")
    assert (record["settings"]["learning_rate"], record["settings"]["per_device_train_batch_size"]) == (1e-3, 16)
    assert record["settings"]["search"] == GRID.grid
    tried = [json.loads(file.read_text()) for file in sorted((run.root / "ner_search").glob("*/*/*/*/scores.json"))]
    assert len(tried) == 8
    assert not any("test" in scores for scores in tried)
    assert not list((run.root / "ner_search").rglob("*.safetensors"))

    content = results_of(run)
    assert [(row["model"], row["seeds"]) for row in content["rows"]] == [("x", [0, 1]), ("y", [0, 1])]
    (difference,) = content["differences"]  # although their settings differ
    assert (difference["model"], difference["minus"]) == ("y", "x")
    scored = [row for row in content["trainings"] if row["test"]]
    assert [(row["model"], row["seed"], row["settings"]["learning_rate"]) for row in scored] == [
        *(("x", 0, 1e-3), ("x", 1, 1e-3), ("y", 0, 1e-4), ("y", 1, 1e-4))
    ]
    assert len(content["trainings"]) == 8 + 4
    for row in content["trainings"]:
        fitted = (row["task"], row["model"], *map(row["settings"].get, GRID.grid), row["seed"])
        assert row["dev"]["f1"] == pytest.approx(f1_of(fitted))
        assert row["seconds"] >= 0
        assert "bioptimus-hf" in row["versions"] or "commit" in row["versions"]
    table = (root / "results.md").read_text()
    assert "| a | x | 0.001 | 16 | 80.00 | 60.00, 50.00, 70.00 |" in table
    assert "| a | y | 0.0001 | 32 | 80.00 | 70.00, 50.00, 60.00 |" in table

    # Nothing is trained again, also without the trainings of the search; more seeds get the settings that were chosen.
    shutil.rmtree(run.root / "ner_search")
    trainings.done.clear()
    make_heads(run, options, GRID)
    assert trainings.done == []
    make_heads(run, replace(options, seeds=[4, 5]), GRID)
    assert trainings.done == [("a", "x", 1e-3, 16, 4), ("a", "x", 1e-3, 16, 5), *trainings.done[2:]]
    assert [row["seeds"] for row in results_of(run)["rows"]] == [[0, 1, 4, 5], [0, 1, 4, 5]]
    # Heads of another search, or of fixed settings, are other heads.
    for other in (replace(GRID, learning_rate=[1e-4, 2e-4]), replace(GRID, num_train_epochs=3), HeadTraining()):
        with pytest.raises(InputError, match=r"a/x/0 was made with different"):
            make_heads(run, options, other)


def test_of_settings_that_are_equally_good_the_first_is_chosen(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    trainings.dev_f1 = lambda fitted: 0.5
    grid = replace(GRID, learning_rate=[1e-3, 1e-4], per_device_train_batch_size=[32, 16])
    root = make_heads(Run(str(tmp_path / "run")), options, grid)
    for model in ("x", "y"):
        settings = read_record(root / "a" / model / "1")["settings"]
        assert (settings["learning_rate"], settings["per_device_train_batch_size"]) == (1e-3, 32)


def test_a_search_that_was_killed_goes_on_where_it_stopped(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))

    trainings.stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        make_heads(run, options, GRID)
    states = [planned.finished for planned in planned_trainings(run, options, GRID)[0]]
    assert (len(states), sum(states)) == (2 * (4 + 1), 3)
    trainings.dev_f1 = f1_of
    make_heads(run, options, GRID)
    assert len(trainings.done) == len(set(trainings.done)) == 10
    assert all(planned.finished and planned.seconds is not None for planned in planned_trainings(run, options, GRID)[0])

    # Without the weights that the search has kept, the head is trained: it's the same one.
    shutil.rmtree(run.root / "ner")
    trainings.done.clear()
    make_heads(run, options, GRID)
    assert [(model, seed) for _, model, _, _, seed in trainings.done] == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]


def test_the_weights_that_a_killed_command_has_left_are_deleted(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    run, options = Run(str(tmp_path / "run")), replace(options, models=options.models[:1])
    trainings.stop_after(4)  # the head of the first seed is the best one of the search
    with pytest.raises(KeyboardInterrupt):
        make_heads(run, options, GRID)
    assert (run.root / "ner" / "a" / "x" / "0").is_dir()
    assert list((run.root / "ner_search").rglob("*.safetensors"))
    trainings.dev_f1 = f1_of
    make_heads(run, options, GRID)
    assert len(trainings.done) == len(set(trainings.done)) == 5
    assert not list((run.root / "ner_search").rglob("*.safetensors"))


def test_weights_that_are_being_written_are_left_alone(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    """Other settings are tried at the same time by other processes."""
    run = Run(str(tmp_path / "run"))
    group, _ = plan_experiment(run, options, GRID).groups
    assert group.search is not None
    tried = dict(list(group.search.trainings().items())[:3])
    for folder, head in tried.items():
        group.search.try_setting(folder, head)
    first, second, other = (run.root / "ner_search" / "a" / "x" / "weights" / folder.parent.name for folder in tried)
    partial = other.with_name(f"{other.name}.partial-host-1")
    shutil.copytree(other, partial)
    group.search.keep_best(list(tried)[:2])
    assert [path.exists() for path in (first, second, other, partial)] == [True, False, True, True]
    group.search.keep_best(list(tried))
    assert [path.exists() for path in (first, second, other, partial)] == [False, False, True, True]


def test_with_force_the_settings_are_not_chosen_again_for_some_seeds_only(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    run, options = Run(str(tmp_path / "run"), force=True), replace(options, models=options.models[:1])
    make_heads(run, options, GRID)
    trainings.done.clear()
    with pytest.raises(InputError, match=r"^seeds: .*/a/x/1 would stay as it is, but the settings are chosen again"):
        make_heads(run, replace(options, seeds=[1]), GRID)
    assert trainings.done == []
    make_heads(run, options, GRID)
    assert len(trainings.done) == 5


def test_with_force_nothing_is_left_of_a_search_that_was_killed(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    trainings.stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        make_heads(Run(str(tmp_path)), options, GRID)
    trainings.dev_f1 = lambda fitted: f1_of(fitted) - 0.05
    root = make_heads(Run(str(tmp_path), force=True), options, GRID)
    scores = json.loads((root / "a" / "x" / "0" / "scores.json").read_text())
    assert max(row["f1"] for row in scores["validation"]) == pytest.approx(0.8 - 0.05)


def test_settings_that_diverge_are_never_chosen_and_leave_a_gap_if_all_do(
    options: HeadOptions, trainings: Trainings, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    trainings.dev_f1 = lambda fitted: math.nan if fitted[1] == "x" or fitted[2] == 1e-4 else f1_of(fitted)
    with pytest.raises(TrainingDiverged, match=r"2 of 4 heads are missing in the tables: .*/a/x/0: training diverged"):
        make_heads(run, options, GRID)
    assert {model for _, model, *_ in trainings.done} == {"y"}
    content = results_of(run)
    assert [row["model"] for row in content["rows"]] == ["y"]
    assert content["missing"].keys() == {"a/x/0", "a/x/1"}
    assert "with all 4 settings of the grid; with the first: epoch 1: the loss is nan" in content["missing"]["a/x/0"]
    assert sum(row["reason"] is not None for row in content["trainings"]) == 4 + 2
    assert "| a | y | 0.001 | 32 | 60.00 | diverged, diverged, 50.00 |" in (run.root / "ner" / "results.md").read_text()
    # It would diverge again.
    with pytest.raises(TrainingDiverged):
        make_heads(run, options, GRID)
    assert len(trainings.done) == 2 + 1


def test_the_record_of_fixed_settings(options: HeadOptions, trainings: Trainings, tmp_path: Path) -> None:
    training = HeadTraining(learning_rate=1e-3, num_train_epochs=2)
    root = make_heads(Run(str(tmp_path / "run")), options, training)
    record = read_record(root / "a" / "x" / "1")
    settings = {**asdict(training), "max_length": 512, "processes": 1, "trainer": 2, "merged_type": None, "seed": 1}
    assert record["fingerprint"] == fingerprint(record["inputs"], settings)
    assert not (tmp_path / "run" / "ner_search").exists()
    assert "Settings of each task" not in (root / "results.md").read_text()


def test_a_model_is_added_to_a_finished_run(
    base: Path, options: HeadOptions, trainings: Trainings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, training = Run(str(tmp_path / "run")), HeadTraining(num_train_epochs=2)
    make_heads(run, options, training)
    trainings.done.clear()
    caplog.set_level("INFO")
    added = replace(options, models=[f"new={base}"], references=["x"])
    make_heads(run, added, training)
    assert {model for _, model, *_ in trainings.done} == {"new"}
    assert "2 models of earlier commands stay in the tables: x, y" in caplog.text
    content = results_of(run)
    assert [row["model"] for row in content["rows"]] == ["new", "x", "y"]
    assert {(row["model"], row["minus"]) for row in content["differences"]} == {("new", "x"), ("y", "x")}
    with pytest.raises(InputError, match="references: z: there are no heads of this name, only of new, x, y"):
        make_heads(run, replace(added, references=["z"]), training)
    # Trained differently, they can't be compared, and the table says so.
    make_heads(run, replace(added, models=[f"fourth={base}"]), replace(training, weight_decay=0.5))
    table = (run.root / "ner" / "results.md").read_text()
    assert "- a: fourth and x aren't compared: no heads of the two have equal seed, data and settings" in table


def test_the_command_searches_and_says_before_what_it_will_do(base: Path, tmp_path: Path, command: Command) -> None:
    write_small_task(tmp_path / "data" / "a")
    options = ("--ner_data", tmp_path / "data", "--tasks", "a", "--models", f"x={base}", "--seeds", 2)
    options = (*options, "--learning_rate", 1e-3, 1e-2, "--num_train_epochs", 1, "--output_dir", tmp_path / "run")
    says = f"{tmp_path / 'run'}: 3 trainings,"
    assert command("finetune-ner", *options, "--dry_run").out == (
        f"{says} 0 finished\n3 left: about 10 s, by a rough estimate\n"
    )
    assert not (tmp_path / "run").exists()
    command("finetune-ner", *options)
    settings = read_record(tmp_path / "run" / "ner" / "a" / "x" / "1")["settings"]
    assert settings["search"] == {"learning_rate": [1e-3, 1e-2]}
    assert command("finetune-ner", *options, "--dry_run").out == f"{says} 3 finished\n"
    command("check", tmp_path / "run")
    command("finetune-ner", *options, "--learning_rates", 1e-3, status=2)
    assert command.error == "error: unknown option --learning_rates: did you mean --learning_rate?; see --help"
