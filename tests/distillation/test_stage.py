"""Check the distillation stage: its artifact, what it refuses, and that the command leaves the same artifact."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
from datasets import Dataset, disable_progress_bars, load_from_disk
from helpers import build_tiny_bert, build_tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bioptimus_hf.artifacts import Run, building, identity, read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.corpus.dataset import load_text, split_validation
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.distillation.options import DistillationOptions
from bioptimus_hf.distillation.stage import make_distilled_model
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.vocabulary.options import VocabularyOptions
from bioptimus_hf.vocabulary.stage import make_tokenizer
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies

CORPUS = Corpus([str(resources.files("bioptimus_hf") / "sample" / "corpus.txt")], validation_share=0.1)


@pytest.fixture(scope="module")
def finished_contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model and a run that has a tokenizer and contexts."""
    disable_progress_bars()
    folder = tmp_path_factory.mktemp("distillation")
    tokenizer = build_tiny_tokenizer()
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, folder / "base")
    run = Run(str(folder / "run"))
    make_tokenizer(run, CORPUS, VocabularyOptions(str(folder / "base"), size=600))
    add_contexts(run, folder / "base")
    return folder


def add_contexts(run: Run, base: Path) -> None:
    source, target = (AutoTokenizer.from_pretrained(folder) for folder in (base, run.root / "tokenizer"))
    tokens = compare_vocabularies(source, target).new[-100:]  # of the others, none has contexts
    inputs = {"tokenizer": identity(run.root / "tokenizer"), "base_model": identity(base)}
    with building(run.root / "contexts", inputs, {}) as stage:
        documents = split_validation(load_text(CORPUS).documents, share=CORPUS.validation_share)["train"]
        contexts = find_contexts(documents, tokens, tokenizer=target, per_token=2)
        contexts.save_to_disk(stage.path)


@pytest.fixture
def run(finished_contexts: Path, tmp_path: Path) -> Run:
    shutil.copytree(finished_contexts / "run", tmp_path / "run")
    return Run(str(tmp_path / "run"))


def test_the_model_its_record_and_its_report(run: Run) -> None:
    folder = make_distilled_model(run, DistillationOptions())
    assert folder == run.root / "v0.0"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 600
    record = read_record(folder)
    assert record["settings"] == {"initializer": "contextual_mean_scaled", "seed": 0, "layer": -1, "bf16": False}
    assert set(record["inputs"]) == {"base_model", "tokenizer", "contexts"}
    facts = record["facts"]
    assert facts["new_tokens"] == read_record(run.root / "tokenizer")["facts"]["new"]
    assert facts["new_tokens_from_contexts"] == len(set(load_from_disk(run.root / "contexts")["token"]))
    assert facts["new_tokens"] == facts["new_tokens_from_contexts"] + len(facts["fallen_back"])
    assert facts["newly_initialised_weights"] == []
    report = json.loads((folder / "report.json").read_text())
    assert sum(sum(counts.values()) for counts in report["counts"].values()) == facts["new_tokens"]
    assert "| words and starts of words | hidden states in contexts, scaled |" in (folder / "report.md").read_text()


def test_the_command_leaves_the_same_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--initializer", "contextual_mean", "--layer", "1"]
    assert main(["distill", "--output_dir", run.output_dir, *options]) == 0
    by_command = load_file(run.root / "v0.0" / "model.safetensors")
    record = read_record(run.root / "v0.0")
    make_distilled_model(Run(run.output_dir, force=True), DistillationOptions(initializer="contextual_mean", layer=1))
    assert read_record(run.root / "v0.0")["fingerprint"] == record["fingerprint"]
    by_function = load_file(run.root / "v0.0" / "model.safetensors")
    assert by_function.keys() == by_command.keys()
    assert all(weights.equal(by_command[name]) for name, weights in by_function.items())
    assert main(["distill", "--output_dir", run.output_dir, "--layer", "7", "--force"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --layer: the model has no layer 7")


def test_a_finished_model_is_kept_and_other_settings_are_refused(run: Run) -> None:
    made = make_distilled_model(run, DistillationOptions(initializer="subtoken_mean"))
    assert set(read_record(made)["inputs"]) == {"base_model", "tokenizer"}
    before = (made / "made.json").stat().st_mtime_ns
    make_distilled_model(run, DistillationOptions(initializer="subtoken_mean", batch_size=8))
    assert (made / "made.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"different initializer \(.*subtoken_mean.* then, .*random.* now\)"):
        make_distilled_model(run, DistillationOptions(initializer="random"))


def test_only_max_tokens_are_trained(run: Run) -> None:
    folder = make_distilled_model(run, DistillationOptions(initializer="token_distillation", max_tokens=20))
    record = read_record(folder)
    assert record["settings"]["max_tokens"] == record["facts"]["new_tokens_from_contexts"] == 20
    assert "training in contexts" in (folder / "report.md").read_text()


def test_missing_stages_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^output_dir: .*tokenizer doesn't exist: make the tokenizer of this run first"
    ):
        make_distilled_model(Run(str(tmp_path / "empty")), DistillationOptions())
    shutil.rmtree(run.root / "contexts")
    with pytest.raises(InputError, match=r"^output_dir: .*contexts doesn't exist"):
        make_distilled_model(run, DistillationOptions())
    make_distilled_model(run, DistillationOptions(initializer="random"))  # needs no contexts


def test_contexts_of_another_tokenizer_are_refused_even_with_force(finished_contexts: Path, run: Run) -> None:
    smaller = VocabularyOptions(str(finished_contexts / "base"), size=500)
    forced = Run(run.output_dir, force=True)
    make_tokenizer(forced, CORPUS, smaller)
    with pytest.raises(InputError, match=r"contexts was made for another tokenizer than .*tokenizer: redo it"):
        make_distilled_model(forced, DistillationOptions())


def test_another_base_model_is_refused(run: Run, tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    save_masked_lm(build_tiny_bert(len(tokenizer), seed=1), tokenizer, tmp_path / "other")
    with pytest.raises(InputError, match=r"^base_model: .*other isn't the model that"):
        make_distilled_model(run, DistillationOptions(str(tmp_path / "other"), initializer="random"))
    path = run.root / "contexts" / "made.json"
    record = read_record(path)
    record["inputs"]["base_model"] = identity(tmp_path / "other")
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"contexts was made for another base model than .*tokenizer: redo it"):
        make_distilled_model(run, DistillationOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initializer": "best"}, "^initializer: 'best' is not one of random, subtoken_mean"),
        ({"initializer": "random", "max_tokens": 20}, "^max_tokens: only the initializer token_distillation"),
        ({"initializer": "token_distillation", "max_tokens": 0}, "^max_tokens: must be at least 1, not 0"),
        ({"batch_size": 0}, "^batch_size: must be at least 1, not 0"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DistillationOptions(**options)  # type: ignore[arg-type]


def test_contexts_of_your_own_that_can_not_be_used(run: Run) -> None:
    """Without a record, they can't be verified."""
    folder = run.root / "contexts"
    (folder / "made.json").unlink()
    again = r"make it again \(`bioptimus find-contexts --force`\)$"
    (file,) = folder.glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"contexts can't be read \(.*\): {again}"):
        make_distilled_model(run, DistillationOptions())
    (folder / "state.json").unlink()
    with pytest.raises(InputError, match=rf"contexts can't be read \(.*\): {again}"):
        make_distilled_model(run, DistillationOptions())
    shutil.rmtree(folder)
    Dataset.from_dict({"token": ["zebra"], "text": ["zebra"]}).save_to_disk(folder)
    with pytest.raises(InputError, match=rf"must have the columns token, text, start and end, .*: {again}"):
        make_distilled_model(run, DistillationOptions())
    assert not (run.root / "v0.0").exists()
