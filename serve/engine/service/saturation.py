"""How loaded a service is, from one page of its metrics."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from conf import metrics
from serve.engine.speed import Unbegun

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_STEP = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
"""The time from one token to the next, under its names in vLLM 0.10-0.32."""
HELD, FIRST_WAIT, UNBEGUN = metrics.HELD.series, metrics.FIRST_WAIT.series, metrics.UNBEGUN.series


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a page of metrics says, over all replicas."""

    at_s: float
    """When it was asked for."""
    replicas: int
    running: int
    """Requests that engines compute."""
    waiting: int
    """Requests in engines that have no room for them."""
    kv_fraction: float
    """Of the fullest KV cache."""
    interactive: int | None
    """Requests of interactive priority that the service holds; null where it does not say."""
    deferrable: int = 0
    """Requests of batch priority that it holds."""
    unbegun: Unbegun | None = None
    """Requests in engines whose first token has not come; null where the service does not say."""
    first_wait_s: float = 0.0
    """How long the interactive stream has waited that has waited longest for its first token."""
    step_s_sum: float = 0.0
    """Seconds between tokens, summed up since the engines began."""
    step_count: float = 0.0
    """How many such times there are in it."""


def read_page(text: str, at_s: float) -> Page | None:
    """Reads Prometheus' text format.

    Args:
        text: the page.
        at_s: when it was asked for.

    Returns:
        What it says; null where no engine's figures are in it.
    """
    sums: dict[str, float] = {}
    replicas: set[str] = set()
    kv_fraction, first_wait_s = 0.0, 0.0
    interactive: int | None = None
    deferrable = 0
    unbegun: dict[str, int] = {}
    for line in text.splitlines():
        if not line.startswith(("vllm:num_requests_", "vllm:kv_cache_usage_perc", HELD, FIRST_WAIT, UNBEGUN, *_STEP)):
            continue
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        name, labels, value = sample[1], dict(_LABEL.findall(sample[2] or "")), _number(sample[3])
        if name == "vllm:kv_cache_usage_perc":
            kv_fraction = max(kv_fraction, value)
        elif name == UNBEGUN:
            priority = labels.get("priority", "")
            unbegun[priority] = unbegun.get(priority, 0) + int(value)
        elif name == HELD and labels.get("priority") == "batch":
            deferrable += int(value)
        elif name in (HELD, FIRST_WAIT) and labels.get("priority") != "interactive":
            continue
        elif name == HELD:
            interactive = (interactive or 0) + int(value)
        elif name == FIRST_WAIT:
            first_wait_s = max(first_wait_s, value)
        else:
            sums[name] = sums.get(name, 0.0) + value
            if name == "vllm:num_requests_running":
                replicas.add(f"{labels.get('replica')} {labels.get('engine')}")
    if not replicas:
        return None
    step = next((name for name in _STEP if f"{name}_count" in sums), _STEP[0])
    return Page(
        at_s=at_s,
        replicas=len(replicas),
        running=int(sums["vllm:num_requests_running"]),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        kv_fraction=kv_fraction,
        interactive=interactive,
        deferrable=deferrable,
        unbegun=Unbegun(unbegun.get("interactive", 0), unbegun.get("batch", 0)) if unbegun else None,
        first_wait_s=first_wait_s,
        step_s_sum=sums.get(f"{step}_sum", 0.0),
        step_count=sums.get(f"{step}_count", 0.0),
    )


def step_s(before: Page | None, page: Page) -> float | None:
    """Returns the mean seconds from one token to the next between two pages; null where no token came."""
    if before is None or page.step_count <= before.step_count or page.step_s_sum < before.step_s_sum:
        return None  # an engine that began anew counts from nought
    return (page.step_s_sum - before.step_s_sum) / (page.step_count - before.step_count)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return min(max(value, 0.0), 1e15) if math.isfinite(value) else 0.0
