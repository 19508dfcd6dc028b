"""Tiny models built in memory, and ways to run a script, that tests of several rooms share."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification, BertTokenizer

from bioptimus_hf.corpus.documents import Entity

ROOT = Path(__file__).parent.parent
SPECIAL = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (  # noqa: SIM905  (a list of quoted words would be harder to read)
    "the of and in with was patients asthma bronchoconstriction cells protein disease expression treatment aspirin "
    "is by for to on were therapy cancer severe mice gene binding acute induced renal failure"
).split()
TAGS = ("O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease")
HOSTILE = (
    "Aspirin-induced asthma <b>bold</b> <img src=x onerror='window.hit=1'> ${window.hit=2} {{value}} 🧬👩‍🔬 in mice.\n"
    "</mark></p></div><script>window.hit=3</script> &amp; severe renal failure."
)
"""A text that would run a script or change the page where HTML isn't escaped."""
CHARACTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *"-.,;:()/%<>=+"]


def tiny_vocabulary() -> list[str]:
    pieces = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    return [*SPECIAL, *CHARACTERS, *WORDS, *pieces, "##ing", "##tion", "##itis", "##ed"]


KILLED = """
import os, runpy, signal, sys
_, end, script, *arguments = sys.argv
def kill(event, its):
    if event in ("open", "os.rename") and str(its[event == "os.rename"]).endswith(end):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def run_until_killed(end: str, script: Path, *arguments: str, environment: dict[str, str]) -> str:
    """Run a script that is killed as soon as it opens a file whose path has that end, or renames something to it.

    Returns what it said on stderr.
    """
    command = [sys.executable, "-c", KILLED, end, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr


def load_script(path: Path) -> ModuleType:
    """Load a script as a module, whose functions a test can call without a process of its own."""
    spec = util.spec_from_file_location(f"{path.stem}_script", path)
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def build_tiny_tokenizer() -> BertTokenizer:
    """An uncased WordPiece tokenizer of about 120 tokens."""
    vocabulary = {token: i for i, token in enumerate(tiny_vocabulary())}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=512)
    assert len(tokenizer) == len(vocabulary)
    return tokenizer


def build_tiny_bert(vocab_size: int, seed: int = 0) -> BertForMaskedLM:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    return BertForMaskedLM(config).eval()


def build_tiny_head(
    *, layers: int, positions: int = 512, seed: int = 0, tags: Sequence[str] = TAGS
) -> BertForTokenClassification:
    """A NER head of random weights; without layers, its tag at a piece depends on the piece alone."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tiny_vocabulary()),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        id2label=dict(enumerate(tags)),
        label2id={tag: number for number, tag in enumerate(tags)},
    )
    head = BertForTokenClassification(config)
    with torch.no_grad():
        if not layers:
            head.bert.embeddings.position_embeddings.weight.zero_()
        head.config.max_position_embeddings = positions
        head.classifier.weight.normal_()  # otherwise nearly all words get one tag
    return head.eval()


def build_head_of_words(
    words: Mapping[str, str], tags: Sequence[str], *, other: str = "O"
) -> BertForTokenClassification:
    """A NER head that gives each of some words its tag, and all other words another one."""
    head = build_tiny_head(layers=0, tags=tags)
    tokenizer = build_tiny_tokenizer()
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.zero_()
        head.classifier.bias[tags.index(other)] = 1
        head.bert.embeddings.word_embeddings.weight.zero_()
        head.bert.embeddings.token_type_embeddings.weight.zero_()
        for number, (word, tag) in enumerate(words.items()):
            head.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(word), number] = 9
            head.classifier.weight[tags.index(tag), number] = 1
    return head


def assert_same_entities(found: Sequence[Entity], expected: Sequence[Entity], *, tolerance: float = 1e-5) -> None:
    """Compare all of the entities exactly, but their scores: how these are rounded depends on what is read beside them.

    Kernels are chosen by the shape of a batch, and by the processor.
    """
    assert [replace(one, score=0.0) for one in found] == [replace(one, score=0.0) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=tolerance)


CHECKS = "check_*"


def address_of(machines: Any) -> str:
    """Return the address of a cluster of Ray on this machine."""
    return f"127.0.0.1:{machines.address.rpartition(':')[2]}"


def run_checks_apart(file: str, names: str) -> None:
    """Run those functions `check_*` of a test file whose names match, as for `pytest -k`, in a process of its own.

    Everything that imports Ray is run like this. Ray leaves threads behind, which break a process when it forks others
    later, as `datasets` and workers of PyTorch do: it hangs, or ends without a word.
    """
    if util.find_spec("ray") is None:
        pytest.skip("needs the extra `ray`")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-o", f"python_functions={CHECKS}", "-k", names, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
