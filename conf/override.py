"""Overrides as people type them, made fit for Hydra's grammar.

Hydra reads ``data.prompt={{ question }}`` as a dict and a comma as a sweep. Here a key whose type is text takes the
text literally, an unknown key is named with its nearest neighbour, and keys below an open dict need no ``+``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from conf.errors import UserError, nearest
from conf.keys import Key, keys_of

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=]+?)(?P<rest>=.*)?", re.DOTALL)


def fit_overrides(schema: type, groups: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """Returns overrides that Hydra parses to what was typed.

    Args:
        schema: the job's root dataclass.
        groups: the configuration groups, such as ``model``.
        overrides: ``key=value`` words.

    Raises:
        UserError: for a word that is no override, or a key that the job does not have.
    """
    keys = {key.name: key for key in keys_of(schema)}
    return [_fit(word, keys, frozenset(groups)) for word in overrides]


def _fit(word: str, keys: dict[str, Key], groups: frozenset[str]) -> str:
    match = _OVERRIDE.fullmatch(word)
    if match is None or (match["rest"] is None and match["sign"] != "~"):
        raise UserError(f"'{word}' is not key=value{nearest(word, keys)}")
    sign, name, rest = match["sign"] or "", match["key"], match["rest"] or ""
    group = name.split("@")[0]
    if group in groups or name.startswith("hydra."):
        return word
    key = keys.get(name)
    if key is None:
        owner = next((k for k in keys.values() if k.is_open and name.startswith(k.name + ".")), None)
        if owner is not None:
            return f"{sign or '++'}{name}{rest}"
        parents = {k.rsplit(".", 1)[0] for k in keys if "." in k}
        if name in parents:
            below = ", ".join(k.removeprefix(name + ".") for k in keys if k.startswith(name + "."))
            raise UserError(f"'{name}' is a group of keys: set one of {below}")
        raise UserError(f"unknown key '{name}'{nearest(name, [*keys, *groups]) or _siblings(name, keys)}")
    if key.is_text and rest:
        return f"{sign}{name}={_literal(rest[1:], is_list_too=key.type_name == 'Any')}"
    return word


def _siblings(name: str, keys: dict[str, Key]) -> str:
    parent = name.rsplit(".", 1)[0] + "."
    near = [key for key in keys if key.startswith(parent)] or sorted({key.split(".")[0] for key in keys})
    return f"; there are {', '.join(near)}"


def _literal(text: str, *, is_list_too: bool) -> str:
    """Quotes text for Hydra's grammar, unless it is null, empty, quoted already or a list where one is allowed."""
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    if text in ("", "null") or quoted or (is_list_too and text.startswith("[")):
        return text if text else "''"
    text = text.replace("${{", r"\${{")  # a price in a template is no interpolation
    # Within quotes Hydra unescapes a quote, and backslashes that stand before one.
    text = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text)
    text = re.sub(r"(\\+)$", lambda m: m[1] * 2, text)
    return f"'{text}'"
