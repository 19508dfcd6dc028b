"""Load published versions as any user would, and compare them with the folders they were published from.

    python -P load_back.py REPOSITORY TAG ARCHITECTURE FOLDER [REPOSITORY TAG ...]

This script needs only transformers, as users do. `publish` runs it with an empty cache, and with a token only if the
repository is private.
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel

DIFFERENT = 3
"""Exit status if a version differs from the folder it was published from."""

_TEXT = "Methacholine provoked bronchoconstriction in patients with asthma."


def differences(repo_id: str, tag: str, architecture: str, folder: Path) -> list[str]:
    """Return what differs between a published version and its folder: tensors, labels or the tokenizer."""
    auto_class = {"BertForMaskedLM": "AutoModelForMaskedLM"}.get(architecture, "AutoModelForTokenClassification")
    loader = getattr(transformers, auto_class)
    published: PreTrainedModel = loader.from_pretrained(repo_id, revision=tag)
    local: PreTrainedModel = loader.from_pretrained(str(folder))
    different = [] if type(published).__name__ == architecture else [f"the model class {type(published).__name__}"]
    weights, expected = published.state_dict(), local.state_dict()
    stored = load_file(folder / "model.safetensors")  # the file itself, whatever transformers makes of it
    different += sorted(weights.keys() ^ expected.keys())
    for values in (expected, stored):
        different += [name for name, value in values.items() if name not in weights or not weights[name].equal(value)]
    if published.config.id2label != local.config.id2label:
        different.append("the labels")
    theirs, ours = AutoTokenizer.from_pretrained(repo_id, revision=tag), AutoTokenizer.from_pretrained(str(folder))
    if theirs.get_vocab() != ours.get_vocab() or theirs(_TEXT).input_ids != ours(_TEXT).input_ids:
        different.append("the tokenizer")
    return different


def main() -> None:
    """Compare each version given on the command line; exit with status `DIFFERENT` at the first that differs."""
    arguments = iter(sys.argv[1:])
    for repo_id, tag, architecture, folder in zip(arguments, arguments, arguments, arguments, strict=True):
        if different := differences(repo_id, tag, architecture, Path(folder)):
            print(f"{repo_id} {tag} differs in {', '.join(different[:3])}", file=sys.stderr)
            sys.exit(DIFFERENT)


if __name__ == "__main__":
    main()
