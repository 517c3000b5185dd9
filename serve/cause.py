"""Why an engine did not start, from what Ray Serve says."""

from __future__ import annotations

import re


def cause_of(messages: list[str]) -> str:
    """Returns the telling line of what Ray Serve says about a failed start: the last error that it quotes."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|EngineDead)\b.*: ", line)]
    return (errors or [line for line in lines if line] or ["no reason given"])[-1]
