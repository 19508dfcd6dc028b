"""What commands write to stderr: lines of this package, and nothing that other libraries say to their developers."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer

from bioptimus_hf.models import save_masked_lm

SAMPLE = ROOT / "bioptimus_hf" / "sample"
OURS = (
    r"\d\d:\d\d:\d\d (INFO|WARNING) bioptimus_hf\.[\w.]+: .+",  # what this package logs
    r"== [a-z-]+",  # headings of the stages of `run`
    r"Done in \d+ s\. .+",  # the end of `run`
    r"(error|interrupted): .+",
)
CARD = {"license": "mit", "language": "en", "corpus_description": "a sample", "corpus_license": "mit"}


def is_ours(line: str) -> bool:
    return any(re.fullmatch(pattern, line) for pattern in OURS)


class Output:
    """Runs commands in processes of their own, whose stderr is a file, and keeps what they wrote there.

    Attributes:
        written: name of the command to its stderr.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, str] = {}
        # Without what would silence some of it. Of tokenizers, that is a warning about processes that are forked.
        quiet = ("TOKENIZERS_PARALLELISM", "TQDM_DISABLE", "PYTHONWARNINGS")
        self.environment = {name: value for name, value in os.environ.items() if name not in quiet}

    def run(self, name: str, *arguments: object, status: int = 0) -> None:
        command = [sys.executable, "-m", "bioptimus_hf.cli", *map(str, arguments)]
        file = self.folder / f"{name}.err"
        with file.open("wb") as stderr:
            options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": stderr, "cwd": self.folder}
            ended = subprocess.run(command, env=self.environment, timeout=600, check=False, **options)
        self.written[name] = file.read_bytes().decode()
        assert ended.returncode == status, self.written[name]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """The commands on tiny inputs; how the app starts is tested elsewhere."""
    folder = tmp_path_factory.mktemp("output")
    save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), folder / "base")
    texts = (SAMPLE / "corpus.txt").read_text(encoding="utf-8").splitlines()
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    processes: dict[str, Any] = {"num_proc": 2}
    recipe = {
        "corpus": "corpus.txt",
        "output_dir": "run",
        "base_model": "base",
        "validation_share": 0.1,
        "train_vocabulary": {"size": 1500},
        "find_contexts": {"per_token": 4, **processes},
        "pretrain": {"max_length": 64, "max_steps": 8, "per_device_train_batch_size": 4, "dataloader_num_workers": 1},
        "finetune_ner": {
            **{"ner_data": str(SAMPLE / "ner"), "tasks": ["sample"], "models": ["v0.4"], "seeds": 1},
            "num_train_epochs": 1,
        },
    }
    recipe["pretrain"] |= processes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    output = Output(folder)
    output.run("run", "run", "recipe.yaml")
    head = folder / "run" / "ner" / "sample" / "v0.4" / "0"
    inputs = ("--input", "corpus.txt", "--output_dir")
    output.run("annotate", "annotate", "--models", head, *inputs, "found")
    if importlib.util.find_spec("onnxscript"):
        output.run("export-onnx", "export-onnx", "--model", head, "--output_dir", "onnx")
    output.run("check", "check", "run")
    facts = [part for name, value in CARD.items() for part in (f"--{name}", value)]
    heads = ("--ner_licenses", "sample=mit")
    output.run(
        "publish", "publish", "--recipe", "recipe.yaml", "--repo_id", "me/a", "--base_model_id", "b/c", *facts, *heads
    )
    output.run("an error", "annotate", "--models", folder / "base", *inputs, "nothing", status=2)
    return output


@pytest.mark.slow
def test_stderr_has_only_lines_of_this_package(output: Output) -> None:
    table = (output.folder / "run" / "ner" / "results.md").read_text()
    for name, written in output.written.items():
        rest = written.replace(table.strip(), "") if name == "run" else written
        foreign = [line for line in rest.splitlines() if line.strip() and not is_ours(line)]
        assert foreign == [], name
        assert "\r" not in written, name


@pytest.mark.slow
def test_an_export_says_one_thing(output: Output) -> None:
    if "export-onnx" not in output.written:
        pytest.skip("needs the extra `onnx`")
    (line,) = output.written["export-onnx"].splitlines()
    assert line.endswith(" INFO bioptimus_hf.artifacts: saved onnx")


def test_what_other_libraries_say_is_noticed() -> None:
    assert is_ours("12:00:01 INFO bioptimus_hf.artifacts: saved run/tokenizer")
    for line in (
        "12:00:01 INFO onnxscript.rewriter: Applied 32 of general pattern rewrite rules.",
        "12:00:01 WARNING py.warnings: UserWarning: no (torch/a.py:1)",
        "  0%|          | 0/8 [00:00<?, ? steps/s]12:00:01 INFO bioptimus_hf.artifacts: saved run",
        "pooler.dense.bias   | UNEXPECTED |",
        "huggingface/tokenizers: The current process just got forked",
    ):
        assert not is_ours(line)
