"""What we save computes the same in the last transformers 4, which many users still have."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import HOSTILE, ROOT, build_tiny_bert, build_tiny_tokenizer
from saved_models import describe

from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.models import save_masked_lm

pytestmark = pytest.mark.slow

SAMPLE = ROOT / "bioptimus_hf" / "sample"
TEXTS = [
    *(SAMPLE / "corpus.txt").read_text(encoding="utf-8").splitlines()[:3],
    *HOSTILE.splitlines(),
    "Grünwald, α-β 5′",
]


@pytest.fixture(scope="module")
def transformers4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the last transformers 4 and what it needs, except PyTorch."""
    if not importlib.util.find_spec("pip"):
        pytest.skip("pip is needed to install transformers 4")
    target = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary", ":all:", "--target", str(target), "transformers>=4.57,<5"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    if ended.returncode:
        pytest.skip(f"transformers 4 can't be installed here: {ended.stderr.strip().splitlines()[-1]}")
    return target


@pytest.fixture(scope="module")
def request_of_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of `describe` for a run: tokenizers of both policies, two versions and a head."""
    folder = tmp_path_factory.mktemp("run")
    save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), folder / "base")
    content = {
        "corpus": str(SAMPLE / "corpus.txt"),
        "base_model": str(folder / "base"),
        "validation_share": 0.1,
        "output_dir": "run",
        "train_vocabulary": {"size": 300},
        "distill": {"initializer": "random"},
        "pretrain": {"max_length": 64, "max_steps": 2, "per_device_train_batch_size": 2, "phases": ["0.1"]},
        "finetune_ner": {
            **{"ner_data": str(SAMPLE / "ner"), "tasks": ["sample"], "models": ["v0.1"], "seeds": 1},
            **{"num_train_epochs": 4, "learning_rate": 1e-2},
        },
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    for stage in ("train-vocabulary", "distill", "pretrain", "finetune-ner"):
        assert main([stage, "--recipe", str(recipe)]) == 0
    extended = ("--policy", "extend", "--output_dir", str(folder / "extended"))
    assert main(["train-vocabulary", "--recipe", str(recipe), *extended]) == 0
    run = folder / "run"
    head = run / "ner" / "sample" / "v0.1" / "0"
    return {
        "tokenizers": [
            str(path) for path in (run / "tokenizer", folder / "extended" / "tokenizer", run / "v0.1", head)
        ],
        "encoders": [str(run / "v0.0"), str(run / "v0.1")],
        "head": str(head),
        "texts": TEXTS,
    }


def test_what_we_save_computes_the_same(transformers4: Path, request_of_run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(json.dumps(request_of_run))
    # -I and -S keep out this environment's packages until ours come first; PyTorch is found behind them.
    paths = [str(transformers4), *(path for path in sys.path if path.endswith("site-packages"))]
    script = Path(__file__).with_name("saved_models.py")
    code = (
        f"import runpy, sys; sys.path[:0] = {paths!r}; sys.argv = ['saved_models.py', 'request.json']; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-c", code]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    there = json.loads(ended.stdout.splitlines()[-1])
    here = json.loads(json.dumps(describe(**request_of_run)))
    assert there["version"].startswith("4.")
    assert here["version"].startswith("5.")
    assert there["tokens"] == here["tokens"]
    assert here["tokens"][request_of_run["head"]]["size"] == 300
    for folder, logits in here["logits"].items():
        torch.testing.assert_close(torch.tensor(there["logits"][folder]), torch.tensor(logits), atol=1e-5, rtol=1e-5)
    assert sum(map(len, here["ner"])) > 3  # otherwise there would be nothing to compare
    assert without_scores(there["ner"]) == without_scores(here["ner"])
    for other, own in zip(chain(*there["ner"]), chain(*here["ner"]), strict=True):
        assert other["score"] == pytest.approx(own["score"], abs=1e-5)
    for folder, guesses in here["fill-mask"].items():
        assert without_scores([there["fill-mask"][folder]]) == without_scores([guesses])


def without_scores(found: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    return [[{name: value for name, value in one.items() if name != "score"} for one in of_text] for of_text in found]
