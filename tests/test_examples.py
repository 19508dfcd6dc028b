"""The examples run, and give versions that differ only as the curriculum says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import build_tiny_bert
from safetensors.torch import load_file
from transformers import BertTokenizer

from bioptimus_hf.curriculum import save_masked_lm

EXAMPLES = Path(__file__).parent.parent / "scripts" / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("example", ["stock_trainer", "accelerate_loop"])
def test_an_example(tokenizer: BertTokenizer, tmp_path: Path, example: str, ranks: int) -> None:
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "model")
    texts = [f"Aspirin in severe asthma, binding {number} of the mice." for number in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, str(EXAMPLES / f"{example}.py"), "--text", str(tmp_path / "text.txt")]
    command += ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), "--max_steps", "20"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    few = [*command, "--batch_size", "101"]
    if example == "accelerate_loop" and ranks == 1:
        ended = subprocess.run(few, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 2
        assert "error: fewer rows than a batch" in ended.stderr
    versions = [load_file(tmp_path / "out" / f"v0.{number}" / "model.safetensors") for number in range(1, 5)]
    for before, after in itertools.pairwise(versions):
        assert any(not before[name].equal(after[name]) for name in before)
