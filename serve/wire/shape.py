"""How a JSON object lies in a message of api.proto, whichever format carries the message.

A field takes the JSON values of its own kind. Whatever fits in no field is kept, as JSON, in the message's
``extra_json``: fields that the schema does not know, and values of other shapes. Null and the empty list are as absent.
"""

from __future__ import annotations

import binascii
import math
from array import array
from base64 import b64decode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any

import msgspec
import numpy as np
from google.protobuf.descriptor import FieldDescriptor

from serve.wire import api_pb2

_KEYS = {"prompt_ids": "prompt", "input_ids": "input", "stop_token": "stop_reason"}
"""Fields named otherwise than in JSON; those that end in _texts and _json are named by their beginnings."""
_EXTRA = "extra_json"
_MAX_SINGLE = 3.4028234663852886e38

Take = Callable[[Any], Any]


class Malformed(ValueError):
    """A body that is not what its media type says."""


class Kind(Enum):
    """What a field holds."""

    text = FieldDescriptor.TYPE_STRING
    truth = FieldDescriptor.TYPE_BOOL
    int32 = FieldDescriptor.TYPE_INT32
    int64 = FieldDescriptor.TYPE_INT64
    single = FieldDescriptor.TYPE_FLOAT
    double = FieldDescriptor.TYPE_DOUBLE
    message = FieldDescriptor.TYPE_MESSAGE
    json = "json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A field of a message; api.fbs has it in slot ``number`` - 1 of its table."""

    name: str
    number: int
    key: str
    """Its name in JSON."""
    kind: Kind
    is_list: bool
    shape: Shape | None
    """Of the message in it."""
    is_inline: bool
    """Whether a table holds the value itself, not where it is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """A message; its fields are ordered by number, from 1 without gaps."""

    name: str
    fields: tuple[Field, ...]
    takers: dict[str, tuple[tuple[str, Take], ...]]
    """For each JSON name the fields that can hold its values, the likeliest first, and how."""


@cache
def shape_of(name: str) -> Shape:
    """Returns the shape of a message.

    Raises:
        KeyError: when api.proto has none of that name.
    """
    fields = tuple(_field(field) for field in api_pb2.DESCRIPTOR.message_types_by_name[name].fields)
    takers: dict[str, tuple[tuple[str, Take], ...]] = {}
    for field in fields:
        if field.name != _EXTRA:
            takers[field.key] = (*takers.get(field.key, ()), (field.name, _taker(field)))
    return Shape(name=name, fields=fields, takers=takers)


def _field(field: Any) -> Field:
    is_json = field.name.endswith("_json") and field.name != _EXTRA
    kind = Kind.json if is_json else Kind(field.type)
    return Field(
        name=field.name,
        number=field.number,
        key=_KEYS.get(field.name) or (field.name.removesuffix("_json").removesuffix("_texts")),
        kind=kind,
        is_list=field.is_repeated,
        shape=field.message_type and shape_of(field.message_type.name),
        is_inline=not field.is_repeated and kind not in (Kind.text, Kind.json, Kind.message),
    )


def fit(shape: Shape, body: dict[str, Any]) -> dict[str, Any]:
    """Puts a JSON object into a message.

    Returns:
        What each field holds, by the field's name: messages are dicts, lists of numbers arrays of type i or f.
    """
    fitted: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    takers = shape.takers
    for key, value in body.items():
        if value is None or value == []:
            continue
        for name, take in takers.get(key, ()):
            if (taken := take(value)) is not None:
                fitted[name] = taken
                break
        else:
            extra[key] = value
    if extra:
        fitted[_EXTRA] = msgspec.json.encode(extra).decode()
    return fitted


def unfit(fields: Iterable[tuple[Field, Any]]) -> dict[str, Any]:
    """Takes a JSON object out of a message.

    Args:
        fields: those that are set; messages in them are JSON objects already.

    Raises:
        Malformed: when two fields name the same, a number is not finite, or JSON is none.
    """
    body: dict[str, Any] = {}
    for field, value in fields:
        if field.name == _EXTRA:
            value = _parse(value)
            if not isinstance(value, dict):
                raise Malformed("extra_json must be a JSON object")
            named = value
        else:
            if field.kind is Kind.json:
                value = _parse(value)
            elif field.kind in (Kind.single, Kind.double) and not math.isfinite(sum(value) if field.is_list else value):
                raise Malformed(f"{field.name} must be finite")
            named = {field.key: value}
        for key in named:
            if key in body:
                raise Malformed(f"{field.name} names a field that is there twice")
        body.update(named)
    return body


def pairs(keys: list[str], values: list[float]) -> dict[str, float]:
    """Returns the object of a message ``Pairs``.

    Raises:
        Malformed: when there are more of one than of the other, or a number is not finite.
    """
    if len(keys) != len(values) or not math.isfinite(sum(values)):
        raise Malformed("keys and values must be as many, and finite")
    return dict(zip(keys, values, strict=True))


def singles(value: Any) -> array | None:
    """Returns numbers as 32-bit floats, from a list, or from text: little-endian ones in base64, as OpenAI has them.

    Returns:
        Null where they are neither, or some are not finite.
    """
    if type(value) is str and value:
        try:
            numbers = array("f", b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            return None
    elif type(value) is list and {*map(type, value)} <= {float, int}:
        try:
            numbers = array("f", value)
        except OverflowError:
            return None
    else:
        return None
    return numbers if np.isfinite(np.frombuffer(numbers, np.float32)).all() else None


def _taker(field: Field) -> Take:
    """Returns what makes of a JSON value what the field holds; null where it cannot hold it."""
    inner = field.shape
    if inner is not None:
        take = _pairs if inner.name == "Pairs" else partial(_message, inner)
        return partial(_messages, take) if field.is_list else take
    return (_LISTS if field.is_list else _SCALARS)[field.kind]


def _message(shape: Shape, value: Any) -> dict[str, Any] | None:
    return fit(shape, value) if type(value) is dict else None


def _messages(take: Take, value: Any) -> list[dict[str, Any]] | None:
    if type(value) is not list:
        return None
    taken = [take(item) for item in value]
    return None if None in taken else taken


def _pairs(value: Any) -> dict[str, Any] | None:
    numbers = singles(list(value.values())) if type(value) is dict else None
    return None if numbers is None else {"keys": list(value), "values": numbers}


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _truth(value: Any) -> bool | None:
    return value if type(value) is bool else None


def _int64(value: Any) -> int | None:
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _single(value: Any) -> float | None:
    return value if type(value) is float and abs(value) <= _MAX_SINGLE else None


def _double(value: Any) -> float | None:
    is_exact = type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return float(value) if is_exact else None


def _any(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _texts(value: Any) -> list[str] | None:
    return value if type(value) is list and {*map(type, value)} == {str} else None


def _int32s(value: Any) -> array | None:
    is_held = type(value) is list and {*map(type, value)} == {int} and -(2**31) <= min(value) <= max(value) < 2**31
    return array("i", value) if is_held else None


_SCALARS: dict[Kind, Take] = {
    Kind.text: _text,
    Kind.truth: _truth,
    Kind.int64: _int64,
    Kind.single: _single,
    Kind.double: _double,
    Kind.json: _any,
}
_LISTS: dict[Kind, Take] = {Kind.text: _texts, Kind.int32: _int32s, Kind.single: singles}


def _parse(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise Malformed("JSON in a field is no JSON") from None
