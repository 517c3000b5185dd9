"""Makes what counts, from a metric's definition, in a registry of prometheus_client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from conf.metrics import Kind, Metric


def counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    """Makes a counter; its labels are to be given in the order of `Metric.labels`."""
    assert metric.kind is Kind.counter, metric.name
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    """Makes a gauge; see `counter`."""
    assert metric.kind is Kind.gauge, metric.name
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)


def histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    """Makes a histogram; see `counter`."""
    assert metric.kind is Kind.histogram, metric.name
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
