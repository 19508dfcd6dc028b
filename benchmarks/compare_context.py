#!/usr/bin/env python
"""Compare heads that read single sentences with heads that read each sentence between its neighbours in the document.

    python benchmarks/compare_context.py --ner_data DATA/ner --work runs/context --models base=BASE v0.4=runs/mine/v0.4

Trains both kinds of heads with the same seeds and settings. Batches of both hold the same number of labelled sentences,
for the second kind in windows of up to 128 word pieces. Finished heads are skipped, and --max_sentences takes a part of
each split. BLURB's files don't mark documents, so all sentences of a split count as one document, in their order.

Writes WORK/summary.md: strict F1 on development and test sets, and the differences between the two kinds, paired by
seed, with the 95 % interval of `paired_differences`; two seeds make it too wide to tell anything apart. Two more rows
have the heads of sentences annotate texts of ten sentences, as `annotate` does by default (it finds the sentences
again, and reads one at a time) and with `--context document` (it reads them all at once). There, an entity is correct
if its offsets and type are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from compare_joint import cut
from transformers import AutoTokenizer

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.artifacts import Run, read_json
from bioptimus_hf.hardware import keep_freed_memory
from bioptimus_hf.models import IOB2, TAGGING_SCHEME, load_by_name, load_token_classifier
from bioptimus_hf.ner.differences import paired_differences
from bioptimus_hf.ner.experiments import make_heads
from bioptimus_hf.ner.options import Context, HeadOptions, HeadTraining, split_label
from bioptimus_hf.ner.planning import chosen_tasks, load_task
from bioptimus_hf.ner.results import HeadResult, finished_heads, mean_and_standard_deviation, read_results, spread
from bioptimus_hf.ner.scores import entity_spans
from bioptimus_hf.ner.tasks import tags_of
from bioptimus_hf.ner.text_words import find_punctuation_in_words

Counts = npt.NDArray[np.int64]
SENTENCES_PER_TEXT = 10
SENTENCE, DOCUMENT = "sentence", "document"
READ: dict[str, Context] = {
    "sentence; texts of ten, one sentence at a time": "sentence",
    "sentence; texts of ten, all at once": "document",
}


def train(options: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Train the heads that are missing."""
    training = HeadTraining(
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch,
        num_train_epochs=options.epochs,
        bf16=options.bf16,
    )
    for context in (SENTENCE, DOCUMENT):
        make_heads(Run(str(options.work / context)), head_options(options, tasks, context), training)


def head_options(options: argparse.Namespace, tasks: Sequence[str], context: str) -> HeadOptions:
    """Return which heads to train."""
    kind: Context = "document" if context == DOCUMENT else "sentence"
    return HeadOptions(
        ner_data=options.ner_data, tasks=list(tasks), models=options.models, seeds=[options.seeds], context=kind
    )


def results(options: argparse.Namespace, tasks: Sequence[str]) -> Iterator[tuple[HeadResult, float | None]]:
    """Yield the results of all heads; `model` says how they read text, too. The F1 on the development set, if any, is
    that of the best epoch.
    """
    data = {task.name: load_task(task, head_options(options, tasks, SENTENCE)).splits for task in chosen_tasks(tasks)}
    for context in (SENTENCE, DOCUMENT):
        for folder in finished_heads(options.work / context / "ner"):
            (result,) = read_results([folder])
            name = result.model
            dev = max(row["f1"] for row in read_json(folder / "scores.json")["validation"])
            # Equal settings, so that they are pairs.
            result = replace(result, settings={}, inputs={})
            yield replace(result, model=f"{name}, {context}"), dev
            for label, way in READ.items() if context == SENTENCE else ():
                model, tokenizer = load_token_classifier(folder), load_by_name(AutoTokenizer, folder)
                setattr(model.config, TAGGING_SCHEME, IOB2)  # heads of earlier versions don't say these two
                find_punctuation_in_words(data[result.task]["train"]["tokens"][:]).record(model.config)
                annotator = Annotator(model, tokenizer, context=way)
                counts = in_texts(annotator, data[result.task]["test"])
                yield replace(result, model=f"{name}, {label}", scores={"f1": f1_of(counts)}, counts=counts), None


def in_texts(annotator: Annotator, dataset: Any) -> Counts:
    """Count entities in texts of several sentences, by sentence: found correctly, found, and true ones."""
    rows = list(zip(dataset["tokens"][:], tags_of(dataset), strict=True))
    texts = [rows[start : start + SENTENCES_PER_TEXT] for start in range(0, len(rows), SENTENCES_PER_TEXT)]
    counts = []
    found = annotator.annotate(" ".join(word for words, _ in text for word in words) for text in texts)
    for text, entities in zip(texts, found, strict=True):
        begin = 0
        for words, tags in text:
            starts = list(accumulate((len(word) + 1 for word in words), initial=begin))
            true = {(starts[first], starts[last] - 1, kind) for first, last, kind in entity_spans(tags)}
            own = {(one.start, one.end, one.label) for one in entities if begin <= one.start < starts[-1]}
            counts.append((len(true & own), len(own), len(true)))
            begin = starts[-1]
    return np.array(counts, dtype=np.int64)


def f1_of(counts: Counts) -> float:
    """Return F1, a share between 0 and 1."""
    correct, found, true = counts.sum(0).tolist()
    return 2 * correct / (found + true) if found + true else 0.0


def summarize(found: Sequence[tuple[HeadResult, float | None]], models: Sequence[str]) -> str:
    """Return the table."""
    lines = ["| task | model | reads | dev F1 | test F1 | minus sentence (95 %) | seeds |", "| --- " * 7 + "|"]
    for task in dict.fromkeys(result.task for result, _ in found):
        for name in models:
            of_model = [(one, dev) for one, dev in found if one.task == task and one.model.startswith(f"{name}, ")]
            reference = f"{name}, {SENTENCE}"
            rows = paired_differences([one for one, _ in of_model], [reference])
            differences = {row["model"]: row for row in rows}
            for model in dict.fromkeys(one.model for one, _ in of_model):
                chosen = [(one, dev) for one, dev in of_model if one.model == model]
                devs = [dev for _, dev in chosen if dev is not None]
                dev = mean_and_standard_deviation(spread(devs)) if devs else ""
                test = mean_and_standard_deviation(spread([one.scores["f1"] for one, _ in chosen]))
                difference = ""
                if row := differences.get(model):
                    low, high = row["interval"]
                    difference = f"{100 * row['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
                reads = model.partition(", ")[2]
                lines.append(f"| {task} | {name} | {reads} | {dev} | {test} | {difference} | {len(chosen)} |")
    return "\n".join([*lines, ""])


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ner_data", required=True, help="folder with the NER sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for the heads and the summary")
    parser.add_argument("--models", nargs="+", required=True, help="encoders, as LABEL=FOLDER")
    parser.add_argument("--tasks", nargs="+", default=["ncbi-disease", "bc5-disease", "jnlpba"])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="sentences in a batch")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--max_sentences", type=int, help="of each split of each set; default: all")
    return parser.parse_args()


def main() -> None:
    """Train, score and compare."""
    options = parse_options()
    keep_freed_memory()
    tasks = cut(options)
    train(options, tasks)
    summary = summarize(list(results(options, tasks)), [split_label(given)[0] for given in options.models])
    (options.work / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
