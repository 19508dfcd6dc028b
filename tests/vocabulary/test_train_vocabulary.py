"""The script as its users run it: write, skip, refuse, redo, and leave nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from helpers import ROOT
from transformers import AutoTokenizer, BertTokenizer

from bioptimus_hf.models import save_tokenizer
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies

SCRIPT = ROOT / "scripts" / "train_vocabulary.py"
SAMPLE = str(resources.files("bioptimus_hf") / "sample" / "corpus.txt")


def run(tmp_path: Path, *arguments: str, corpus: str = SAMPLE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--corpus", corpus, "--base_model", str(tmp_path / "base")]
    command += ["--output_dir", str(tmp_path / "run"), "--validation_share", "0.1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def base(tokenizer: BertTokenizer, tmp_path: Path) -> BertTokenizer:
    save_tokenizer(tokenizer, tmp_path / "base")
    return tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_writes_then_skips_then_refuses_then_redoes(base: BertTokenizer, tmp_path: Path) -> None:
    written = run(tmp_path, "--size", "1500")
    assert written.returncode == 0, written.stderr
    folder = tmp_path / "run" / "tokenizer"
    before = contents(tmp_path / "run")
    assert {"tokenizer/vocab.txt", "tokenizer/tokenizer.json", "tokenizer/made.json"} <= before.keys()
    made = AutoTokenizer.from_pretrained(folder)
    difference = compare_vocabularies(base, made)
    facts = json.loads((folder / "made.json").read_text())["facts"]
    assert len(made) == facts["tokens"] == 1500
    assert (facts["shared"], facts["new"]) == (len(difference.shared), len(difference.new))
    assert 1 < facts["fertility_after"] < facts["fertility_before"]
    assert f"{facts['new']} of them new" in written.stderr
    assert "| 1,500 tokens |" in (folder / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text())["base"]["fertility"] == facts["fertility_before"]
    assert f"saved {folder}" in written.stderr

    copy = tmp_path / "copy.txt"  # the same text, wherever it lies
    copy.write_bytes(Path(SAMPLE).read_bytes())
    skipped = run(tmp_path, "--size", "1500", corpus=str(copy))
    assert skipped.returncode == 0
    assert f"{folder}: already finished with the same inputs and settings, skipped" in skipped.stderr
    assert contents(tmp_path / "run") == before

    copy.write_bytes(Path(SAMPLE).read_bytes() + b"One more document.\n")
    for refused, named in (
        (run(tmp_path, "--size", "1500", corpus=str(copy)), "corpus ("),
        (run(tmp_path, "--size", "1600"), "size (1500 then, 1600 now)"),
    ):
        assert refused.returncode == 2
        assert f"error: {folder} was made with different {named}" in refused.stderr.splitlines()[-1]
        assert contents(tmp_path / "run") == before

    redone = run(tmp_path, "--size", "1600", "--force")
    assert redone.returncode == 0, redone.stderr
    assert len(AutoTokenizer.from_pretrained(folder)) == 1600
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokenizer"]


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing_half_written(base: BertTokenizer, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    for ended, message in (
        (run(tmp_path, "--size", "20"), "--size 20 does not hold"),
        (run(tmp_path, corpus=str(tmp_path / "latin.txt")), "latin.txt, line 2: not valid UTF-8 at byte 8"),
        (run(tmp_path, "--base_model", str(tmp_path)), "not a local model folder and not"),
    ):
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.splitlines()[-1].startswith("error: ")
        assert message in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
        assert contents(tmp_path / "run") == {}
