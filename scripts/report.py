#!/usr/bin/env python
"""Say what a run has made so far: counts, losses, scores, time and memory of every stage.

python scripts/report.py --output_dir runs/demo --text "Aspirin provoked bronchoconstriction in two patients."

Writes OUTPUT_DIR/report.md. The plot of a pre-training is OUTPUT_DIR/pretraining/history.png.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, pipeline

from bioptimus_hf.artifacts import RECORD, read_json, read_record
from bioptimus_hf.cli.legacy import parse, run
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import load_by_name, load_token_classifier
from bioptimus_hf.pretraining.callback import PHASE_FILE
from bioptimus_hf.publishing.facts import start_of, version_key

logger = logging.getLogger("report")


@dataclass
class Options:
    """What is reported on."""

    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run"})
    text: str | None = field(
        default=None, metadata={"help": "A sentence whose entities to show, found by a head of the newest version"}
    )


def main() -> None:
    """Gather, save and print."""
    (options,) = parse(Options, section="report", description=__doc__)
    root = Path(options.output_dir)
    pretrainings = sorted(path.parent for path in root.glob("pretraining*/" + RECORD))
    stages = [root / name for name in ("tokenizer", "contexts", "v0.0") if (root / name / RECORD).is_file()]
    stages += pretrainings
    heads = [path.parent for path in sorted((root / "ner").glob("*/*/*/" + RECORD)) if path.parts[-2].isdecimal()]
    if not stages and not heads:
        raise InputError(f"{root} holds no finished stage: run the other scripts first")
    parts = [
        *stage_facts(stages),
        *(line for folder in pretrainings for line in decontamination_lines(folder)),
        *phase_table(root, pretrainings),
        *ner_table(root),
        *cost_table(root, [*stages, *heads]),
    ]
    if options.text and heads:
        parts += ["", *entity_lines(max(heads, key=lambda head: newness(head.parent.name)), options.text)]
    elif options.text:
        logger.warning("no NER head in %s yet: --text is not used", root)
    report = "\n".join([f"# {root}", *parts, ""])
    (root / "report.md").write_text(report, encoding="utf-8")
    print(report)


def stage_facts(stages: list[Path]) -> list[str]:
    """Return the counts of vocabulary, contexts and distillation."""
    wording = {
        ("contexts", "tokens"): "{} tokens of interest",
        ("tokenizer", "shared"): "{} tokens shared with the base",
        ("v0.0", "new_tokens"): "{} new tokens",
        ("v0.0", "new_tokens_from_contexts"): "{} new tokens made from contexts",
        ("contexts", "contexts"): "{} contexts",
        ("tokenizer", "fertility_before"): "{:.3f} pieces per word with the base's vocabulary",
        ("tokenizer", "fertility_after"): "{:.3f} pieces per word with the new one",
    }
    facts = {(stage.name, name): fact for stage in stages for name, fact in read_record(stage)["facts"].items()}
    return ["", *(f"- {text.format(facts[key])}" for key, text in wording.items() if key in facts)]


def decontamination_lines(folder: Path) -> list[str]:
    """Say whether test sentences were kept out of a pre-training."""
    found = read_record(folder)["facts"].get("decontamination")
    if found is None:
        return [
            f"- **The text of {folder.name} was not searched for test sentences of the NER sets, so that scores on "
            "these may be too high (`scripts/pretrain.py --decontaminate`)**"
        ]
    return [
        f"- {found['dropped']} of {found['documents']} documents left out of {folder.name}, for test sentences of "
        f"{len(found['test_sets'])} NER sets (`{folder.name}/decontamination.tsv`)"
    ]


def phase_table(root: Path, pretrainings: list[Path]) -> list[str]:
    """Return the curriculum with the validation loss at each phase's end, and where each pre-training started."""
    records = [read_json(path) for path in root.glob("v*/" + PHASE_FILE)]
    if not records:
        return []
    lines = ["", "| version | masking | last step | validation loss |", "| --- | --- | --- | --- |"]
    for folder in pretrainings:
        made = read_record(folder)
        loss = made["facts"]["validation_losses"].get("0")
        if loss is not None:
            label = start_of(root, made) or "another model"
            lines.append(f"| {label} | {'none yet' if label == 'v0.0' else folder.name} | 0 | {loss:.3f} |")
    for record in sorted(records, key=lambda record: newness(f"v{record['version']}")):
        masking, loss = record["masking"], record["metrics"].get("eval_loss")
        last = "" if record["last_rate"] is None else f" to {record['last_rate']:.0%}"
        lines.append(
            f"| v{record['version']} | {masking['unit']}s, {masking['rate']:.0%}{last}, "
            f"{'80/10/10' if masking['corrupt'] else 'always [MASK]'} | {record['last_step']} | "
            f"{'not measured' if loss is None else format(loss, '.3f')} |"
        )
    return lines


def ner_table(root: Path) -> list[str]:
    """Return the tables that finetune_ner.py wrote."""
    tables = [root / name / "results.md" for name in ("ner", "cross_test")]
    return [part for table in tables if table.is_file() for part in ("", table.read_text(encoding="utf-8").rstrip())]


def cost_table(root: Path, folders: list[Path]) -> list[str]:
    """Return wall time of every stage, and the peak memory that its process had reached when it ended."""
    lines = ["", "| stage | wall time | peak memory so far |", "| --- | --- | --- |"]
    for folder in folders:
        made = read_record(folder)
        memory = made["peak_memory_mb"]
        lines.append(f"| {folder.relative_to(root)} | {made['seconds']:.0f} s | {max(memory.values()):,} MB |")
    return lines


def newness(label: str) -> tuple[int, ...]:
    """Return what orders the labels of models: v0.10 after v0.9, and all versions after what is none."""
    try:
        return version_key(label.removeprefix("v"))
    except InputError:
        return ()


def entity_lines(head: Path, text: str) -> list[str]:
    """Return the entities that a head finds in a text, through the stock pipeline."""
    model, tokenizer = load_token_classifier(head), load_by_name(AutoTokenizer, head)
    entities = pipeline("ner", model=model, tokenizer=tokenizer, aggregation_strategy="first")(text)
    found = [f"- {text[e['start'] : e['end']]}: {e['entity_group']} ({e['score']:.2f})" for e in entities]
    return [f"Entities that {head} finds in: {text}", "", *(found or ["- none"])]


if __name__ == "__main__":
    run(main)
