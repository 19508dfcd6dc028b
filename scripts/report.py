#!/usr/bin/env python
"""Say what a run has made so far: counts, losses, scores, time and memory of every stage.

python scripts/report.py --output_dir runs/demo --text "Aspirin provoked bronchoconstriction in two patients."

Writes OUTPUT_DIR/report.md. The plot of a pre-training is OUTPUT_DIR/pretraining/history.png.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import pipeline

from bioptimus_hf.artifacts import MADE, InputError, read_made
from bioptimus_hf.curriculum import PHASE_FILE
from bioptimus_hf.recipes import parse, run

logger = logging.getLogger("report")


@dataclass
class Options:
    """What is reported on."""

    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run"})
    text: str | None = field(
        default=None, metadata={"help": "A sentence whose entities to show, found by the head of the newest version"}
    )


def main() -> None:
    """Gather, save and print."""
    (options,) = parse(Options, section="report", description=__doc__)
    root = Path(options.output_dir)
    stages = [
        root / name for name in ("tokenizer", "contexts", "v0.0", "pretraining") if (root / name / MADE).is_file()
    ]
    # v0.4 after base: the last is the one to show.
    heads = sorted((root / "ner").glob("*/*/*/" + MADE), key=lambda path: (path.parts[-4], path.parts[-3], path))
    if not stages and not heads:
        raise InputError(f"{root} holds no finished stage: run the other scripts first")
    parts = [
        *stage_facts(stages),
        *decontamination_lines(stages),
        *phase_table(root),
        *ner_table(root),
        *cost_table(root, stages, heads),
    ]
    if options.text and heads:
        parts += ["", *entity_lines(heads[-1].parent, options.text)]
    elif options.text:
        logger.warning("no NER head in %s yet: --text is not used", root)
    report = "\n".join([f"# {root}", *parts, ""])
    (root / "report.md").write_text(report, encoding="utf-8")
    print(report)


def stage_facts(stages: list[Path]) -> list[str]:
    """Return the counts of vocabulary, contexts and distillation."""
    facts: dict[str, Any] = {}
    for stage in stages:
        facts |= read_made(stage)["facts"]
    wording = {
        "tokens": "{} tokens of interest",
        "shared": "{} tokens shared with the base",
        "new_tokens": "{} new tokens",
        "new_tokens_from_contexts": "{} new tokens made from contexts",
        "contexts": "{} contexts",
        "fertility_before": "{:.3f} pieces per word with the base's vocabulary",
        "fertility_after": "{:.3f} pieces per word with the new one",
    }
    return ["", *(f"- {text.format(facts[name])}" for name, text in wording.items() if name in facts)]


def decontamination_lines(stages: list[Path]) -> list[str]:
    """Say whether test sentences were kept out of pre-training."""
    made = [read_made(stage) for stage in stages if stage.name == "pretraining"]
    if not made:
        return []
    found = made[0]["facts"].get("decontamination")
    if found is None:
        return [
            "- **The text of pre-training was not searched for test sentences of the NER sets, so that scores on these "
            "may be too high (`scripts/pretrain.py --decontaminate`)**"
        ]
    return [
        f"- {found['dropped']} of {found['documents']} documents left out of pre-training, for test sentences of "
        f"{len(found['test_sets'])} NER sets (`pretraining/decontamination.tsv`)"
    ]


def phase_table(root: Path) -> list[str]:
    """Return the curriculum with the validation loss at each phase's end."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("v*/" + PHASE_FILE))]
    if not records:
        return []
    history = root / "pretraining" / "history.json"
    rows = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else []
    start = next((row["eval_loss"] for row in rows if row["step"] == 0 and "eval_loss" in row), None)
    lines = ["", "| version | masking | last step | validation loss |", "| --- | --- | --- | --- |"]
    if start is not None:
        lines.append(f"| v0.0 | none yet | 0 | {start:.3f} |")
    for record in records:
        masking, loss = record["masking"], record["metrics"].get("eval_loss")
        lines.append(
            f"| v{record['version']} | {masking['unit']}s, {masking['rate']:.0%}, "
            f"{'80/10/10' if masking['corrupt'] else 'always [MASK]'} | {record['last_step']} | "
            f"{'not measured' if loss is None else format(loss, '.3f')} |"
        )
    return lines


def ner_table(root: Path) -> list[str]:
    """Return the tables that finetune_ner.py wrote."""
    tables = [root / name / "results.md" for name in ("ner", "cross_test")]
    return [part for table in tables if table.is_file() for part in ("", table.read_text(encoding="utf-8").rstrip())]


def cost_table(root: Path, stages: list[Path], heads: list[Path]) -> list[str]:
    """Return wall time of every stage, and the peak memory that its process had reached when it ended."""
    lines = ["", "| stage | wall time | peak memory so far |", "| --- | --- | --- |"]
    for folder in [*stages, *(head.parent for head in heads)]:
        made = read_made(folder)
        memory = made["peak_memory_mb"]
        lines.append(f"| {folder.relative_to(root)} | {made['seconds']:.0f} s | {max(memory.values()):,} MB |")
    return lines


def entity_lines(head: Path, text: str) -> list[str]:
    """Return the entities that a head finds in a text, through the stock pipeline."""
    entities = pipeline("ner", model=str(head), aggregation_strategy="first")(text)
    found = [f"- {text[e['start'] : e['end']]}: {e['entity_group']} ({e['score']:.2f})" for e in entities]
    return [f"Entities that {head} finds in: {text}", "", *(found or ["- none"])]


if __name__ == "__main__":
    run(main)
