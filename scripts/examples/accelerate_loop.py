#!/usr/bin/env python
"""Train through the masking curriculum in a plain Accelerate loop, without a Trainer.

    accelerate launch scripts/examples/accelerate_loop.py --text abstracts.txt --model google-bert/bert-base-uncased \
        --output_dir out

Writes OUTPUT_DIR/v0.1 ... v0.4. Compared with ordinary masked-language-model training, three lines are different, which
are numbered. With --save_steps, the same command with --resume goes on from the last state that was saved, bit for bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bioptimus_hf import BioptimusDataCollator, CurriculumLoop


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="file with one text per line")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=16, help="rows per batch and process")
    parser.add_argument("--save_steps", type=int, default=0, help="save the state after each of so many steps")
    parser.add_argument("--resume", action="store_true", help="go on from the state that was saved last")
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
    curriculum = CurriculumLoop(accelerator, loader, options.max_steps, export_dir=options.output_dir)  # 2
    states = Path(options.output_dir) / "states"
    if options.resume:
        saved = sorted(states.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        if not saved:
            parser.error(f"there is no state in {states}: leave --resume out")
        accelerator.load_state(str(saved[-1]))
    model.train()
    seen = curriculum.completed % len(loader)  # batches of the epoch in which the state was saved
    while curriculum.completed < options.max_steps:
        for batch in accelerator.skip_first_batches(loader, seen):
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            curriculum.step(model)  # 3
            if options.save_steps and curriculum.completed % options.save_steps == 0:
                accelerator.save_state(str(states / "saving"))
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:  # complete before it has its name
                    (states / "saving").rename(states / f"step-{curriculum.completed}")
                accelerator.wait_for_everyone()
            if curriculum.completed == options.max_steps:
                break
        seen = 0
    # Free the model before the process group is destroyed: otherwise PyTorch may wait for its own threads.
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    main()
