"""Summarise a run as Markdown: counts, losses, scores, and the time and memory of every stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, Run, read_record, verify
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import load_by_name, load_token_classifier
from bioptimus_hf.ner.results import finished_heads
from bioptimus_hf.pretraining.versions import version_numbers
from bioptimus_hf.publishing.consistency import check_results
from bioptimus_hf.publishing.records import read_versions, start_of
from bioptimus_hf.storage import atomic_file

logger = logging.getLogger(__name__)

_COUNTS = {
    ("contexts", "tokens"): "{} tokens to find contexts for",
    ("tokenizer", "shared"): "{} tokens shared with the base model",
    ("v0.0", "new_tokens"): "{} new tokens",
    ("v0.0", "new_tokens_from_contexts"): "{} new tokens with embeddings distilled from contexts",
    ("contexts", "contexts"): "{} contexts",
    ("tokenizer", "fertility_before"): "{:.3f} word pieces per word with the vocabulary of the base model",
    ("tokenizer", "fertility_after"): "{:.3f} word pieces per word with the new vocabulary",
}
"""The facts to report, by stage and name, with the wording of each."""


@check_call()
def make_report(run: Run, text: str | None = None, note: str | None = None) -> str:
    """Write `report.md` into the folder of a run, and return its content.

    Args:
        run: says where the run is.
        text: sentence whose entities are shown, found by a head of the newest version that has one.
        note: what a reader should know before the figures.

    Raises:
        InputError: the run has no finished stage.
    """
    root = run.root
    pretrainings = sorted(path.parent for path in root.glob(f"pretraining*/{RECORD}"))
    stages = [root / name for name in ("tokenizer", "contexts", "v0.0") if (root / name / RECORD).is_file()]
    stages += pretrainings
    heads = finished_heads(root / "ner")
    if not stages and not heads:
        raise InputError(f"{root} holds no finished stage: run a stage first, such as `bioptimus train-vocabulary`")
    lines = [
        f"# {root}",
        *(["", note] if note else []),
        *_problems(root),
        "",
        *_sources(root),
        *_counts(stages),
        *_texts(stages),
        *(line for folder in pretrainings for line in _decontamination(folder)),
        *_versions(root, pretrainings),
        *_results(root),
        *_costs(root, [*stages, *heads]),
    ]
    if heads:
        newest = max(heads, key=lambda head: version_numbers(head.parent.name))
        lines += ["", *_entities(newest, text)] if text else []
        lines += ["", f"Annotate files: `bioptimus annotate --models {newest} --input FILES --output_dir FOLDER`"]
    elif text:
        logger.warning("%s has no NER head yet, so no entities of the text are shown", root)
    lines += ["", f"This report is in `{root / 'report.md'}`."]
    report = "\n".join([*lines, ""])
    with atomic_file(root / "report.md") as file:
        file.write_text(report, encoding="utf-8")
    return report


def _problems(root: Path) -> list[str]:
    """Return a line for each result that is damaged, or doesn't belong to the others."""
    found = [finding for finding in check_results(root, hashes=False) if finding.problem]
    return ["", *(f"- **{finding.result.relative_to(root)}: {finding.problem}**" for finding in found)] if found else []


def _sources(root: Path) -> list[str]:
    """Return lines that name the base model and the corpus of the run."""
    if not (root / "tokenizer" / RECORD).is_file():
        return []
    inputs = read_record(root / "tokenizer")["inputs"]
    wordings = {"base_model": "base model", "corpus": "corpus"}
    return [f"- {words}: {_named(inputs[name])}" for name, words in wordings.items() if name in inputs]


def _named(identity: str) -> str:
    """Return how to call an input, of which only the identity is recorded."""
    kind, _, value = identity.partition(":")
    return value if kind == "name" else f"local, with the {'hash' if kind == 'sha256' else 'identity'} {value[:16]}"


def _counts(stages: Sequence[Path]) -> list[str]:
    """Return the counts of vocabulary, contexts and distillation as a list."""
    facts = {(stage.name, name): fact for stage in stages for name, fact in read_record(stage)["facts"].items()}
    return [f"- {wording.format(facts[key])}" for key, wording in _COUNTS.items() if key in facts]


def _texts(stages: Sequence[Path]) -> list[str]:
    """Return a line for each text, with the stages that read it."""
    readers: dict[str, list[str]] = {}
    for stage in stages:
        if text := read_record(stage)["facts"].get("text"):
            readers.setdefault(_text_in_words(text), []).append(stage.name)
    return [f"- text of {', '.join(names)}: {text}" for text, names in readers.items()]


def _text_in_words(text: Mapping[str, int]) -> str:
    """Say what was read, and what was left out and why."""
    words = f"{text['documents']:,} documents, {text['words']:,} words, {text['bytes'] / 1e6:.1f} MB"
    if "files" in text:
        of = f" of {text['files']:,}" if text["files"] > text["files_read"] else ""
        words += f" in {text['files_read']:,}{of} files" + (" (`max_megabytes`)" if of else "")
    words += f"; {text['empty']:,} empty documents left out" if text["empty"] else ""
    return words + (f"; {text['replaced']:,} undecodable bytes replaced" if text["replaced"] else "")


def _decontamination(folder: Path) -> list[str]:
    """Return a line that says whether test sentences were removed from a pre-training."""
    found = read_record(folder)["facts"].get("decontamination")
    if found is None:
        return [
            f"- **The text of {folder.name} was not searched for test sentences of the NER data, so the scores may be "
            "too high (set `decontaminate` when you pre-train)**"
        ]
    names = ", ".join(name for name in found["test_sets"] if name != ".")  # the folder itself
    data = f"the NER data ({names})" if names else "the NER data"
    if not found["dropped"]:
        return [f"- none of the {found['documents']:,} documents of {folder.name} contains a test sentence of {data}"]
    was, contain = ("was", "it contains") if found["dropped"] == 1 else ("were", "they contain")
    return [
        f"- {found['dropped']:,} of {found['documents']:,} documents {was} removed from {folder.name} because "
        f"{contain} a test sentence of {data}; see `{folder.name}/decontamination.tsv`"
    ]


def _versions(root: Path, pretrainings: Sequence[Path]) -> list[str]:
    """Return a table of the curriculum, with the validation loss at the start and at the end of each phase."""
    records = read_versions(root)
    if not records:
        return []
    lines = ["", "| version | masking | last step | validation loss |", "| --- | --- | --- | --- |"]
    for folder in pretrainings:
        made = read_record(folder)
        loss = made["facts"]["validation_losses"].get("0")
        if loss is not None:
            start = start_of(root, made) or "another model"
            masking = "none yet" if start == "v0.0" else f"before {folder.name}"
            lines.append(f"| {start} | {masking} | 0 | {loss:.3f} |")
    for record in records:
        masking, loss = record["masking"], record["metrics"].get("eval_loss")
        last = "" if record["last_rate"] is None else f" to {record['last_rate']:.0%}"
        lines.append(
            f"| v{record['version']} | {masking['unit']}s, {masking['rate']:.0%}{last}, "
            f"{'80/10/10' if masking['corrupt'] else 'always [MASK]'} | {record['last_step']} | "
            f"{'not measured' if loss is None else format(loss, '.3f')} |"
        )
    return lines


def _results(root: Path) -> list[str]:
    """Return the tables of results that fine-tuning wrote."""
    tables = [root / name / "results.md" for name in ("ner", "cross_test")]
    return [part for table in tables if table.is_file() for part in ("", table.read_text(encoding="utf-8").rstrip())]


def _costs(root: Path, folders: Sequence[Path]) -> list[str]:
    """Return a table of the wall time of every stage and the peak memory of its process so far."""
    lines = ["", "| stage | wall time | peak memory so far |", "| --- | --- | --- |"]
    for folder in folders:
        made = read_record(folder)
        memory = max(made["peak_memory_mb"].values())
        lines.append(f"| {folder.relative_to(root)} | {made['seconds']:.0f} s | {memory:,} MB |")
    return lines


def _entities(head: Path, text: str) -> list[str]:
    """Return a list of the entities that a head finds in a text."""
    try:
        verify(head)
    except InputError as error:
        return [f"**No entities are shown, because {error}**"]
    model, tokenizer = load_token_classifier(head), load_by_name(AutoTokenizer, head)
    (entities,) = Annotator(model, tokenizer).annotate([text])
    lines = [f"- {entity.text}: {entity.label} ({entity.score:.2f})" for entity in entities]
    return [f"Entities found by {head} in: {text}", "", *(lines or ["- none"])]
