from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from finished_run import change, make_run
from hub.cards import check
from huggingface_hub import ModelCard
from publish_clients import ABOUT
from transformers import BertTokenizer

from bioptimus_hf.artifacts import identity, read_record, write_json
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, read_curriculum
from bioptimus_hf.publishing.cards import encoder_card, head_card, render, write_ner_card, write_pretrained_card
from bioptimus_hf.publishing.facts import encoder_facts, head_facts


@pytest.fixture
def version(tokenizer: BertTokenizer, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {"max_position_embeddings": 512})
    record = {
        **asdict(BIOPTIMUS_CURRICULUM[1]),
        "metrics": {"eval_loss": 2.34567},
        "curriculum": [
            asdict(phase) | {"last_step": end}
            for phase, end in zip(BIOPTIMUS_CURRICULUM, (250, 500, 751, 1001), strict=True)
        ],
        "settings": {"learning_rate": 5e-4, "curriculum": []},
    }
    write_json(tmp_path / "phase.json", record)
    return tmp_path


def test_the_whole_card_of_a_version(version: Path) -> None:
    write_pretrained_card(version, model="someone/encoder")
    card = (version / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", maxsplit=1)
    assert yaml.safe_load(head) == {"library_name": "transformers", "pipeline_tag": "fill-mask"}
    lines = body.splitlines()
    table = lines[lines.index("| --- | --- | --- | --- | --- | --- |") + 1 :][:5]
    assert table == [
        "| v0.1 | tokens | 15 % | 80/10/10 | 25 % | 250 |",
        "| **v0.2** | words | 15 % | 80/10/10 | 25 % | 500 |",
        "| v0.3 | words | 20 % | 80/10/10 | 25 % | 751 |",
        "| v0.4 | words | 20 % | always `[MASK]` | 25 % | 1001 |",
        "",
    ]
    assert "Its validation loss is 2.346 nats" in body
    assert 'model="someone/encoder"' in body
    assert "treatment of [MASK]." in body
    assert "| learning_rate | 0.0005 |" in body
    assert "| curriculum |" not in body
    assert "@inproceedings{pavlova-makhlouf-2023-bioptimus" in body
    assert "{{" not in card
    assert "{%" not in card


def test_a_loss_that_was_not_measured_is_said_to_be_so(version: Path) -> None:
    change(version / "phase.json", metrics={})
    write_pretrained_card(version, model="m")
    assert "Its validation loss was not measured." in (version / "README.md").read_text()


def test_a_missing_fact_is_an_error(version: Path) -> None:
    with pytest.raises(InputError, match=r"ner\.md states a fact that the run has not recorded: 'labels' is undefined"):
        render("ner.md", {"task": "x"})
    (version / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer_config\.json can't be read"):
        write_pretrained_card(version, model="m")
    assert not (version / "README.md").exists()


def test_the_whole_card_of_a_head(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"label2id": {"O": 0, "B-Disease": 1, "I-Disease": 2, "B-Chemical": 3}})
    test = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 12.0}
    scores = {"task": "mine", "model": "v0.4", "seed": 7, "scorer": "strict", "test": test}
    write_json(tmp_path / "scores.json", scores)
    write_ner_card(tmp_path, model="someone/head")
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "# mine: Chemical, Disease" in card
    assert "For seed 7" in card or "for seed 7. Scorer: strict." in card
    assert "| 12 | 50.00 % | 25.00 % | 33.33 % |" in card
    assert 'model="someone/head"' in card
    assert "{{" not in card


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run")


def published(finished: Path) -> dict[str, str]:
    return {
        "encoder.md": encoder_card(encoder_facts(finished, "0.4", "lab/encoder", ABOUT)),
        "head.md": head_card(head_facts(finished, "own", "0.4", "lab/encoder-own", ABOUT)),
    }


@pytest.mark.parametrize("name", ["encoder.md", "head.md"])
def test_the_whole_card_of_what_is_published(finished: Path, name: str) -> None:
    """To the letter: where a card was meant to change, write the new one over tests/published_cards/ and look at it."""
    card = published(finished)[name]
    expected = Path(__file__).with_name("published_cards") / name
    assert card == expected.read_text(encoding="utf-8")
    assert "{{" not in card
    assert check(card, "models") == ([], [])
    data = ModelCard(card).data
    assert (data.license, data.datasets) == ("apache-2.0", ["lab/entities"] if name == "head.md" else None)
    results = [(one.metric_type, one.metric_value) for one in data.eval_results or []]
    scores = [("f1", 0.625), ("precision", 0.625), ("recall", 0.625)]
    if name == "head.md":
        assert results == scores
        assert (data.base_model, data["base_model_revision"]) == ("lab/encoder", "v0.4")
    else:
        assert results == [("loss", 6.0), *scores]
        recipe = card.partition("```yaml\n")[2].partition("```")[0]
        assert yaml.safe_load(recipe)["pretrain"]["per_device_train_batch_size"] == 8  # stock, so not in the record


def test_a_card_tells_of_a_curriculum_and_a_start_of_ones_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = replace(BIOPTIMUS_CURRICULUM[0], share=0.75, last_rate=0.3)
    phases = (first, replace(BIOPTIMUS_CURRICULUM[1], share=0.25))
    made = read_record(run / "pretraining")
    settings = made["settings"] | {"curriculum": [asdict(phase) for phase in phases]}
    card = encoder_card(encoder_facts(run, "0.4", "lab/encoder", ABOUT))
    assert "curriculum.yaml" not in card
    assert "not from the v0.0" not in card
    for inputs, said in (
        ({"model": identity(run / "v0.2")}, "Pre-training started from v0.2, not from the v0.0 that these"),
        ({"model": "name:other"}, "Pre-training started from a model that is not of this run, not from the v0.0"),
    ):
        change(run / "pretraining" / "made.json", settings=settings, inputs=made["inputs"] | inputs)
        card = encoder_card(encoder_facts(run, "0.4", "lab/encoder", ABOUT))
        _, recipe, curriculum = (part.partition("```")[0] for part in card.split("```yaml\n"))
        assert yaml.safe_load(recipe)["pretrain"]["curriculum"] == "curriculum.yaml"
        assert yaml.safe_load(recipe)["pretrain"]["decontaminate"] == "data/ner"
        (tmp_path / "curriculum.yaml").write_text(curriculum)
        assert read_curriculum(tmp_path / "curriculum.yaml") == phases
        assert said in card


def test_a_card_claims_no_contexts_where_there_were_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    facts = read_record(run / "v0.0")["facts"]
    facts |= {"new_tokens_from_contexts": 0, "fallen_back": [], "unknown_to_base": []}
    change(run / "v0.0" / "made.json", facts=facts, settings={"initializer": "random"})
    card = encoder_card(encoder_facts(run, "0.4", "lab/encoder", ABOUT))
    assert "out of their contexts" not in card
    assert "started from `random` embeddings" in card
    assert "of 27 new tokens, 27 started from\n  `random`" in card


def test_a_card_tells_of_the_machine_that_was_recorded(tmp_path: Path) -> None:
    """And what is not known for sure: the time of a run that was interrupted is that of its last session."""
    run, about = make_run(tmp_path / "run"), replace(ABOUT, hardware="8 A100")
    card = encoder_card(encoder_facts(run, "0.4", "lab/encoder", about))
    assert "6 minutes on 2 cores of A Processor" in card
    made = read_record(run / "pretraining")
    change(run / "pretraining" / "made.json", facts=made["facts"] | {"resumed": True})
    card = encoder_card(encoder_facts(run, "0.4", "lab/encoder", about))
    assert "6 minutes (of the last session alone: it was interrupted before) on 2 cores" in card
    del made["hardware"]
    write_json(run / "pretraining" / "made.json", made)
    assert "6 minutes on 8 A100" in encoder_card(encoder_facts(run, "0.4", "lab/encoder", about))


def test_no_fact_of_a_published_card_may_be_missing(finished: Path) -> None:
    facts = encoder_facts(finished, "0.4", "lab/encoder", ABOUT)
    for name in sorted(set(facts) - {"masking"}):  # which the card of a head states
        with pytest.raises((InputError, KeyError)):
            encoder_card({key: value for key, value in facts.items() if key != name})
