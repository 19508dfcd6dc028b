"""The commands of a run one after another, with a BERT small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command
from datasets import load_from_disk
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.corpus.dataset import load_corpus, split_validation
from bioptimus_hf.models import save_masked_lm

SAMPLE = ROOT / "bioptimus_hf" / "sample"
STAGES = ("train-vocabulary", "find-contexts", "distill", "pretrain", "finetune-ner")
SENTENCE = "Methacholine provoked bronchoconstriction in patients with asthma."


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe on the embedded sample; its base model is beside it."""
    save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), tmp_path / "base")
    content = {
        "corpus": str(SAMPLE / "corpus.txt"),
        "output_dir": "run",
        "base_model": "base",
        "validation_share": 0.1,
        "train_vocabulary": {"size": 1500},
        "find_contexts": {"per_token": 4},
        "pretrain": {
            "max_length": 64,
            "max_steps": 8,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": "1e-3",
        },
        "finetune_ner": {"ner_data": str(SAMPLE / "ner"), "tasks": ["sample"], "seeds": 1, "num_train_epochs": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def change(recipe: Path, **changes: Any) -> None:
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **changes}))


@pytest.mark.slow
def test_from_corpus_to_entities(recipe: Path, command: Command) -> None:
    run = recipe.parent / "run"
    for stage in STAGES:
        command(stage, "--recipe", recipe)

    new, found = (read_record(run / name)["facts"] for name in ("v0.0", "contexts"))
    assert new["new_tokens"] == found["tokens"] > 1000
    assert new["new_tokens_from_contexts"] + len(new["fallen_back"]) == new["new_tokens"]
    assert len(new["fallen_back"]) == found["not_found"]
    assert "learning_rate" in read_record(run / "pretraining")["settings"]
    for version in ("v0.0", "v0.1", "v0.2", "v0.3", "v0.4"):
        model, tokenizer = (kind.from_pretrained(run / version) for kind in (AutoModelForMaskedLM, AutoTokenizer))
        assert model.config.vocab_size == len(tokenizer) == 1500
        assert not (run / version / "README.md").exists()  # cards are written when a version is published
    head = run / "ner" / "sample" / "v0.4" / "0"
    for entity in pipeline("ner", model=str(head), aggregation_strategy="first")(SENTENCE):
        assert SENTENCE[entity["start"] : entity["end"]].strip()
    # Heads are compared with the model that was adapted, though the command names none.
    base = read_record(run / "ner" / "sample" / "base" / "0")["inputs"]["model"]
    assert base == read_record(run / "tokenizer")["inputs"]["base_model"]
    assert (run / "pretraining" / "history.png").read_bytes().startswith(b"\x89PNG")

    report = command("report", "--output_dir", run, "--text", SENTENCE).out
    assert report.strip() == (run / "report.md").read_text().strip()
    for part in (
        "word pieces per word",
        "| v0.4 | words, 20%, always [MASK] | 8 |",
        "| sample | v0.4 |",
        "| pretraining |",
    ):
        assert part in report

    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    for stage in STAGES:
        assert "already finished with the same inputs and settings, skipped" in command(stage, "--recipe", recipe).log
    assert times == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


def test_stages_of_a_recipe_run_in_processes_of_their_own(recipe: Path) -> None:
    """`bioptimus run`, as a user starts it: the plan first, then the stages, the last one on screen at the end."""
    arguments = ["run", str(recipe), "--stages", "train-vocabulary", "report"]
    done = subprocess.run(
        [sys.executable, "-m", "bioptimus_hf.cli", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    run = recipe.parent / "run"
    plan, _, rest = done.stdout.partition("\n# ")
    assert plan.splitlines()[0] == f"{recipe} -> {run}"
    assert [line.split()[0] for line in plan.strip().splitlines()[3:]] == ["train-vocabulary", "report"]
    assert f"# {rest}".strip() == (run / "report.md").read_text().strip()


@pytest.mark.slow
def test_test_sentences_are_kept_out_of_pretraining(recipe: Path, command: Command) -> None:
    """Whichever split they would have been in."""
    folder, run = recipe.parent, recipe.parent / "run"
    texts = (SAMPLE / "corpus.txt").read_text().splitlines()
    planted = [f"{text} {number} planted: {SENTENCE} {SENTENCE}" for number, text in enumerate(texts[:20])]
    (folder / "corpus.txt").write_text("\n".join([*texts, *planted]) + "\n")
    (folder / "ner" / "own").mkdir(parents=True)
    words = SENTENCE.replace(".", " .").split()
    write_conll(folder / "ner" / "own" / "test.tsv", [[words, ["O"] * len(words)]])
    change(recipe, corpus="corpus.txt")
    pretrain = ("pretrain", "--recipe", recipe, "--model", folder / "base")
    command(*pretrain, "--decontaminate", folder / "ner")
    record = read_record(run / "pretraining")
    assert record["facts"]["decontamination"] == {"documents": len(texts) + 20, "dropped": 20, "test_sets": ["own"]}
    rows = (run / "pretraining" / "decontamination.tsv").read_text().splitlines()
    assert rows[1:] == [f"{len(texts) + n}\town\t{' '.join(words)}" for n in range(20)]
    assert f"20 of {len(texts) + 20} documents" in command("report", "--output_dir", run).out

    assert "test_sets" in command(*pretrain, status=2).error
    (folder / "ner" / "own" / "train.tsv").write_text("")  # only test sets are searched for
    assert "skipped" in command(*pretrain, "--decontaminate", folder / "ner").log
    assert "no test.tsv in" in command(*pretrain, "--decontaminate", folder / "base", status=2).error


BAD: dict[str, tuple[list[str], str]] = {
    "no tokenizer": (["distill", "--base_model", "{base}"], "run/tokenizer"),
    "no v0.0": (["pretrain", "--corpus", "{corpus}"], "run/v0.0"),
    "no such corpus": (["pretrain", "--corpus", "nowhere.txt", "--model", "{base}"], "nowhere.txt"),
    "no model": (
        ["pretrain", "--corpus", "{corpus}", "--model", "{empty}"],
        "empty: no model can be loaded from this folder",
    ),
    "no corpus": (["pretrain", "--model", "{base}"], "--corpus: name files, folders or a data set on the Hub"),
    "unknown option": (["pretrain", "--learning_rat", "1"], "--learning_rat: did you mean --learning_rate?"),
    "unknown before missing": (["annotate", "--models", "h", "--imput", "a"], "--imput: did you mean --input?"),
    "no NER data": (["finetune-ner", "--tasks", "bc2gm"], "--ner_data: needed for bc2gm"),
    "unusable words": (
        ["find-contexts", "--corpus", "{corpus}", "--tokenizer", "{base}", "--words", "{words}"],
        "or use --skip_unusable",
    ),
    "no tokens": (["find-contexts", "--corpus", "{corpus}", "--base_model", "{base}"], "run/tokenizer"),
    "no run": (["report"], "run holds no finished stage"),
    "small size": (
        ["train-vocabulary", "--corpus", "{corpus}", "--base_model", "{base}", "--size", "20"],
        "--size: ",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_ends_in_one_line_and_leaves_nothing(kind: str, recipe: Path, command: Command) -> None:
    folder = recipe.parent
    (folder / "empty").mkdir()
    (folder / "words.txt").write_text("a b\u0301\x01c\n")
    places = {"corpus": SAMPLE / "corpus.txt", "base": folder / "base", "empty": folder / "empty"}
    places["words"] = folder / "words.txt"
    arguments, said = BAD[kind]
    given = [argument.format(**places) for argument in arguments]
    share = ["--validation_share", "0.1"] if "--corpus" in given else []
    error = command(*given, *share, "--output_dir", folder / "run", status=2).error
    assert error.startswith("error: ")
    assert said in error
    assert not [path for path in (folder / "run").rglob("*") if path.is_file()]


def test_own_words_are_looked_for_in_all_of_the_text(recipe: Path, command: Command) -> None:
    folder = recipe.parent
    (folder / "one.txt").write_text("Aspirin eased the pain. Naproxen did not.\n")
    (folder / "words.txt").write_text("aspirin\nnaproxen\n")
    paths = {"corpus": "one.txt", "words": "words.txt", "tokenizer": "base"}
    options = [part for name, value in paths.items() for part in (f"--{name}", folder / value)]
    command("find-contexts", "--output_dir", folder / "run", *options)
    assert sorted(load_from_disk(folder / "run" / "contexts")["token"]) == ["aspirin", "naproxen"]


def test_all_stages_adapt_the_base_of_the_run(recipe: Path, command: Command) -> None:
    folder = recipe.parent
    command("train-vocabulary", "--recipe", recipe)
    other = build_tiny_bert(len(build_tiny_tokenizer()), seed=1)
    save_masked_lm(other, AutoTokenizer.from_pretrained(folder / "base"), folder / "other")
    named = ("--base_model", folder / "other", "--initializer", "random")
    assert "other isn't the model that" in command("distill", "--recipe", recipe, *named, status=2).error
    content = yaml.safe_load(recipe.read_text())
    del content["base_model"]
    recipe.write_text(yaml.safe_dump(content))
    command("distill", "--recipe", recipe, "--initializer", "random")
    base = read_record(folder / "run" / "tokenizer")["inputs"]["base_model"]
    assert read_record(folder / "run" / "v0.0")["inputs"]["base_model"] == base


def test_validation_text_reaches_no_stage(recipe: Path, command: Command) -> None:
    for stage in STAGES[:2]:
        command(stage, "--recipe", recipe)
    splits = split_validation(load_corpus(SAMPLE / "corpus.txt"), share=0.1)
    run = recipe.parent / "run"
    seen = set(load_from_disk(run / "contexts")["text"])
    assert seen
    assert not [sentence for sentence in seen if any(sentence in text for text in splits["validation"]["text"])]
    assert read_record(run / "tokenizer")["settings"]["validation_share"] == 0.1


@pytest.mark.parametrize(
    ("options", "said"), [(["--size", "7"], "unknown option --size"), (["--output_dir"], "--output_dir needs a value")]
)
def test_the_script_of_the_demo_refuses_what_it_does_not_know(options: list[str], said: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "demo.sh"), *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_thin(script: Path) -> None:
    """What users run is the command; a checkout keeps the old paths, for `accelerate launch scripts/pretrain.py`."""
    assert len(script.read_text().splitlines()) < 25
