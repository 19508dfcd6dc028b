"""Read and validate the YAML metadata of a README.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

LICENSES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd "  # noqa: SIM905
    "bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 "
    "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gpl gpl-2.0 "
    "gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc llama2 llama3 gemma mpl-2.0 ms-pl odbl odc-by pddl postgresql ofl-1.1 ncsa "
    "unlicense zlib unknown other".split()
)
PIPELINE_TAGS = frozenset(
    "fill-mask token-classification text-classification question-answering summarization translation "  # noqa: SIM905
    "text-generation feature-extraction sentence-similarity table-question-answering zero-shot-classification "
    "text-ranking other".split()
)
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


class BadCard(Exception):
    """The metadata isn't valid YAML, or not a mapping."""


def metadata(content: str) -> dict[str, Any]:
    """Return the metadata of a README.

    Raises:
        BadCard: the metadata can't be read.
    """
    front = _FRONT.match(content)
    if front is None:
        return {}
    try:
        data = yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        raise BadCard(f"Invalid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadCard("The metadata must be a mapping")
    return data


def check(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Return the errors and warnings of the Hub about a README."""
    try:
        data = metadata(content)
    except BadCard as error:
        return [str(error)], []
    errors, warnings = list(_errors(data, kind)), []
    if not data:
        warnings.append("empty or missing yaml metadata in repo card")
    tag = data.get("pipeline_tag")
    if isinstance(tag, str) and tag not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{tag}" is not in the official list: {", ".join(sorted(PIPELINE_TAGS))}')
    return errors, warnings


def _errors(data: dict[str, Any], kind: str) -> Iterator[str]:
    for value in _many(data.get("license")):
        if value not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    for value in _many(data.get("language")):
        if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual", value):
            yield f'"language" with value "{value}" is not valid. It must be an ISO 639 code or a special value'
    for value in _many(data.get("base_model")):
        if not isinstance(value, str) or not _ID.fullmatch(value):
            yield f'"base_model" with value "{value}" is not valid. Use a model id from https://hf.co/models'
    for name in ("library_name", "pipeline_tag"):
        if name in data and not isinstance(data[name], str):
            yield f'"{name}" must be a string'
    if "tags" in data and not isinstance(data["tags"], list):
        yield '"tags" must be an array'
    for name in ("tags", "datasets", "metrics"):
        for number, value in enumerate(_many(data.get(name))):
            if not isinstance(value, str):
                yield f'"{name}[{number}]" must be a string'
    if kind == "models" and "model-index" in data:
        yield from _index_errors(data["model-index"])


def _index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for number, model in enumerate(index):
        place = f"model-index[{number}]"
        yield from _missing(model, place, {"name": str, "results": list})
        for number, result in enumerate(_many(_get(model, "results"))):
            inner = f"{place}.results[{number}]"
            yield from _missing(_get(result, "task"), f"{inner}.task", {"type": str})
            yield from _missing(_get(result, "dataset"), f"{inner}.dataset", {"type": str, "name": str})
            metrics = _get(result, "metrics")
            if not isinstance(metrics, list):
                yield f'"{inner}.metrics" is required'
            for number, metric in enumerate(_many(metrics)):
                yield from _missing(metric, f"{inner}.metrics[{number}]", {"type": str, "value": object})


def _missing(value: Any, place: str, wanted: dict[str, type]) -> Iterator[str]:
    for name, type in wanted.items():
        found = _get(value, name)
        if found is None:
            yield f'"{place}.{name}" is required'
        elif not isinstance(found, type):
            yield f'"{place}.{name}" must be {"an array" if type is list else "a string"}'


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def tags(data: dict[str, Any]) -> list[str]:
    """Return the tags that the Hub shows and searches: those of the card, and some derived from other fields."""
    found = [data["library_name"]] if "library_name" in data else []
    found += [*_many(data.get("tags")), *_many(data.get("language"))]
    for name in ("base_model", "license"):
        found += [f"{name}:{value}" for value in _many(data.get(name))]
    found += [f"dataset:{value}" for value in _many(data.get("datasets"))]
    return [str(tag) for tag in dict.fromkeys([*found, "region:us"])]
