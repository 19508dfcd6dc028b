"""Load the scores through evaluate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np

from bioptimus_hf.ner.scores import entity_scores

MODULE = resources.files("bioptimus_hf.ner") / "entity_f1.py"
TAGS = ["O", "O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("X", "Y", "a-b", "O", "B"))]


CLIENT = """
import json, sys
import evaluate
metric = evaluate.load(sys.argv[1])
gold, predicted = json.loads(sys.argv[2])
print(json.dumps([metric.name, metric.compute(references=gold, predictions=predicted)]))
for reference, prediction in zip(gold, predicted):
    metric.add(reference=reference, prediction=prediction)
print(json.dumps(metric.compute()))
others = [["S-X", "O", "B-Y", "E-Y"]], [["U-X", "O", "B-Y", "L-Y"]], [["B", "O", "B", "I"]]
print(json.dumps([metric.compute(references=tags, predictions=others[0], merged_type="Any") for tags in others]))
"""


def test_evaluate_loads_the_module_from_the_package_without_a_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gold, predicted = (
        [[TAGS[tag] for tag in rng.integers(len(TAGS), size=length)] for length in (5, 1, 9, 30)] for _ in range(2)
    )
    predicted[0][:3] = gold[0][:3] = ["B-X", "I-X", "O"]
    blocked = {f"{name}_PROXY": "http://127.0.0.1:9" for name in ("HTTP", "HTTPS", "ALL")}
    environment = {**os.environ, **blocked, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    environment = {name: value for name, value in environment.items() if not name.startswith("HF_EVALUATE")}
    command = [sys.executable, "-c", CLIENT, str(MODULE), json.dumps([gold, predicted])]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    at_once, one_by_one, others = map(json.loads, ended.stdout.splitlines())
    assert at_once == ["entity_f1", entity_scores(gold, predicted)]
    assert one_by_one == entity_scores(gold, predicted)
    assert 0 < one_by_one["f1"] < 1
    assert others == [entity_scores([["B-Any", "O", "B-Any", "I-Any"]], [["B-Any", "O", "B-Any", "I-Any"]])] * 3
