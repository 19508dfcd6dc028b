"""What a later stage would find out after hours is said before the first one starts."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer, tiny_vocabulary
from transformers import DistilBertConfig, ElectraConfig, MPNetConfig

from bioptimus_hf.artifacts import RECORD, write_record
from bioptimus_hf.cli import lookahead
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.cli.run import Plan, RecipeOptions
from bioptimus_hf.models import save_masked_lm, save_tokenizer
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer

SAMPLE = ROOT / "bioptimus_hf" / "sample"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), folder)
    return folder


@pytest.fixture
def recipe(base: Path) -> Path:
    """A recipe on the embedded sample that has everything but NER data."""
    content = {
        "corpus": str(SAMPLE / "corpus.txt"),
        "output_dir": "run",
        "base_model": "base",
        "validation_share": 0.1,
        "train_vocabulary": {"size": 1500},
        "find_contexts": {"per_token": 2},
        "pretrain": {"max_length": 64, "max_steps": 4, "per_device_train_batch_size": 4},
    }
    path = base.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def change(recipe: Path, section: str, **options: Any) -> None:
    content = yaml.safe_load(recipe.read_text())
    content[section] = {**content.get(section, {}), **options}
    recipe.write_text(yaml.safe_dump(content))


def configure(base: Path, **values: Any) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **values}))


BASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "DistilBERT": (lambda base: DistilBertConfig().save_pretrained(base), "is a distilbert model, which can't become"),
    "ELECTRA": (lambda base: ElectraConfig().save_pretrained(base), "is a electra model, which can't become"),
    "MPNet": (lambda base: MPNetConfig().save_pretrained(base), "is a mpnet model, which can't become"),
    "untied": (
        lambda base: configure(base, tie_word_embeddings=False),
        "doesn't tie its output embeddings to its input embeddings: give a tied BERT",
    ),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "has no weights: give a folder with"),
    "half the weights": (
        lambda base: (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:50_000]),
        "no model can be loaded from this folder (Error while deserializing header",
    ),
    "no configuration": (lambda base: (base / "config.json").write_text("{"), "no model can be loaded from this"),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_base_that_a_later_stage_can_not_use(
    kind: str, recipe: Path, base: Path, tmp_path: Path, command: Command
) -> None:
    spoil, said = BASES[kind]
    spoil(base)
    assert f"error: train-vocabulary: {base}" in command("run", recipe, "--dry_run", status=2).error
    assert said in command.error
    assert said in command("train-vocabulary", "--recipe", recipe, status=2).error
    assert not (base.parent / "run" / "tokenizer").exists()
    own = build_tokenizer([*tiny_vocabulary(), "zebra"], like=build_tiny_tokenizer())  # has no record
    save_tokenizer(own, tmp_path / "run" / "tokenizer")
    for stage in (("find-contexts",), ("distill", "--initializer", "random")):
        assert said in command(*stage, "--recipe", recipe, "--base_model", base, status=2).error


def test_a_base_that_is_a_damaged_version_of_another_run(recipe: Path, base: Path, command: Command) -> None:
    """Its record, which identifies it, is the same as before."""
    write_record(base / RECORD, {}, {}, facts={}, seconds=0)
    command("run", recipe, "--dry_run")
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    said = "model.safetensors has changed since it was written"
    assert said in command("run", recipe, "--dry_run", status=2).error
    assert said in command("train-vocabulary", "--recipe", recipe, status=2).error


def test_a_base_with_too_few_positions(recipe: Path, base: Path, command: Command) -> None:
    configure(base, max_position_embeddings=32)
    said = f"max_length: {base} reads 32 tokens at once, not 64"
    assert f"error: pretrain: {said}" in command("run", recipe, "--dry_run", status=2).error
    assert said in command("pretrain", "--recipe", recipe, "--model", base, status=2).error
    assert not list((base.parent / "run").glob("*"))
    change(recipe, "pretrain", max_length=32)
    command("run", recipe, "--dry_run")


SECTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "size": ("train_vocabulary", {"size": 0}, "train-vocabulary: size: must be at least 1, not 0"),
    "contexts": ("find_contexts", {"per_token": 0}, "find-contexts: per_token: must be at least 1, not 0"),
    "layer": ("distill", {"layer": 99}, "distill: layer: the model has no layer 99"),
    "Ray": (
        "find_contexts",
        {"engine": "ray", "max_megabytes": 1, "other_text": True},
        "max_megabytes: can't be used with Ray",
    ),
    "words": ("find_contexts", {"words": "nowhere.txt"}, "find-contexts: words: there is no nowhere.txt"),
    "dropout": ("pretrain", {"dropout": 1}, "pretrain: dropout: must be at least 0 and below 1"),
    "learning rate": ("pretrain", {"learning_rate": -1}, "pretrain: learning_rate: must be"),
    "report": ("pretrain", {"report_to": "nobody"}, "pretrain: report_to: nobody is not installed; there is none, all"),
    "unsupported": ("pretrain", {"label_smoothing_factor": 0.1}, "pretrain: label_smoothing_factor: not supported"),
    "steps": ("pretrain", {"max_steps": 3}, "pretrain: 3 optimizer steps are too few for 4 phases"),
    "phases": ("pretrain", {"phases": ["0.5"]}, "pretrain: the curriculum has no phase 0.5; it has 0.1, 0.2"),
    "curriculum": ("pretrain", {"curriculum": "phases.yaml"}, "phases.yaml, phase 1: share is unknown or missing"),
    "test sentences": ("pretrain", {"decontaminate": "base"}, "no test.tsv in"),
    "other text": (
        "pretrain",
        {"validation_share": 0.2},
        "vocabulary has different validation_share (0.1 then, 0.2 now)",
    ),
    "other files": ("find_contexts", {"corpus": "other.txt"}, "find-contexts: the vocabulary has different corpus ("),
    "no such version": (
        "finetune_ner",
        {"models": ["base", "v0.5"]},
        "run/v0.5, and this run makes v0.0, v0.1, v0.2, v0.3, v0.4",
    ),
    "no such encoder": (
        "finetune_ner",
        {"models": ["base", "other=./nowhere"]},
        "finetune-ner: ./nowhere: not a local",
    ),
    "no such task": ("finetune_ner", {"tasks": ["mine"]}, "finetune-ner: no train.tsv for task mine in"),
    "seeds": ("finetune_ner", {"seeds": [0]}, "finetune-ner: seeds: 0: a single number is how many"),
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_section_that_can_not_work(kind: str, recipe: Path, command: Command) -> None:
    section, options, said = SECTIONS[kind]
    (recipe.parent / "other.txt").write_text("Aspirin in asthma.\n")
    (recipe.parent / "phases.yaml").write_text("[{version: 0.1, unit: word, rate: 0.2, corrupt: true}]")
    (recipe.parent / "ner").mkdir()
    if section == "finetune_ner":
        change(recipe, section, **{"ner_data": str(SAMPLE / "ner"), "tasks": ["sample"]})
        command("run", recipe, "--dry_run")
        if kind == "no such task":
            options = {**options, "ner_data": "ner"}
    change(recipe, section, **options)
    assert said in command("run", recipe, "--dry_run", status=2).error


def test_text_that_may_differ(recipe: Path, command: Command) -> None:
    """Words of your own are searched for in any text, and `other_text` allows another corpus."""
    (recipe.parent / "other.txt").write_text("Aspirin in asthma.\n")
    (recipe.parent / "words.txt").write_text("asthma\n")
    change(recipe, "find_contexts", corpus="other.txt", words="words.txt")
    change(recipe, "pretrain", corpus="other.txt", other_text=True)
    command("run", recipe, "--dry_run")
    change(recipe, "pretrain", validation_share=0.2)
    assert (
        "pretrain: the vocabulary has different validation_share" in command("run", recipe, "--dry_run", status=2).error
    )


def test_heads_of_versions_that_are_there_or_are_made(recipe: Path, base: Path, command: Command) -> None:
    change(recipe, "finetune_ner", ner_data=str(SAMPLE / "ner"), tasks=["sample"], models=["base", "mine=v0.2"])
    command("run", recipe, "--dry_run")
    change(recipe, "pretrain", phases=["0.3", "0.4"])
    assert "this run makes v0.0, v0.3, v0.4" in command("run", recipe, "--dry_run", status=2).error
    shutil.copytree(base, recipe.parent / "run" / "v0.2")
    command("run", recipe, "--dry_run")
    change(recipe, "finetune_ner", models=["base=elsewhere/other", "v0.2"])
    says = "models: elsewhere/other isn't the model that the run adapts"
    assert says in command("run", recipe, "--dry_run", status=2).error
    change(recipe, "finetune_ner", models=["base", "v0.2"], references=["base", "control"])
    says = "references: control: there are no heads of this name, only of base, v0.2"
    assert says in command("run", recipe, "--dry_run", status=2).error
    (recipe.parent / "run" / "ner" / "sample" / "control" / "0").mkdir(parents=True)
    command("run", recipe, "--dry_run")


def test_tasks_that_can_not_be_learned_jointly(recipe: Path, command: Command) -> None:
    for name in ("one", "two"):
        shutil.copytree(SAMPLE / "ner", recipe.parent / "ner" / name)
    change(recipe, "finetune_ner", ner_data="ner", tasks=["one", "two"], models=["base"], joint=True)
    command("run", recipe, "--dry_run")
    long = "Aspirin\tB-Chemical\nprovoked\tO\nbronchoconstriction\tO\nin\tO\nsevere\tO\nasthma\tB-Disease\n\n"
    for file in ("one/train.tsv", "two/test.tsv"):
        (recipe.parent / "ner" / file).write_text(long)
    error = command("run", recipe, "--dry_run", status=2).error
    assert "all training sentences of one are in the development or test sets" in error


def test_ner_data_that_can_not_be_read(recipe: Path, command: Command) -> None:
    shutil.copytree(SAMPLE / "ner", recipe.parent / "ner")
    (recipe.parent / "ner" / "test.tsv").write_text("Aspirin\tX-Chemical\n")
    change(recipe, "finetune_ner", ner_data="ner", tasks=["sample"])
    error = command("run", recipe, "--dry_run", status=2).error
    assert f"finetune-ner: {recipe.parent / 'ner' / 'test.tsv'}" in error
    assert "line 1" in error


def test_a_corpus_whose_first_documents_can_not_be_read(recipe: Path, command: Command) -> None:
    rows = [json.dumps({"abstract": f"Aspirin in asthma, {number}."}) for number in range(9)]
    (recipe.parent / "corpus.jsonl").write_text("\n".join(rows))
    again = ("run", recipe, "--dry_run", "--corpus", recipe.parent / "corpus.jsonl")
    assert "corpus.jsonl, line 1" in command(*again, status=2).error
    content = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**content, "text_column": "abstract"}))
    command(*again)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("num_processes: [", "launch.yaml is not YAML"),
        ("[cpu]", "launch.yaml isn't a configuration of Accelerate ("),
        ("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', processes: 2}", "Accelerate (The config file"),
    ],
)
def test_a_configuration_of_accelerate_that_can_not_be_used(
    recipe: Path, command: Command, content: str, said: str
) -> None:
    launch = recipe.parent / "launch.yaml"
    launch.write_text(content)
    assert said in command("run", recipe, "--dry_run", "--accelerate", launch, status=2).error
    for name in ("cpu", "one_gpu", "several_gpus", "several_machines", "fsdp"):
        command("run", recipe, "--dry_run", "--accelerate", name)


def test_ray_that_is_not_installed(recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    change(recipe, "find_contexts", engine="ray")
    monkeypatch.setattr(lookahead, "find_spec", lambda name: None)
    assert "find-contexts: Ray is not installed: pip install" in command("run", recipe, "--dry_run", status=2).error
    change(recipe, "find_contexts", engine="local")
    command("run", recipe, "--dry_run")


def test_a_disk_that_is_too_small(recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    needed = Plan(RecipeOptions(str(recipe)))._megabytes() * 1e6
    for share, status in ((0.4, 2), (0.6, 0)):
        monkeypatch.setattr(lookahead.shutil, "disk_usage", lambda _, free=share * needed: usage(0, 0, free))
        command("run", recipe, "--dry_run", status=status)
        if status:
            assert "GB are free: free some space, or choose another --output_dir" in command.error


def test_a_name_on_the_hub_is_looked_up_unless_it_is_a_dry_run(recipe: Path, command: Command) -> None:
    command("run", recipe, "--dry_run", "--base_model", "owner/bert")
    assert "owner/bert: not a local model" in command("run", recipe, "--base_model", "owner/bert", status=2).error


@pytest.mark.slow
def test_a_recipe_without_ner_data_ends_with_its_report(
    recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Started from another folder than that of the recipe, with paths relative to either."""

    def stage_in_this_process(line: list[str]) -> None:
        assert main(line[line.index("bioptimus_hf.cli") + 1 :]) == 0

    monkeypatch.setattr("bioptimus_hf.cli.run.run_stage", stage_in_this_process)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(SAMPLE / "corpus.txt", "text.txt")
    out = command("run", "../recipe.yaml", "--corpus", "text.txt").out
    assert "finetune-ner  left out" in out
    report = (recipe.parent / "run" / "report.md").read_text()
    assert "| v0.4 | words, 20%, always [MASK] | 4 |" in report
    assert report.strip() in out
    assert not list((tmp_path / "elsewhere").glob("run*"))
