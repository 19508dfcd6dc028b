#!/usr/bin/env python
"""Reading contexts with the base model: ours and the plain loop, on the same contexts, in one run.

    python scripts/find_contexts.py --output_dir runs/mine ... --per_token 64
    python benchmarks/bench_distillation.py --contexts runs/mine/contexts --base_model google-bert/bert-base-uncased

The plain loop encodes every (token, context) pair, in batches of 32 in the order of the data set, padded to the longest
of the batch, in float32. Both take the contexts of the same sentences, a sample; a sentence has all of its tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.models import load_masked_lm

PLAIN_BATCH = 32


@torch.no_grad()
def plain_loop(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, contexts: Dataset
) -> dict[str, torch.Tensor]:
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
    return {token: torch.stack(each).mean(dim=0) for token, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", required=True, help="folder, from find_contexts.py")
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--sentences", type=int, default=600, help="size of the sample")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    every = load_from_disk(options.contexts)
    texts = sorted(set(every["text"]))
    chosen = set(random.Random(0).sample(texts, min(options.sentences, len(texts))))
    contexts = every.filter(lambda text: text in chosen, input_columns="text")
    tokenizer = AutoTokenizer.from_pretrained(options.base_model)
    model, _ = load_masked_lm(options.base_model)
    model.eval()
    runs = {
        "plain loop": lambda: plain_loop(model, tokenizer, contexts),
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
    print(
        f"{len(every)} contexts of {len(texts)} sentences, {len(every) / len(texts):.2f} a sentence; the sample: "
        f"{len(contexts)} of {len(chosen)}; {torch.get_num_threads()} threads"
    )
    plain = vectors["plain loop"]
    slowest = statistics.median(seconds["plain loop"])
    print(f"{'':<20}{'contexts/s':>12}{'ratio':>8}{'largest difference':>20}{'least cosine':>14}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        pairs = [(plain[token], vector) for token, vector in vectors[name].items()]
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        cosine = min(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs)
        print(f"{name:<20}{len(contexts) / median:>12.0f}{slowest / median:>7.1f}x{difference:>20.1e}{cosine:>14.5f}")


if __name__ == "__main__":
    main()
