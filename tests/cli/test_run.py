"""The plan of a recipe, its estimates, and stages in processes of their own."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, build_tiny_bert

from bioptimus_hf.artifacts import write_record
from bioptimus_hf.cli import estimates
from bioptimus_hf.cli.__main__ import COMMANDS, main
from bioptimus_hf.cli.recipes import SECTIONS
from bioptimus_hf.cli.run import STAGES, Plan, RecipeOptions, run_stage
from bioptimus_hf.errors import InputError
from bioptimus_hf.recipes import find

RECIPES = ("demo", "biomedical_20mb", "biomedical_100mb")


def write_recipe(folder: Path, **content: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("Aspirin in asthma.\n" * 1000)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"corpus": "corpus.txt", **content}))
    return str(path)


def test_the_plan_says_what_each_stage_takes_and_what_is_finished(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, pretrain={"max_steps": 1000}, finetune_ner={"ner_data": "ner", "tasks": ["mine"]})
    (tmp_path / "runs" / "tokenizer").mkdir(parents=True)
    (tmp_path / "runs" / "tokenizer" / "made.json").write_text(json.dumps({"seconds": 12.3}))
    table = Plan(RecipeOptions(recipe, output_dir=str(tmp_path / "runs"))).table().splitlines()
    assert table[:2] == [f"{recipe} -> {tmp_path / 'runs'}", "  base model: google-bert/bert-base-uncased"]
    assert re.fullmatch(r"  disk: about [\d.]+ GB will be written, [\d.]+ GB are free", table[2])
    del table[1:3]
    assert [line.split()[0] for line in table[1:]] == [stage.replace("_", "-") for stage in STAGES]
    assert COMMANDS["distill"] in table[3]
    assert "finished before, in 12 s; skipped if nothing has changed" in table[1]
    assert "about 10 s" in table[2]
    assert "min" in table[4] or " h" in table[4]
    assert "unknown" in table[5]  # there is no such set
    for seed in range(2):
        write_record(
            tmp_path / "runs" / "ner" / "mine" / "base" / str(seed) / "made.json", {}, {}, facts={}, seconds=30
        )
    again = Plan(RecipeOptions(recipe, output_dir=str(tmp_path / "runs"))).table()
    assert "2 of 6 heads finished before; the rest unknown" in again
    (tmp_path / "runs" / "tokenizer" / "made.json").write_text('{"seconds": ')
    with pytest.raises(InputError, match=r"made\.json is not JSON .*: make it again \(`bioptimus train-vocabulary"):
        Plan(RecipeOptions(recipe, output_dir=str(tmp_path / "runs"))).table()
    redone = Plan(RecipeOptions(recipe, output_dir=str(tmp_path / "runs"), force=True)).table()
    assert "finished before" not in redone


def test_without_ner_data_heads_are_left_out_and_the_report_is_written(tmp_path: Path) -> None:
    plan = Plan(RecipeOptions(write_recipe(tmp_path)))
    assert plan.stages == [stage for stage in STAGES if stage != "finetune_ner"]
    assert "finetune-ner  left out: no NER data is named" in plan.table()
    (tmp_path / "labels.jsonl").write_text("")
    for options in ({"ner_data": "ner"}, {"tasks": "mine=ner"}, {"tasks": ["task.yaml"]}, {"tasks": ["labels.jsonl"]}):
        assert "finetune_ner" in Plan(RecipeOptions(write_recipe(tmp_path, finetune_ner=options))).stages
    assert "finetune_ner" in Plan(RecipeOptions(write_recipe(tmp_path), ner_data="data/ner")).stages


def test_the_command_line_of_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).write_text("Aspirin in asthma.\n")
    recipe = write_recipe(tmp_path, report={"text": "Aspirin."}, base_model="owner/bert")
    given = RecipeOptions(
        recipe,
        output_dir="out",
        base_model="b",
        corpus=["a.txt", "c.txt"],
        ner_data="ner",
        accelerate="cpu",
        force=True,
    )
    commands = {stage: Plan(given).command(stage)[1:] for stage in STAGES}
    common = ["--recipe", recipe, "--output_dir", "out"]
    corpus = ["--corpus", "a.txt", "c.txt"]
    module = ["-m", "bioptimus_hf.cli"]
    launcher = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", str(find("cpu", "accelerate"))]
    assert commands == {
        "train_vocabulary": [*module, "train-vocabulary", *common, "--base_model", "b", *corpus, "--force"],
        "find_contexts": [*module, "find-contexts", *common, "--base_model", "b", *corpus, "--force"],
        "distill": [*module, "distill", *common, "--base_model", "b", "--force"],
        "pretrain": [*launcher, *module, "pretrain", *common, *corpus, "--decontaminate", "ner", "--force"],
        "finetune_ner": [
            *launcher,
            *module,
            "finetune-ner",
            *common,
            "--base_model",
            "b",
            "--ner_data",
            "ner",
            "--force",
        ],
        "report": [*module, "report", *common],
    }


def test_a_recipe_can_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path / "elsewhere", output_dir="runs/x")
    monkeypatch.chdir(tmp_path)
    assert Plan(RecipeOptions(recipe)).output_dir == tmp_path / "elsewhere" / "runs" / "x"
    assert Plan(RecipeOptions(recipe, output_dir="here")).output_dir == Path("here")
    assert Plan(RecipeOptions(write_recipe(tmp_path / "elsewhere"))).output_dir == Path("runs/mine")


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_package(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    corpus = ROOT / "bioptimus_hf" / "sample" / "corpus.txt"
    assert main(["run", name, "--dry_run", "--corpus", str(corpus), "--output_dir", str(tmp_path)]) == 0
    assert "Train a WordPiece vocabulary on a corpus" in capsys.readouterr().out
    assert find(name).read_bytes() == (ROOT / "scripts" / "recipes" / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_package_name_options_that_exist(name: str) -> None:
    content = yaml.safe_load(find(name).read_text())
    for section in set(SECTIONS) & set(content):
        types = importlib.import_module(f"bioptimus_hf.cli.{section}").OPTIONS
        known = {field.name for type_ in types for field in dataclasses.fields(type_)}
        assert set(content[section]) <= known, section


def test_what_is_no_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["run", "demmo"], "demmo is neither a file nor one of biomedical_100mb, biomedical_20mb, demo"),
        (["run", "demo", "--stages", "pretrian"], "--stages: pretrian is not one of train_vocabulary"),
        (["run", write_recipe(tmp_path / "a", pretrain={"max_stepz": 9})], "pretrain has no option max_stepz"),
        (
            ["run", write_recipe(tmp_path / "b", finetune_ner={"ner_data": "ner", "seeds": "three"}), "--dry_run"],
            "seeds must be of type int, not 'three'",
        ),
        (
            ["run", write_recipe(tmp_path / "c", corpus="abstracts.txt"), "--dry_run"],
            "no corpus at abstracts.txt: give a Hub data set",
        ),
        (["run", write_recipe(tmp_path / "d", corpus=[])], "train-vocabulary: corpus: name files"),
        (["run", "demo", "--base_model", "/no/such/bert"], "train-vocabulary: --base_model: there is no /no/such/bert"),
        (
            ["run", write_recipe(tmp_path / "e", finetune_ner={"ner_data": "/no/ner"}), "--dry_run"],
            "finetune-ner: --ner_data: there is no /no/ner",
        ),
        (
            ["run", write_recipe(tmp_path / "g", finetune_ner={"ner_data": "ner", "learning_rates": [1e-4]})],
            "finetune_ner has no option learning_rates: did you mean learning_rate?",
        ),
        (["run", write_recipe(tmp_path / "f", publish={"licence": "mit"})], "publish has no option licence: did you"),
        (["run", "demo", "--accelerate", "gpu", "--dry_run"], "gpu is neither a file nor one of"),
        (["run", write_recipe(tmp_path, pretrian={})], "pretrian is neither the section of a command nor"),
        (
            ["run", write_recipe(tmp_path / "bare"), "--stages", "finetune-ner"],
            "--stages: there is nothing to run: finetune-ner",
        ),
        (["run"], "the following arguments are required: recipe"),
    ):
        assert main(arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        assert said in line


def test_a_stage_that_fails_ends_the_run_with_its_name() -> None:
    run_stage([sys.executable, "-c", "", "bioptimus_hf.cli", "distill"])
    with pytest.raises(InputError, match="distill failed with status 3, see above"):
        run_stage([sys.executable, "-c", "raise SystemExit(3)", "bioptimus_hf.cli", "distill"])
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(InputError, match="distill was ended by SIGKILL: run the same command again to resume"):
        run_stage([sys.executable, "-c", killed, "bioptimus_hf.cli", "distill"])


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", [None, "cpu"])
def test_the_last_lines_of_a_run_that_failed(tmp_path: Path, accelerate: str | None) -> None:
    """Also when Accelerate launches the stage: its traceback would be the last thing on screen."""
    recipe = write_recipe(tmp_path, find_contexts={"per_token": 4})
    given = RecipeOptions(recipe, output_dir=str(tmp_path / "run"), stages=["pretrain"], accelerate=accelerate)
    program = f"""
import sys
from bioptimus_hf.cli import launch
from bioptimus_hf.cli.run import run_stage
sys.exit(launch.run(lambda: run_stage({Plan(given).command("pretrain")!r})))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    first, last = ended.stderr.splitlines()[-2:]
    assert first.startswith(f"error: --model: {tmp_path / 'run' / 'v0.0'} doesn't exist")
    assert last.startswith("error: pretrain failed with status ")
    assert "Traceback" not in ended.stderr


def test_sigterm_reaches_the_stage(tmp_path: Path) -> None:
    stage = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / "told")!r}).touch(), sys.exit(143)))
pathlib.Path({str(tmp_path / "started")!r}).touch()
time.sleep(60)
"""
    program = f"""
import sys
from bioptimus_hf.cli import launch
from bioptimus_hf.cli.recipes import SECTIONS
from bioptimus_hf.cli.run import run_stage
sys.exit(launch.run(lambda: run_stage([sys.executable, "-c", {stage!r}, "bioptimus_hf.cli", "pretrain"])))
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "told").exists()
    assert said.splitlines()[-1].startswith("the run was stopped: run the same command again")


def test_estimates_grow_with_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 2_000_000)
    (tmp_path / "b.txt.gz").write_bytes(b"x" * 1_000_000)
    assert estimates.megabytes([str(tmp_path / "a.txt")]) == 2
    assert estimates.megabytes([str(tmp_path)]) == 5
    assert estimates.megabytes([str(tmp_path / "*.txt")]) == 2
    assert estimates.megabytes([str(tmp_path)], limit=1) == 1
    assert estimates.megabytes(["owner/name"]) is None
    build_tiny_bert(127).save_pretrained(tmp_path / "model")
    assert estimates.encoder_weights(str(tmp_path / "model")) == 12 * 2 * 32**2
    assert estimates.encoder_weights("owner/name") == 12 * 12 * 768**2  # BERT base
    options = {"max_length": 128, "per_device_train_batch_size": 32, "num_train_epochs": 1}

    def pretraining(**changes: Any) -> float:
        found = estimates.seconds("pretrain", {**options, **changes}, 100.0, 12 * 6 * 384**2, cores=2)
        assert found is not None
        return found

    assert pretraining() > 2 * pretraining(bf16=True)
    assert pretraining(num_train_epochs=2) > 1.9 * pretraining()
    assert pretraining(max_steps=10) < 60
    assert estimates.seconds("pretrain", options, None, 10**6) is None
    measured = estimates.seconds(
        "pretrain", {**options, "max_steps": 4800, "bf16": True}, 101.0, 12 * 6 * 384**2, cores=2
    )
    assert measured == pytest.approx(2400, rel=0.3)  # benchmarks/RESULTS.md: 19.7 million tokens at 8,346 a second


def test_estimates_of_the_disk(tmp_path: Path) -> None:
    build_tiny_bert(127).save_pretrained(tmp_path)
    base, vocabulary = str(tmp_path), {"size": 1000, "per_token": 4}
    model = 4e-6 * (12 * 2 * 32**2 + 1000 * 32)

    def models(stage: str, **options: Any) -> float:
        return estimates.megabytes_written(stage, {**vocabulary, **options}, 1.0, base) / model

    assert models("distill") == pytest.approx(1)
    assert models("pretrain", phases=None, save_total_limit=1) == pytest.approx(4 + 2 * 3)
    assert models("pretrain", phases=["0.4"], save_total_limit=3) == pytest.approx(1 + 4 * 3)
    heads = {"tasks": ["all", "mine"], "models": ["base", "v0.4"], "seeds": [3]}
    assert models("finetune_ner", **heads) == pytest.approx(1 + 6 * 2 * 3)
    assert estimates.megabytes_written("find_contexts", vocabulary, None, base) == pytest.approx(0.9)
    assert models("report") == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "unknown"), (3, "about 10 s"), (61, "about 60 s"), (600, "about 10 min"), (9000, "about 2.5 h")],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert estimates.duration(seconds) == words


def test_paths_of_a_recipe_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An equals sign or brackets in a path are no label and no pattern."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "rec[1]"
    recipe = write_recipe(folder, corpus="year=2020/*.txt", output_dir="runs/lr=5e-4")
    (folder / "year=2020").mkdir()
    (folder / "year=2020" / "a.txt").write_text("Aspirin in asthma.\n")
    assert Plan(RecipeOptions(recipe)).output_dir == folder / "runs" / "lr=5e-4"
    recipe = write_recipe(folder, output_dir="~/runs/mine")
    assert Plan(RecipeOptions(recipe)).output_dir == tmp_path / "home" / "runs" / "mine"
    with pytest.raises(InputError, match="train_vocabulary has no option True"):
        Plan(RecipeOptions(write_recipe(folder, train_vocabulary={True: 5})))


def test_a_record_that_is_none_is_no_traceback(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "runs" / "tokenizer").mkdir(parents=True)
    (tmp_path / "runs" / "tokenizer" / "made.json").write_text("[]")
    assert "finished before" in Plan(RecipeOptions(recipe, output_dir=str(tmp_path / "runs"))).table()


def test_heads_that_are_missing_are_in_the_plan(tmp_path: Path) -> None:
    options = {"tasks": ["all", "mine"], "models": ["base", "v0.4"], "seeds": [5]}
    assert estimates.heads(options) == 60
    assert estimates.heads({**options, "tasks": ["mine"], "seeds": [1, 2]}) == 4
    assert estimates.heads({**options, "joint": True}) == 10
    for joint, finished in ((False, "2 of 6"), (True, "1 of 6")):
        heads = {"ner_data": "ner", "tasks": ["mine"], "models": ["base", "v0.4"], "joint": joint}
        recipe = write_recipe(tmp_path, finetune_ner=heads)
        for head in ("mine/base/0", "mine/v0.4/0", "joint/base/0"):
            write_record(tmp_path / "runs" / "ner" / head / "made.json", {}, {}, facts={}, seconds=30)
        assert (
            f"{finished} heads finished before"
            in Plan(RecipeOptions(recipe, output_dir=str(tmp_path / "runs"))).table()
        )
