"""Load data sets from the Hub, pinned to a commit."""

from __future__ import annotations

from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import constants

from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.models import find_files, split_revision


def pin_dataset(name: str) -> str:
    """Return the name of a data set on the Hub as `name@commit`.

    Args:
        name: `name` or `name@revision`. Offline, the commit is the one that the revision pointed to when it was last
            looked up online.

    Raises:
        InputError: the data set isn't available.
    """
    return str(find_files(name, [".gitattributes"]).commit)  # a file that every repository has


def load_pinned(pinned: str, split: str | None = None) -> Dataset | DatasetDict:
    """Load a data set from the Hub at the commit that `pin_dataset` returned.

    Args:
        pinned: `name@commit`.
        split: one split, also a slice like `train[:10%]`; by default all of them.

    Raises:
        InputError: the data set can't be loaded, or this process is offline and has no copy of this commit.
    """
    name, commit = split_revision(pinned)
    try:
        dataset = load_dataset(name, revision=commit, split=split)
    except Exception as error:  # the client raises many kinds; all mean that the data set isn't available
        raise InputError(f"{name} can't be loaded from the Hub ({format_error(error)})") from error
    # Offline, `datasets` loads the newest copy in its cache, no matter which revision was asked for.
    if constants.HF_HUB_OFFLINE and str(commit) not in str(dataset.cache_files):
        raise InputError(f"{name}: commit {commit} is not in the cache: load it once without HF_HUB_OFFLINE")
    return dataset
