"""What keys a job has: names, types and the documentation that stands under each field."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import EnumType
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One leaf of a job's configuration."""

    name: str
    """Its dotted path, such as ``sampling.max_tokens``."""
    type: Any
    doc: str
    """What stands under the field; of choices that say nothing there, under their class."""

    @property
    def is_text(self) -> bool:
        """Whether the value is text, to be taken literally from the command line."""
        return self.type is Any or str in _members(self.type)

    @property
    def is_open(self) -> bool:
        """Whether keys may be added below it."""
        return get_origin(self.type) is dict

    @property
    def holds_text(self) -> bool:
        """Whether what is below it is text."""
        return self.is_open and get_args(self.type)[1] is str

    @property
    def item(self) -> type | None:
        """The dataclass of what is below it, where it is a dict of such; each has the keys of that one."""
        below = get_args(self.type)[1] if self.is_open else None
        return below if isinstance(below, type) and is_dataclass(below) else None

    @property
    def values(self) -> list[str]:
        """What the value can be, where that is a short list."""
        if self.type is bool:
            return ["true", "false"]
        return list(self.type.__members__) if isinstance(self.type, EnumType) else []

    @property
    def type_name(self) -> str:
        """The type as a person writes it."""
        if self.item is not None:
            return f"dict[str, {self.item.__name__}]"
        names = []
        for member in _members(self.type):
            if member is type(None):
                names.append("null")
            elif isinstance(member, EnumType):
                names.extend(member.__members__)
            else:
                names.append(getattr(member, "__name__", str(member)) if get_origin(member) is None else str(member))
        return "|".join(names).replace("typing.", "")


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


@cache
def _docs(cls: type) -> dict[str, str]:
    """The string that follows each field in the class's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            docs[node.target.id] = " ".join(str(after.value.value).split()) if is_doc else ""  # type: ignore[union-attr]
    return docs


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yields every leaf of a schema, in the order of its fields."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        annotation = hints[field.name]
        if isinstance(annotation, type) and is_dataclass(annotation):
            yield from keys_of(annotation, f"{prefix}{field.name}.")
        else:
            doc = _docs(schema).get(field.name) or _doc_of_choices(annotation)
            yield Key(name=f"{prefix}{field.name}", type=annotation, doc=doc)


def _doc_of_choices(annotation: Any) -> str:
    """What an enumeration says of its members, where the field says nothing."""
    return " ".join((annotation.__doc__ or "").split()) if isinstance(annotation, EnumType) else ""
