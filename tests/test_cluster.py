"""The search on Ray: the rows that one machine gives, also when a machine is lost in the middle of a file."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_vocabulary
from transformers import BertTokenizer

from bioptimus_hf import cluster as module
from bioptimus_hf.artifacts import InputError, digest_of_rows, read_made
from bioptimus_hf.cluster import find_contexts_on_ray
from bioptimus_hf.corpus import load_corpus, split_validation
from bioptimus_hf.search import search_documents
from bioptimus_hf.vocabulary import save_tokenizer

ROOT = Path(__file__).parent.parent
TOKENS = ["asthma", "##tion", "disease", "cells", "the", "zebra"]


@pytest.fixture(autouse=True)
def _no_network() -> None:
    """Ray asks for the machine's own address by a socket to outside, through which nothing is sent."""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Files of every kind; sentences stand in several documents, and some documents are empty."""
    rng = random.Random(0)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]
    sentences = [" ".join(rng.choices(words, k=rng.randint(2, 6))).capitalize() + "." for _ in range(300)]
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(6):
        texts = [" ".join(rng.choices(sentences, k=rng.randint(0, 8))) for _ in range(100)]
        file = folder / f"{number}"
        if number % 3 == 0:
            file.with_suffix(".jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        elif number % 3 == 1:
            pq.write_table(pa.table({"text": texts}), file.with_suffix(".parquet"))
        else:
            file.with_suffix(".txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    (folder / "7.txt").write_text("\n \n")
    return folder


def on_one_machine(shards: Path, tokenizer: BertTokenizer, folder: Path, share: float | None) -> str:
    documents = load_corpus(shards)
    if share:
        documents = split_validation(documents, share=share, seed=3)["train"]
    found = search_documents(documents, TOKENS, tokenizer=tokenizer, folder=folder, per_token=20, seed=3)
    assert len(found.contexts) == 80
    return digest_of_rows(found.contexts)


class SlowSearch(module._FileSearch):
    """Takes its time for a file; away from the head, the first time says where it is, and does not come to an end."""

    def _search(self, file: Path, *rest: object) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        sign = file.parent.parent / "sign"
        head = (file.parent.parent / "head").read_text()
        if node != head and not sign.exists():
            sign.write_text(node)
            time.sleep(300)
        time.sleep(0.3)
        super()._search(file, *rest)  # type: ignore[arg-type]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed")
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        settings = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**settings, "temp_dir": folder})
        cluster.add_node(**settings)
        cluster.wait_for_nodes()
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_node_is_killed(
    two_nodes: Any, shards: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "_FileSearch", SlowSearch)
    (tmp_path / "head").write_text(two_nodes.head_node.node_id)
    lost: list[str] = []

    def kill() -> None:
        sign = tmp_path / "sign"
        while not sign.exists() or not sign.read_text():
            time.sleep(0.05)
        for node in list(two_nodes.worker_nodes):
            if node.node_id == sign.read_text():
                two_nodes.remove_node(node, allow_graceful=False)
                lost.append(node.node_id)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = find_contexts_on_ray(
        shards,
        TOKENS,
        tokenizer=tokenizer,
        per_token=20,
        seed=3,
        address=two_nodes.address,
    )
    assert lost, "no task ran on the second node"
    assert digest_of_rows(found.contexts) == on_one_machine(shards, tokenizer, tmp_path / "parts", None)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_the_script_on_this_machine(shards: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    known = {token: number for number, token in enumerate(t for t in tiny_vocabulary() if t not in TOKENS)}
    save_tokenizer(BertTokenizer(vocab=known), tmp_path / "base")
    script = [sys.executable, str(ROOT / "scripts" / "find_contexts.py"), "--corpus", str(shards), "--seed", "3"]
    script += ["--tokenizer", str(tmp_path / "tokenizer"), "--base_model", str(tmp_path / "base"), "--per_token", "20"]
    script += ["--validation_share", "0.2"]
    facts = {}
    for engine in ("local", "ray"):
        options = ["--engine", engine, "--output_dir", str(tmp_path / engine), "--num_proc", "2"]
        done = subprocess.run([*script, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        facts[engine] = read_made(tmp_path / engine / "contexts")["facts"]
        assert facts[engine].pop("engine") == engine
    assert facts["ray"] == facts["local"]
    # The same command again finds it finished, whatever the engine.
    again = subprocess.run([*script, "--output_dir", str(tmp_path / "ray")], capture_output=True, text=True)
    assert "is already there" in again.stderr
    (shards / "3.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n')
    broken = subprocess.run(
        [*script, "--engine", "ray", "--output_dir", str(tmp_path / "broken")], capture_output=True, text=True
    )
    assert broken.returncode == 2
    assert (
        broken.stderr.strip().splitlines()[-1].startswith(f"error: {shards / '3.jsonl'}, line 2: no text under 'text'")
    )
    assert "Traceback" not in broken.stderr


def test_bad_input(tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("The asthma.\n")
    with pytest.raises(InputError, match="no files at someone/abstracts, which may be a data set of the Hub"):
        find_contexts_on_ray("someone/abstracts", TOKENS, tokenizer=tokenizer)
    with pytest.raises(InputError, match="the validation share must lie between 0 and 1"):
        find_contexts_on_ray(tmp_path, TOKENS, tokenizer=tokenizer, validation_share=1.5)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed: pip install 'bioptimus-hf\[ray\]'"):
        find_contexts_on_ray(tmp_path, TOKENS, tokenizer=tokenizer)


@pytest.mark.slow
def test_no_cluster_there(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    (tmp_path / "a.txt").write_text("The asthma.\n")
    with pytest.raises(InputError, match="no Ray at auto: "):
        find_contexts_on_ray(tmp_path, TOKENS, tokenizer=tokenizer, address="auto")
