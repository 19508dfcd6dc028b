"""What scripts/report.py says of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from finished_run import change, make_run
from helpers import ROOT, load_script

from bioptimus_hf.artifacts import identity, read_record

SCRIPT = load_script(ROOT / "scripts" / "report.py")


def test_parts_of_a_curriculum_are_reported_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    part = shutil.copytree(run / "pretraining", run / "pretraining-0.10")
    made = read_record(part)
    facts = {name: fact for name, fact in made["facts"].items() if name != "decontamination"}
    facts["validation_losses"] = {"0": 6.0, "2": 5.5}
    change(part / "made.json", inputs=made["inputs"] | {"model": identity(run / "v0.4")}, facts=facts)
    shutil.copytree(run / "v0.4", run / "v0.10")
    change(run / "v0.10" / "phase.json", version="0.10", last_rate=0.3, last_step=2, metrics={"eval_loss": 5.5})
    folders = [run / "pretraining", part]
    assert SCRIPT.phase_table(run, folders)[3:] == [
        "| v0.0 | none yet | 0 | 9.500 |",
        "| v0.4 | pretraining-0.10 | 0 | 6.000 |",
        "| v0.1 | tokens, 15%, 80/10/10 | 2 | 7.250 |",
        "| v0.2 | words, 15%, 80/10/10 | 4 | 6.500 |",
        "| v0.3 | words, 20%, 80/10/10 | 6 | 6.125 |",
        "| v0.4 | words, 20%, always [MASK] | 8 | 6.000 |",
        "| v0.10 | words, 20% to 30%, always [MASK] | 2 | 5.500 |",
    ]
    said = [line for folder in folders for line in SCRIPT.decontamination_lines(folder)]
    assert said[0].startswith("- 3 of 90 documents left out of pretraining, for test sentences of 1 NER sets")
    assert said[1].startswith("- **The text of pretraining-0.10 was not searched for test sentences")
    assert max(["base", "v0.4", "v0.10"], key=SCRIPT.newness) == "v0.10"


def test_counts_are_those_of_their_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    stages = [run / name for name in ("tokenizer", "contexts", "v0.0")]
    whole, without = SCRIPT.stage_facts(stages), SCRIPT.stage_facts([stages[0], stages[2]])
    assert "- 80 contexts" in whole
    assert not [line for line in without if "contexts" in line and "made from" not in line]
    assert not [line for line in without if "tokens of interest" in line]
