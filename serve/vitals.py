"""What a replica tells Prometheus of itself and of its model's fleet, its requests apart."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from conf import metrics
from conf.schema.engine import Device
from conf.schema.serve import ServeJob
from serve.autoscale.watch import Report
from serve.engine.placement import devices_per_engine
from serve.engine.speed import Speed, Unbegun
from serve.instrument import counter, gauge


class Vitals:
    """Gauges in a registry of their own. What is not known is not there, rather than 0."""

    def __init__(self, job: ServeJob, device: Device, share: int) -> None:
        """Args: the service, where its engines run, and how many of them share a machine's cores."""
        self._job = job
        self._devices = devices_per_engine(job.engine, device, share)
        self._most_arrived = 0.0

    def families(
        self,
        target: int,
        start_s: float,
        speed: Speed,
        load: Report | None,
        unbegun: Unbegun | None = None,
        tokens_per_event: int | None = None,
    ) -> list[Metric]:
        """Returns what is so now.

        Args:
            target: replicas that there should be of the model.
            start_s: seconds that this one took to start; 0 while it does.
            speed: as it was measured; zeros where it was not.
            load: what the autoscaler is told; null of a fleet of fixed size.
            unbegun: requests in the engine without a first token; null where it has no priorities.
            tokens_per_event: of streams; null where it is fixed.
        """
        registry, model = CollectorRegistry(auto_describe=False), self._job.model.name
        price = self._job.cluster.price_per_hour
        known = {
            metrics.REPLICAS_TARGET: target,
            metrics.REPLICA_START: start_s or None,
            metrics.PREFILL_SPEED: speed.prefill_tokens_per_s or None,
            metrics.DECODE_SPEED: speed.decode_tokens_per_s or None,
            metrics.REPLICA_PRICE: None if price is None else price * self._devices,
            metrics.TOKENS_PER_EVENT: tokens_per_event,
            metrics.WAITING_REQUESTS: None if load is None else load.waiting,
            metrics.WAITING_TOKENS: None if load is None else load.waiting_tokens,
        }
        for metric, value in known.items():
            if value is not None:
                gauge(metric, registry).labels(model).set(value)
        if unbegun is not None:
            without_token = gauge(metrics.UNBEGUN, registry)
            for priority, count in unbegun._asdict().items():
                without_token.labels(priority).set(count)
        if load is not None:
            # what is expected of a request may turn out to have been too much, and a counter never falls
            self._most_arrived = max(self._most_arrived, load.prompt_tokens)
            counter(metrics.ARRIVED_TOKENS, registry).labels(model).inc(self._most_arrived)
        return list(registry.collect())
