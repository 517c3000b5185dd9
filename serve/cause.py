"""Why an engine did not start, from what Ray Serve and the engine's process say."""

from __future__ import annotations

import re
from pathlib import Path


def cause_of(messages: list[str]) -> str:
    """Returns the telling line of what Ray Serve says about a failed start: the last error that it quotes."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|EngineDead)\b.*: ", line)]
    return (errors or [line for line in lines if line] or ["no reason given"])[-1]


def root_cause(logs: Path | None) -> str:
    """Returns what the engine's own process said, where Ray's workers log on this machine."""
    for path in sorted(logs.glob("worker-*")) if logs else ():
        for line in reversed(path.read_text(errors="replace").splitlines()):
            match = re.search(r"\(EngineCore\S*.*\]\s+(\w+(?:Error|Exception): .+)", line)
            if match and "Engine core init" not in line:
                return f" ({match[1]})"
    return ""
