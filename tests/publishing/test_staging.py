"""Test that what isn't fit to be published is rejected before anything is sent to the Hub."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finished_run import change, change_facts, make_joint_head, make_run
from huggingface_hub import constants
from publish_clients import ABOUT
from safetensors.torch import load_file, save_file

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.cards import head_card
from bioptimus_hf.publishing.checks import check_about
from bioptimus_hf.publishing.facts import head_facts
from bioptimus_hf.publishing.heads import heads_of
from bioptimus_hf.publishing.options import CardOptions, Selection
from bioptimus_hf.publishing.publish import publish


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")


def set_nan(run: Path) -> None:
    weights = load_file(run / "v0.2" / "model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"][3] = float("nan")
    save_file(weights, run / "v0.2" / "model.safetensors", metadata={"format": "pt"})


def rename(run: Path, name: str, other: str | None, *, keep: bool = False) -> None:
    """Rename a tensor of the heads, or remove it, or copy it."""
    for file in run.glob("ner/own/v0.4/*/model.safetensors"):
        weights = load_file(file)
        values = weights[name].clone()
        if not keep:
            del weights[name]
        save_file({**weights, **({other: values} if other else {})}, file, metadata={"format": "pt"})


def shorten_vocabulary(version: Path) -> None:
    """Remove the last token everywhere except from the weights."""
    lines = (version / "vocab.txt").read_text().splitlines()[:-1]
    for folder in (version, version.parent / "tokenizer"):
        (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))
    content = json.loads((version / "tokenizer.json").read_text())
    content["model"]["vocab"] = {line: number for number, line in enumerate(lines)}
    (version / "tokenizer.json").write_text(json.dumps(content))
    change(version / "config.json", vocab_size=126)


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda run: change(run / "v0.2" / "config.json", **values)


def set_scores(run: Path) -> None:
    scores = dict.fromkeys(("f1", "precision", "recall", "support"), 0.5)
    change(run / "ner/own/v0.4/0/scores.json", test=scores)


def set_settings(run: Path) -> None:
    change(run / "ner/own/v0.4/1/made.json", settings={"learning_rate": 1.0, "seed": 1})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda run: (run / "v0.2" / "made.json").unlink(), r"v0\.2 has no made\.json of a version"),
    "no vocab.txt": (lambda run: (run / "v0.2" / "vocab.txt").unlink(), r"v0\.2 lacks vocab\.txt"),
    "optimizer": (lambda run: (run / "v0.2" / "optimizer.pt").touch(), r"v0\.2 holds optimizer\.pt"),
    "folder": (lambda run: (run / "v0.2" / "checkpoints").mkdir(), r"v0\.2 holds checkpoints/"),
    "no loss": (lambda run: change_facts(run / "v0.2", metrics={}), "v0.2 has no validation loss, which"),
    "vocab_size": (set_config(vocab_size=126), "must have the same tokens, but have 126, 127 and 127"),
    "other vocabulary": (
        lambda run: (run / "tokenizer" / "vocab.txt").write_text("[PAD]\n"),
        "the version was made with another vocabulary",
    ),
    "shape": (
        lambda run: shorten_vocabulary(run / "v0.2"),
        r"has shape \(127.*, but config\.json describes \(126",
    ),
    "no classifier": (
        lambda run: rename(run, "classifier.weight", None),
        r"is not a BertForTokenClassification: classifier\.weight missing",
    ),
    "other tensor": (
        lambda run: rename(run, "classifier.bias", "classifier.extra"),
        r"is not a BertForTokenClassification: classifier\.bias missing",
    ),
    "additional tensor": (
        lambda run: rename(run, "classifier.bias", "classifier.extra", keep=True),
        r"is not a BertForTokenClassification: classifier\.extra unexpected",
    ),
    "NaN": (set_nan, "LayerNorm.bias contains NaN or infinite values"),
    "truncated": (
        lambda run: (run / "v0.2" / "model.safetensors").write_bytes(b"x" * 99),
        "is damaged or incomplete",
    ),
    "other class": (set_config(architectures=["X"]), "doesn't describe a plain BertForMaskedLM"),
    "own code": (set_config(auto_map={}), "doesn't describe a plain BertForMaskedLM"),
    "home folder": (set_config(name="/home/ada/x"), "config.json would publish '/home/ada', a path of this machine"),
    "any path": (set_config(n="/data/ada"), "config.json would publish '/data/ada', a path of this machine"),
    "working folder": (set_config(n=f"see {Path.cwd()}"), "config.json would publish '.*', a path of this machine"),
    "token": (set_config(n="hf_" + 30 * "a"), "config.json would publish a token"),
    "newer token": (set_config(n="hf_jwt_" + 30 * "a"), "config.json would publish a token"),
    "seeds differ": (set_settings, "trained on other data or with other settings than the other seeds"),
    "no pre-training": (
        lambda run: shutil.rmtree(run / "pretraining"),
        r"no record \(made\.json\) of the pre-training of v0\.2",
    ),
    "no hardware": (lambda run: remove_hardware(run), "the run didn't record: .* 'hardware'"),
    "other encoder": (
        lambda run: (run / "v0.4" / "config.json").write_text("{}"),
        "the files in .*/v0.4 have changed since it was exported",
    ),
    "no conlleval score": (set_scores, "lacks a score that the model card states"),
}


def remove_hardware(run: Path) -> None:
    record = json.loads((run / "pretraining" / "made.json").read_text())
    del record["hardware"]
    (run / "pretraining" / "made.json").write_text(json.dumps(record))


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_run_is_rejected(run_dir: Path, case: str) -> None:
    damage, message = DAMAGES[case]
    damage(run_dir)
    with pytest.raises(InputError, match=message) as error:
        publish(run_dir, "ada/encoder", versions=["0.2", "0.4"], selection=Selection(), about=ABOUT)
    assert "\n" not in str(error.value)


def test_names_are_no_secret(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account and the host may have names that occur in any text."""
    monkeypatch.setenv("USER", "data")
    monkeypatch.setenv("LOGNAME", "data")
    monkeypatch.setattr("socket.gethostname", lambda: "model")
    assert publish(run_dir, "ada/encoder", versions=["0.4"], selection=Selection(), about=ABOUT)


def test_unfinished_heads_are_ignored(run_dir: Path) -> None:
    heads = run_dir / "ner" / "own" / "v0.4"
    shutil.copytree(heads / "0", heads / "0.replaced")
    shutil.copytree(heads / "0", heads / "2.partial")
    (heads / "2.partial" / "made.json").unlink()
    assert [len(head.scores) for head in heads_of(run_dir, "0.4").values()] == [2]


def test_heads_of_the_base_model_are_recognised_by_its_identity(run_dir: Path) -> None:
    """A head in a folder called `base` may have been trained on another model."""
    shutil.copytree(run_dir / "ner" / "own" / "v0.4", run_dir / "ner" / "own" / "base")
    for model, found in (("base", "O"), ("v0.4", "B-X")):
        for seed in "01":
            head = run_dir / "ner" / "own" / model / seed
            (head / "predictions.tsv").write_text(f"a\tB-X\tB-X\n\nb\tB-X\t{found}\n\n")
            change(head / "scores.json", model=model)
    for own in (False, True):
        for seed in "01":
            record = run_dir / "ner" / "own" / "base" / seed / "made.json"
            adapted = read_record(run_dir / "tokenizer")["inputs"]["base_model"]
            change(record, inputs={"train": "sha256:1", "model": adapted if own else "name:other/model@1"})
        facts = head_facts(run_dir, "own", "0.4", "ada/encoder-own", ABOUT)
        assert [row["seeds"] for row in facts["compared_results"]] == ([[0, 1]] if own else [])
        differences = [(row["task"], row["model"], row["seeds"]) for row in facts["differences"]]
        assert differences == ([("own", "v0.4", [0, 1])] if own else [])
        says = "F1 of v0.4 minus that of `base`, in pairs of the same seed: own +33.33 (+0.00 to +100.00)."
        assert (says in head_card(facts)) == own


def test_cards_compare_with_other_encoders_that_are_described(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    heads = run_dir / "ner" / "own"
    shutil.copytree(heads / "v0.4", heads / "control")
    for model, found in (("control", "O"), ("v0.4", "B-X")):
        for seed in "01":
            (heads / model / seed / "predictions.tsv").write_text(f"a\tB-X\tB-X\n\nb\tB-X\t{found}\n\n")
            change(heads / model / seed / "scores.json", model=model)
    for seed in "01":
        change(heads / "control" / seed / "made.json", inputs={"train": "sha256:1", "model": "stage:control"})
    says = "F1 of v0.4 minus that of `control`, in pairs of the same seed: own +33.33 (+0.00 to +100.00)."
    for described in ({}, {"control": "the base, trained on the same text"}):
        facts = head_facts(run_dir, "own", "0.4", "ada/encoder-own", replace(ABOUT, other_encoders=described))
        card = head_card(facts)
        assert (says in card) == ("| own | control | " in card) == bool(described)
        assert ("`control`: the base, trained on the same text.\n" in card) == bool(described)
    for described in ({}, {"control": "the base"}):
        caplog.clear()
        check_about(run_dir, replace(ABOUT, other_encoders=described))
        assert ("heads of control aren't on the cards: to have them there, describe" in caplog.text) == (not described)
    for label, error in (
        ("base", "base is a model of this run, and not another encoder: leave it out"),
        ("v0.3", "v0.3 is a model of this run, and not another encoder: leave it out"),
        ("v0.9", ".*ner has no heads of 'v0.9', only of control, v0.4$"),
        ("contrl", ".*ner has no heads of 'contrl', only of control, v0.4$"),
    ):
        with pytest.raises(InputError, match=f"^other_encoders: {error}"):
            publish(run_dir, "ada/encoder", about=replace(ABOUT, other_encoders={label: "any"}))
    change(heads / "control" / "1" / "made.json", inputs={"train": "sha256:1", "model": "stage:other"})
    with pytest.raises(InputError, match="other_encoders: heads called control were trained on different encoders"):
        head_facts(run_dir, "own", "0.4", "ada/encoder-own", replace(ABOUT, other_encoders={"control": "any"}))
    for seed in "01":
        settings = {**read_record(heads / "control" / seed)["settings"], "learning_rate": 0.5}
        inputs = {"train": "sha256:1", "model": "stage:control"}
        change(heads / "control" / seed / "made.json", settings=settings, inputs=inputs)
    facts = head_facts(run_dir, "own", "0.4", "ada/encoder-own", replace(ABOUT, other_encoders={"control": "Any."}))
    assert "`control`: Any. Its heads have other seeds, data or settings than those of v0.4" in head_card(facts)


@pytest.mark.parametrize("repo_id", ["encoder", "a/b/c", "ada/a--b", "ada/.x", "ada/x y", ""])
def test_invalid_name_of_a_repository_is_rejected(finished: Path, repo_id: str) -> None:
    with pytest.raises(InputError, match=f"repo_id: {re.escape(repo_id)}") as error:
        publish(finished, repo_id, about=ABOUT)
    assert error.value.argument == "repo_id"


def test_missing_and_impossible_facts_are_rejected(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="about: the cards state a licence, a language and the text"):
        publish(finished, "ada/encoder")
    (tmp_path / "file").touch()
    for place in ("nowhere", "file"):
        with pytest.raises(InputError, match="is not a folder: give the folder of a run"):
            publish(tmp_path / place, "ada/encoder", about=ABOUT)
    for name in ("no name at all", "a/b/c"):
        with pytest.raises(
            InputError, match=rf"^{name} can't be the base model \(.* \(About\.base_model, or base_model_id"
        ):
            publish(finished, "ada/encoder", about=replace(ABOUT, base_model=name))
    missing = replace(ABOUT, license="", corpus=" ", ner_licenses={})
    with pytest.raises(InputError, match=r"doesn't record: give license, corpus, ner_licenses \(for own\)$"):
        publish(finished, "ada/encoder", about=missing)
    local = shutil.copytree(finished, tmp_path / "local")
    inputs = read_record(local / "tokenizer")["inputs"]
    change(local / "tokenizer" / "made.json", inputs=inputs | {"base_model": "folder:0"})
    options = ["--output_dir", str(local), "--repo_id", "ada/encoder", "--language", "en"]
    assert main(["publish", *options]) != 0
    assert (
        "give --license, --corpus_description, --corpus_license, --base_model_id, --ner_licenses own=TERMS"
        in capsys.readouterr().err
    )
    with pytest.raises(InputError, match=r"ner_datasets: ner is not a task; the known tasks are bc2gm, .*, own"):
        publish(finished, "ada/encoder", about=replace(ABOUT, ner_datasets={"ner": "lab/entities"}))
    known = {**ABOUT.ner_licenses, "jnlpba": "terms of a task without a head"}
    assert publish(finished, "ada/encoder", versions=["0.1"], about=replace(ABOUT, ner_licenses=known))


def test_missing_versions_and_heads_are_rejected(finished: Path, tmp_path: Path) -> None:
    numbers: list[Any] = [0.1]  # as YAML reads them
    assert publish(finished, "ada/encoder", versions=numbers, about=ABOUT)[0].tag == "v0.1"
    with pytest.raises(InputError, match=r"v0\.9 has no made\.json of a version"):
        publish(finished, "ada/encoder", versions=["0.9"], about=ABOUT)
    with pytest.raises(InputError, match=r"version newest is not of the form 0\.4"):
        publish(finished, "ada/encoder", versions=["newest"], about=ABOUT)
    with pytest.raises(InputError, match="holds no version: run `bioptimus pretrain` first"):
        publish(tmp_path, "ada/encoder", about=ABOUT)
    with pytest.raises(InputError, match=r"no head for ner on v0\.1"):
        publish(finished, "ada/encoder", versions=["0.1"], selection=Selection("heads", tasks=["ner"]), about=ABOUT)
    with pytest.raises(InputError, match=r"no head on v0\.1 .*: run `bioptimus finetune-ner` first"):
        publish(finished, "ada/encoder", versions=["0.1"], selection=Selection("heads"), about=ABOUT)


def test_the_encoder_and_the_heads_that_exist_are_published_by_default(finished: Path) -> None:
    for versions, repositories in ((["0.1"], ["ada/encoder"]), (["0.4"], ["ada/encoder", "ada/encoder-own"])):
        published = publish(finished, "ada/encoder", versions=versions, about=ABOUT)
        assert [version.repo_id for version in published] == repositories


def test_a_joint_head_is_published_like_that_of_a_task(run_dir: Path) -> None:
    make_joint_head(run_dir, own=0.75, mine=0.5)
    about = replace(ABOUT, ner_licenses={"own": "CC-BY-4.0", "mine": "CC0-1.0"})
    for tasks, names in ((None, ["lab/encoder-joint", "lab/encoder-own"]), (["joint"], ["lab/encoder-joint"])):
        planned = publish(run_dir, "lab/encoder", about=about, selection=Selection(what="heads", tasks=tasks))
        assert [version.repo_id for version in planned] == names
    assert {file.path for file in planned[0].files} >= {"config.json", "model.safetensors", ".eval_results/own.yaml"}
    assert not any(file.path.endswith(".tsv") for file in planned[0].files)


def test_card_options_become_facts_by_task() -> None:
    given = {"license": "mit", "language": "en", "corpus_description": "text", "corpus_license": "none"}
    options = CardOptions(**given, ner_licenses=["own=CC-BY-4.0", "b=a=c"], ner_datasets=["own=lab/entities:own"])
    assert options.about().ner_licenses == {"own": "CC-BY-4.0", "b": "a=c"}
    assert options.about().ner_datasets == {"own": "lab/entities:own"}
    about = CardOptions(**given, other_encoders=["control=the base, trained further"]).about()
    assert about.other_encoders == {"control": "the base, trained further"}
    with pytest.raises(InputError, match=r"^other_encoders: control must have the form LABEL=DESCRIPTION"):
        CardOptions(**given, other_encoders=["control"])
    with pytest.raises(InputError, match=r"^ner_licenses: own is given twice"):
        CardOptions(**given, ner_licenses=["own=a", "own=b"])
    for entry in ("own", "own=", "own= ", "=x"):
        with pytest.raises(InputError, match=f"^ner_licenses: {entry} must have the form task=TERMS"):
            CardOptions(**given, ner_licenses=[entry])


def test_missing_token_or_network_is_reported_at_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    push = partial(publish, finished, "ada/encoder", versions=["0.1"], about=ABOUT, dry_run=False)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, but publishing needs the Hub"):
        push()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"^no token to publish with: set HF_TOKEN"):
        push()
    monkeypatch.setenv("HF_OIDC_RESOURCE", "ada/encoder")
    with pytest.raises(InputError, match=r"^the trusted publisher gave no token .*not running in a supported"):
        push()
    monkeypatch.setattr("bioptimus_hf.publishing.repository._TIMEOUT", 0.5)
    monkeypatch.setattr("bioptimus_hf.publishing.retries._SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never answers
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            started = time.monotonic()
            with pytest.raises(
                InputError,
                match=f"^cannot look up ada/encoder: http://127.0.0.1:{port} (can't be reached|doesn't answer)",
            ):
                push(token="hf_none")
            assert time.monotonic() - started < 30


def test_folders_of_killed_publishers_are_removed(run_dir: Path, warnings_of_package: Callable[[], list[str]]) -> None:
    """One of another host may be in use."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = run_dir / f"publishing.partial-{socket.gethostname()}-{dead.pid}"
    theirs = run_dir / "publishing.partial-elsewhere-1"
    for folder in (mine, theirs):
        (folder / "encoder").mkdir(parents=True)
    publish(run_dir, "ada/encoder", versions=["0.1"], selection=Selection("encoder"), about=ABOUT)
    assert sorted(run_dir.glob("publishing*")) == [theirs]
    removed, other = warnings_of_package()
    assert removed == f"removed {mine}, which a publisher left behind when it was killed"
    assert other.startswith(f"{theirs} belongs to a publisher elsewhere")
