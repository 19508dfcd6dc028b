"""Test that versions are loaded back and compared with what was published."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from finished_run import change, make_run

from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.load_back import differences
from bioptimus_hf.publishing.ownership import sign
from bioptimus_hf.publishing.publish import load_back
from bioptimus_hf.publishing.staging import Release


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run")


def test_every_difference_is_found(finished: Path, tmp_path: Path) -> None:
    """A folder can stand for a repository, since transformers accepts both."""
    run = shutil.copytree(finished, tmp_path / "run")
    encoder, head = "BertForMaskedLM", "BertForTokenClassification"
    ours, theirs = run / "v0.1", run / "v0.2"
    assert differences(str(ours), "v0.1", encoder, ours) == []
    assert "bert.embeddings.word_embeddings.weight" in differences(str(theirs), "v0.1", encoder, ours)
    published, local = run / "ner/own/v0.4/0", run / "local"
    shutil.copytree(published, local)
    change(local / "config.json", id2label={"0": "O", "1": "B-Drug", "2": "I-Drug"})
    assert differences(str(published), "v0.4", head, local) == ["the labels"]
    change(local / "config.json", model_type="electra")
    assert "the model class ElectraForTokenClassification" in differences(str(local), "v0.4", head, published)
    content = json.loads((theirs / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["asthma"], words["mice"] = words["mice"], words["asthma"]
    (theirs / "tokenizer.json").write_text(json.dumps(content))
    shutil.copyfile(ours / "model.safetensors", theirs / "model.safetensors")
    assert differences(str(theirs), "v0.1", encoder, ours) == ["the tokenizer"]


def test_loading_back_is_retried_unless_a_version_differs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = sign(finished, "0.1")
    release = Release(str(finished / "v0.1"), "0.1", "BertForMaskedLM", finished / "v0.2", "", (), signature)
    with pytest.raises(InputError, match=r"what was loaded back is not what was published: .* v0\.1 differs in bert"):
        load_back([release], None)
    environments = []

    def run(command: list[str], env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
        environments.append(env)
        return subprocess.CompletedProcess(command, int(len(environments) < 3), "", "the Hub doesn't answer")

    monkeypatch.setattr("bioptimus_hf.publishing.publish.subprocess.run", run)
    monkeypatch.setattr("bioptimus_hf.publishing.retries.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "mine")
    load_back([release], None)
    assert [environment.get("HF_TOKEN") for environment in environments] == [None] * 3
    assert {environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] for environment in environments} == {"1"}
    assert len({environment["HF_HOME"] for environment in environments}) == 3
    load_back([release], "theirs")
    assert environments[-1]["HF_TOKEN"] == "theirs"
