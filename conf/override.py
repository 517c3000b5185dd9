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
_ITEM = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""What Hydra's grammar takes as a name within a dict."""
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def fit_overrides(schema: type, groups: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """Returns overrides that Hydra parses to what was typed.

    Args:
        schema: the job's root dataclass.
        groups: the configuration groups, such as ``model``.
        overrides: ``key=value`` words.

    Raises:
        UserError: for a word that is no override, or a key that the job does not have.
    """
    keys, words, fitting = {key.name: key for key in keys_of(schema)}, list(overrides), frozenset(groups)
    made, items = _items(keys, words)
    return [*made, *(_fit(_as_group(word, items, fitting), keys | items, fitting) for word in words)]


def _items(keys: dict[str, Key], words: Iterable[str]) -> tuple[list[str], dict[str, Key]]:
    """Returns words that make the items which other words set keys of, and the keys of these items."""
    made, items = [], {}
    for key in keys.values():
        if key.item is None:
            continue
        found = (re.match(rf"[+]*{re.escape(key.name)}\.([^.=]+)\.", word) for word in words)
        names = dict.fromkeys(match[1] for match in found if match and _ITEM.fullmatch(match[1]))
        if names:
            # Hydra gives a key its type only where its item is there
            made.append(f"++{key.name}={{{','.join(f'{name}:{{}}' for name in names)}}}")
        items |= {below.name: below for name in names for below in keys_of(key.item, f"{key.name}.{name}.")}
    return made, items


def _as_group(word: str, items: dict[str, Key], groups: frozenset[str]) -> str:
    """Writes ``deployment.models.small.model=demo`` as Hydra does: ``+model@deployment.models.small.model=demo``."""
    name, equals, value = word.lstrip("+").partition("=")
    group = name.rpartition(".")[2]
    is_within = "." in name and any(key.startswith(name + ".") for key in items)
    is_group = group in groups and equals and is_within
    return f"+{group}@{name}={value}" if is_group else word


def _fit(word: str, keys: dict[str, Key], groups: frozenset[str]) -> str:
    match = _OVERRIDE.fullmatch(word)
    if match is None or (match["rest"] is None and match["sign"] != "~"):
        known = word in keys or word in groups
        hint = f"; write {word}=VALUE" if known else nearest(word, [*groups, *keys])
        raise UserError(f"'{word}' is not key=value{hint}")
    sign, name, rest = match["sign"] or "", match["key"], match["rest"] or ""
    if name.split("@")[0] in groups or name.startswith("hydra."):
        return word
    key = keys.get(name)
    if key is None:
        owner = next((k for k in keys.values() if k.is_open and not k.item and name.startswith(k.name + ".")), None)
        if owner is None:
            raise UserError(_unknown(name, keys, groups))
        value = literal(rest[1:]) if owner.holds_text and rest else rest[1:]
        return f"{sign or '++'}{name}={value}" if rest else word
    if key.is_open:
        return f"{sign or '++'}{name}{rest}" if rest else word
    if key.is_text and rest and rest != "=null":
        is_list = key.type_name == "Any" and rest.startswith("=[") and rest.endswith("]")
        return word if is_list else f"{sign}{name}={literal(rest[1:])}"
    return word


def _unknown(name: str, keys: dict[str, Key], groups: frozenset[str]) -> str:
    below = [key.removeprefix(name + ".") for key in keys if key.startswith(name + ".")]
    if below:
        return f"'{name}' is a group of keys: set one of {', '.join(below)}"
    for owner in (key for key in keys.values() if key.item and name.startswith(key.name + ".")):
        item, _, rest = name.removeprefix(owner.name + ".").partition(".")
        if not _ITEM.fullmatch(item):
            return f"'{name}': a name below {owner.name} is a letter, then letters, digits, '_' and '-'"
        if not rest and owner.item:
            first = sorted({key.name.split(".")[0] for key in keys_of(owner.item)})
            return f"'{name}' is a group of keys: set one of those below {', '.join(f'{name}.{key}' for key in first)}"
    parent = name.rsplit(".", 1)[0] + "."
    near = [key for key in keys if key.startswith(parent)] or sorted({key.split(".")[0] for key in keys})
    return f"unknown key '{name}'{nearest(name, [*keys, *groups]) or '; there are ' + ', '.join(near)}"


def literal(text: str) -> str:
    """Quotes text for Hydra's grammar, unless it is quoted already."""
    if _QUOTED.fullmatch(text):
        return text
    # OmegaConf: a price in a template is no interpolation. Backslashes count only before '${'.
    text = re.sub(r"(\\*)\$\{\{", lambda m: m[1] * 2 + r"\${{", text)
    # Hydra: within quotes, backslashes count only before a quote. The kind of quote that the text lacks needs none.
    quote = '"' if "'" in text and '"' not in text else "'"
    text = re.sub(rf"(\\*){quote}", lambda m: m[1] * 2 + "\\" + quote, text)
    text = re.sub(r"(\\+)\Z", lambda m: m[1] * 2, text)
    return f"{quote}{text}{quote}"
