#!/usr/bin/env python
"""Train through the masking curriculum with the stock Trainer.

    python scripts/examples/stock_trainer.py --text abstracts.txt --model google-bert/bert-base-uncased --output_dir out

Writes OUTPUT_DIR/v0.1 ... v0.4. Two lines differ from an ordinary script, besides the import. They are numbered.
"""

from __future__ import annotations

import argparse
import gc

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments

from bioptimus_hf import BioptimusDataCollator, CurriculumCallback


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="file with one text per line")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=1000)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = load_dataset("text", data_files=options.text, split="train")
    rows = texts.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True, remove_columns="text"
    )
    collator = BioptimusDataCollator(tokenizer)  # 1: instead of DataCollatorForLanguageModeling
    trainer = Trainer(
        model=AutoModelForMaskedLM.from_pretrained(options.model),
        args=TrainingArguments(output_dir=f"{options.output_dir}/trainer", max_steps=options.max_steps),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[CurriculumCallback(collator, export_dir=options.output_dir)],  # 2
    )
    trainer.train()
    # Free the model, then destroy the process group (if there is one), before the interpreter shuts down.
    del trainer
    gc.collect()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
