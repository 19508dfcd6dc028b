"""A tiny BERT built in memory, the real data where it lies, and no network but loopback."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_AUTH_MODE"] = "disabled"  # otherwise Ray writes a token into the home folder
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="bioptimus-tests-")  # so that no run sees another's cache

import pytest
import torch
from helpers import CHECKS, address_of, build_tiny_bert, build_tiny_head, build_tiny_tokenizer
from hub import Hub
from transformers import BertForMaskedLM, BertTokenizer

from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.ray_session import connected

torch.set_num_threads(1)  # the models of the tests are too small for more to pay
gc.freeze()  # a million objects that importing has made needn't be searched for garbage
gc.set_threshold(100_000, 20, 20)  # as in the commands


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: object) -> object:
        host = address[0] if isinstance(address, tuple) else "local"
        if host not in {"local", "127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {host}")
        return real_connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_ray(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if CHECKS not in pytestconfig.getini("python_functions"):
        assert "ray" not in sys.modules, "a test imported Ray: see run_checks_apart"


class Command:
    """Runs `bioptimus` commands in this process.

    Attributes:
        out: what the last command printed.
        err: what it printed on stderr.
        log: what it logged.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self._capsys, self._caplog = capsys, caplog
        self.out = self.err = self.log = ""

    def __call__(self, *arguments: object, status: int = 0) -> Command:
        """Run a command that is to end with a status."""
        self._capsys.readouterr()
        self._caplog.clear()
        with self._caplog.at_level("INFO"):
            ended = main([str(argument) for argument in arguments])
        self.out, self.err = self._capsys.readouterr()
        self.log = self._caplog.text
        assert ended == status, self.err
        return self

    @property
    def error(self) -> str:
        """The last line on stderr, which says what was wrong."""
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def warnings_of_package(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings that the package logged so far: threads that other libraries left running may log at any time."""

    def messages() -> list[str]:
        records = [record for record in caplog.records if record.name.startswith("bioptimus_hf")]
        return [record.getMessage() for record in records if record.levelname == "WARNING"]

    return messages


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Command:
    return Command(capsys, caplog)


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return build_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a NER head and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_head")
    build_tiny_head(layers=1).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def two_ranks(tmp_path: Path) -> tuple[str, ...]:
    """What to put before a script to run it as two processes, of which the second ends its training late."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, runpy, sys, time\n"
        "from transformers import trainer\n"
        "real = trainer.sort_checkpoints\n"
        "def sort_checkpoints(output_dir, **kwargs):\n"
        "    there = os.path.isdir(output_dir)\n"
        "    time.sleep(2 * int(os.environ['RANK']))\n"
        "    assert os.path.isdir(output_dir) == there, 'the other process did not wait'\n"
        "    return real(output_dir, **kwargs)\n"
        "trainer.sort_checkpoints = sort_checkpoints\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(late))


@pytest.fixture
def tiny_bert(tokenizer: BertTokenizer) -> BertForMaskedLM:
    return build_tiny_bert(len(tokenizer))


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub for all tests of a module, each of which has repositories of its own; no token, no request goes astray."""
    with Hub() as hub:
        yield hub
        assert not hub.leaks
        assert not hub.outside


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """Start a Ray cluster of two nodes with one processor each."""
    utils = pytest.importorskip("ray.cluster_utils")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # pytest's paths are too long for sockets
    with pytest.MonkeyPatch.context() as patch:
        # With an argument instead, Ray would announce the cluster to all processes of the machine.
        patch.setenv("RAY_TMPDIR", str(folder))
        # By default, the death of a node is noticed after 15 seconds. After 1 second, a busy node counts as dead.
        settings = {"health_check_period_ms": 300, "health_check_failure_threshold": 10}
        arguments = {"num_cpus": 1, "include_dashboard": False, "_system_config": settings}
        cluster = utils.Cluster(initialize_head=True, head_node_args=arguments)
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def connection(machines: Any) -> Iterator[None]:
    """Connect this process to the cluster until the module ends."""
    with connected(address_of(machines)):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `corpus/` and `ner/`."""
    root = Path(os.environ.get("BIOPTIMUS_DATA", "../shared/data"))
    if not (root / "corpus").is_dir():
        pytest.skip(f"no real data in {root}: set BIOPTIMUS_DATA to the folder that holds corpus/ and ner/")
    return root


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """The folder of small inputs that each have a fault which real files have; its README says what is expected."""
    folder = Path(os.environ.get("BIOPTIMUS_DATA", "../shared/data")).parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases in {folder}: set BIOPTIMUS_DATA to a folder beside cases/")
    return folder
