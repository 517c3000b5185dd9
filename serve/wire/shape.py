"""How a JSON object lies in a message of api.proto, whichever format carries the message.

A field takes the JSON values of its own kind. Whatever fits in no field is kept, as JSON, in the message's
``extra_json``: fields that the schema does not know, and values of other shapes. Null and the empty list are as absent.
"""

from __future__ import annotations

import binascii
import math
from array import array
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor

from serve.wire import api_pb2

_KEYS = {"prompt_ids": "prompt", "input_ids": "input", "stop_token": "stop_reason"}
"""Fields named otherwise than in JSON; those that end in _texts and _json are named by their beginnings."""
_EXTRA = "extra_json"


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """A message; its fields are ordered by number, from 1 without gaps."""

    name: str
    fields: tuple[Field, ...]
    by_key: dict[str, tuple[Field, ...]]
    """What can take a JSON value, the likeliest first."""


@cache
def shape_of(name: str) -> Shape:
    """Returns the shape of a message.

    Raises:
        KeyError: when api.proto has none of that name.
    """
    fields = tuple(_field(field) for field in api_pb2.DESCRIPTOR.message_types_by_name[name].fields)
    by_key: dict[str, tuple[Field, ...]] = {}
    for field in fields:
        if field.name != _EXTRA:
            by_key[field.key] = (*by_key.get(field.key, ()), field)
    return Shape(name=name, fields=fields, by_key=by_key)


def _field(field: Any) -> Field:
    is_json = field.name.endswith("_json") and field.name != _EXTRA
    return Field(
        name=field.name,
        number=field.number,
        key=_KEYS.get(field.name) or (field.name.removesuffix("_json").removesuffix("_texts")),
        kind=Kind.json if is_json else Kind(field.type),
        is_list=field.is_repeated,
        shape=field.message_type and shape_of(field.message_type.name),
    )


def fit(shape: Shape, body: dict[str, Any]) -> dict[str, Any]:
    """Puts a JSON object into a message.

    Returns:
        What each field holds, by the field's name: messages are dicts, lists of numbers arrays of type i or f.
    """
    fitted: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in body.items():
        if value is None or value == []:
            continue
        for field in shape.by_key.get(key, ()):
            if (taken := _take(field, value)) is not None:
                fitted[field.name] = taken
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
    if type(value) is str:
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
    return numbers if math.isfinite(sum(numbers)) else None


def _take(field: Field, value: Any) -> Any:
    """Returns what the field holds of a value; null where it cannot hold it."""
    kind = field.kind
    if field.is_list:
        return singles(value) if kind is Kind.single else _take_list(field, value) if type(value) is list else None
    match kind:
        case Kind.text:
            return value if type(value) is str else None
        case Kind.message:
            return _take_message(field.shape, value) if type(value) is dict else None
        case Kind.truth:
            return value if type(value) is bool else None
        case Kind.int64 | Kind.int32:
            limit = 2**63 if kind is Kind.int64 else 2**31
            return value if type(value) is int and -limit <= value < limit else None
        case Kind.single:
            numbers = singles([value])
            return None if numbers is None else numbers[0]
        case Kind.double:
            is_exact = type(value) is float or (type(value) is int and abs(value) <= 2**53)
            return float(value) if is_exact else None
        case Kind.json:
            return msgspec.json.encode(value).decode()


def _take_list(field: Field, values: list[Any]) -> Any:
    types = {*map(type, values)}
    match field.kind:
        case Kind.text:
            return values if types == {str} else None
        case Kind.int32:
            is_held = types == {int} and min(values) >= -(2**31) and max(values) < 2**31
            return array("i", values) if is_held else None
        case _:
            taken = [_take_message(field.shape, value) for value in values] if types == {dict} else [None]
            return None if None in taken else taken


def _take_message(shape: Shape | None, value: dict[str, Any]) -> dict[str, Any] | None:
    assert shape is not None
    if shape.name != "Pairs":
        return fit(shape, value)
    numbers = singles(list(value.values()))
    return None if numbers is None else {"keys": list(value), "values": numbers}


def _parse(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise Malformed("JSON in a field is no JSON") from None
