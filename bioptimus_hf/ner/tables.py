"""Write NER results as Markdown tables, also beside published figures, as JSON, and as a plot of the versions."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import write_json
from bioptimus_hf.ner.differences import RESAMPLES, paired_differences
from bioptimus_hf.ner.literature import PUBLISHED, WORDS
from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.ner.results import (
    SEARCH,
    HeadResult,
    averages,
    difference_and_interval,
    mean_and_standard_deviation,
    single_model,
    summarize,
)
from bioptimus_hf.ner.scores import LENIENT_SCORER, SCORER
from bioptimus_hf.ner.tasks import BLURB_NER
from bioptimus_hf.plots import plot_versions
from bioptimus_hf.pretraining.versions import version_numbers
from bioptimus_hf.storage import atomic_file

Row = Mapping[str, Any]
"""From `summarize`, `averages` or `paired_differences`."""


def write_results(
    folder: Path,
    results: Sequence[HeadResult],
    *,
    references: Sequence[str],
    missing: Mapping[Path, str] | None = None,
    trainings: Sequence[Row] = (),
) -> str:
    """Write `results.md`, `results.json` and, if there are at least two versions of an encoder, `versions.png`.

    Args:
        references: models that the others are compared with.
        missing: heads that aren't among the results, and why not.
        trainings: from `training_record`, of all heads and of the searches of their settings.

    Returns:
        The Markdown.
    """
    rows, means, differences = summarize(results), averages(results), paired_differences(results, references)
    tables = [results_table([*rows, *means], differences, references=references)]
    tables += [table for table in (published_table(rows, means), choices_table(trainings)) if table]
    if gaps := _gaps(missing or {}, rows, differences, references):
        tables.append("\n".join([*gaps, ""]))
    text = "\n".join(tables)
    with atomic_file(folder / "results.md") as file:
        file.write_text(text, encoding="utf-8")
    content = {
        "scorer": SCORER,
        "lenient_scorer": LENIENT_SCORER,
        "references": list(references),
        "rows": rows,
        "averages": means,
        "differences": differences,
        "missing": {_name_of(head): why for head, why in (missing or {}).items()},
        "resamples": RESAMPLES,
        "trainings": list(trainings),
    }
    write_json(folder / "results.json", content)
    if versions := _rows_of_versions(rows, references[0]):
        plot_versions(folder / "versions.png", versions, _f1_of_seeds(results), reference=references[0])
    return text


def results_table(rows: Sequence[Row], differences: Sequence[Row], *, references: Sequence[str]) -> str:
    """Return the rows of `summarize` and `averages`, with those of `paired_differences`, as Markdown, in percent."""
    by_models = {(row["task"], row["model"], row["minus"]): row for row in differences}
    joint = any(row["minus"] == single_model(row["model"]) for row in differences)  # with heads of single tasks
    header = ["task", "model", "F1", *(f"F1 minus {name}" for name in references)]
    header += ["F1 minus single heads"] if joint else []
    header += ["conlleval F1", "precision", "recall", "seeds", "test mentions"]
    lines = [_line(*header), _line(*["---"] * len(header))]
    for row in rows:
        single = single_model(row["model"])
        others = [name if single == row["model"] else f"{JOINT}/{name}" for name in references]
        others += [single] if joint else []
        compared = [
            _difference(by_models.get((row["task"], row["model"], other)), len(row["seeds"])) for other in others
        ]
        f1, *scores = (mean_and_standard_deviation(row[name]) for name in ("f1", "conlleval_f1", "precision", "recall"))
        columns = [row["task"], row["model"], f1, *compared, *scores]
        lines.append(_line(*columns, str(len(row["seeds"])), str(row.get("support", ""))))
    return "\n".join([*lines, "", _notes(rows, differences, references), ""])


def _notes(rows: Sequence[Row], differences: Sequence[Row], references: Sequence[str]) -> str:
    """Return what a reader of the table of results should know."""
    notes = (
        f"Percent, mean ± standard deviation over seeds. F1, precision, recall: {SCORER}. conlleval F1: "
        f"{LENIENT_SCORER}."
    )
    if differences:
        notes += (
            f" Paired differences: heads with the same seed, data and training settings, or settings chosen from the "
            f"same grid. In brackets: 95 % bootstrap interval from {RESAMPLES:,} resamples of test sentences, with the "
            f"variation between pairs added, and widened for a small number of pairs (with a single one, it doesn't "
            f"cover the variation between seeds)."
        )
    if len(differences) > 1:
        notes += (
            f" The intervals of all {len(differences)} differences in this table are simultaneous (max-t bootstrap, "
            f"Westfall & Young 1993): with 95 % confidence, all of them hold at once. `results.json` also has the "
            f"narrower ones that hold for one difference alone."
        )
    if any(single_model(row["model"]) != row["model"] for row in rows):
        notes += (
            f" {JOINT}/<model>: one head for all tasks, compared with "
            f"{' and '.join(f'{JOINT}/{name}' for name in references)} and with the heads of single tasks on the same "
            f"model."
        )
    return notes


def choices_table(trainings: Sequence[Row]) -> str:
    """Return the settings that were chosen for each task and model; empty if all were fixed.

    Args:
        trainings: from `training_record`.
    """
    chosen = {
        (row["task"], row["model"]): row["settings"]
        for row in trainings
        if row["test"] is not None and SEARCH in row["settings"]
    }
    if not chosen:
        return ""
    names = list(dict.fromkeys(name for settings in chosen.values() for name in settings[SEARCH]))
    header = ["task", "model", *names, "dev F1", "dev F1 of the other settings"]
    lines = [_line(*header), _line(*["---"] * len(header))]
    for (task, model), settings in chosen.items():
        of_group = [row for row in trainings if row["test"] is None and (row["task"], row["model"]) == (task, model)]
        tried = [(all(row["settings"].get(name) == settings[name] for name in names), row) for row in of_group]
        best, others = ([_dev_f1(row) for is_best, row in tried if is_best == wanted] for wanted in (True, False))
        columns = [*(str(settings[name]) for name in names), ", ".join(best), ", ".join(others)]
        lines.append(_line(task, model, *columns))
    notes = (
        "Settings of each task and model, chosen from the same grid by the F1 on the development set with the first "
        "seed. Test sets played no role."
    )
    return "\n".join([*lines, "", notes, ""])


def _dev_f1(row: Row) -> str:
    return f"{100 * row['dev']['f1']:.2f}" if row["dev"] else "diverged"


def _gaps(
    missing: Mapping[Path, str], rows: Sequence[Row], differences: Sequence[Row], references: Sequence[str]
) -> list[str]:
    """Return a line for each head that is missing, and for each model without a comparison."""
    lines = [f"- {_name_of(head)} is missing: {why}" for head, why in missing.items()]
    compared = {(row["task"], frozenset((row["model"], row["minus"]))) for row in differences}
    shown = [(row["task"], row["model"]) for row in rows]
    lines += [
        f"- {task}: {model} and {reference} aren't compared: no heads of the two have equal seed, data and settings"
        for task, model in shown
        for reference in references
        if model != reference
        and single_model(model) == model
        and (task, reference) in shown
        and (task, frozenset((model, reference))) not in compared
    ]
    return lines


def published_table(rows: Sequence[Row], means: Sequence[Row]) -> str:
    """Return our conlleval F1 on the BLURB tasks beside published figures; empty without results on these tasks.

    A result is shown only if the test set has the published number of mentions.

    Args:
        rows: from `summarize`.
        means: from `averages`.
    """
    blurb = [row for row in rows if row["task"] in BLURB_NER]
    if not blurb:
        return ""
    figures: dict[str, dict[str, str]] = defaultdict(dict)
    seeds: dict[str, list[int]] = defaultdict(list)
    for row in blurb:
        f1 = mean_and_standard_deviation(row["conlleval_f1"])
        figures[row["model"]][row["task"]] = f1 if _is_blurb(row) else "other test data"
        seeds[row["model"]].append(len(row["seeds"]))
    for mean in means:
        if all(_is_blurb(row) for row in blurb if row["model"] == mean["model"]):
            figures[mean["model"]]["average"] = mean_and_standard_deviation(mean["conlleval_f1"])
    lines = [
        f"| model | {' | '.join(BLURB_NER)} | average | counted in | protocol | source |",
        f"|{' --- |' * (len(BLURB_NER) + 5)}",
    ]
    for model, of_task in figures.items():
        columns = (of_task.get(name, "") for name in (*BLURB_NER, "average"))
        lines.append(_line(model, *columns, WORDS, _protocol(seeds[model]), "this run"))
    for other in PUBLISHED:
        complete = len(other.f1) == len(BLURB_NER)
        average = f"{statistics.fmean(map(float, other.f1.values())):.2f}" if complete else ""
        columns = (other.f1.get(name, "") for name in BLURB_NER)
        lines.append(_line(other.model, *columns, average, other.counting, other.protocol, other.source))
    notes = (
        "Results of this run are conlleval F1, because the publications don't name their scorer; strict F1 is in the "
        "table above. A result is shown only if the test set has the published number of mentions. Counted in words: "
        "each mention counts once. Figures counted in word pieces aren't comparable with the others: each piece "
        "has the tag of its word, so a mention whose first word has three pieces counts as three mentions."
    )
    return "\n".join([*lines, "", notes, ""])


def _name_of(head: Path) -> str:
    return "/".join(head.parts[-3:])


def _is_blurb(row: Row) -> bool:
    mentions = BLURB_NER[row["task"]].mentions
    return mentions is not None and mentions[2] == row["support"]


def _rows_of_versions(rows: Sequence[Row], reference: str) -> dict[str, list[Row]]:
    """Return the rows of the reference and of the versions in their order, by task, for tasks with several versions."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["task"], [])
        if row["model"] == reference or version_numbers(row["model"]):
            by_task[row["task"]].append(row)
    return {
        task: sorted(of_task, key=lambda row: version_numbers(row["model"]))
        for task, of_task in by_task.items()
        if sum(bool(version_numbers(row["model"])) for row in of_task) > 1
    }


def _f1_of_seeds(results: Sequence[HeadResult]) -> dict[tuple[str, str], list[float]]:
    """Return the F1 of each seed by task and model."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for result in results:
        values[result.task, result.model].append(result.scores["f1"])
    return values


def _protocol(seeds: Sequence[int]) -> str:
    fewest, most = min(seeds), max(seeds)
    if most == 1:
        return "one seed"
    return f"mean of {most if fewest == most else f'{fewest} to {most}'} seeds"


def _difference(row: Row | None, seeds: int) -> str:
    if row is None:
        return ""
    pairs = "" if len(row.get("seeds", range(seeds))) == seeds else f", {len(row['seeds'])} pairs"
    return f"{difference_and_interval(row).removesuffix(')')}{pairs})"


def _line(*columns: str) -> str:
    return f"| {' | '.join(columns)} |"
