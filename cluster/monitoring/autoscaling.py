"""The board of autoscaling."""

from __future__ import annotations

from cluster.monitoring.panel import RATE, Board, Panel, Query, Variable, chosen, figures, rate, total
from cluster.monitoring.serve import percentiles
from conf import metrics as m
from conf.metrics import Metric

OF = chosen("model")
RUNNING = f"count by (model) ({m.REPLICAS_TARGET.series}{OF})"
"""Replicas that answer: each of them says how many there should be."""
TARGET = f"max by (model) ({m.REPLICAS_TARGET.series}{OF})"


def _of_capacity(load: str, speed: Metric) -> str:
    return f"{load} / {total(speed.series, OF)}"


_FIGURES = figures(
    Panel(title="Replicas", says="That answer.", queries=(Query(expr=f"sum({RUNNING})"),), decimals=0),
    Panel(title="Wanted", says="By the autoscaler.", queries=(Query(expr=f"sum({TARGET})"),), decimals=0),
    Panel(
        title="Waiting requests",
        says="Whose answer has not begun.",
        queries=(Query(expr=total(m.WAITING_REQUESTS.series, OF)),),
        decimals=0,
    ),
    Panel(
        title="Prefill in use",
        says="Prompt tokens that arrive, of those that the fleet can compute.",
        queries=(Query(expr=_of_capacity(rate(m.ARRIVED_TOKENS, OF), m.PREFILL_SPEED)),),
        unit="percentunit",
    ),
    Panel(
        title="Decode in use",
        says="Answer tokens that go out, of those that the fleet can compute.",
        queries=(Query(expr=_of_capacity(rate(m.COMPLETION_TOKENS, OF), m.DECODE_SPEED)),),
        unit="percentunit",
    ),
    Panel(
        title="Start of a replica",
        says="The longest of those that run: how long a peak waits for help.",
        queries=(Query(expr=f"max({m.REPLICA_START.series}{OF})"),),
        unit="s",
    ),
)
_CHARTS = (
    Panel(
        title="Replicas",
        says="A fleet that stays below what is wanted has no room, or replicas that do not start.",
        queries=(
            Query(expr=TARGET, legend="{{model}} wanted"),
            Query(expr=RUNNING, legend="{{model}} running"),
        ),
        width=12,
        decimals=0,
    ),
    Panel(
        title="Tokens that wait, and that arrive in a second",
        says="What the policies tokens and slo look at.",
        queries=(
            Query(expr=total(m.WAITING_TOKENS.series, OF, "model"), legend="{{model}} waiting"),
            Query(expr=rate(m.ARRIVED_TOKENS, OF, "model"), legend="{{model}} arriving"),
        ),
        width=12,
    ),
    Panel(
        title="Prompt tokens a second",
        says="What arrives below what the fleet can compute, where it does nothing else.",
        queries=(
            Query(expr=rate(m.ARRIVED_TOKENS, OF), legend="arriving"),
            Query(expr=total(m.PREFILL_SPEED.series, OF), legend="capacity"),
        ),
    ),
    Panel(
        title="Answer tokens a second",
        says="What goes out below what the fleet can compute.",
        queries=(
            Query(expr=rate(m.COMPLETION_TOKENS, OF), legend="going out"),
            Query(expr=total(m.DECODE_SPEED.series, OF), legend="capacity"),
        ),
    ),
    Panel(
        title="Requests that wait",
        says="In replicas, by model.",
        queries=(Query(expr=total(m.WAITING_REQUESTS.series, OF, "model"), legend="{{model}}"),),
    ),
    Panel(
        title="Time to first token",
        says="What all this is for.",
        queries=percentiles(m.TTFT, OF, 50, 95),
        unit="s",
    ),
    Panel(
        title="Out of time",
        says="Requests whose time ran out, or whose clients left. What the proxy refuses (503) no replica sees.",
        queries=(
            Query(
                expr=f"sum by (cause) (rate({m.REFUSED.series}"
                f"{chosen(cause='deadline_exceeded|request_timeout|client_left')}[{RATE}]))",
                legend="{{cause}}",
                needs="only a service that is too slow for its clients has any",
            ),
        ),
    ),
    Panel(
        title="Changes of the number wanted",
        says="In ten minutes: an autoscaler that changes its mind often has delays shorter than its windows.",
        queries=(Query(expr=f"max by (model) (changes({m.REPLICAS_TARGET.series}{OF}[10m]))", legend="{{model}}"),),
    ),
)


def build_autoscaling() -> Board:
    """Returns the board."""
    return Board(
        name="autoscaling",
        title="autoscaling",
        says="How many replicas there are and should be, and what they have to do.",
        panels=(*_FIGURES, *_CHARTS),
        variables=(Variable(label="model", metric=m.REPLICAS_TARGET),),
    )
