"""What a replica counts of its requests, for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from conf import metrics
from serve.instrument import counter, gauge, histogram
from serve.middleware.record import Record
from serve.middleware.routes import EXPOSED, kept_route

OTHER = "other"
"""The label of what a client made up: a path, a model, a cause that there is none of."""
MAX_CAUSES = 64
_CAUSE = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Held(Protocol):
    """A request that has not ended."""

    @property
    def priority(self) -> int | None:
        """Its turn, vLLM's: 0 is interactive, more is later; null where its body has not come yet."""
        ...

    def first_wait_s(self) -> float:
        """How long it has waited for the first token of its stream; 0 where it has come, or there is no stream."""
        ...


class Tally:
    """Counts in a registry of its own. Labels have few values: routes, models, names of keys, classes of status."""

    def __init__(self, models: Collection[str]) -> None:
        """Args: the names that the service has models under."""
        self._models = frozenset(models)
        self._causes: set[str] = set()
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self.in_flight = gauge(metrics.IN_FLIGHT, registry)
        self.again = counter(metrics.AGAIN, registry)
        self.held: set[Held] = set()
        """Requests that have not ended; looked at when figures are asked for."""
        self._held = gauge(metrics.HELD, registry)
        self._first_wait = gauge(metrics.FIRST_WAIT, registry)
        self._requests = counter(metrics.REQUESTS, registry)
        self._refused = counter(metrics.REFUSED, registry)
        self._duration = histogram(metrics.DURATION, registry)
        self._ttft = histogram(metrics.TTFT, registry)
        self._tpot = histogram(metrics.TPOT, registry)
        self._prompt = counter(metrics.PROMPT_TOKENS, registry)
        self._completion = counter(metrics.COMPLETION_TOKENS, registry)
        self._cache = counter(metrics.CACHE_ANSWERS, registry)

    def route(self, path: str) -> str:
        """Returns the label of a path."""
        return path if path in EXPOSED else kept_route(path) or OTHER

    def model(self, name: object) -> str | None:
        """Returns the label of what a request names as its model; null where it names none."""
        if name is None:
            return None
        return name if isinstance(name, str) and name in self._models else OTHER

    def cause(self, name: str) -> str:
        """Returns the label of a cause; of those there is a bounded number, whoever made them."""
        if name not in self._causes:
            if len(self._causes) == MAX_CAUSES or not _CAUSE.fullmatch(name):
                return OTHER
            self._causes.add(name)
        return name

    def count(self, record: Record, tpot_s: float | None) -> None:
        """Counts a request that has ended.

        Args:
            record: with labels for its path, model and cause.
            tpot_s: seconds a token, of a stream of two tokens or more.
        """
        key, model = record.key or "", record.model or ""
        self._requests.labels(record.path, f"{record.status // 100}xx", key).inc()
        self._duration.labels(record.path, model).observe(record.duration_ms / 1000)
        if record.cause is not None:
            self._refused.labels(record.cause, key).inc()
        if record.ttft_ms is not None:
            self._ttft.labels(model, key).observe(record.ttft_ms / 1000)
        if tpot_s is not None:
            self._tpot.labels(model, key).observe(tpot_s)
        if record.prompt_tokens is not None:
            self._prompt.labels(model, key).inc(record.prompt_tokens)
        if record.completion_tokens is not None:
            self._completion.labels(model, key).inc(record.completion_tokens)
        if record.cache is not None:
            self._cache.labels(record.cache).inc()

    def families(self) -> list[Metric]:
        """Returns what was counted so far."""
        for name in ("interactive", "batch"):
            held = [one for one in self.held if one.priority is not None and (one.priority > 0) == (name == "batch")]
            self._held.labels(name).set(len(held))
            self._first_wait.labels(name).set(max((one.first_wait_s() for one in held), default=0.0))
        return list(self._registry.collect())
