"""Results over seeds: means and deviations, and differences between models with intervals."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.scores import entity_counts, entity_scores
from bioptimus_hf.ner.tasks import BLURB_NER

RESAMPLES = 1000
LEVEL = 0.95
_SPREAD = ("f1", "conlleval_f1", "precision", "recall")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """What a head of one task, model and seed found in the test part.

    Attributes:
        gold: a hash of the words and their gold tags, which all cells of a task must share.
        scores: from `entity_scores`.
        counts: from `entity_counts`.
        settings: of the training, but for the seed.
        inputs: what it was made from, by name: `model`, the parts of the data. Where a head is scored elsewhere, what
            that was made from, and not the head itself, which each seed has its own of.
    """

    task: str
    model: str
    seed: int
    gold: str
    scores: Mapping[str, float] = field(default_factory=dict)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


def read_cells(folders: Iterable[Path]) -> list[Cell]:
    """Read finished cells: `scores.json` (task, model, seed), `predictions.tsv` and `made.json`.

    Raises:
        InputError: a file is not as `scripts/finetune_ner.py` leaves it, or they cannot be brought together: see
            `check_alike`.
    """
    cells = {folder: _read_cell(folder) for folder in folders}
    check_alike(cells)
    return list(cells.values())


def check_alike(cells: Mapping[Path, Cell]) -> None:
    """Refuse cells that cannot be brought together; of those still to be trained, scores are not needed.

    Raises:
        InputError: a task's cells are scored on unlike data, or the seeds of a task and model are trained in unlike
            ways, so that they have no mean. Both folders are named.
    """
    tested: dict[str, tuple[Path, str]] = {}
    trained: dict[tuple[str, str], tuple[Path, str]] = {}
    for folder, cell in cells.items():
        other, gold = tested.setdefault(cell.task, (folder, cell.gold))
        if cell.gold != gold:
            raise InputError(f"{other} and {folder} are scored on unlike test data: move the older one away")
        way = _key({"inputs": cell.inputs, "settings": cell.settings})
        other, its_way = trained.setdefault((cell.task, cell.model), (folder, way))
        if way != its_way:
            raise InputError(
                f"{other} and {folder} are of other inputs or settings, and have no mean: train all seeds alike with "
                f"--force, or move the older ones away"
            )


def summarize(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Bring the results of several seeds together.

    Returns:
        A row a task and model, in the order of `cells`: `seeds`, `support`, and `f1`, `conlleval_f1`, `precision` and
        `recall`, each with `mean` and `deviation` (of a sample; None for a single seed), in shares between 0 and 1.
    """
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.task, cell.model].append(cell)
    return [
        {
            "task": task,
            "model": model,
            "seeds": [cell.seed for cell in group],
            "support": int(group[0].scores["support"]),
            **{name: spread([cell.scores[name] for cell in group]) for name in _SPREAD},
        }
        for (task, model), group in groups.items()
    ]


def averages(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Average the five tasks of BLURB for each model that has them all, over the seeds that it has in each.

    Returns:
        Rows as those of `summarize`, without `support`; the deviation is that of the average over the seeds.
    """
    rows = []
    for model in dict.fromkeys(cell.model for cell in cells):
        own = {(cell.task, cell.seed): cell for cell in cells if cell.model == model}
        seeds = [seed for _, seed in own if all((task, seed) in own for task in BLURB_NER)]
        if seeds := list(dict.fromkeys(seeds)):
            means = {
                name: spread([statistics.fmean(own[task, seed].scores[name] for task in BLURB_NER) for seed in seeds])
                for name in _SPREAD
            }
            rows.append({"task": "average", "model": model, "seeds": seeds, **means})
    return rows


def differences(cells: Sequence[Cell], reference: str, *, resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """Compare each model with the reference, in pairs of the same task and seed, trained alike on the same data.

    The interval is a percentile bootstrap on two levels: each resample draws test sentences, the same ones for all
    models and seeds, and as many pairs as there are. So it holds what another test set of this kind and other trainings
    would change; with one pair, the test set alone. It is the same every time, and does not depend on which other tasks
    and models there are.

    Returns:
        A row a task and model, in the order of `cells`: `minus` (the reference), `seeds` (of the pairs), `mean` of the
        F1 differences in shares, `deviation` over the pairs, and `interval`; and the same for the average of the five
        tasks of BLURB where all have pairs of these models (`task` is `average`, without `seeds` and `deviation`).
    """
    rows, drawn = [], {}
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        weights = _sentence_weights(task, len(own[0].counts), resamples)
        bases = {_partner(cell): cell for cell in own if cell.model == reference}
        resampled = {id(cell): _f1(weights @ cell.counts) for cell in own}
        for model in dict.fromkeys(cell.model for cell in own if cell.model != reference):
            pairs = [(bases[_partner(cell)], cell) for cell in own if cell.model == model and _partner(cell) in bases]
            if not pairs:
                continue
            apart = [cell.scores["f1"] - base.scores["f1"] for base, cell in pairs]
            by_pair = np.stack([resampled[id(cell)] - resampled[id(base)] for base, cell in pairs], axis=1)
            drawn[task, model] = statistics.fmean(apart), _mean_of_drawn_pairs(task, np.array(apart), by_pair)
            rows.append(
                {
                    "task": task,
                    "model": model,
                    "minus": reference,
                    "seeds": [cell.seed for _, cell in pairs],
                    **spread(apart),
                    "interval": _interval(drawn[task, model][1]),
                }
            )
    for model in dict.fromkeys(model for _, model in drawn):
        if all((task, model) in drawn for task in BLURB_NER):
            means, samples = zip(*(drawn[task, model] for task in BLURB_NER), strict=True)
            interval = _interval(np.mean(samples, axis=0))
            average = {"task": "average", "model": model, "minus": reference}
            rows.append({**average, "mean": statistics.fmean(means), "interval": interval})
    return rows


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the sample standard deviation (None of a single value)."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def read_predictions(path: Path) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Read words, gold tags and predicted tags of each sentence, as `conll.write_conll` wrote them.

    `read_conll` would mend the predicted tags.

    Raises:
        InputError: it cannot be read, or is not of this form.
    """
    try:
        blocks = path.read_bytes().decode("utf-8").removesuffix("\n\n").split("\n\n")
        rows = [[line.split("\t") for line in block.split("\n")] for block in blocks]
        words, gold, predicted = zip(
            *([list(column) for column in zip(*one, strict=True)] for one in rows), strict=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not hold the predictions of a head: train it again with --force") from error
    return list(words), list(gold), list(predicted)


def hash_of_gold(words: Iterable[Sequence[str]], tags: Iterable[Sequence[str]]) -> str:
    """Return what tells test parts apart."""
    return hashlib.sha256(json.dumps([list(words), list(tags)]).encode()).hexdigest()


def _read_cell(folder: Path) -> Cell:
    try:
        what = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        name = {key: what[key] for key in ("task", "model", "seed")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'scores.json'} is not of a finished head: train it again with --force") from error
    words, gold, predicted = read_predictions(folder / "predictions.tsv")
    made = read_record(folder)
    trained = what.get("trained", made)  # of a head that is scored elsewhere
    inputs = {**trained["inputs"], **made["inputs"]}
    return Cell(
        **name,
        gold=hash_of_gold(words, gold),
        scores=entity_scores(gold, predicted),
        counts=entity_counts(gold, predicted),
        settings={key: value for key, value in trained["settings"].items() if key != "seed"},
        inputs={key: value for key, value in inputs.items() if key != "head"},
    )


def _partner(cell: Cell) -> tuple[int, str]:
    """Return what two cells of a task share that differ by their model alone."""
    inputs = {name: value for name, value in cell.inputs.items() if name != "model"}
    return cell.seed, _key({"inputs": inputs, "settings": cell.settings})


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _sentence_weights(task: str, sentences: int, resamples: int) -> Floats:
    """Return how often each resample draws each sentence."""
    places = _generator(task, sentences).integers(sentences, size=(resamples, sentences))
    places += np.arange(resamples)[:, None] * sentences
    drawn = np.bincount(places.ravel(), minlength=resamples * sentences)
    return drawn.reshape(resamples, sentences).astype(np.float64)


def _mean_of_drawn_pairs(task: str, apart: Floats, by_pair: Floats) -> Floats:
    """Return the mean difference of each resample of sentences, with that of as many drawn pairs added to it.

    Pairs differ from one another for two reasons: trainings differ, and each errs in sentences of its own. The second
    is in the resamples of sentences already, and counted again it makes intervals too wide: what is added is scaled
    down to the variance of the first.

    Args:
        apart: what each pair differs by.
        by_pair: the same in each resample (row).
    """
    resamples, pairs = by_pair.shape
    means: Floats = by_pair.mean(axis=1)
    if pairs == 1:
        return means
    own_errors = (by_pair.var(axis=0).mean() - means.var()) / (pairs - 1)
    observed = apart.var(ddof=1) / pairs
    share = max(0.0, 1 - max(0.0, own_errors) / observed) if observed > 0 else 0.0
    drawn = apart[_generator(task, pairs).integers(pairs, size=(resamples, pairs))].mean(axis=1)
    # Means of a few drawn with replacement spread too little, by pairs / (pairs - 1).
    added: Floats = means + math.sqrt(share * pairs / (pairs - 1)) * (drawn - apart.mean())
    return added


def _generator(task: str, size: int) -> np.random.Generator:
    return np.random.default_rng([*task.encode(), size])


def _f1(counts: Floats) -> Floats:
    """Return micro F1 of rows (right, found, true)."""
    right, both = counts[:, 0], counts[:, 1] + counts[:, 2]
    f1: Floats = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    return f1


def _interval(drawn: Floats) -> list[float]:
    tail = (1 - LEVEL) / 2
    return [float(edge) for edge in np.quantile(drawn, (tail, 1 - tail))]
