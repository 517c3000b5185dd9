"""Every metric that Manta exports, defined once.

What counts takes a metric from here, and so do the dashboards, Prometheus' configuration and the list for a reader
(`cluster.monitoring`): none of them has a name of its own. It is in `conf` because all packages may import that one and
because it is a table of choices: no library is needed to read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a metric's values mean to Prometheus."""

    counter = "counter"
    gauge = "gauge"
    histogram = "histogram"


class Origin(Enum):
    """Where Prometheus finds a metric."""

    page = "page"
    """The /metrics of a service, with a key; each sample has its replica's name as the label ``replica``."""
    ray = "ray"
    """The agent of Ray on the node of the process that counts; Ray puts ``ray_`` before the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A family of series."""

    name: str
    """As it is created: without what an exporter adds."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    """Empty counts things: rows, tokens, requests."""
    verb: str = "serve"
    """Of `manta`, who exports it."""
    origin: Origin = Origin.page
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""

    @property
    def series(self) -> str:
        """The name that a query has; of a histogram, what stands before ``_bucket``, ``_sum`` and ``_count``."""
        before = "ray_" if self.origin is Origin.ray else ""
        return f"{before}{self.name}{'_total' if self.kind is Kind.counter else ''}"


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=name, kind=Kind.counter, help=help, labels=labels)


def _gauge(name: str, help: str, *labels: str, unit: str = "") -> Metric:
    return Metric(name=name, kind=Kind.gauge, help=help, labels=labels, unit=unit)


def _seconds(name: str, help: str, *labels: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind=Kind.histogram, help=help, labels=labels, unit="s", buckets=buckets)


IN_FLIGHT = _gauge("manta_requests_in_flight", "Requests that the replica holds.")
AGAIN = _counter("manta_requests_again", "Requests whose first replica was lost.")
HELD = _gauge("manta_requests_held", "Requests for the model, by whose turn it is.", "priority")
FIRST_WAIT = _gauge(
    "manta_first_token_wait_seconds",
    "How long the stream has waited that has waited longest for its first token.",
    "priority",
    unit="s",
)
REQUESTS = _counter("manta_requests", "Requests that have ended.", "route", "status", "key")
REFUSED = _counter("manta_refused", "Requests without their answer.", "cause", "key")
DURATION = _seconds(
    "manta_request_duration_seconds",
    "From a request to the end of its answer.",
    *("route", "model"),
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
TTFT = _seconds(
    "manta_time_to_first_token_seconds",
    "From a request to the first token of its stream.",
    *("model", "key"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0),
)
TPOT = _seconds(
    "manta_time_per_output_token_seconds",
    "Of a stream, from its first token to its end, for each of the others.",
    *("model", "key"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 1.0),
)
PROMPT_TOKENS = _counter("manta_prompt_tokens", "Tokens that came in.", "model", "key")
COMPLETION_TOKENS = _counter("manta_completion_tokens", "Tokens that went out.", "model", "key")
CACHE_ANSWERS = _counter("manta_cache_answers", "Answers by what the response cache did.", "outcome")

REPLICAS_TARGET = _gauge(
    "manta_replicas_target", "Replicas that there should be of a model; each replica that is asked says so.", "model"
)
REPLICA_START = _gauge(
    "manta_replica_start_seconds", "From the replica's process to its first request.", "model", unit="s"
)
WAITING_REQUESTS = _gauge(
    "manta_engine_waiting_requests", "Requests in the replica whose answer has not begun.", "model"
)
UNBEGUN = _gauge(
    "manta_engine_unbegun_requests", "Requests in vLLM whose first token has not come, by whose turn it is.", "priority"
)
TOKENS_PER_EVENT = _gauge(
    "manta_engine_tokens_per_event", "Tokens in an event of a stream: above 1 the replica's process is busy.", "model"
)
WAITING_TOKENS = _gauge("manta_engine_waiting_tokens", "Tokens of their prompts.", "model")
ARRIVED_TOKENS = _counter(
    "manta_engine_arrived_tokens", "Prompt tokens that came to the engine, expected where a request runs.", "model"
)
PREFILL_SPEED = _gauge(
    "manta_replica_prefill_tokens_per_second", "Prompt tokens that the replica can compute, as measured.", "model"
)
DECODE_SPEED = _gauge(
    "manta_replica_decode_tokens_per_second", "Answer tokens that the replica can compute, as measured.", "model"
)
REPLICA_PRICE = _gauge(
    "manta_replica_price_per_hour", "Price of the devices that the replica holds (cluster.price_per_hour).", "model"
)

SERVE = (
    *(IN_FLIGHT, AGAIN, HELD, FIRST_WAIT, REQUESTS, REFUSED, DURATION, TTFT, TPOT),
    *(PROMPT_TOKENS, COMPLETION_TOKENS, CACHE_ANSWERS),
    *(REPLICAS_TARGET, REPLICA_START, UNBEGUN, TOKENS_PER_EVENT, WAITING_REQUESTS, WAITING_TOKENS, ARRIVED_TOKENS),
    *(PREFILL_SPEED, DECODE_SPEED, REPLICA_PRICE),
)
"""Of `manta serve`."""

_JOB = ("model", "run")
"""Of each metric of a batch job: the model's name, and the run that job.json names."""


def _of_job(kind: Kind, name: str, help: str, *labels: str, unit: str = "") -> Metric:
    name = f"manta_batch_{name}"
    return Metric(name=name, kind=kind, help=help, labels=(*_JOB, *labels), unit=unit, verb="batch", origin=Origin.ray)


BATCH_PENDING = _of_job(Kind.gauge, "pending_rows", "Rows that were to be done when the run began.")
BATCH_ROWS = _of_job(Kind.counter, "rows", "Rows that are written, answered or failed.", "outcome")
BATCH_FAILED = _of_job(Kind.counter, "failed_rows", "Rows without an answer, by the class of their error.", "error")
BATCH_ENGINE_ROWS = _of_job(
    Kind.counter, "engine_rows", "Rows that a replica is done with; those of one that dies are done again.", "replica"
)
BATCH_PROMPT_TOKENS = _of_job(
    Kind.counter, "prompt_tokens", "Prompt tokens of the rows that a replica answered.", "replica"
)
BATCH_CACHED_TOKENS = _of_job(Kind.counter, "cached_tokens", "Of those, what its prefix cache held.", "replica")
BATCH_COMPLETION_TOKENS = _of_job(Kind.counter, "completion_tokens", "Tokens of a replica's answers.", "replica")
BATCH_RUNNING = _of_job(Kind.gauge, "running_rows", "Rows that a replica's engine holds.", "replica")
BATCH_READY = _of_job(Kind.gauge, "replicas_ready", "Replicas whose model is loaded.")
BATCH_RESTARTS = _of_job(Kind.counter, "engine_restarts", "Engines that were started in the place of dead ones.")
BATCH_SECONDS = _of_job(
    *(Kind.gauge, "engine_seconds", "Seconds of all engines by what they went to, as it looks now.", "cause"),
    unit="s",
)
BATCH_COST = _of_job(Kind.gauge, "cost", "What the engines' devices have cost so far (cluster.price_per_hour).")

BATCH = (
    *(BATCH_PENDING, BATCH_ROWS, BATCH_FAILED, BATCH_ENGINE_ROWS),
    *(BATCH_PROMPT_TOKENS, BATCH_CACHED_TOKENS, BATCH_COMPLETION_TOKENS),
    *(BATCH_RUNNING, BATCH_READY, BATCH_RESTARTS, BATCH_SECONDS, BATCH_COST),
)
"""Of `manta batch` and `manta redrive`."""

METRICS = (*SERVE, *BATCH)
"""All of them."""
