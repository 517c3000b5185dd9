"""`manta VERB --help`: the groups, and every key with its type, default and meaning."""

from __future__ import annotations

import textwrap
from typing import Any

from omegaconf import MISSING, OmegaConf

from conf import entry
from conf.keys import keys_of

EXAMPLES = {
    "batch": """  manta batch model=demo data=tickets
  manta batch model.path=MODEL data.input='in/*.parquet' data.prompt='{{ question }}' output.path=OUT
  manta batch model=demo data=tickets engine.num_replicas=2 sampling.max_tokens=64 output=jsonl""",
}


def help_text(name: str, what: str, width: int = 118) -> str:
    """Returns the help of a verb."""
    defaults = OmegaConf.structured(entry.SCHEMAS[name])
    lines = [f"manta {name}: {what}", "", f"usage: manta {name} [group=option ...] [key=value ...]", ""]
    lines += ["examples:", EXAMPLES[name], "", "groups (a whole choice at once):"]
    lines += [f"  {group}={'|'.join(entry.options(group))}" for group in entry.groups()]
    lines += ["", "keys:"]
    for key in keys_of(entry.SCHEMAS[name]):
        lines.append(f"  {key.name}={_default(defaults, key.name)}  ({key.type_name})")
        lines += textwrap.wrap(key.doc, width, initial_indent="      ", subsequent_indent="      ")
    lines += ["", "options: --cfg job prints the whole configuration, --cfg job -p sampling a part of it, --resolve"]
    return "\n".join(lines)


def _default(defaults: Any, name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    node = OmegaConf.select(defaults, parent) if parent else defaults
    if OmegaConf.is_missing(node, leaf):
        return MISSING
    value = node[leaf]
    if value is None:
        return "null"
    return str(value.name) if hasattr(value, "name") else str(value)
