"""The masked-language-model scripts of transformers, with our lines: trained, stopped and resumed to the same bytes.

They are read from where BIOPTIMUS_HF_EXAMPLES points: a folder with `run_mlm.py` and `run_mlm_no_trainer.py` of the
installed transformers (examples/pytorch/language-modeling).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, build_tiny_bert
from processes import Processes
from transformers import BertTokenizer

from bioptimus_hf.models import save_masked_lm

IMPORT = (r"^import transformers$", "import transformers\nfrom bioptimus_hf import {}")
COLLATOR = (
    r"^    data_collator = DataCollatorForLanguageModeling\((.|\n)*?\)$",
    "    data_collator = BioptimusDataCollator(tokenizer)",
)
CHANGES = {
    "run_mlm_no_trainer.py": [
        (IMPORT[0], IMPORT[1].format("BioptimusDataCollator, CurriculumLoop")),
        COLLATOR,
        (
            r"^    args.num_train_epochs = math.ceil\(.*\)$",
            r"\g<0>\n    curriculum = CurriculumLoop("
            r"accelerator, train_dataloader, args.max_train_steps, export_dir=args.output_dir)",
        ),
        (r"^            if accelerator.sync_gradients:$", r"\g<0>\n                curriculum.step(model)"),
    ],
    "run_mlm.py": [
        (IMPORT[0], IMPORT[1].format("BioptimusDataCollator, CurriculumCallback")),
        COLLATOR,
        (
            r"^        data_collator=data_collator,$",
            r"\g<0>\n        callbacks=[CurriculumCallback(data_collator, export_dir=training_args.output_dir)],",
        ),
    ],
}
"""What to replace in each script, as docs/adapt.md shows it."""


def changed(name: str, folder: Path) -> Path:
    """Write a script with our lines."""
    place = os.environ.get("BIOPTIMUS_HF_EXAMPLES")
    if not place or not (Path(place) / name).is_file():
        pytest.skip(f"needs BIOPTIMUS_HF_EXAMPLES: a folder with {name} of transformers")
    text = (Path(place) / name).read_text(encoding="utf-8")
    for pattern, replacement in CHANGES[name]:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, pattern
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_at_most_four_lines_change_as_the_page_shows() -> None:
    assert [len(changes) for changes in CHANGES.values()] == [4, 3]
    page = (ROOT / "docs" / "adapt.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", page, re.M | re.S)
    shown = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    ours = [
        replacement.splitlines()[-1].split("\\n")[-1].strip() for _, replacement in CHANGES["run_mlm_no_trainer.py"]
    ]
    assert shown == ours


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", CHANGES)
def test_a_published_script_resumes_exactly(
    name: str, ranks: int, tokenizer: BertTokenizer, processes: Processes, tmp_path: Path
) -> None:
    script = changed(name, tmp_path)
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "model")
    texts = [f"Aspirin in severe asthma, binding {number} of the mice." for number in range(120)]
    (tmp_path / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    common: list[object] = ["--train_file", tmp_path / "text.txt", "--validation_file", tmp_path / "text.txt"]
    common += ["--model_name_or_path", tmp_path / "model", "--max_seq_length", 16, "--seed", 1]
    common += ["--per_device_train_batch_size", 4]
    if name == "run_mlm.py":
        state = "checkpoint-7"
        common += ["--max_steps", 20, "--save_steps", 7, "--do_train", "--do_eval", "--use_cpu", "true"]
    else:
        state = "step_7"
        common += ["--max_train_steps", 20, "--checkpointing_steps", 7]
    for folder in ("whole", "resumed"):
        resume = ["--resume_from_checkpoint", tmp_path / "resumed" / state] if folder == "resumed" else []
        processes.launch([script, *common, "--output_dir", tmp_path / folder, *resume], ranks)
        if folder == "whole":
            shutil.copytree(tmp_path / "whole" / state, tmp_path / "resumed" / state)
    for version in ("v0.2", "v0.3", "v0.4"):
        whole, resumed = (tmp_path / folder / version / "model.safetensors" for folder in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes()
