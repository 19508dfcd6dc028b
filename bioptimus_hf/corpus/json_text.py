"""Read and write JSON without altering it: fields that nobody looks at keep their very text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from bioptimus_hf.errors import InputError, format_error

_Value = TypeVar("_Value")
_DIGITS = 4000
_OPENING = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")


class JsonFields(Mapping[str, Any]):
    """Members of a JSON object that are written as they were read. Values are parsed only when they are looked up.

    Args:
        members: for each key, key and value as they were written, such as `"year": 1981`.
    """

    def __init__(self, members: Mapping[str, str]) -> None:
        self._members = members

    def __getitem__(self, name: str) -> Any:
        return parse_leniently(f"{{{self._members[name]}}}")[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"{{{', '.join(self._members.values())}}}"

    def text(self, name: str) -> str:
        """Return key and value as they were written."""
        return self._members[name]


def parse_object(text: str) -> dict[str, tuple[str, Any]]:
    """Return the members of a JSON object: for each key its text, such as `"year": 1981`, and its value.

    Raises:
        InputError: the text isn't JSON, isn't an object, or an object in it has a key twice.
    """
    try:
        return _parsed(_members, text, _STRICT)
    except InputError as error:
        raise InputError(f"{error}: each document must be an object") from error


def parse_leniently(text: str) -> Any:
    """Return the value of a text of which only a string is wanted, so that NaN in other places does no harm.

    Raises:
        InputError: the text isn't JSON, or an object in it has a key twice.
    """
    return _parsed(lambda text, decoder: decoder.decode(text), text, _LENIENT)


def object_text(members: Iterable[str]) -> str:
    """Return an object of members as `member_text` returns them."""
    return f"{{{', '.join(members)}}}"


def member_text(name: str, value: Any) -> str:
    """Return a member of a JSON object.

    Raises:
        InputError: the value can't be written, for instance because a number isn't finite.
    """
    return f"{_ENCODER.encode(name)}: {json_text(value)}"


def field_texts(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield fields as members of a JSON object, those of `JsonFields` as they were read.

    Raises:
        InputError: a value can't be written.
    """
    for name in fields:
        yield fields.text(name) if isinstance(fields, JsonFields) else member_text(name, fields[name])


def json_text(value: Any) -> str:
    """Return a value as JSON on one line; decimals keep all of their digits.

    Raises:
        InputError: the value can't be written, for instance because a number isn't finite.
    """
    try:
        return _ENCODER.encode(value)
    except TypeError:
        return _text_with_decimals(value)
    except ValueError as error:
        raise InputError(f"can't be written as JSON ({format_error(error)})") from error


def _text_with_decimals(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, Mapping):
        return object_text(member_text(str(name), inner) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(json_text, value))}]"
    raise InputError(f"can't be written as JSON ({type(value).__name__} {str(value)[:60]})")


def _parsed(
    parse: Callable[[str, json.JSONDecoder], _Value], text: str, decoders: Iterable[json.JSONDecoder]
) -> _Value:
    fault: Exception | None = None
    for decoder in decoders:
        try:
            return parse(text, decoder)
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            fault = error
    raise InputError(f"not JSON ({format_error(fault or '')})") from fault


def _members(text: str, decoder: json.JSONDecoder) -> dict[str, tuple[str, Any]]:
    members: dict[str, tuple[str, Any]] = {}
    opening = _OPENING.match(text)
    if opening is None:
        decoder.decode(text)  # raises its error, if there is one
        raise InputError("JSON, but not an object")
    begin = opening.end()
    more = not text.startswith("}", begin)
    end = begin + (not more)
    scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]
    try:
        while more:
            name, end = scan(text, begin)
            colon = _COLON.match(text, end)
            if type(name) is not str or colon is None:
                raise StopIteration
            value, end = scan(text, colon.end())
            if name in members:
                raise ValueError(f"the key {name[:60]!r} occurs twice")
            members[name] = text[begin:end], value
            after = _NEXT.match(text, end)
            if after is None:
                raise StopIteration
            begin = end = after.end()
            more = after[1] == ","
        if text[end:].strip(" \t\n\r"):
            raise StopIteration
    except StopIteration:  # something else than JSON
        decoder.decode(text)  # raises its error, which names the place
        raise
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _DIGITS else Decimal(digits)


# The second of each pair is slower, and reads integers of more digits than Python converts to int.
_STRICT = (
    json.JSONDecoder(parse_constant=_reject, object_pairs_hook=_unique),
    json.JSONDecoder(parse_constant=_reject, object_pairs_hook=_unique, parse_int=_integer),  # type: ignore[arg-type]
)
_LENIENT = (
    json.JSONDecoder(object_pairs_hook=_unique),
    json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer),  # type: ignore[arg-type]
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
