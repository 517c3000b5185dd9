"""The list of metrics for a reader."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.monitoring.foreign import FOREIGN
from conf.metrics import BATCH, SERVE, Kind, Metric

_HEAD = """# Metrics

Written by `manta cluster dashboards`; change `conf/metrics.py` instead. Names are those of queries; a histogram's have
`_bucket`, `_sum` or `_count` after them. How to see them: [observability](../docs/observability.md).
"""
_SERVE = """
## manta serve

On `/metrics` of the service, with a key. Each series has the label `replica` too.
"""
_BATCH = """
## manta batch, manta redrive

From the agent of Ray on the driver's node; Ray adds labels of its own (`NodeAddress`, `SessionName`, `WorkerId`).
"""
_FOREIGN = """
## Of others

What panels need beside these, under its own name.

| name | made in | missing where |
| --- | --- | --- |
"""


def metrics_page() -> str:
    """Returns the page, in Markdown."""
    foreign = "".join(f"| `{other.series}` | `{other.source}` | {other.needs} |\n" for other in FOREIGN)
    return _HEAD + _SERVE + _table(SERVE) + _BATCH + _table(BATCH) + _FOREIGN + foreign


def _table(metrics: Iterable[Metric]) -> str:
    rows = "".join(
        f"| `{metric.series}` | {metric.kind.value} | {metric.unit} | {', '.join(metric.labels)} | {_help(metric)} |\n"
        for metric in metrics
    )
    return f"\n| name | kind | unit | labels | what |\n| --- | --- | --- | --- | --- |\n{rows}"


def _help(metric: Metric) -> str:
    if metric.kind is not Kind.histogram:
        return metric.help
    return f"{metric.help} Buckets up to {metric.buckets[-1]:g}."
