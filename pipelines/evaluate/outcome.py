"""Whether an answer is right: the whole text, the fields of its JSON, the number in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from conf.schema.evaluate import QualitySpec


def is_exact(answer: str, expected: str) -> bool:
    """Whether the texts are equal, white space around them aside; as `manta batch` counts it."""
    return answer.strip() == expected.strip()


def read_object(text: str) -> dict[str, Any] | None:
    """Returns the JSON object that a text is, or that lies between its first and last brace; null where none does."""
    for part in (text, text[text.find("{") : text.rfind("}") + 1]):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def right_fields(answer: str, expected: Mapping[str, Any]) -> dict[str, bool]:
    """Returns for each expected field whether the answer has it with the same value.

    Args:
        answer: text; where it is no JSON object, no field is right.
        expected: the fields.
    """
    found = read_object(answer) or {}
    return {name: name in found and same_value(found[name], value) for name, value in expected.items()}


def has_all_fields(answer: str, expected: Mapping[str, Any]) -> bool:
    """Whether the answer is an object of the expected fields and no others, in whatever order."""
    found = read_object(answer)
    return found is not None and same_value(found, expected)


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not; white space around texts is nothing."""
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return one == other


def find_number(text: str, spec: QualitySpec) -> Decimal | None:
    """Returns the number that a text gives as its answer; null where it has none.

    With a marker in it (GSM8K: ``#### 18``) the first number after the last marker, else the last number of the text.

    Args:
        text: an answer.
        spec: pattern and marker.
    """
    pattern = re.compile(spec.number_pattern)
    if spec.number_marker and spec.number_marker in text:
        match = pattern.search(text.rpartition(spec.number_marker)[2])
        if match is not None:
            return _decimal(match)
    matches = list(pattern.finditer(text))
    return _decimal(matches[-1]) if matches else None


def _decimal(match: re.Match[str]) -> Decimal | None:
    digits = match[1] if match.re.groups else match[0]
    try:
        found = Decimal((digits or "").replace(",", "").replace("$", "").strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
