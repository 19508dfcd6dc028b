#!/usr/bin/env python
"""Which start for a new token? Every initialiser, the same vocabulary, contexts, masked-LM training and NER heads.

    python benchmarks/compare_initializers.py --corpus abstracts.txt.gz --ner_data DATA/ner \
        --base_model google-bert/bert-base-uncased --work runs/initializers

Steps, each of which is skipped where it is finished, so that an interrupted comparison goes on:

1. a base model with a masked-LM head: where the base has none, a new one is trained alone, on the base's own vocabulary
   with the encoder and the table fixed, so that no initialiser has a part in it;
2. a vocabulary and contexts, as scripts/train_vocabulary.py and scripts/find_contexts.py make them, once for all;
3. for each initialiser a v0.0 (scripts/distill_embeddings.py);
4. from each v0.0 the same short pre-training (scripts/pretrain.py), validated before the first step and along the way;
5. from most v0.0 and from the base NER heads (scripts/finetune_ner.py).

Options other than those of an earlier run want another WORK. Writes WORK/summary.md (losses, F1, and differences paired
by seed, and by task, with 95 % intervals) and WORK/losses.png. The initialisers named first have all seeds, the others
the first only. A seed also draws the held-out documents, so that losses compare within a seed only; the head, the
vocabulary and the contexts are made once, on the training part of seed 0, so that with other seeds some held-out
documents had a part in them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path

import torch
from scipy.stats import t
from transformers import AutoTokenizer

from bioptimus_hf.corpus.dataset import load_corpus, split_validation
from bioptimus_hf.models import load_masked_lm, save_masked_lm
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.curriculum import Phase
from bioptimus_hf.pretraining.masking import MaskingStrategy, mask_once
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.run import pretrain

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
BLOCK = 128
VARIANTS = {  # label to the options of distill_embeddings.py
    "random": ["--initializer", "random"],
    "subtoken_mean": ["--initializer", "subtoken_mean"],
    "contextual_mean_scaled": ["--initializer", "contextual_mean_scaled"],
    "contextual_mean": ["--initializer", "contextual_mean"],
    "contextual_mean_scaled, layer 1": ["--initializer", "contextual_mean_scaled", "--layer", "1"],
    "token_distillation": ["--initializer", "token_distillation", "--max_tokens", "1500"],
}
ALL_SEEDS = 3  # variants, the first ones
REFERENCE = "subtoken_mean"
WITHOUT_HEADS = ("contextual_mean_scaled, layer 1",)  # to save time


def run_script(name: str, *options: str, threads: int) -> None:
    log = Path(options[options.index("--output_dir") + 1]) / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as written:
        subprocess.run(
            [sys.executable, str(SCRIPTS / f"{name}.py"), *options],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=written,
            stderr=subprocess.STDOUT,
            check=True,
        )


def base_with_head(options: argparse.Namespace, folder: Path) -> None:
    """Save the base with a masked-LM head: its own, or one that is trained while all else stays as it is."""
    model, made_up = load_masked_lm(options.base_model, kind=BertForMaskedPositions)
    tokenizer = AutoTokenizer.from_pretrained(options.base_model)
    if made_up:
        documents = split_validation(
            load_corpus(options.corpus, max_megabytes=options.max_megabytes), share=options.validation_share
        )
        train, validation = (
            tokenize_and_pack(documents[part], tokenizer, max_length=BLOCK) for part in ("train", "validation")
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in made_up)
        arguments = PretrainingArguments(
            output_dir=str(folder.with_suffix(".checkpoints")),
            learning_rate=1e-3,
            max_steps=options.head_steps,
            bf16=True,
            eval_steps=options.head_steps,
            report_to="none",
        )
        history = pretrain(
            model,
            tokenizer,
            train,
            mask_once(validation, tokenizer),
            arguments,
            curriculum=[Phase("0.1", MaskingStrategy("word", 0.15, corrupt=False), share=1.0)],
            export_dir=folder.with_suffix(".exports"),
        )
        print(*(f"step {row['step']}: loss {row['eval_loss']:.3f}" for row in history if "eval_loss" in row), sep="\n")
    partial = folder.with_suffix(".partial")
    save_masked_lm(model, tokenizer, partial)
    partial.rename(folder)


def seeds_of(number: int, seeds: Sequence[int]) -> Sequence[int]:
    return seeds if number < ALL_SEEDS else seeds[:1]


def folder_of(work: Path, label: str, seed: int) -> Path:
    """Return where a v0.0 lies; only noise depends on the seed."""
    name = label.replace(", ", "_").replace(" ", "")
    return work / (f"{name}-{seed}" if label == "random" else name)


def losses(folder: Path) -> dict[int, float]:
    history = json.loads((folder / "pretraining" / "history.json").read_text())
    return {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def interval(differences: Sequence[float], digits: int) -> str:
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / sqrt(len(differences))
    return f"{mean:+.{digits}f} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"


def summarize(work: Path, tasks: Sequence[str], seeds: Sequence[int]) -> str:
    """Make the table, and the plot of the losses, of what is finished."""
    curves: dict[str, dict[int, dict[int, float]]] = {}  # of each seed, by step
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for file in (work / "ner").glob("*/*/*/scores.json"):
        cell = json.loads(file.read_text())
        label = cell["model"].partition("-")[0] if cell["model"].startswith("random") else cell["model"]
        scores.setdefault(label, {})[cell["task"], cell["seed"]] = 100 * cell["test"]["f1"]
    for number, label in enumerate(VARIANTS):
        folders = {seed: folder_of(work, label, seed) / f"seed-{seed}" for seed in seeds_of(number, seeds)}
        done = {seed: folder for seed, folder in folders.items() if (folder / "pretraining" / "history.json").is_file()}
        if done:
            curves[label] = {seed: losses(folder) for seed, folder in done.items()}
    if not curves:
        return "nothing is finished yet\n"
    steps = sorted(set.intersection(*(set(curve) for each in curves.values() for curve in each.values())))
    lines = [
        f"| initialiser | {' | '.join(f'loss, step {step}' for step in steps)} | minus {REFERENCE} (95 %), seeds |",
        "| --- |" + " --- |" * (len(steps) + 1),
    ]
    for label, each in curves.items():
        cells = [mean_and_deviation([curve[step] for curve in each.values()], 3) for step in steps]
        reference = curves.get(REFERENCE, {})
        pairs = [curve[steps[-1]] - reference[seed][steps[-1]] for seed, curve in each.items() if seed in reference]
        against = f"{interval(pairs, 3)}, {len(pairs)}" if label != REFERENCE and pairs else "-"
        lines.append(f"| {label} | {' | '.join(cells)} | {against} |")
    lines += ["", "| start | " + " | ".join(f"{task} F1" for task in tasks) + " | minus base (95 %), pairs |"]
    lines.append("| --- |" + " --- |" * (len(tasks) + 1))
    for label in ("base", *VARIANTS):
        own = scores.get(folder_of(Path(), label, 0).name.removesuffix("-0"), {})
        if own:
            by_task = ([score for (of, _), score in sorted(own.items()) if of == task] for task in tasks)
            cells = [mean_and_deviation(values, 2) if values else "-" for values in by_task]
            base = scores.get("base", {})
            pairs = [score - base[cell] for cell, score in own.items() if cell in base]
            against = f"{interval(pairs, 2)}, {len(pairs)}" if label != "base" and pairs else "-"
            lines.append(f"| {label} | {' | '.join(cells)} | {against} |")
    plot(curves, work / "losses.png")
    return "\n".join(lines) + "\n"


def plot(curves: dict[str, dict[int, dict[int, float]]], path: Path) -> None:
    """Draw the losses, and what each is above that of the reference with the same seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    reference = curves.get(REFERENCE, {})
    for label, each in curves.items():
        steps = sorted(next(iter(each.values())))
        left.plot(steps, [statistics.fmean(curve[step] for curve in each.values()) for step in steps], label=label)
        shared, later = sorted(each.keys() & reference.keys()), steps[1:]
        if shared:
            above = [statistics.fmean(each[seed][step] - reference[seed][step] for seed in shared) for step in later]
            right.plot(later, above, marker=".", label=f"{label} ({len(shared)} seeds)" if shared[1:] else label)
    left.set(xlabel="optimizer steps after the start", ylabel="validation loss (nats)", yscale="log")
    right.set(xlabel="optimizer steps after the start", ylabel=f"loss minus that of {REFERENCE} (nats)")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--ner_data", required=True)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max_megabytes", type=float, default=20)
    parser.add_argument("--validation_share", type=float, default=0.02)
    parser.add_argument("--per_token", type=int, default=16)
    parser.add_argument("--head_steps", type=int, default=300, help="optimizer steps of a new masked-LM head")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of pre-training from each start")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of pre-training")
    parser.add_argument("--tasks", nargs="+", default=["ncbi-disease", "bc5-chem"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ner_epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, which share the processor")
    options = parser.parse_args()
    work, every = options.work, max(1, len(os.sched_getaffinity(0)))
    base = work / "base"
    if not base.is_dir():
        base_with_head(options, base)
    text = ["--corpus", *options.corpus, "--max_megabytes", f"{options.max_megabytes:g}"]
    text += ["--validation_share", f"{options.validation_share:g}"]
    model = ["--base_model", str(base)]
    shared = ["--output_dir", str(work / "shared")]
    run_script("train_vocabulary", *shared, *model, *text, "--size", "30522", threads=every)
    run_script("find_contexts", *shared, *model, *text, "--per_token", str(options.per_token), threads=every)
    pretrainings, heads = [], []
    for number, (label, chosen) in enumerate(VARIANTS.items()):
        for seed in seeds_of(number, options.seeds):
            folder = folder_of(work, label, seed)
            folder.mkdir(exist_ok=True)
            for name in ("tokenizer", "contexts"):
                if not (folder / name).exists():
                    (folder / name).symlink_to(work.resolve() / "shared" / name)
            own = ["--seed", str(seed if label == "random" else 0), "--bf16"]
            run_script("distill_embeddings", "--output_dir", str(folder), *model, *own, *chosen, threads=every)
            target = folder / f"seed-{seed}"
            pretrainings.append(
                (
                    seed,
                    [
                        *("--output_dir", str(target), "--model", str(folder / "v0.0"), *text, "--seed", str(seed)),
                        *("--max_steps", str(options.steps), "--learning_rate", f"{options.learning_rate:g}"),
                        *("--per_device_train_batch_size", "16", "--max_length", str(BLOCK), "--bf16"),
                        *(
                            "--eval_steps",
                            str(max(1, options.steps // 6)),
                            "--save_steps",
                            "100",
                            "--report_to",
                            "none",
                        ),
                    ],
                )
            )
            if label not in WITHOUT_HEADS:
                heads.append((seed, f"{folder.name}={folder / 'v0.0'}"))
    heads += [(seed, f"base={base}") for seed in options.seeds]
    threads = max(1, every // options.jobs)

    def train(job: tuple[int, list[str]]) -> None:
        run_script("pretrain", *job[1], threads=threads)

    def head(job: tuple[int, str]) -> None:
        seed, model = job
        for task in options.tasks:
            run_script(
                "finetune_ner",
                *("--output_dir", str(work), "--ner_data", options.ner_data, "--tasks", task, "--models", model),
                *(
                    "--seeds",
                    str(seed),
                    str(seed),
                    "--num_train_epochs",
                    str(options.ner_epochs),
                    "--learning_rate",
                    "2e-4",
                ),
                *("--per_device_train_batch_size", "32", "--bf16"),
                threads=threads,
            )

    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(train, sorted(pretrainings, key=lambda job: job[0])):
            write_summary(work, options)
        for _ in pool.map(head, sorted(heads, key=lambda job: (job[0], not job[1].startswith("base=")))):
            write_summary(work, options)


def write_summary(work: Path, options: argparse.Namespace) -> None:
    summary = summarize(work, options.tasks, options.seeds)
    (work / "summary.md").write_text(summary)


if __name__ == "__main__":
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    main()
