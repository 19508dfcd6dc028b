"""Train the grid of heads, resume it, and score heads on other tasks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from head_results import GOOD, save_encoder, save_result, write_small_task, write_task
from helpers import ROOT
from safetensors.torch import load_file

from bioptimus_hf.artifacts import RECORD, Run, building, identity, read_record, write_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.ner import experiments, head_stage
from bioptimus_hf.ner.experiments import make_heads, tabulate
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.planning import CrossTest, chosen_tasks, find_encoders, load_cross_tests, load_task
from bioptimus_hf.ner.results import HeadResult
from bioptimus_hf.ner.tasks import BLURB_NER, NerTask
from bioptimus_hf.publishing.report import make_report

SCRIPT = ROOT / "scripts" / "finetune_ner.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("base"))


def run_script(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


# Tasks and models


def test_tasks_by_name() -> None:
    assert chosen_tasks(["all"]) == list(BLURB_NER.values())
    assert chosen_tasks(["bc2gm", "mine"]) == [BLURB_NER["bc2gm"], NerTask("mine", "mine")]
    assert chosen_tasks(["all", "bc2gm"]) == list(BLURB_NER.values())


def test_tasks_with_a_source_and_in_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{name: mine, source: lab/set}")
    (tmp_path / "own.yaml").write_text("{name: own}")
    (own,) = chosen_tasks([str(tmp_path / "own.yaml")])
    assert (own.folder, own.source) == ("own", "")  # as if it were given by name
    chosen = chosen_tasks(
        ["bc2gm=lab/bc2gm@v1", "x=data", str(tmp_path / "mine.yaml"), "jnlpba-types", "some/folder/named"]
    )
    assert [(task.name, task.folder, task.source) for task in chosen] == [
        ("bc2gm", "BC2GM", "lab/bc2gm@v1"),
        ("x", "x", "data"),
        ("mine", "", "lab/set"),
        ("jnlpba-types", "JNLPBA", ""),
        ("named", "named", "some/folder/named"),
    ]
    assert chosen[0].mentions == BLURB_NER["bc2gm"].mentions
    with pytest.raises(InputError, match="tasks: x is given twice"):
        chosen_tasks(["x=data", "x=other"])


def test_the_source_of_a_task_comes_before_that_of_all(tmp_path: Path) -> None:
    write_task(tmp_path / "own", test=GOOD * 2)
    write_task(tmp_path / "all" / "mine")
    options = HeadOptions(ner_data=str(tmp_path / "all"))
    own, common = (load_task(task, options) for task in chosen_tasks([f"x={tmp_path / 'own'}", "mine"]))
    assert (own.splits["test"].num_rows, common.splits["test"].num_rows) == (2, 1)
    assert own.inputs["train"] == common.inputs["train"]
    assert own.inputs["test"] != common.inputs["test"]
    with pytest.raises(InputError, match="ner_data: needed for mine"):
        load_task(NerTask("mine"), HeadOptions())


@pytest.mark.parametrize("given", ["lables.jsonl", "data/lables.jsonl", "./lables.tsv.gz", "mine=lables.txt"])
def test_a_file_of_labels_that_does_not_exist(given: str, tmp_path: Path) -> None:
    """It isn't taken for a data set on the Hub, nor for the name of a task."""
    (task,) = chosen_tasks([given])
    with pytest.raises(InputError, match=f"^there is no file {given.removeprefix('mine=')}: check its name"):
        load_task(task, HeadOptions())
    with pytest.raises(InputError, match=r"^there is no file none/lables\.conll: check its name"):
        load_task(NerTask("mine"), HeadOptions(ner_data="none/lables.conll"))
    write_task(tmp_path / "lables.jsonl")  # a folder of that name, in the folder of the tasks
    assert load_task(NerTask("lables.jsonl"), HeadOptions(ner_data=str(tmp_path))).splits["test"].num_rows == 1


def test_models_by_name(base: Path, tmp_path: Path) -> None:
    for name in ("v0.4", "bert", "elsewhere/v0.1"):
        shutil.copytree(base, tmp_path / name)

    def found(*models: str) -> dict[str, str]:
        options = HeadOptions(base_model=str(tmp_path / "bert"), models=list(models))
        return {label: source.folder for label, source in find_encoders(Run(str(tmp_path)), options).items()}

    assert found("base", "v0.4", str(tmp_path / "elsewhere/v0.1"), f"x={base}", "y=v0.4") == {
        "base": str(tmp_path / "bert"),
        "v0.4": str(tmp_path / "v0.4"),
        "v0.1": str(tmp_path / "elsewhere/v0.1"),
        "x": str(base),
        "y": str(tmp_path / "v0.4"),
    }
    for model in ("v0.3", "x=v0.3"):
        with pytest.raises(InputError, match=rf"models: {model}: there is no .*/v0\.3"):
            found(model)


def adapting(run: Path, base: Path) -> None:
    """Write what a run records about the model that it adapts."""
    with building(run / "tokenizer", {"base_model": identity(base)}, {}) as stage:
        stage.facts["base_model"] = str(base)
        (stage.path / "vocab.txt").touch()


def test_another_model_is_not_called_base(base: Path, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    other = shutil.copytree(base, tmp_path / "base")
    (other / "extra.txt").touch()
    # Without a recorded base, this is the base.
    assert find_encoders(run, HeadOptions(models=[str(other)]))["base"].folder == str(other)
    adapting(run.root, base)
    assert find_encoders(run, HeadOptions(models=["base", f"own={other}", f"bert={base}"])).keys() == {
        *("base", "own", "bert")
    }
    for model in (str(other), f"base={other}"):
        with pytest.raises(
            InputError, match=r"models: .*/base isn't the model that the run adapts, which is called base"
        ):
            find_encoders(run, HeadOptions(models=[model]))
    with pytest.raises(InputError, match=r"base_model: .*/base isn't the model that .*/tokenizer was made for"):
        find_encoders(run, HeadOptions(models=["base"], base_model=str(other)))


def test_heads_of_another_base_are_neither_in_the_tables_nor_in_a_card(base: Path, tmp_path: Path) -> None:
    """A head may be older than the tokenizer that records the base."""
    for task, model in (("t", "another model"), ("u", identity(base))):
        head = save_result(tmp_path / "ner", task, "base", 0)
        write_record(head / RECORD, {"model": model}, {"seed": 0}, facts={}, seconds=0)
    tabulate(tmp_path / "ner", ["base"], ["base"])
    before = json.loads((tmp_path / "ner" / "results.json").read_text())
    assert [row["task"] for row in before["rows"]] == ["t", "u"]
    adapting(tmp_path, base)
    tabulate(tmp_path / "ner", ["base"], ["base"])
    content = json.loads((tmp_path / "ner" / "results.json").read_text())
    assert [row["task"] for row in content["rows"]] == ["u"]
    assert content["missing"] == {"t/base/0": "made from another model than the run adapts"}
    assert "- t/base/0 is missing: made from another model" in make_report(Run(str(tmp_path)))


# The grid


def test_the_grid_is_resumed_where_it_stopped(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = write_small_task(tmp_path / "data" / "mine").parent
    run = Run(str(tmp_path / "out"))
    options = HeadOptions(
        ner_data=str(data), tasks=["mine"], models=["base", f"other={base}"], base_model=str(base), seeds=[2]
    )
    training = HeadTraining(num_train_epochs=1)
    root = make_heads(run, options, training)
    assert root == tmp_path / "out" / "ner"
    assert "mine: mentions train 20, validation 3, test 4" in caplog.text
    heads = {f"{model}/{seed}": root / "mine" / model / str(seed) for model in ("base", "other") for seed in (0, 1)}
    scores = json.loads((heads["other/1"] / "scores.json").read_text())
    assert (scores["task"], scores["model"], scores["seed"], scores["test"]["support"]) == ("mine", "other", 1, 4.0)
    assert sorted(path.name for path in heads["base/0"].iterdir()) == [
        *("config.json", "made.json", "model.safetensors", "predictions.tsv", "scores.json", "tokenizer.json"),
        *("tokenizer_config.json", "vocab.txt"),
    ]
    lines = (heads["base/0"] / "predictions.tsv").read_text().split("\n")
    assert [line.split("\t")[:2] for line in lines[:2]] == [["Aspirin", "B-Chemical"], ["helps", "O"]]
    rows = json.loads((root / "results.json").read_text())["rows"]
    assert [(row["task"], row["model"], row["seeds"]) for row in rows] == [
        ("mine", "base", [0, 1]),
        ("mine", "other", [0, 1]),
    ]
    before = {name: load_file(head / "model.safetensors") for name, head in heads.items()}
    # The label changes nothing, the seed does.
    assert all(torch.equal(before["base/0"][name], before["other/0"][name]) for name in before["base/0"])
    assert not torch.equal(before["base/0"]["classifier.weight"], before["base/1"]["classifier.weight"])

    records = {name: (head / "made.json").read_bytes() for name, head in heads.items()}
    shutil.rmtree(heads["base/1"])
    (root / "results.md").unlink()
    caplog.clear()
    make_heads(run, options, training)
    assert caplog.text.count("finished with the same inputs and settings, skipped") == 3
    assert all((head / "made.json").read_bytes() == records[name] for name, head in heads.items() if name != "base/1")
    again = load_file(heads["base/1"] / "model.safetensors")
    assert all(torch.equal(before["base/1"][name], again[name]) for name in again)
    assert "| mine | other |" in (root / "results.md").read_text()

    unlike = replace(training, learning_rate=1e-3)
    with pytest.raises(InputError, match=r"was made with different learning_rate \(5e-05 then, 0\.001 now\)"):
        make_heads(run, options, unlike)

    # Before other tasks are trained, finished heads of other settings or with other test data are found.
    write_small_task(data / "another")
    changed = replace(options, tasks=["another", "mine"], seeds=[7, 8])
    with pytest.raises(InputError, match=r"base/0 and .*base/7 have different inputs or settings"):
        make_heads(run, changed, unlike)
    (data / "mine" / "test.tsv").write_text(GOOD * 5)
    with pytest.raises(InputError, match=r"mine/.* and .*third/7 have different test sets"):
        make_heads(run, replace(changed, models=[f"third={base}"]), unlike)
    assert not (root / "another").exists()


def test_seeds_are_counted_from_that_of_the_run(base: Path, tmp_path: Path) -> None:
    write_small_task(tmp_path / "mine")
    options = HeadOptions(ner_data=str(tmp_path), tasks=["mine"], models=[f"x={base}"], seeds=[1])
    root = make_heads(Run(str(tmp_path / "out"), seed=5), options, HeadTraining(num_train_epochs=1))
    assert [path.name for path in (root / "mine" / "x").iterdir()] == ["5"]


def test_the_grid_runs_on_two_processes(base: Path, tmp_path: Path, two_ranks: tuple[str, ...]) -> None:
    write_small_task(tmp_path / "mine")
    result = run_script(
        *("--ner_data", str(tmp_path), "--tasks", "mine", "--models", "base", "--base_model", str(base)),
        *("--seeds", "2", "--num_train_epochs", "2", "--output_dir", str(tmp_path / "out")),
        *("--learning_rate", "1e-3", "1e-2"),
        launcher=two_ranks,
    )
    assert result.returncode == 0, result.stderr
    records = [read_record(tmp_path / "out/ner/mine/base" / seed)["settings"] for seed in "01"]
    assert [(record["processes"], record["search"]) for record in records] == [(2, {"learning_rate": [1e-3, 1e-2]})] * 2
    assert len(list((tmp_path / "out/ner_search").rglob("made.json"))) == 2
    assert "| mine | base |" in (tmp_path / "out/ner/results.md").read_text()


@pytest.mark.parametrize(
    ("test", "model", "says"),
    [
        ("Aspirin\tB-Chemical\nhelps\n", "base", r"mine/test\.tsv, line 2: "),
        (GOOD, "v0.4", "models: v0.4: there is no "),
    ],
)
def test_unusable_input_is_refused_before_any_training(
    base: Path, tmp_path: Path, test: str, model: str, says: str
) -> None:
    write_task(tmp_path / "mine", test=test)
    options = HeadOptions(ner_data=str(tmp_path), tasks=["mine"], base_model=str(base), models=[f"x={base}", model])
    with pytest.raises(InputError, match=says):
        make_heads(Run(str(tmp_path / "out")), options, HeadTraining())
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_options_with_status_2() -> None:
    done = run_script("--tasks", "mine", "--seeds", "0")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --seeds: 0: a single number is how many seeds to use (1: one seed); to choose them, give two or more\n"
    )


# Cross-tests


def test_heads_are_scored_on_the_test_sets_of_other_tasks(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_small_task(tmp_path / "data" / "a", "asthma", "Disease")
    write_small_task(tmp_path / "data" / "b", "cancer", "Disease")
    run = Run(str(tmp_path / "run"))
    options = HeadOptions(
        ner_data=str(tmp_path / "data"),
        tasks=["a"],
        models=["base", f"v0.1={base}"],
        base_model=str(base),
        seeds=[2],
        cross_test=["a:b"],
    )
    training = HeadTraining(num_train_epochs=1, learning_rate=1e-2)
    make_heads(run, options, training)
    folder = run.root / "cross_test" / "a-on-b" / "v0.1" / "1"
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["task"], scores["model"], scores["seed"]) == ("a, tested on b", "v0.1", 1)
    assert scores["test"]["support"] == 4.0
    assert sorted(path.name for path in folder.iterdir()) == ["made.json", "predictions.tsv", "scores.json"]
    assert (folder / "predictions.tsv").read_text().startswith("cancer\tB-Disease\t")
    for table, task in ((run.root / "ner", "a"), (run.root / "cross_test", "a, tested on b")):
        content = json.loads((table / "results.json").read_text())
        assert [(row["task"], row["model"], row["seeds"]) for row in content["rows"]] == [
            (task, model, [0, 1]) for model in ("base", "v0.1")
        ]
        # Both have the same weights, so nothing may differ.
        (difference,) = content["differences"]
        assert (difference["model"], difference["mean"], difference["interval"]) == ("v0.1", 0.0, [0.0, 0.0])
        assert f"| {task} | v0.1 |" in (table / "results.md").read_text()

    # A finished head that has been damaged since is not scored again.
    shutil.rmtree(folder)
    weights = run.root / "ner" / "a" / "v0.1" / "1" / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors has changed since it was written"):
        make_heads(run, options, training)
    assert not folder.exists()
    weights.write_bytes(intact)
    make_heads(run, options, training)

    # Heads that were trained differently aren't paired in cross-tests either.
    make_heads(run, replace(options, models=[f"v0.2={base}"]), replace(training, weight_decay=0.0))
    content = json.loads((run.root / "cross_test" / "results.json").read_text())
    assert [row["model"] for row in content["rows"]] == ["v0.2", "base", "v0.1"]
    assert content["differences"] == []
    for table_of_task in ("ner/a", "cross_test/a-on-b"):
        shutil.rmtree(run.root / table_of_task / "v0.2")

    # Another task of the same name isn't the one that was trained on.
    elsewhere = tmp_path / "data" / "b"
    make_heads(run, replace(options, cross_test=[f"a:a={elsewhere}"]), training)
    assert (run.root / "cross_test" / "a-on-a" / "base" / "0" / "predictions.tsv").read_text().startswith("cancer\t")
    with pytest.raises(InputError, match="cross_test: b stands for two test sets"):
        make_heads(run, replace(options, cross_test=["a:b", f"a:b={tmp_path / 'data' / 'a'}"]), training)
    shutil.rmtree(run.root / "cross_test" / "a-on-a")

    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("made.json")}
    caplog.set_level(logging.INFO)
    make_heads(run, options, training)
    assert caplog.text.count("finished with the same inputs and settings, skipped") == len(before) == 8
    assert before == {path: path.stat().st_mtime_ns for path in run.root.rglob("made.json")}

    report = make_report(run)
    assert "| a | v0.1 |" in report
    assert "| a, tested on b | v0.1 |" in report


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("a:c", "cross_test: a:c: they share no entity type: a has Disease and c has Chemical"),
        ("c:a", "cross_test: c:a: c isn't one of the tasks to train on"),
        ("a:nothing", r"no train\.tsv for task nothing"),
    ],
)
def test_impossible_cross_tests_are_refused_before_any_training(
    base: Path, tmp_path: Path, pair: str, says: str
) -> None:
    write_small_task(tmp_path / "data" / "a", "asthma", "Disease")
    write_small_task(tmp_path / "data" / "c")
    options = HeadOptions(ner_data=str(tmp_path / "data"), tasks=["a"], models=[f"x={base}"], cross_test=[pair])
    with pytest.raises(InputError, match=says):
        make_heads(Run(str(tmp_path / "run")), options, HeadTraining())
    assert not (tmp_path / "run").exists()


def test_cross_tests_of_all_pairs_that_share_a_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds = {"a": "Disease", "b": "Disease", "c": "Chemical"}
    for name, kind in kinds.items():
        write_small_task(tmp_path / name, "asthma", kind)
    both = "asthma\tB-Disease\nAspirin\tB-Chemical\n\n"
    write_task(tmp_path / "d", both, both, both)
    options = HeadOptions(ner_data=str(tmp_path), cross_test=["all"])
    tasks = {name: load_task(NerTask(name), options) for name in (*kinds, "d")}
    tests = load_cross_tests(tasks, options)
    assert {(test.task, test.other): test.types for test in tests} == {
        **dict.fromkeys((("a", "b"), ("b", "a"))),
        **dict.fromkeys((("a", "d"), ("d", "a"), ("b", "d"), ("d", "b")), ("Disease",)),
        **dict.fromkeys((("c", "d"), ("d", "c")), ("Chemical",)),
    }
    assert load_cross_tests(tasks, replace(options, cross_test=["all", "a:b"])) == tests  # given twice, scored once
    assert load_cross_tests({name: tasks[name] for name in "ac"}, options) == []
    assert "no two of the tasks share an entity type" in caplog.text


def test_only_shared_types_count_in_a_cross_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "d", *(["asthma\tB-Disease\nor\tO\nAspirin\tB-Chemical\n\n"] * 3))
    test = load_task(NerTask("d"), HeadOptions(ner_data=str(tmp_path))).splits["test"]
    head = save_result(tmp_path / "run" / "ner", "a", "m", 0)
    predicted = {"d": [["B-Disease", "B-Gene", "B-Gene"]]}
    monkeypatch.setattr(head_stage, "predict_tasks", lambda *_, **__: predicted)
    monkeypatch.setattr(head_stage, "load_token_classifier", lambda _: torch.nn.Identity())
    monkeypatch.setattr(head_stage, "load_by_name", lambda *_: None)
    cross_test = CrossTest("a", "d", test, {"test": "x"}, types=("Disease",))
    head_stage.score_elsewhere(head, cross_test, Run(str(tmp_path / "run")), HeadOptions())
    folder = tmp_path / "run" / "cross_test" / "a-on-d" / "m" / "0"
    scores = json.loads((folder / "scores.json").read_text())["test"]
    assert (scores["f1"], scores["support"]) == (1.0, 1.0)
    assert read_record(folder)["settings"]["types"] == ["Disease"]
    assert (folder / "predictions.tsv").read_text() == "asthma\tB-Disease\tB-Disease\nor\tO\tO\nAspirin\tO\tO\n\n"


# Tables


def test_rows_come_in_the_order_of_tasks_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("jnlpba", "bc5-chem", "own", "ncbi-disease, tested on bc5-disease"):
        for model in ("earlier", "v0.1", "base"):
            for seed in (10, 9):
                save_result(tmp_path, task, model, seed)
    seen: list[HeadResult] = []

    def write_results(root: Path, results: list[HeadResult], **_: Any) -> str:
        seen.extend(results)
        return ""

    monkeypatch.setattr(experiments, "write_results", write_results)
    tabulate(tmp_path, ["base", "v0.1"], ["base"])
    assert list(dict.fromkeys(result.task for result in seen)) == [
        *("bc5-chem", "jnlpba", "ncbi-disease, tested on bc5-disease", "own"),
    ]
    assert [(result.model, result.seed) for result in seen[:6]] == [
        *(("base", 9), ("base", 10), ("v0.1", 9), ("v0.1", 10), ("earlier", 9), ("earlier", 10)),
    ]


# Diverged trainings


def diverging(seeds: Container[int]) -> Callable[..., list[dict[str, float]]]:
    """Return `finetune` with a learning rate that diverges for these seeds."""

    def finetune(model: Any, tokenizer: Any, splits: Any, arguments: Any, **options: Any) -> Any:
        if arguments.seed in seeds:
            arguments.learning_rate = 1e38
        return real(model, tokenizer, splits, arguments, **options)

    real = head_stage.finetune
    return finetune


def test_a_diverged_seed_is_a_gap_with_its_reason(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    for task in ("a", "b"):
        write_small_task(tmp_path / "data" / task)
    options = ("--ner_data", tmp_path / "data", "--tasks", "a", "b", "--models", f"x={base}", "--num_train_epochs", 1)
    options = (*options, "--output_dir", tmp_path / "run", "--cross_test", "a:b")
    with monkeypatch.context() as patch:
        patch.setattr(head_stage, "finetune", diverging({1}))
        command("finetune-ner", *options, status=2)
    root = tmp_path / "run" / "ner"
    gaps = [root / task / "x" / "1" for task in ("a", "b")]
    assert command.error.startswith(f"error: 2 of 6 heads are missing in the tables: {gaps[0]}: ")
    # The others are finished, those after the first gap too.
    content = json.loads((root / "results.json").read_text())
    assert [(row["task"], row["seeds"]) for row in content["rows"]] == [("a", [0, 2]), ("b", [0, 2])]
    assert content["missing"].keys() == {"a/x/1", "b/x/1"}
    assert "training diverged" in content["missing"]["a/x/1"]
    assert f"- a/x/1 is missing: {content['missing']['a/x/1']}\n" in (root / "results.md").read_text()
    assert not any(gap.exists() for gap in gaps)
    crossed = json.loads((tmp_path / "run" / "cross_test" / "results.json").read_text())
    assert [row["seeds"] for row in crossed["rows"]] == [[0, 2]]
    assert main(["check", str(tmp_path / "run")]) == 0

    # With better luck, or another learning rate for all, the gap is filled and the reason is gone.
    before = {path: path.stat().st_mtime_ns for path in root.rglob("model.safetensors")}
    command("finetune-ner", *options)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in root.rglob("model.safetensors")}.items()
    content = json.loads((root / "results.json").read_text())
    assert [row["seeds"] for row in content["rows"]] == [[0, 1, 2], [0, 1, 2]]
    assert content["missing"] == {}
    assert "missing" not in (root / "results.md").read_text()
    assert not list(root.rglob("*.missing.json"))


def test_a_head_that_diverges_when_redone_keeps_its_predecessor(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_task(tmp_path / "mine")
    options = HeadOptions(ner_data=str(tmp_path), tasks=["mine"], models=[f"x={base}"], seeds=[2])
    training = HeadTraining(num_train_epochs=1)
    root = make_heads(Run(str(tmp_path / "run")), options, training)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file() and "mine" in file.parts}
    with monkeypatch.context() as patch:
        patch.setattr(head_stage, "finetune", diverging({0}))
        with pytest.raises(TrainingDiverged, match=r"1 of 2 heads are missing in the tables: .*mine/x/0"):
            make_heads(Run(str(tmp_path / "run"), force=True), options, training)
    assert all(file.read_bytes() == content for file, content in before.items() if file.parent.name == "0")
    # It's still there, but these results would be those of another command.
    content = json.loads((root / "results.json").read_text())
    assert [row["seeds"] for row in content["rows"]] == [[1]]
    assert content["missing"].keys() == {"mine/x/0"}
    make_heads(Run(str(tmp_path / "run")), options, training)
    assert json.loads((root / "results.json").read_text())["missing"] == {}


def test_heads_of_a_replaced_model_are_compared_with_nothing(base: Path, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    for seed in (0, 1):
        with building(run.root / "v0.1", {}, {"seed": seed}) as stage:
            for file in base.iterdir():
                shutil.copy(file, stage.path)
        write_small_task(tmp_path / "data" / f"task{seed}")
        options = HeadOptions(ner_data=str(tmp_path / "data"), tasks=[f"task{seed}"], models=["v0.1"], seeds=[1])
        root = make_heads(run, options, HeadTraining(num_train_epochs=1))
    content = json.loads((root / "results.json").read_text())
    assert [row["task"] for row in content["rows"]] == ["task1"]
    assert content["missing"] == {"task0/v0.1/0": f"made from another model than is now in {run.root / 'v0.1'}"}
