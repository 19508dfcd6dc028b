"""Build a package from a NER head: a wheel that, once installed, is found by its name."""

from __future__ import annotations

import filecmp
import importlib.metadata
import importlib.util
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf import __version__
from bioptimus_hf.annotation.engines import is_exported
from bioptimus_hf.annotation.labels import interpret_labels
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import (
    PACKAGE,
    PACKAGED,
    RECORD,
    fingerprint,
    read_json,
    read_record,
    verify,
    write_with_checksum,
)
from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.models import (
    HEAD_PACKAGES,
    Source,
    check_tokenizer,
    describe_tokenizer,
    find_model,
    load_by_name,
    load_token_classifier,
    longest_input,
    save_tokenizer,
)
from bioptimus_hf.ner.calibration import recommended_min_score
from bioptimus_hf.ner.results import tests_of
from bioptimus_hf.publishing.cards import render
from bioptimus_hf.publishing.checks import check_private
from bioptimus_hf.publishing.options import PackageOptions
from bioptimus_hf.publishing.wheel import (
    LICENSE,
    WheelMetadata,
    module_name,
    normal_license,
    normal_name,
    normal_version,
    write_wheel,
)
from bioptimus_hf.storage import atomic_file, manifest_of, remove_leftovers

logger = logging.getLogger(__name__)

REQUIREMENTS = (
    f"bioptimus-hf>={__version__},<{int(__version__.partition('.')[0]) + 1}",
    "transformers>=5.17,<6",
)
"""What a package needs: the bounds of transformers are those of this package."""
_PYTHON = ">=3.11"
_FIRST_VERSION = "0.1.0"
_PLACES = ("name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file")  # of whoever saved a tokenizer
_MODULE = '''"""Named entity recognition: the head {name} {version}, packaged by bioptimus_hf."""

from pathlib import Path

__version__ = "{version}"


def load(**options):
    """Return a bioptimus_hf.Annotator with this head; options are passed to it."""
    from bioptimus_hf import Annotator

    return Annotator(Path(__file__).parent / "{folder}", **options)
'''


@check_call()
def package_head(options: PackageOptions) -> Path:
    """Build a wheel from a NER head: weights in half precision, tokenizer, configuration, card and licence.

    Once the wheel is installed, `Annotator(name)` and every option that takes a head find it by its name, unless there
    is a folder of that name; and its own `load(**options)` returns an `Annotator`. Weights are stored in float16, which
    rounds eight times more finely than bfloat16, and loaded in float32. A tensor with values above the range of float16
    stays in float32. The same head, options and versions of the libraries give the same bytes.

    Args:
        options: the head, and what the package says about itself.

    Returns:
        The wheel. Nothing is written if this very wheel is there.

    Raises:
        InputError: there is no such head, it isn't a trained token classifier or its files have changed; the name is
            that of another installed package or module; the files would contain a path of this machine or a token; or
            there is another wheel of the same name and `force` is false.
    """
    name = normal_name(options.name)
    _check_free(name)
    source = find_model(options.head)
    if is_exported(source.folder):
        raise InputError(f"{options.head} contains an exported file: give the head that it was exported from")
    verify(source.folder)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / PACKAGED
        metadata = _write_head(options, source, folder)
        files: dict[str, Path | bytes] = {
            f"{metadata.module}/{PACKAGED}/{file.name}": file for file in folder.iterdir() if file.is_file()
        }
        files[f"{metadata.module}/__init__.py"] = _MODULE.format(
            name=name, version=metadata.version, folder=PACKAGED
        ).encode()
        built = Path(scratch) / metadata.file_name
        write_wheel(built, metadata, files)
        return _put(built, Path(options.output_dir), force=options.force)


def _check_free(name: str) -> None:
    """Raise if a name is that of an installed package or module, other than a package with a head."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        if package.entry_points.select(group=HEAD_PACKAGES):
            return  # another version of it
        raise InputError(f"{name} {package.version} is installed and isn't a head: choose another", argument="name")
    module = importlib.util.find_spec(module_name(name))
    if module is None:
        return
    # Namespace packages such as `google` have no origin. Neither has any folder of the working directory.
    if module.origin is not None or module.name in importlib.metadata.packages_distributions():
        raise InputError(f"`import {module.name}` already imports another module: choose another", argument="name")


def _write_head(options: PackageOptions, source: Source, folder: Path) -> WheelMetadata:
    """Write the files of a head, its card and record, and return the metadata of the wheel."""
    model = load_token_classifier(source.folder)
    tokenizer: PreTrainedTokenizerBase = load_by_name(AutoTokenizer, source.folder)
    describe_tokenizer(tokenizer)  # raises for a slow one, which has no offsets
    check_tokenizer(tokenizer, model.config, name=options.head)
    tokenizer.model_max_length = longest_input(model.config, tokenizer)
    for place in _PLACES:
        tokenizer.init_kwargs.pop(place, None)
    weights, kept = _in_half_precision(model)
    if kept:
        number = counted(len(kept), "tensor")
        logger.warning("kept %s in float32, with values beyond the range of float16: for example %s", number, kept[0])
    model.save_pretrained(folder, state_dict=weights)
    save_tokenizer(tokenizer, folder)
    facts = {
        "architecture": type(model).__name__,
        "types": _types(model, options.head),
        "kept": counted(len(kept), "tensor") if kept else None,
        "max_length": tokenizer.model_max_length,
        "min_score": recommended_min_score(model.config),
        "commit": source.commit,
        "trained": _trained(Path(source.folder)),
    }
    metadata = _metadata(options, facts)
    (folder / "README.md").write_text(metadata.description, encoding="utf-8")
    if metadata.license_text is not None:
        (folder / LICENSE).write_bytes(metadata.license_text)
    _write_record(folder, source, metadata)
    for file in folder.iterdir():
        check_private(file)
    return metadata


def _metadata(options: PackageOptions, facts: Mapping[str, Any]) -> WheelMetadata:
    """Return what the wheel says about itself, with the card as its description.

    Args:
        facts: that the card states about the head.
    """
    name, license = normal_name(options.name), normal_license(options.license)
    version = normal_version(options.version or facts["trained"].get("version", _FIRST_VERSION))
    own = {"name": name, "module": module_name(name), "version": version, "license": license}
    return WheelMetadata(
        name=name,
        version=version,
        license=license,
        summary=f"NER head that finds {', '.join(facts['types'])}"[:200],
        requirements=REQUIREMENTS,
        python=_PYTHON,
        entry_points={HEAD_PACKAGES: {name: f"{module_name(name)}:load"}},
        description=render("package.md", {**facts, **own}),
        license_text=_license_text(options.license_file),
    )


def _in_half_precision(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return weights in float16, and the names of those with values beyond its range, which stay as they are."""
    weights: dict[str, torch.Tensor] = {}
    kept = []
    for name, values in model.state_dict().items():
        half = values.half() if values.is_floating_point() else values
        if values.is_floating_point() and not bool(half.isfinite().all()):
            half = values
            kept.append(name)
        weights[name] = half
    return weights, kept


def _types(model: PreTrainedModel, name: str) -> list[str]:
    """Return the types that a head finds, or its labels if they don't name types."""
    try:
        tags = interpret_labels(model.config.id2label, {}, name=name)
    except InputError:
        return sorted(model.config.id2label.values())
    return sorted({tag.type for tag in tags.values()} - {""})


def _trained(folder: Path) -> dict[str, Any]:
    """Return how a head of a run was trained and scored; empty for others."""
    if not (folder / RECORD).is_file() or not (folder / "scores.json").is_file():
        return {}
    scores: Mapping[str, Any] = read_json(folder / "scores.json")
    record = read_record(folder)
    kind, _, base = str(record["inputs"].get("model")).partition(":")
    version = re.fullmatch(r"v(\d+(?:\.\d+)*)", scores["model"])
    return {
        "tests": tests_of(scores),
        "model": base if kind == "name" else scores["model"],
        "seed": scores["seed"],
        "scorer": scores["scorer"],
        **({"version": version[1]} if version else {}),
    }


def _license_text(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror or error})", argument="license_file") from error


def _write_record(folder: Path, source: Source, metadata: WheelMetadata) -> None:
    """Write the record by which the files are verified. It has nothing that differs between two builds."""
    inputs = {"model": source.identity}
    settings = {"name": metadata.name, "version": metadata.version, "license": metadata.license, "weights": "float16"}
    record = {
        PACKAGE: f"{metadata.name}=={metadata.version}",
        "fingerprint": fingerprint(inputs, settings),
        "inputs": inputs,
        "settings": settings,
        "sources": {},
        "facts": {},
        "files": manifest_of(folder.iterdir(), folder),
    }
    write_with_checksum(folder / RECORD, record)


def _put(built: Path, folder: Path, *, force: bool) -> Path:
    """Copy a wheel to its folder, unless it is there."""
    path = folder / built.name
    if path.is_file() and filecmp.cmp(built, path, shallow=False):
        logger.info("%s: already built from the same head with the same options, skipped", path)
        return path
    if path.exists() and not force:
        raise InputError(f"{path} exists with other contents: choose another output_dir, or use force to replace it")
    try:
        remove_leftovers(path)
        with atomic_file(path) as temporary:
            shutil.copyfile(built, temporary)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): choose another output_dir") from error
    logger.info("saved %s", path)
    return path
