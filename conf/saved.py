"""A saved job as override words, so that a later command can change some of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from conf import entry
from conf.keys import keys_of


def words_of(name: str, saved: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Returns the words that compose a saved job.

    Args:
        name: the verb.
        saved: the job as plain values, nested as its schema is.
        overrides: what the user typed. A group chosen there, such as ``model=hf``, replaces what was saved of it.
    """
    chosen = {word.partition("=")[0] for word in overrides} & set(entry.groups(name))
    words: list[str] = []
    for key in keys_of(entry.SCHEMAS[name]):
        group, _, _ = key.name.partition(".")
        value: Any = saved
        for part in key.name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if group in chosen or (value is None and not _has(saved, key.name)):
            continue
        if isinstance(value, dict):
            words += [f"++{key.name}.{leaf}={text(item)}" for leaf, item in value.items()]
        else:
            words.append(f"{key.name}={text(value)}")
    return words


def text(value: Any) -> str:
    """Writes a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text(item)}" for key, item in value.items()) + "}"
    return quoted(str(value))


def quoted(value: str) -> str:
    """Quotes text so that Hydra and OmegaConf read it as it is."""
    return "'" + "".join(_escaped(value)) + "'"


def _escaped(value: str) -> Iterator[str]:
    """Within quotes, backslashes count only before a quote; OmegaConf takes ``${`` for an interpolation."""
    backslashes = 0
    for index, sign in enumerate(value):
        if sign == "\\":
            backslashes += 1
            continue
        if sign == "'" or (sign == "$" and value[index + 1 : index + 2] == "{"):
            yield "\\" * (2 * backslashes + 1)
        else:
            yield "\\" * backslashes
        backslashes = 0
        yield sign
    yield "\\" * (2 * backslashes)


def _has(saved: dict[str, Any], name: str) -> bool:
    node: Any = saved
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
