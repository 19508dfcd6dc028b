"""The examples run, and mask each row as the curriculum says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import build_tiny_bert
from safetensors.torch import load_file
from transformers import BertTokenizer

from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM

EXAMPLES = Path(__file__).parent.parent / "scripts" / "examples"
WATCHED = """
import os, runpy, sys
from bioptimus_hf import BioptimusDataCollator
plain = BioptimusDataCollator._next
def watched(self, rows):
    key, first_row, masking = plain(self, rows)
    with open(f"{sys.argv[-1]}/masks-{os.environ.get('RANK', 0)}.txt", "a") as file:
        print(first_row, masking.unit, masking.rate, masking.corrupt, file=file)
    return key, first_row, masking
BioptimusDataCollator._next = watched
sys.argv.remove(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("example", ["stock_trainer", "accelerate_loop"])
def test_an_example(tokenizer: BertTokenizer, tmp_path: Path, example: str, ranks: int) -> None:
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "model")
    texts = [f"Aspirin in severe asthma, binding {number} of the mice." for number in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    (tmp_path / "watched.py").write_text(WATCHED)
    command = [sys.executable, *launch, str(tmp_path / "watched.py"), str(EXAMPLES / f"{example}.py")]
    command += ["--text", str(tmp_path / "text.txt"), "--model", str(tmp_path / "model"), "--max_steps", "20"]
    command += ["--output_dir", str(tmp_path)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    few = [*command[:-2], "--batch_size", "101", *command[-2:]]
    if example == "accelerate_loop" and ranks == 1:
        ended = subprocess.run(few, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 2
        assert "error: fewer rows than a batch" in ended.stderr
    batch = 8 if example == "stock_trainer" else 16
    for rank in range(ranks):  # 100 rows: the edges of phases lie within epochs
        masks = (tmp_path / f"masks-{rank}.txt").read_text().splitlines()[:20]
        assert masks == [
            f"{(step * ranks + rank) * batch} {masking.unit} {masking.rate} {masking.corrupt}"
            for step, masking in enumerate(phase.masking for phase in BIOPTIMUS_CURRICULUM for _ in range(5))
        ]
    versions = [load_file(tmp_path / f"v0.{number}" / "model.safetensors") for number in range(1, 5)]
    for before, after in itertools.pairwise(versions):
        assert any(not before[name].equal(after[name]) for name in before)
