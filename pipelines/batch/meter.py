"""What a job tells Prometheus while it runs, through Ray's agent on the driver's node.

The driver counts, from what replicas report twice a second and from each unit that is written: no row takes a step more
for it, and the process that counts is there from the job's beginning to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from conf import metrics
from conf.metrics import Kind, Metric
from pipelines.batch.attribution import Cause, Share
from pipelines.batch.monitor import JobState, ReplicaReport
from pipelines.ledger.mark import Mark

TELL_S = 1.0
"""Seconds between two looks at what replicas report."""
_OF_REPLICA: dict[Metric, Callable[[ReplicaReport], int]] = {
    metrics.BATCH_ENGINE_ROWS: lambda report: report.rows,
    metrics.BATCH_PROMPT_TOKENS: lambda report: report.engine.prompt_tokens,
    metrics.BATCH_CACHED_TOKENS: lambda report: report.engine.cached_tokens,
    metrics.BATCH_COMPLETION_TOKENS: lambda report: report.engine.completion_tokens,
}
"""Totals since the replica began."""


class Meter:
    """Turns what is known of a job into metrics."""

    def __init__(
        self,
        model: str,
        run: str,
        pending_rows: int,
        price_per_second: float | None,
        make: Callable[[Metric], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to tell of a job. To be called where Ray is connected.

        Args:
            model: its name.
            run: names the run of the job; see `Lease`.
            pending_rows: rows that are to be done.
            price_per_second: of one engine's devices; null where it is not known.
            make: makes what counts; by default what Ray exports.
            clock: seconds.
        """
        make = make or ray_metric
        self._made = {metric: make(metric) for metric in metrics.BATCH}
        self._tags = {"model": model, "run": run}
        self._price_per_second, self._clock = price_per_second, clock
        self._totals: dict[tuple[Metric, str], int] = {}
        self._next_s = 0.0
        self._pending_rows = pending_rows

    @property
    def is_due(self) -> bool:
        """Whether it is time to tell again."""
        return self._clock() >= self._next_s

    def tell(self, state: JobState, shares: list[Share]) -> None:
        """Tells how the job stands.

        Args:
            state: what replicas have reported.
            shares: where the time of each engine went until now.
        """
        self._next_s = self._clock() + TELL_S
        # Ray's agent forgets a gauge that was not set for two of its intervals
        self._set(metrics.BATCH_PENDING, self._pending_rows)
        for name, report in state.replicas.items():
            for metric, read in _OF_REPLICA.items():
                self._rise(metric, read(report), replica=name)
            self._set(metrics.BATCH_RUNNING, report.engine.running, replica=name)
        self._set(metrics.BATCH_READY, state.ready)
        self._rise(metrics.BATCH_RESTARTS, state.restarts)
        for cause in Cause:
            self._set(metrics.BATCH_SECONDS, sum(share.seconds[cause] for share in shares), cause=cause.value)
        if self._price_per_second is not None:
            self._set(metrics.BATCH_COST, self._price_per_second * sum(share.total_s for share in shares))

    def wrote(self, mark: Mark) -> None:
        """Counts a unit that is written. May be called from another thread than `tell`."""
        for outcome, rows in (("answered", mark.answers), ("failed", mark.failed)):
            self._inc(metrics.BATCH_ROWS, rows, outcome=outcome)
        for error, (rows, _) in mark.errors.items():
            self._inc(metrics.BATCH_FAILED, rows, error=error)

    def _set(self, metric: Metric, value: float, **labels: str) -> None:
        self._made[metric].set(value, {**self._tags, **labels})

    def _inc(self, metric: Metric, value: int, **labels: str) -> None:
        if value > 0:  # Ray refuses 0
            self._made[metric].inc(value, {**self._tags, **labels})

    def _rise(self, metric: Metric, total: int, replica: str | None = None) -> None:
        """Counts what a total has gained since it was last told."""
        key = (metric, replica or "")
        self._inc(metric, total - self._totals.get(key, 0), **({} if replica is None else {"replica": replica}))
        self._totals[key] = max(total, self._totals.get(key, 0))


def ray_metric(metric: Metric) -> Any:
    """Returns what Ray exports under a metric's name."""
    from ray.util import metrics as raymetrics

    kind = {Kind.counter: raymetrics.Counter, Kind.gauge: raymetrics.Gauge}[metric.kind]
    return kind(metric.name, metric.help, metric.labels)
