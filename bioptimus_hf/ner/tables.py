"""Results as people read them: Markdown tables, also beside published figures, JSON, and a figure of the versions."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import write_json
from bioptimus_hf.ner.literature import PUBLISHED
from bioptimus_hf.ner.results import RESAMPLES, Cell, averages, differences, summarize
from bioptimus_hf.ner.scores import LENIENT_SCORER, SCORER
from bioptimus_hf.ner.tasks import BLURB_NER
from bioptimus_hf.plots import plot_versions

_VERSION = re.compile(r"v\d+\.\d+")


def write_results(folder: Path, cells: Sequence[Cell], *, reference: str) -> str:
    """Write `results.md`, `results.json`, and `versions.png` where there are two versions or more of an encoder.

    Args:
        reference: the model that the others are compared with.

    Returns:
        The Markdown.
    """
    rows, means, apart = summarize(cells), averages(cells), differences(cells, reference)
    parts = [results_table([*rows, *means], apart, reference=reference)]
    if beside := published_table(rows, means):
        parts.append(beside)
    text = "\n".join(parts)
    (folder / "results.md").write_text(text, encoding="utf-8")
    content = {"reference": reference, "rows": rows, "averages": means, "differences": apart, "resamples": RESAMPLES}
    write_json(folder / "results.json", {"scorer": SCORER, "lenient_scorer": LENIENT_SCORER, **content})
    if versions := _f1_of_versions(cells, reference):
        plot_versions(folder / "versions.png", versions, reference=reference)
    return text


def results_table(rows: Sequence[Mapping[str, Any]], apart: Sequence[Mapping[str, Any]], *, reference: str) -> str:
    """Write the rows of `summarize` and `averages` as a Markdown table, in percent, with those of `differences`."""
    found = {(row["task"], row["model"]): row for row in apart}
    lines = [
        f"| task | model | F1 | F1 minus {reference} | conlleval F1 | precision | recall | seeds | test mentions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        difference = found.get((row["task"], row["model"]))
        cells = [row["task"], row["model"], _percent(row["f1"]), _difference(difference, len(row["seeds"]))]
        cells += [_percent(row[name]) for name in ("conlleval_f1", "precision", "recall")]
        lines.append(f"| {' | '.join([*cells, str(len(row['seeds'])), str(row.get('support', ''))])} |")
    notes = (
        f"Percent, mean ± sample standard deviation over seeds. F1, precision, recall: {SCORER}. "
        f"conlleval F1: {LENIENT_SCORER}."
    )
    if apart:
        notes += (
            f" Differences are of pairs with the same seed and training settings; in brackets the 95 % interval of "
            f"{RESAMPLES:,} bootstrap resamples of test sentences and of pairs (of one pair: of sentences alone, which "
            f"says nothing of other seeds)."
        )
    return "\n".join([*lines, "", notes, ""])


def published_table(rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]]) -> str:
    """Write one's own lenient F1 on the tasks of BLURB beside published figures; empty where there is none of them.

    A figure of a test part that has not the published number of mentions is not shown.
    """
    blurb = [row for row in rows if row["task"] in BLURB_NER]
    if not blurb:
        return ""
    own: dict[str, dict[str, str]] = defaultdict(dict)
    for row in blurb:
        own[row["model"]][row["task"]] = _percent(row["conlleval_f1"]) if _is_blurb(row) else "other test data"
    for row in means:
        if all(map(_is_blurb, (one for one in blurb if one["model"] == row["model"]))):
            own[row["model"]]["average"] = _percent(row["conlleval_f1"])
    seeds: dict[str, list[int]] = defaultdict(list)
    for row in blurb:
        seeds[row["model"]].append(len(row["seeds"]))
    lines = [
        f"| model | {' | '.join(BLURB_NER)} | average | protocol | source |",
        f"|{' --- |' * (len(BLURB_NER) + 4)}",
    ]
    for model, cells in own.items():
        fewest, most = min(seeds[model]), max(seeds[model])
        number = f"{most}" if fewest == most else f"{fewest} to {most}"
        protocol = f"mean of {number} seeds" if most > 1 else "one seed"
        lines.append(_line(model, *(cells.get(name, "") for name in (*BLURB_NER, "average")), protocol, "here"))
    for other in PUBLISHED:
        average = f"{statistics.fmean(map(float, other.f1.values())):.2f}"
        lines.append(_line(other.model, *other.f1.values(), average, other.protocol, other.source))
    notes = (
        "Ours is the conlleval F1, since the scorer of the others is not known to us; the strict one stands above. It "
        "is shown only where the test part has the published number of mentions."
    )
    return "\n".join([*lines, "", notes, ""])


def _is_blurb(row: Mapping[str, Any]) -> bool:
    mentions = BLURB_NER[row["task"]].mentions
    return mentions is not None and mentions[2] == row["support"]


def _f1_of_versions(cells: Sequence[Cell], reference: str) -> dict[str, dict[str, list[float]]]:
    """Return F1 by task, version (in order; and the reference) and seed, of tasks with two versions or more."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in sorted(cells, key=lambda cell: [int(number) for number in re.findall(r"\d+", cell.model)]):
        if cell.model == reference or _VERSION.fullmatch(cell.model):
            found[cell.task][cell.model].append(cell.scores["f1"])
    tasks = dict.fromkeys(cell.task for cell in cells)
    return {task: found[task] for task in tasks if sum(map(bool, map(_VERSION.fullmatch, found[task]))) > 1}


def _difference(row: Mapping[str, Any] | None, seeds: int) -> str:
    if row is None:
        return ""
    low, high = row["interval"]
    pairs = "" if len(row.get("seeds", range(seeds))) == seeds else f", {len(row['seeds'])} pairs"
    return f"{100 * row['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}{pairs})"


def _percent(spread: Mapping[str, float | None]) -> str:
    mean, deviation = (None if value is None else f"{100 * value:.2f}" for value in spread.values())
    return f"{mean} ± {deviation}" if deviation else f"{mean}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
