"""Load published versions as anybody would, in a process of its own, and compare them with what was meant.

    python -P loading.py REPOSITORY ARCHITECTURE TAG=FOLDER ...

It needs transformers alone, as they do. `hub` runs it with an empty cache, and with a token only where one is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel

_TEXT = "Methacholine provoked bronchoconstriction in patients with asthma."


def differences(repo_id: str, architecture: str, tag: str, folder: Path) -> list[str]:
    """Return in what a published version differs from the folder that it was made from."""
    auto = {"BertForMaskedLM": "AutoModelForMaskedLM"}.get(architecture, "AutoModelForTokenClassification")
    kind = getattr(transformers, auto)
    found: PreTrainedModel = kind.from_pretrained(repo_id, revision=tag)
    meant: PreTrainedModel = kind.from_pretrained(str(folder))
    wrong = [] if type(found).__name__ == architecture else [f"the model is a {type(found).__name__}"]
    weights, expected = found.state_dict(), meant.state_dict()
    file = load_file(folder / "model.safetensors")  # what is on disk, whatever the library makes of it
    wrong += sorted(weights.keys() ^ expected.keys())
    wrong += [name for name, values in expected.items() if name in weights and not weights[name].equal(values)]
    wrong += [name for name, values in file.items() if name not in weights or not weights[name].equal(values)]
    if found.config.id2label != meant.config.id2label:
        wrong.append("the labels")
    theirs, ours = AutoTokenizer.from_pretrained(repo_id, revision=tag), AutoTokenizer.from_pretrained(str(folder))
    if theirs.get_vocab() != ours.get_vocab() or theirs(_TEXT).input_ids != ours(_TEXT).input_ids:
        wrong.append("the tokenizer")
    return wrong


def main() -> None:
    """Compare each version that is named, and end with status 3 where one differs."""
    repo_id, architecture, *versions = sys.argv[1:]
    for version in versions:
        tag, _, folder = version.partition("=")
        if wrong := differences(repo_id, architecture, tag, Path(folder)):
            print(f"{tag} differs in {', '.join(wrong[:3])}", file=sys.stderr)
            sys.exit(3)


if __name__ == "__main__":
    main()
