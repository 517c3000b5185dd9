"""Bodies of the API as hypothesis draws them: known fields, fields of other shapes, and unknown ones."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from serve.wire.shape import Kind, Shape, shape_of, singles

singles_ = st.floats(width=32, allow_nan=False, allow_infinity=False)
text = st.text(max_size=8).filter(lambda value: singles(value) is None)
whole = st.integers(-(2**24), 2**24)
plain = st.recursive(
    st.none() | st.booleans() | whole | singles_ | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
_VALUES = {
    Kind.text: text,
    Kind.truth: st.booleans(),
    Kind.int32: whole,
    Kind.int64: st.integers(-(2**63), 2**63 - 1),
    Kind.single: singles_,
    Kind.double: st.floats(allow_nan=False, allow_infinity=False),
    Kind.json: plain,
}


@cache
def bodies(shape: Shape) -> st.SearchStrategy[dict[str, Any]]:
    if shape.name == "Pairs":
        return st.dictionaries(text, singles_, max_size=3)
    optional: dict[Any, Any] = {}
    for field in shape.fields:
        if field.name == "extra_json":
            continue
        value = _VALUES[field.kind] if field.shape is None else bodies(field.shape)
        if field.is_list:
            value = st.lists(value, max_size=3)
        optional[field.key] = optional.get(field.key, plain) | value
    known = st.fixed_dictionaries({}, optional=optional)
    return st.builds(lambda unknown, own: unknown | own, st.dictionaries(text, plain, max_size=2), known)


def bodies_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return bodies(shape_of(name))


def pruned(value: Any) -> Any:
    """Without what is as absent: null and the empty list."""
    if isinstance(value, dict):
        return {key: pruned(inner) for key, inner in value.items() if inner is not None and inner != []}
    return [pruned(inner) for inner in value] if isinstance(value, list) else value
