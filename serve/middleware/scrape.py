"""What Prometheus fetches: one page for all replicas, whichever of them is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve.middleware.answer import ASGIApp, Receive, Scope, Send, answer, refuse

PATH = "/metrics"
KEPT_S = 0.25
"""For so long a page is given again: however often it is asked for, replicas are asked four times a second. Jobs that
work in the gaps follow it, and must hear of a rise within a second."""

Families = list[Metric]


class Scrape:
    """Answers ``/metrics``. It stands inside of access: figures by key are for those who have a key."""

    def __init__(
        self,
        app: ASGIApp,
        gather: Callable[[], Awaitable[Sequence[tuple[str, Families]]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wraps ``app``.

        Args:
            app: what stands inside.
            gather: each replica's name and its families.
            clock: seconds.
        """
        self.app, self._gather, self._clock = app, gather, clock
        self._page, self._made_at = b"", -KEPT_S
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await refuse(send, 405, "Metrics are read with GET.", code="method_not_allowed", headers=[("allow", "GET")])
        else:
            async with self._lock:
                if self._clock() - self._made_at >= KEPT_S:
                    self._page = page(await self._gather())
                    self._made_at = self._clock()
            await answer(send, 200, self._page, [("content-type", CONTENT_TYPE_PLAIN_0_0_4)])


def page(replicas: Iterable[tuple[str, Families]]) -> bytes:
    """Returns Prometheus' text format of all replicas' families, each sample with its replica's name.

    Args:
        replicas: names, each once, and families. Those of one name are of one type.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(replicas))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, replicas: Iterable[tuple[str, Families]]) -> None:
        self._families: dict[str, Metric] = {}
        for name, families in replicas:
            for family in families:
                merged = self._families.get(family.name)
                if merged is None:
                    merged = Metric(family.name, family.documentation, family.type, family.unit)
                    self._families[family.name] = merged
                for sample in family.samples:
                    if not sample.name.endswith("_created"):  # a series for each series, that says when it began
                        merged.samples.append(sample._replace(labels={**sample.labels, "replica": name}))

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()
