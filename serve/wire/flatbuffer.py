"""FlatBuffers: tables of api.fbs.

The runtime's own reader follows any offset, and one table may be reached by many: what a client sends is read here with
bounds. The generated code (api_generated.py) is for clients.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np

from serve.wire.shape import Field, Kind, Malformed, Shape, fit, pairs, unfit

_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")
_SCALARS = {
    Kind.truth: struct.Struct("<?"),
    Kind.int64: struct.Struct("<q"),
    Kind.single: struct.Struct("<f"),
    Kind.double: struct.Struct("<d"),
}
_NUMBERS = {Kind.int32: "i", Kind.single: "f"}
"""Type codes of what a vector of numbers holds."""
_SLOTS = {Kind.truth: "PrependBoolSlot", Kind.int64: "PrependInt64Slot"}
_SLOTS |= {Kind.single: "PrependFloat32Slot", Kind.double: "PrependFloat64Slot"}


def encode(body: dict[str, Any], shape: Shape) -> bytes:
    """Returns a JSON object as a buffer whose root is the table of that name."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, shape, fit(shape, body)))
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, shape: Shape, fitted: dict[str, Any]) -> int:
    """Returns the table's place; what a table refers to must be written before it."""
    held = [(field, fitted[field.name]) for field in shape.fields if field.name in fitted]
    places = [value if field.is_inline else _put(builder, field, value) for field, value in held]
    builder.StartObject(len(shape.fields))
    for (field, _), place in zip(held, places, strict=True):
        if field.is_inline:
            getattr(builder, _SLOTS[field.kind])(field.number - 1, place, None)
        else:
            builder.PrependUOffsetTRelativeSlot(field.number - 1, place, 0)
    return builder.EndObject()


def _put(builder: flatbuffers.Builder, field: Field, value: Any) -> int:
    if isinstance(value, array):
        return builder.CreateNumpyVector(np.frombuffer(value, value.typecode))
    if not field.is_list:
        inner = field.shape
        return builder.CreateString(value) if inner is None else _write(builder, inner, value)
    inner = field.shape
    items = [builder.CreateString(item) if inner is None else _write(builder, inner, item) for item in value]
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return builder.EndVector()


def decode(raw: bytes, shape: Shape, max_bytes: int) -> dict[str, Any]:
    """Returns a buffer as a JSON object; fields of later versions are left out.

    Args:
        raw: the buffer.
        shape: of its root.
        max_bytes: of what comes out, where text is used several times.

    Raises:
        Malformed: when an offset leads out of it, or it says more than it could hold.
    """
    try:
        reader = _Reader(raw, max_bytes)
        return reader.table(reader.at(_U32, 0), shape)
    except (struct.error, UnicodeDecodeError):
        raise Malformed("an offset leads to what is not there") from None


class _Reader:
    def __init__(self, raw: bytes, max_bytes: int) -> None:
        self._raw = raw
        # each takes a byte at least where it is there once
        self._values_left, self._bytes_left = len(raw), max_bytes

    def at(self, scalar: struct.Struct, place: int) -> Any:
        if place < 0:  # Python would count from the end
            raise Malformed("an offset leads out of the buffer")
        return scalar.unpack_from(self._raw, place)[0]

    def table(self, place: int, shape: Shape) -> dict[str, Any]:
        self._spend(1, 0)
        fields = self._fields(place, shape)
        if shape.name != "Pairs":
            return unfit(fields)
        named = {field.name: value for field, value in fields}
        return pairs(named.get("keys", []), named.get("values", []))

    def _fields(self, place: int, shape: Shape) -> Iterator[tuple[Field, Any]]:
        vtable = place - self.at(_I32, place)
        num_slots = (self.at(_U16, vtable) - 4) // 2
        for field in shape.fields[: max(num_slots, 0)]:
            offset = self.at(_U16, vtable + 2 + 2 * field.number)
            if offset:
                self._spend(1, 0)
                yield field, self._value(place + offset, field)

    def _value(self, place: int, field: Field) -> Any:
        if field.is_inline:
            return self.at(_SCALARS[field.kind], place)
        place += self.at(_U32, place)
        inner = field.shape
        if not field.is_list:
            return self._text(place) if inner is None else self.table(place, inner)
        if field.kind in _NUMBERS:
            return array(_NUMBERS[field.kind], self._part(place, 4)).tolist()
        num_items = len(self._part(place, 4)) // 4
        self._spend(num_items, 0)
        items = (item + self.at(_U32, item) for item in range(place + 4, place + 4 + 4 * num_items, 4))
        return [self._text(item) if inner is None else self.table(item, inner) for item in items]

    def _text(self, place: int) -> str:
        return self._part(place, 1).decode()

    def _part(self, place: int, width: int) -> bytes:
        """What a vector holds, whose items have ``width`` bytes."""
        size = width * self.at(_U32, place)
        if size > len(self._raw) - place - 4:
            raise Malformed("a vector is longer than the buffer")
        self._spend(0, size)
        return self._raw[place + 4 : place + 4 + size]

    def _spend(self, num_values: int, num_bytes: int) -> None:
        self._values_left -= num_values
        self._bytes_left -= num_bytes
        if self._values_left < 0 or self._bytes_left < 0:
            raise Malformed("the buffer uses its parts too often")
