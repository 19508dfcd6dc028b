"""Test the model cards, which are compared letter by letter with those in published_cards/."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from finished_run import change, make_joint_head, make_run, scores_of_test
from hub.cards import check
from huggingface_hub import ModelCard
from publish_clients import ABOUT

from bioptimus_hf.artifacts import identity, read_json, read_record, write_json
from bioptimus_hf.cli import finetune_ner
from bioptimus_hf.cli.options import parse
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.calibration import MinScore
from bioptimus_hf.ner.options import HeadTraining
from bioptimus_hf.ner.results import adapted_model
from bioptimus_hf.ner.tasks import BLURB_NER
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, read_curriculum
from bioptimus_hf.publishing.cards import encoder_card, head_card, render
from bioptimus_hf.publishing.facts import _example, encoder_facts, head_facts
from bioptimus_hf.publishing.heads import average_results
from bioptimus_hf.publishing.options import About
from bioptimus_hf.publishing.recipe import NOT_OPTIONS, SECTIONS


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run")


def card_of_encoder(run: Path) -> str:
    return encoder_card(encoder_facts(run, "0.4", "lab/encoder", ABOUT))


@pytest.mark.parametrize("name", ["encoder.md", "head.md"])
def test_published_card(finished: Path, name: str) -> None:
    """After an intended change, replace the file in published_cards/ with the new card and read it."""
    if name == "encoder.md":
        card = card_of_encoder(finished)
    else:
        card = head_card(head_facts(finished, "own", "0.4", "lab/encoder-own", ABOUT))
    expected = Path(__file__).with_name("published_cards") / name
    assert card == expected.read_text(encoding="utf-8")
    assert "{{" not in card
    assert "{%" not in card
    assert check(card, "models") == ([], [])
    data = ModelCard(card).data
    assert (data.license, data.datasets) == ("apache-2.0", ["lab/entities"] if name == "head.md" else None)
    results = [(result.metric_type, result.metric_value) for result in data.eval_results or []]
    scores = [("f1", 0.625), ("precision", 0.625), ("recall", 0.625)]
    if name == "head.md":
        assert results == scores
        assert (data.base_model, data["base_model_revision"]) == ("lab/encoder", "v0.4")
    else:
        assert results == [("loss", 6.0), *scores]


def test_commands_of_the_cards_are_accepted(finished: Path, tmp_path: Path) -> None:
    """The recipe and the command give each stage the recorded settings."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(card_of_encoder(finished).partition("```yaml\n")[2].partition("```")[0])
    for folder, section in SECTIONS.items():
        options = import_module(f"bioptimus_hf.cli.{section}").OPTIONS
        given = {
            name: value
            for part in parse(options, section, None, ["--recipe", str(recipe)])
            for name, value in vars(part).items()
        }
        settings = read_record(finished / folder)["settings"]
        recorded = {name: value for name, value in settings.items() if name not in NOT_OPTIONS}
        if "text_column" in recorded:  # a list of one is recorded as its name
            recorded["text_column"] = [recorded["text_column"]]
        assert {name: given[name] for name in recorded} == recorded
        assert given["output_dir"] == str(tmp_path / "runs" / "again")
        assert folder == "v0.0" or given["corpus"] == ["corpus.txt.gz"]
        if folder == "pretraining":
            assert given["decontaminate"] == "data/ner"
            assert (given["per_device_train_batch_size"], given["num_train_epochs"]) == (8, 3)  # stock, not recorded
        else:
            assert given["base_model"] == f"google-bert/bert-base-uncased@{'0' * 40}"
    card = head_card(head_facts(finished, "own", "0.4", "lab/encoder-own", ABOUT))
    lines = card.partition("```bash\n")[2].partition("```")[0]
    command, name, *arguments = shlex.split(lines.replace("\\\n", " "))
    assert (command, name) == ("bioptimus", "finetune-ner")
    _, options, training, _ = parse(finetune_ner.OPTIONS, "finetune_ner", None, arguments)
    assert training == HeadTraining(learning_rate=1e-4, num_train_epochs=2)
    assert options.models == ["v0.4=lab/encoder@v0.4"]
    assert options.seeds == [0, 1]


@pytest.mark.parametrize("listed", ["Gene", "Disease and Gene", "Chemical, Disease and Gene"])
def test_types_are_listed_as_in_a_sentence(finished: Path, listed: str) -> None:
    facts = head_facts(finished, "own", "0.4", "lab/encoder-own", ABOUT)
    card = head_card({**facts, "labels": listed.replace(" and ", ", ").split(", ")})
    assert f"mentions of {listed}, fine-tuned" in card
    assert f"labelled {listed.replace(' and ', ' or ')}\n" in card


def test_cards_state_the_settings_that_were_chosen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for seed in (0, 1):
        record = run / "ner" / "own" / "v0.4" / str(seed) / "made.json"
        grid = {"learning_rate": [5e-5, 1e-4]}
        change(record, settings=read_record(record)["settings"] | {"search": grid})
    card = head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    assert "`learning_rate` 0.0001 was chosen from the\nvalues below by the validation F1" in card
    _, _, *arguments = shlex.split(card.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " "))
    *_, training, _ = parse(finetune_ner.OPTIONS, "finetune_ner", None, arguments)
    assert training == HeadTraining(learning_rate=[5e-5, 1e-4], num_train_epochs=2)
    assert "on the development sets: own: `learning_rate` 0.0001.\n" in card_of_encoder(run)


def test_cards_state_the_least_score_of_a_head_that_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "min_score" not in head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    for seed in (0, 1):
        file = run / "ner" / "own" / "v0.4" / str(seed) / "config.json"
        write_json(file, MinScore(0.62, 0.8412, 0.8305, 0.1).in_configuration(read_json(file)))
    card = head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    assert "a score below 0.62 changed F1 on the validation set from 83.05 % to 84.12 % (`bioptimus annotate" in card


def test_card_of_a_head_of_sentences_says_how_to_use_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "single sentences" not in head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    for seed in (0, 1):
        file = run / "ner" / "own" / "v0.4" / str(seed) / "config.json"
        write_json(file, {**read_json(file), "sentence_window": 512})
    card = head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    assert check(card, "models") == ([], [])
    assert "\n\nIt was trained on single sentences. Give it the sentences of a longer text one by one" in card
    assert "IL-2" not in card
    for seed in (0, 1):
        file = run / "ner" / "own" / "v0.4" / str(seed) / "config.json"
        write_json(file, {**read_json(file), "punctuation_in_words": {"inside": "-", "before": "", "after": "-"}})
    card = head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    assert check(card, "models") == ([], [])
    assert "may miss many mentions. `annotate` also knows that words such as `IL-2`" in card


def test_card_of_a_head_of_documents_says_how_to_use_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for seed in (0, 1):
        file = run / "ner" / "own" / "v0.4" / str(seed) / "config.json"
        write_json(file, {**read_json(file), "document_window": 128})
    card = head_card(head_facts(run, "own", "0.4", "lab/encoder-own", ABOUT))
    assert check(card, "models") == ([], [])
    assert (
        "\n\nIt was trained on sentences with their neighbours in the document as context, in windows of 128 word"
        in card
    )
    assert "single sentences" not in card


def test_card_of_a_joint_head(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_joint_head(run, own=0.75, mine=0.5)
    about = replace(ABOUT, ner_licenses={"own": "CC-BY-4.0", "mine": "CC0-1.0"})
    with pytest.raises(InputError, match="ner_licenses: the model card states the licence of the data of mine"):
        head_facts(run, "joint", "0.4", "lab/encoder-joint", ABOUT)
    card = head_card(head_facts(run, "joint", "0.4", "lab/encoder-joint", about))
    assert check(card, "models") == ([], [])
    assert "# encoder-joint v0.4: Mine, Own" in card
    assert "fine-tuned for the tasks `own`, `mine` on the encoder\n[lab/encoder](" in card
    assert "| own | joint/v0.4 | 75.00 |" in card
    assert "| mine | joint/v0.4 | 50.00 |" in card
    assert "| own | v0.4 | 62.50 ± 17.68 |" in card  # the heads of single tasks on the same version, for comparison
    assert "| **0** (these weights) | mine | 50.00 % |" in card
    assert "3 training sentences that are in the development or test set of another task were left out" in card
    assert "Annotated data: own: CC-BY-4.0; mine: CC0-1.0." in card
    results = [(result.dataset_name, result.metric_value) for result in ModelCard(card).data.eval_results or []]
    assert results == [("own", 0.75)] * 3 + [("mine", 0.5)] * 3
    lines = card.partition("```bash\n")[2].partition("```")[0]
    _, _, *arguments = shlex.split(lines.replace("\\\n", " "))
    again, options, training, _ = parse(finetune_ner.OPTIONS, "finetune_ner", None, arguments)
    assert (options.tasks, options.joint, options.seeds_from(again.seed)) == (["own", "mine"], True, [0])
    assert training == HeadTraining(learning_rate=1e-4, num_train_epochs=2)

    card = card_of_encoder(run)  # names the joint head beside the others
    assert "[lab/encoder-joint](https://huggingface.co/lab/encoder-joint), [lab/encoder-own](" in card
    assert "| mine | joint/v0.4 | 50.00 |" in card
    assert len(ModelCard(card).data.eval_results or []) == 4  # the loss, and three scores of the single head


def test_the_card_of_an_encoder_has_the_average_of_the_five_tasks(tmp_path: Path) -> None:
    """Also those of a control whose heads are in the same run, and published figures beside them."""
    run = make_run(tmp_path / "run")
    licensed = replace(ABOUT, ner_licenses=dict.fromkeys([*BLURB_NER, "own"], "CC0-1.0"))
    about = replace(licensed, other_encoders={"control": "the base, trained on the same text."})
    encoders = {"v0.4": None, "base": adapted_model(run), "control": "stage:control"}
    for number, (task, data) in enumerate(BLURB_NER.items()):
        assert data.mentions
        for model, encoder in encoders.items():
            shutil.copytree(run / "ner" / "own" / "v0.4", run / "ner" / task / model)
            for seed in (0, 1):
                head = run / "ner" / task / model / str(seed)
                value = (number + seed) / 8 if model == "v0.4" else len(model) / 16
                change(head / "scores.json", task=task, model=model, test=scores_of_test(value, data.mentions[2]))
                if encoder:
                    change(head / "made.json", inputs={**read_record(head)["inputs"], "model": encoder})
        assert ("| average | v0.4 |" in rendered(run, about)) == (task == list(BLURB_NER)[-1])
    card = rendered(run, about)
    assert check(card, "models") == ([], [])
    assert "| average | base | 25.00 ± 0.00 |" in card
    assert "| average | control | 43.75 ± 0.00 |" in card
    assert "| average | v0.4 | 31.25 ± 8.84 | 31.25 ± 8.84 | 31.25 ± 8.84 | 43.75 ± 8.84 | 2 |  |" in card
    assert "\n\n`control`: the base, trained on the same text. Its heads have other seeds" in card
    assert "| base | 37.50 ± 0.00 | 37.50 ± 0.00 |" in card  # conlleval F1 beside published figures
    assert "| PubMedBERT" in card
    assert [row["task"] for row in average_results(run, "0.4", [])] == ["average"] * 2
    assert "control" not in rendered(run, licensed)
    change(run / "ner" / "jnlpba" / "control" / "0" / "made.json", inputs={"model": "stage:other"})
    with pytest.raises(InputError, match="other_encoders: heads called control were trained on different encoders"):
        rendered(run, about)


def rendered(run: Path, about: About) -> str:
    """Return the card of an encoder, whose differences need predictions that the heads of these tests don't have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioptimus_hf.publishing.facts.differences", lambda *_: [])
        return encoder_card(encoder_facts(run, "0.4", "lab/encoder", about))


def test_card_states_an_own_curriculum_and_starting_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = replace(BIOPTIMUS_CURRICULUM[0], share=0.75, last_rate=0.3)
    phases = (first, replace(BIOPTIMUS_CURRICULUM[1], share=0.25))
    made = read_record(run / "pretraining")
    settings = made["settings"] | {"curriculum": [asdict(phase) for phase in phases]}
    card = card_of_encoder(run)
    assert "curriculum.yaml" not in card
    assert "not from the v0.0" not in card
    for inputs, sentence in (
        ({"model": identity(run / "v0.2")}, "Pre-training started from v0.2, not from the v0.0 of this recipe"),
        ({"model": "name:other"}, "Pre-training started from a model that is not part of this run, not from the v0.0"),
    ):
        change(run / "pretraining" / "made.json", settings=settings, inputs=made["inputs"] | inputs)
        card = card_of_encoder(run)
        _, recipe, curriculum = (part.partition("```")[0] for part in card.split("```yaml\n"))
        assert yaml.safe_load(recipe)["pretrain"]["curriculum"] == "curriculum.yaml"
        assert yaml.safe_load(recipe)["pretrain"]["decontaminate"] == "data/ner"
        (tmp_path / "curriculum.yaml").write_text(curriculum)
        assert read_curriculum(tmp_path / "curriculum.yaml") == phases
        assert sentence in card


def test_card_claims_no_contexts_if_there_were_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    facts = read_record(run / "v0.0")["facts"]
    facts |= {"new_tokens_from_contexts": 0, "fallen_back": [], "unknown_to_base": []}
    change(run / "v0.0" / "made.json", facts=facts, settings={"initializer": "random"})
    card = card_of_encoder(run)
    assert "distilled from their contexts" not in card
    assert "initialised with `random`, and it was then" in card
    assert "of 27 new tokens, 27 were initialised with\n  `random`" in card


def test_card_states_the_recorded_hardware_and_time(tmp_path: Path) -> None:
    """An interrupted run only records the time of its last session."""
    run = make_run(tmp_path / "run")
    assert "6 minutes on 2 cores of A Processor" in card_of_encoder(run)
    made = read_record(run / "pretraining")
    change(run / "pretraining" / "made.json", facts=made["facts"] | {"resumed": True})
    card = card_of_encoder(run)
    assert "6 minutes (the last session only; the training was interrupted before) on 2 cores" in card
    del made["hardware"]
    write_json(run / "pretraining" / "made.json", made)
    with pytest.raises(InputError, match=r"encoder\.md states a fact that the run didn't record: .* 'hardware'"):
        card_of_encoder(run)


def test_card_warns_if_the_text_was_not_decontaminated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    facts = read_record(run / "pretraining")["facts"]
    del facts["decontamination"]
    change(run / "pretraining" / "made.json", facts=facts)
    assert "**The pre-training text was not searched for test sentences of the NER data" in card_of_encoder(run)


def test_a_missing_fact_is_an_error(finished: Path) -> None:
    with pytest.raises(InputError, match=r"head\.md states a fact that the run didn't record: 'labels' is undefined"):
        render("head.md", {"name": "x", "tag": "v0.4"})
    facts = encoder_facts(finished, "0.4", "lab/encoder", ABOUT)
    for name in sorted(set(facts) - {"masking"}):  # only the card of a head states the masking
        with pytest.raises((InputError, KeyError)):
            encoder_card({key: value for key, value in facts.items() if key != name})


def test_the_example_of_a_head_is_a_sentence_of_a_public_test_set(tmp_path: Path) -> None:
    """Texts of other tasks may be confidential."""
    short = "Asthma\tB-D\tB-D\n"
    wrong = "a\tO\tB-D\n" * 7
    right = "Nobody\tO\tO\nexpects\tO\tO\nthat\tO\tO\nit\tO\tO\nis\tO\tO\n" + 'severe\tO\tO\n"asthma\tB-D\tB-D\n'
    for task in ("ncbi-disease", "mine"):
        folder = tmp_path / task / "v0.4" / "0"
        folder.mkdir(parents=True)
        assert _example(folder, task) is None
        (folder / "predictions.tsv").write_text("\n".join([short, wrong, right]))
    assert (
        _example(tmp_path / "ncbi-disease" / "v0.4" / "0", "ncbi-disease") == 'Nobody expects that it is severe "asthma'
    )
    assert _example(tmp_path / "mine" / "v0.4" / "0", "mine") is None
    joint = tmp_path / "joint" / "v0.4" / "0"
    joint.mkdir(parents=True)
    (joint / "predictions-ncbi-disease.tsv").write_text(right)
    assert _example(joint, "ncbi-disease")
