"""`bioptimus check`, and what commands do about damaged, replaced and locked results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Command
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.storage import LOCKS

SAMPLE = ROOT / "bioptimus_hf" / "sample"
ELSEWHERE = {
    "pid": 12,
    "host": "elsewhere",
    "boot": "other",
    "space": "",
    "started": "1",
    "since": "2026-01-01 00:00:00+00:00",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a recipe and a run of three stages."""
    folder = tmp_path_factory.mktemp("finished")
    save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), folder / "base")
    content = {
        "corpus": str(SAMPLE / "corpus.txt"),
        "output_dir": "run",
        "base_model": str(folder / "base"),
        "validation_share": 0.1,
        "train_vocabulary": {"size": 200},
        "find_contexts": {"per_token": 2},
        "pretrain": {"max_length": 32, "max_steps": 1, "per_device_train_batch_size": 2, "phases": ["0.1"]},
        "finetune_ner": {"ner_data": str(SAMPLE / "ner"), "tasks": ["sample"], "models": ["v0.0"], "seeds": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    for stage in ("train-vocabulary", "find-contexts", "distill"):
        assert main([stage, "--recipe", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run; the recipe is beside it."""
    shutil.copy(finished / "recipe.yaml", tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def recipe(run: Path) -> Path:
    return run.parent / "recipe.yaml"


def flip(file: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_run_as_it_was_written(run: Path, command: Command) -> None:
    lines = command("check", run).out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(run / name) for name in ("contexts", "tokenizer", "v0.0")]
    assert all(line.endswith(" files, as they were written") for line in lines)


def test_each_problem_is_a_line_and_the_status_is_2(run: Path, command: Command) -> None:
    flip(run / "v0.0" / "model.safetensors")
    (run / "contexts" / "state.json").unlink()
    command("check", run, status=2)
    contexts, tokenizer, model = command.out.splitlines()
    assert contexts.startswith(f"{run / 'contexts'}: {run / 'contexts' / 'state.json'} is missing: make it again")
    assert tokenizer.endswith("as they were written")
    assert "model.safetensors has changed since it was written: its hash differs: make it again" in model
    assert command.error == "error: 2 of 3 results have a problem"
    command("check", run, "--sizes_only", status=2)
    assert command.error == "error: 1 of 3 results have a problem"  # a flipped bit keeps the size


def test_a_folder_of_annotated_files(tiny_head: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "a.txt").write_text("Aspirin in asthma.\n")
    command("annotate", "--models", tiny_head, "--input", tmp_path / "a.txt", "--output_dir", tmp_path / "out")
    assert "a.txt.jsonl.json: 1 files, as they were written" in command("check", tmp_path / "out").out
    flip(tmp_path / "out" / "a.txt.jsonl")
    assert "a.txt.jsonl has changed since it was written" in command("check", tmp_path / "out", status=2).out
    assert "contains no results" in command("check", tmp_path / "nowhere", status=2).error


def test_damage_is_refused_by_the_next_stage(run: Path, recipe: Path, command: Command) -> None:
    for stage, damaged in (
        ("find-contexts", run / "tokenizer" / "tokenizer.json"),
        ("distill", next((run / "contexts").glob("*.arrow"))),
        ("pretrain", run / "v0.0" / "model.safetensors"),
        ("finetune-ner", run / "v0.0" / "model.safetensors"),
    ):
        flip(damaged)
        force = ("--force",) if stage != "finetune-ner" else ()
        error = command(stage, "--recipe", recipe, *force, status=2).error
        assert error.startswith(
            f"error: {damaged} has changed since it was written: its hash differs: make it again (`"
        )
        flip(damaged)


def test_damage_is_noticed_before_a_stage_is_skipped(run: Path, recipe: Path, command: Command) -> None:
    model = run / "v0.0" / "model.safetensors"
    before = model.read_bytes()
    model.write_bytes(before[:1000])
    error = command("distill", "--recipe", recipe, status=2).error
    assert error == (
        f"error: {model} has 1,000 bytes instead of {len(before):,}: make it again (`bioptimus distill --force`)"
    )
    command("distill", "--recipe", recipe, "--force")
    assert model.read_bytes() == before


def test_hashes_are_not_compared_with_no_verify(run: Path, recipe: Path, command: Command) -> None:
    """For those who read from a slow disk, at their own risk: what doesn't load is still an error."""
    flip(run / "v0.0" / "report.md")
    refused = command("pretrain", "--recipe", recipe, status=2).error
    assert "report.md has changed since it was written" in refused
    command("pretrain", "--recipe", recipe, "--no_verify", "true")
    assert (run / "v0.1" / "model.safetensors").is_file()


def test_a_lock_of_another_host_is_taken_over_when_asked(run: Path, recipe: Path, command: Command) -> None:
    holder = run / LOCKS / "v0.0.json"
    holder.parent.mkdir(exist_ok=True)
    holder.write_text(json.dumps(ELSEWHERE))
    error = command("distill", "--recipe", recipe, status=2).error
    assert error.startswith(f"error: {run / 'v0.0'} is being written by process 12 on elsewhere since 2026-01-01 ")
    assert error.endswith("If that process is dead, run the same command with --take_over")
    assert "skipped" in command("distill", "--recipe", recipe, "--take_over").log
    assert "process 12 on elsewhere" in command.log
    assert "skipped" in command("distill", "--recipe", recipe).log  # the lock has been returned


def test_a_model_of_a_replaced_tokenizer_is_stale(run: Path, recipe: Path, command: Command) -> None:
    command("train-vocabulary", "--recipe", recipe, "--size", "210", "--force")
    stale = f"{run / 'contexts'} was made from another tokenizer than is now in {run / 'tokenizer'}"
    command("check", run, status=2)
    assert command.out.count(stale) == 2  # of the contexts, and of the model that was made from them
    for stage in ("pretrain", "finetune-ner"):
        error = command(stage, "--recipe", recipe, status=2).error
        assert error == f"error: {stale}: make it again (`bioptimus find-contexts --force`)"
    assert "was made with different tokenizer" in command("find-contexts", "--recipe", recipe, status=2).error
    command("find-contexts", "--recipe", recipe, "--force")
    command("distill", "--recipe", recipe, "--force")
    command("check", run)


def test_all_stages_read_the_same_text(run: Path, recipe: Path, command: Command) -> None:
    """Documents that were held out from the vocabulary must not be trained on, and the other way round."""
    shutil.copy(SAMPLE / "corpus.txt", run.parent / "mine.txt")
    with open(run.parent / "mine.txt", "a") as file:
        file.write("Another document about asthma.\n")
    pretrain = ("pretrain", "--recipe", recipe)
    error = command(*pretrain, "--validation_share", "0.2", status=2).error
    share = "was made from different --validation_share (0.1 then, 0.2 now): read the same text in every stage"
    assert error.endswith(share)
    other = ("--corpus", run.parent / "mine.txt")
    for stage in (pretrain, ("find-contexts", "--recipe", recipe, "--force")):
        error = command(*stage, *other, status=2).error
        assert "was made from different corpus (" in error
        assert error.endswith("read the same text in every stage, or set --other_text")
    error = command(*pretrain, *other, "--other_text", "--validation_share", "0.2", status=2).error
    assert error.endswith(share)
    command(*pretrain, *other, "--other_text")
    assert (
        read_record(run / "pretraining-0.1")["inputs"]["corpus"] != read_record(run / "tokenizer")["inputs"]["corpus"]
    )
    assert "pretraining-0.1: reads other text than the tokenizer" in command("check", run, status=2).out


def test_files_that_are_not_ours_survive_force_and_are_no_results(run: Path, recipe: Path, command: Command) -> None:
    (run / "tokenizer" / "notes.txt").write_text("mine")
    assert "as they were written" in command("check", run).out  # more files don't matter
    command("train-vocabulary", "--recipe", recipe, "--force")
    (kept,) = run.glob("tokenizer.kept-*")
    assert {file.name: file.read_text() for file in kept.iterdir()} == {"notes.txt": "mine"}
    assert str(kept) in command.log
    assert "kept" not in command("check", run).out
    shutil.rmtree(run / "tokenizer")
    kept.rename(run / "tokenizer")  # a folder without a record is never replaced
    error = command("train-vocabulary", "--recipe", recipe, "--force", status=2).error
    assert "tokenizer exists but is not a result of this project: move it away" in error
    assert (run / "tokenizer" / "notes.txt").read_text() == "mine"
