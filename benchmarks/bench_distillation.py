#!/usr/bin/env python
"""Compare the reading of contexts with a plain loop, on the same contexts and model.

    bioptimus find-contexts --output_dir runs/mine ... --per_token 64
    python benchmarks/bench_distillation.py --contexts runs/mine/contexts --base_model google-bert/bert-base-uncased

The plain loop encodes every (token, context) pair, in batches of 32 in the order of the data set, padded to the longest
of the batch, in float32. Both read the contexts of the same sample of sentences, each with all of its tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.models import load_masked_lm

PLAIN_BATCH = 32
PLAIN = "plain loop"

Vectors = Mapping[str, torch.Tensor]


@torch.no_grad()
def plain_loop(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, contexts: Dataset
) -> dict[str, torch.Tensor]:
    """Encode every pair of token and context."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for batch in contexts.iter(batch_size=PLAIN_BATCH):
        encoded = tokenizer(
            batch["text"], padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt"
        )
        offsets = encoded.pop("offset_mapping")
        states = model.bert(**encoded).last_hidden_state
        for row, (token, start, end) in enumerate(zip(batch["token"], batch["start"], batch["end"], strict=True)):
            inside = (offsets[row, :, 1] > start) & (offsets[row, :, 0] < end) & (offsets[row, :, 1] > 0)
            found[token].append(states[row, inside].mean(dim=0))
    return {token: torch.stack(states).mean(dim=0) for token, states in found.items()}


def measure(
    options: argparse.Namespace, contexts: Dataset
) -> tuple[dict[str, list[float]], dict[str, dict[str, torch.Tensor]]]:
    """Return the seconds of each run and the vectors, by name."""
    tokenizer = AutoTokenizer.from_pretrained(options.base_model)
    model, _ = load_masked_lm(options.base_model)
    model.eval()
    runs = {
        PLAIN: lambda: plain_loop(model, tokenizer, contexts),
        "ours, float32": lambda: contextual_embeddings(model, tokenizer, contexts),
        "ours, bfloat16": lambda: contextual_embeddings(model, tokenizer, contexts, bf16=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    vectors: dict[str, dict[str, torch.Tensor]] = {}
    for _ in range(options.repeat):
        for name, work in runs.items():
            start = time.perf_counter()
            vectors[name] = work()
            seconds[name].append(time.perf_counter() - start)
    return seconds, vectors


def print_table(contexts: int, seconds: Mapping[str, Sequence[float]], vectors: Mapping[str, Vectors]) -> None:
    """Print speed, and how much the vectors differ from those of the plain loop."""
    reference = statistics.median(seconds[PLAIN])
    print(f"{'':<20}{'contexts/s':>12}{'ratio':>8}{'largest difference':>20}{'lowest cosine':>15}")
    for name, times in seconds.items():
        median = statistics.median(times)
        pairs = [(vectors[PLAIN][token], vector) for token, vector in vectors[name].items()]
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        cosine = min(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs)
        print(f"{name:<20}{contexts / median:>12.0f}{reference / median:>7.1f}x{difference:>20.1e}{cosine:>15.5f}")


def main() -> None:
    """Draw the sample, run both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", required=True, help="folder written by find-contexts")
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--sentences", type=int, default=600, help="sentences in the sample")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    options = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    all_contexts = load_from_disk(options.contexts)
    texts = sorted(set(all_contexts["text"]))
    chosen = set(random.Random(0).sample(texts, min(options.sentences, len(texts))))
    contexts = all_contexts.filter(lambda text: text in chosen, input_columns="text")
    seconds, vectors = measure(options, contexts)
    print(
        f"{len(all_contexts)} contexts in {len(texts)} sentences, {len(all_contexts) / len(texts):.2f} per sentence; "
        f"sample: {len(contexts)} in {len(chosen)}; {torch.get_num_threads()} threads"
    )
    print_table(len(contexts), seconds, vectors)


if __name__ == "__main__":
    main()
