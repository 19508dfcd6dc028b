"""The scripts one after the other, as real processes: what `make demo` does, with a BERT small enough for a test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_from_disk
from helpers import ROOT, build_tiny_bert, tiny_vocabulary
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer, pipeline

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.corpus.conll import write_conll
from bioptimus_hf.corpus.dataset import load_corpus, split_validation
from bioptimus_hf.models import save_masked_lm

SAMPLE = ROOT / "bioptimus_hf" / "sample"
STAGES = ("train_vocabulary", "find_contexts", "distill_embeddings", "pretrain", "finetune_ner")
ASIDE = ("--validation_share", "0.1")
SENTENCE = "Methacholine provoked bronchoconstriction in patients with asthma."


def run_script(name: str, *options: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *options],
        env={**os.environ, "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_recipe(folder: Path, **changes: Any) -> Path:
    vocabulary = {token: number for number, token in enumerate(tiny_vocabulary())}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=512)
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, folder / "base")
    recipe = {
        "corpus": str(SAMPLE / "corpus.txt"),
        "output_dir": str(folder / "run"),
        "base_model": str(folder / "base"),
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
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_from_corpus_to_entities(tmp_path: Path) -> None:
    recipe, run, cache = write_recipe(tmp_path), tmp_path / "run", tmp_path / "cache"
    for stage in STAGES:
        done = run_script(stage, "--recipe", str(recipe), cache=cache)
        assert done.returncode == 0, done.stderr

    new, found = (read_record(run / name)["facts"] for name in ("v0.0", "contexts"))
    assert new["new_tokens"] == found["tokens"] > 1000
    assert new["new_tokens_from_contexts"] + len(new["fallen_back"]) == new["new_tokens"]
    assert len(new["fallen_back"]) == found["not_found"]
    assert "learning_rate" in read_record(run / "pretraining")["settings"]
    for version in ("v0.0", "v0.1", "v0.2", "v0.3", "v0.4"):
        model, tokenizer = (kind.from_pretrained(run / version) for kind in (AutoModelForMaskedLM, AutoTokenizer))
        assert model.config.vocab_size == len(tokenizer) == 1500
    head = run / "ner" / "sample" / "v0.4" / "0"
    for entity in pipeline("ner", model=str(head), aggregation_strategy="first")(SENTENCE):
        assert SENTENCE[entity["start"] : entity["end"]].strip()

    report = run_script("report", "--output_dir", str(run), "--text", SENTENCE, cache=cache)
    assert report.returncode == 0, report.stderr
    assert report.stdout.strip() == (run / "report.md").read_text().strip()
    for part in ("pieces per word", "| v0.4 | words, 20%, always [MASK] | 8 |", "| sample | v0.4 |", "| pretraining |"):
        assert part in report.stdout
    assert "- **The text of pretraining was not searched for test sentences" in report.stdout

    assert (run / "pretraining" / "history.png").read_bytes().startswith(b"\x89PNG")

    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    for stage in STAGES:
        again = run_script(stage, "--recipe", str(recipe), cache=cache)
        assert again.returncode == 0, again.stderr
        assert "already finished with the same inputs and settings, skipped" in again.stderr
    assert times == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


@pytest.mark.slow
def test_test_sentences_are_kept_out_of_pretraining(tmp_path: Path) -> None:
    """Wherever they would have fallen, into training or validation."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    texts = (SAMPLE / "corpus.txt").read_text().splitlines()
    planted = [f"{text} {number} planted: {SENTENCE} {SENTENCE}" for number, text in enumerate(texts[:20])]
    (tmp_path / "corpus.txt").write_text("\n".join([*texts, *planted]) + "\n")
    (tmp_path / "ner" / "own").mkdir(parents=True)
    words = SENTENCE.replace(".", " .").split()
    write_conll(tmp_path / "ner" / "own" / "test.tsv", [[words, ["O"] * len(words)]])
    recipe = write_recipe(tmp_path, corpus=str(tmp_path / "corpus.txt"))
    command = ("--recipe", str(recipe), "--model", str(tmp_path / "base"))
    done = run_script("pretrain", *command, "--decontaminate", str(tmp_path / "ner"), cache=cache)
    assert done.returncode == 0, done.stderr
    made = read_record(run / "pretraining")
    assert made["facts"]["decontamination"] == {"documents": len(texts) + 20, "dropped": 20, "test_sets": ["own"]}
    rows = (run / "pretraining" / "decontamination.tsv").read_text().splitlines()
    assert rows[1:] == [f"{len(texts) + n}\town\t{' '.join(words)}" for n in range(20)]
    report = run_script("report", "--output_dir", str(run), cache=cache)
    assert f"- 20 of {len(texts) + 20} documents were removed from pretraining because they contain" in report.stdout

    other = run_script("pretrain", *command, cache=cache)
    assert other.returncode == 2
    assert "test_sets" in other.stderr.splitlines()[-1]
    (tmp_path / "ner" / "own" / "train.tsv").write_text("")  # what is not searched for does not matter
    same = run_script("pretrain", *command, "--decontaminate", str(tmp_path / "ner"), cache=cache)
    assert "skipped" in same.stderr
    none = run_script("pretrain", *command, "--decontaminate", str(tmp_path / "base"), cache=cache)
    assert none.returncode == 2
    assert "no test.tsv in" in none.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("distill_embeddings", [], "run/tokenizer doesn't exist: make the tokenizer of this run first"),
        ("pretrain", ["--corpus", "{corpus}"], "run/v0.0 is not there: run scripts/distill_embeddings.py first"),
        ("pretrain", ["--corpus", "nowhere.txt", "--model", "{base}"], "no corpus at nowhere.txt"),
        ("pretrain", ["--corpus", "{corpus}", "--model", "{empty}"], "empty: not a local model folder"),
        ("pretrain", ["--model", "{base}"], "no --corpus given"),
        ("pretrain", ["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
        (
            "find_contexts",
            ["--corpus", "{corpus}", "--base_model", "{base}"],
            "run/tokenizer is not there: run scripts/train_vocabulary.py first, or name a --tokenizer",
        ),
        ("report", [], "run holds no finished stage"),
        (
            "train_vocabulary",
            ["--corpus", "{corpus}", "--base_model", "{base}", "--size", "20", *ASIDE],
            "--size: 20 tokens can't hold",
        ),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    tmp_path: Path, script: str, options: list[str], said: str
) -> None:
    write_recipe(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"corpus": SAMPLE / "corpus.txt", "base": tmp_path / "base", "empty": tmp_path / "empty"}
    given = [option.format(**places) for option in options]
    done = run_script(script, "--output_dir", str(tmp_path / "run"), *given, cache=tmp_path / "cache")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_the_recipes_of_the_repository_name_options_that_exist() -> None:
    known = {stage: run_script(stage, "--help", cache=ROOT).stdout for stage in STAGES}
    for recipe in sorted((ROOT / "scripts" / "recipes").glob("*.yaml")):
        content = yaml.safe_load(recipe.read_text())
        for section in set(STAGES) & set(content):
            for option in content[section]:
                assert f"--{option} " in known[section], (recipe.name, section, option)


def test_words_of_ones_own_are_looked_for_in_all_of_the_text(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "one.txt").write_text("Aspirin eased the pain. Naproxen did not.\n")
    (tmp_path / "words.txt").write_text("aspirin\nnaproxen\n")
    options = {"corpus": "one.txt", "words": "words.txt", "tokenizer": "base"}
    given = [part for name, value in options.items() for part in (f"--{name}", str(tmp_path / value))]
    done = run_script("find_contexts", "--output_dir", str(tmp_path / "run"), *given, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert sorted(load_from_disk(tmp_path / "run" / "contexts")["token"]) == ["aspirin", "naproxen"]


def test_a_base_model_that_is_not_the_stages_before_is_refused(tmp_path: Path) -> None:
    recipe, cache = write_recipe(tmp_path), tmp_path / "cache"
    assert run_script("train_vocabulary", "--recipe", str(recipe), cache=cache).returncode == 0
    other = build_tiny_bert(len(tiny_vocabulary()), seed=1)
    save_masked_lm(other, AutoTokenizer.from_pretrained(tmp_path / "base"), tmp_path / "other")
    options = ["--base_model", str(tmp_path / "other"), "--initializer", "random"]
    done = run_script("distill_embeddings", "--recipe", str(recipe), *options, cache=cache)
    assert done.returncode == 2
    assert "other isn't the model that" in done.stderr.splitlines()[-1]
    # Where later stages are told nothing, they find the base in the record.
    content = yaml.safe_load(recipe.read_text())
    del content["base_model"]
    recipe.write_text(yaml.safe_dump(content))
    for stage in ("find_contexts", "distill_embeddings"):
        done = run_script(stage, "--recipe", str(recipe), cache=cache)
        assert done.returncode == 0, done.stderr
    heads = ["--models", "base", "v0.0", "--num_train_epochs", "1"]
    done = run_script("finetune_ner", "--recipe", str(recipe), *heads, cache=cache)
    assert done.returncode == 0, done.stderr
    base = read_record(tmp_path / "run" / "tokenizer")["inputs"]["base_model"]
    assert read_record(tmp_path / "run" / "ner" / "sample" / "base" / "0")["inputs"]["model"] == base


def test_contexts_of_another_tokenizer_are_refused_even_under_force(tmp_path: Path) -> None:
    recipe, cache = write_recipe(tmp_path), tmp_path / "cache"
    for stage in STAGES[:2]:
        assert run_script(stage, "--recipe", str(recipe), cache=cache).returncode == 0
    smaller = ["--size", "1400", "--force"]
    assert run_script("train_vocabulary", "--recipe", str(recipe), *smaller, cache=cache).returncode == 0
    done = run_script("distill_embeddings", "--recipe", str(recipe), "--force", cache=cache)
    assert done.returncode == 2
    assert "run/contexts was made for another tokenizer" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_tokens_are_distilled_as_far_as_asked(tmp_path: Path) -> None:
    recipe, cache = write_recipe(tmp_path), tmp_path / "cache"
    for stage in STAGES[:2]:
        assert run_script(stage, "--recipe", str(recipe), cache=cache).returncode == 0
    some = ["--max_tokens", "20"]
    done = run_script("distill_embeddings", "--recipe", str(recipe), "--initializer", "random", *some, cache=cache)
    assert done.returncode == 2
    assert "--max_tokens: only the initializer token_distillation" in done.stderr.splitlines()[-1]
    trained = ["--initializer", "token_distillation", *some]
    done = run_script("distill_embeddings", "--recipe", str(recipe), *trained, cache=cache)
    assert done.returncode == 0, done.stderr
    made = read_record(tmp_path / "run" / "v0.0")
    assert made["settings"]["max_tokens"] == made["facts"]["new_tokens_from_contexts"] == 20
    assert "training in contexts" in (tmp_path / "run" / "v0.0" / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"), [(["--size", "7"], "unknown option --size"), (["--output_dir"], "--output_dir needs a value")]
)
def test_the_shell_script_refuses_what_it_does_not_know(options: list[str], said: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "demo.sh"), *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode != 0
    assert said in done.stderr


def test_the_readme_has_no_gaps() -> None:
    gaps = re.findall(r"\b(?:DEMO|RESULT|TEST)_[A-Z]+\b", (ROOT / "README.md").read_text())
    assert gaps == []


def test_validation_text_reaches_no_stage(tmp_path: Path) -> None:
    recipe, cache = write_recipe(tmp_path), tmp_path / "cache"
    for stage in STAGES[:2]:
        assert run_script(stage, "--recipe", str(recipe), cache=cache).returncode == 0
    documents = split_validation(load_corpus(SAMPLE / "corpus.txt"), share=0.1)
    seen = set(load_from_disk(tmp_path / "run" / "contexts")["text"])
    assert seen
    assert not [sentence for sentence in seen if any(sentence in text for text in documents["validation"]["text"])]
    assert json.loads((tmp_path / "run" / "tokenizer" / "made.json").read_text())["settings"]["validation_share"] == 0.1
