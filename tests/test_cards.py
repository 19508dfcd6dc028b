from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertTokenizer

from bioptimus_hf.artifacts import InputError, write_json
from bioptimus_hf.cards import render, write_ner_card, write_pretrained_card
from bioptimus_hf.curriculum import BIOPTIMUS_CURRICULUM


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


def change(file: Path, **facts: Any) -> None:
    write_json(file, {**json.loads(file.read_text()), **facts})


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
    with pytest.raises(InputError, match=r"tokenizer_config\.json is missing"):
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
