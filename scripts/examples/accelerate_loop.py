#!/usr/bin/env python
"""Train through the masking curriculum in a plain Accelerate loop, without a Trainer.

    accelerate launch scripts/examples/accelerate_loop.py --text abstracts.txt --model google-bert/bert-base-uncased \
        --output_dir out

Writes OUTPUT_DIR/v0.1 ... v0.4. Compared with ordinary masked-language-model training, four places are different, which
are numbered: the collator, the curriculum laid out over the steps, the announcement of each iterator over the data, and
saving a version at the end of a phase.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bioptimus_hf import BioptimusDataCollator, follow_curriculum, save_masked_lm


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="file with one text per line")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=16, help="rows per batch and process")
    options = parser.parse_args()
    set_seed(0)
    accelerator = Accelerator()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = load_dataset("text", data_files=options.text, split="train")
    rows = texts.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True, remove_columns="text"
    )
    collator = BioptimusDataCollator(tokenizer)  # 1: instead of DataCollatorForLanguageModeling
    loader = DataLoader(rows, batch_size=options.batch_size, shuffle=True, drop_last=True, collate_fn=collator)
    model = AutoModelForMaskedLM.from_pretrained(options.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if not len(loader):
        parser.error("fewer rows than a batch: give more text, or a smaller --batch_size")
    ends = follow_curriculum(  # 2: with gradient accumulation, add accumulation=...
        collator,
        steps=options.max_steps,
        batch_size=options.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    model.train()
    step = 0
    while step < options.max_steps:
        collator.begin(step)  # 3: micro-batches so far; with gradient accumulation, step * accumulation
        for batch in loader:
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step in ends and accelerator.is_main_process:  # 4: a phase ends
                folder = f"{options.output_dir}/v{ends[step].version}"
                save_masked_lm(accelerator.unwrap_model(model), tokenizer, folder)
            if step == options.max_steps:
                break
    # Free the model before the process group is destroyed: otherwise PyTorch may wait for its own threads.
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    main()
