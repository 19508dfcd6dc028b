"""Recipes, curricula and configurations of Accelerate that come with the package; find them by name."""

from __future__ import annotations

from pathlib import Path

from bioptimus_hf.errors import InputError


def find(name: str, kind: str = "") -> Path:
    """Return the path of a YAML file.

    Args:
        name: a path, or the name of a file that comes with the package, without `.yaml`.
        kind: folder of the package's files: "" (recipes), "curricula" or "accelerate".

    Raises:
        InputError: there is neither such a file nor such a name.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(__file__).parent / kind
    shipped = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        raise InputError(f"{name} is neither a file nor one of {', '.join(shipped)}")
    return shipped[name]
