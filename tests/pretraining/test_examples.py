"""The examples run, and mask each row as the curriculum requires."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, build_tiny_bert
from processes import Processes
from safetensors.torch import load_file
from transformers import BertTokenizer

from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM

EXAMPLES = ROOT / "scripts" / "examples"
# Write down the strategy of each batch, and its first row.
WATCH = """
import os
from bioptimus_hf import BioptimusDataCollator
plain = BioptimusDataCollator._next
def watched(self, *batch):
    key, first_row, masking = plain(self, *batch)
    with open(f"{os.environ['MASKS']}/masks-{os.environ.get('RANK', 0)}.txt", "a") as file:
        print(first_row, masking.unit, masking.rate, masking.corrupt, file=file)
    return key, first_row, masking
BioptimusDataCollator._next = watched
"""
RUN = """
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("example", ["stock_trainer", "accelerate_loop"])
def test_an_example(tokenizer: BertTokenizer, processes: Processes, tmp_path: Path, example: str, ranks: int) -> None:
    """On two processes as torchrun launches them, whose interpreters must also shut down without an error."""
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "model")
    texts = [f"Aspirin in severe asthma, binding {number} of the mice." for number in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    command = [str(EXAMPLES / f"{example}.py"), "--text", str(tmp_path / "text.txt"), "--max_steps", "20"]
    command += ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path)]
    environment = {"MASKS": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    if ranks == 1:
        ended = processes.run(command, patch=WATCH, environment=environment)
        assert ended.status == 0, ended.stderr
    else:
        (tmp_path / "watched.py").write_text(WATCH + RUN)
        processes.launch([tmp_path / "watched.py", *command], ranks, MASKS=str(tmp_path))
    batch = 8 if example == "stock_trainer" else 16
    for rank in range(ranks):  # 100 rows: phases end within epochs
        masks = (tmp_path / f"masks-{rank}.txt").read_text().splitlines()[:20]
        assert masks == [
            f"{(step * ranks + rank) * batch} {masking.unit} {masking.rate} {masking.corrupt}"
            for step, masking in enumerate(phase.masking for phase in BIOPTIMUS_CURRICULUM for _ in range(5))
        ]
    versions = [load_file(tmp_path / f"v0.{number}" / "model.safetensors") for number in range(1, 5)]
    for before, after in itertools.pairwise(versions):
        assert any(not before[name].equal(after[name]) for name in before)
    if example == "accelerate_loop" and ranks == 1:
        ended = processes.run([*command, "--batch_size", "101"], environment=environment)
        assert ended.status == 2
        assert "error: fewer rows than a batch" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loop_resumes_exactly(tokenizer: BertTokenizer, processes: Processes, tmp_path: Path, ranks: int) -> None:
    """From the middle of an epoch, in new processes; the model has dropout."""
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "model")
    texts = [f"Aspirin in severe asthma, binding {number} of the mice." for number in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    command = [str(EXAMPLES / "accelerate_loop.py"), "--text", str(tmp_path / "text.txt"), "--max_steps", "20"]
    command += ["--model", str(tmp_path / "model"), "--save_steps", "14"]
    for folder, options in (("whole", []), ("resumed", ["--resume"])):
        processes.launch([*command, "--output_dir", tmp_path / folder, *options], ranks)
        if folder == "whole":
            shutil.copytree(tmp_path / "whole" / "states", tmp_path / "resumed" / "states")
    for version in ("v0.3", "v0.4"):
        whole, resumed = (tmp_path / folder / version / "model.safetensors" for folder in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes()
    assert not (tmp_path / "resumed" / "v0.2").exists()
