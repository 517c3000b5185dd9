"""The board of services."""

from __future__ import annotations

from cluster.monitoring import foreign
from cluster.monitoring.panel import RATE, Board, Panel, Query, Variable, chosen, figures, rate, total
from conf import metrics as m
from conf.metrics import Metric

OF = chosen("model")
ASKED = chosen(route="/v1/.*")
"""What people ask: looks at health and metrics apart."""
_BAD = chosen(route="/v1/.*", status="5xx")


def percentiles(metric: Metric, selector: str, *percents: int, by: str = "") -> tuple[Query, ...]:
    """Returns a histogram's percentiles: lines, or with ``by`` a line for each value of a label."""
    labels, after = f"le, {by}" if by else "le", f" {{{{{by}}}}}" if by else ""
    return tuple(
        Query(
            expr=f"histogram_quantile({percent / 100:g}, "
            f"sum by ({labels}) (rate({metric.series}_bucket{selector}[{RATE}])))",
            legend=f"p{percent}{after}",
        )
        for percent in percents
    )


_FIGURES = figures(
    Panel(title="Requests a second", says="Requests that ended.", queries=(Query(expr=rate(m.REQUESTS, ASKED)),)),
    Panel(
        title="Failed",
        says="Of the requests that ended, those with a status of 500 and above.",
        queries=(Query(expr=f"({rate(m.REQUESTS, _BAD)} or vector(0)) / {rate(m.REQUESTS, ASKED)}"),),
        unit="percentunit",
    ),
    Panel(title="TTFT, p95", says="To the first token of a stream.", queries=percentiles(m.TTFT, OF, 95), unit="s"),
    Panel(title="TPOT, p95", says="For each token after it.", queries=percentiles(m.TPOT, OF, 95), unit="s"),
    Panel(
        title="Output tokens a second",
        says="Of all answers.",
        queries=(Query(expr=rate(m.COMPLETION_TOKENS, OF)),),
    ),
    Panel(
        title="In flight",
        says="Requests that replicas hold.",
        queries=(Query(expr=total(m.IN_FLIGHT.series, "")),),
        decimals=0,
    ),
)
_CHARTS = (
    Panel(
        title="Requests a second by route",
        says="What the service is asked for.",
        queries=(Query(expr=rate(m.REQUESTS, ASKED, "route"), legend="{{route}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Requests a second by status",
        says="4xx are clients' mistakes and refusals, 5xx are the service's.",
        queries=(Query(expr=rate(m.REQUESTS, ASKED, "status"), legend="{{status}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Requests without their answer, by cause",
        says="Limits, deadlines, mistakes, clients that left.",
        queries=(Query(expr=rate(m.REFUSED, "", "cause"), legend="{{cause}}"),),
    ),
    Panel(
        title="Time to first token",
        says="From a request to the first token of its stream.",
        queries=percentiles(m.TTFT, OF, 50, 95, 99),
        unit="s",
    ),
    Panel(
        title="Time for each output token",
        says="Of streams, after the first token.",
        queries=percentiles(m.TPOT, OF, 50, 95, 99),
        unit="s",
    ),
    Panel(
        title="Duration by route, p95",
        says="From a request to the end of its answer.",
        queries=percentiles(m.DURATION, ASKED, 95, by="route"),
        unit="s",
    ),
    Panel(
        title="Tokens a second",
        says="What came in and what went out.",
        queries=(
            Query(expr=rate(m.PROMPT_TOKENS, OF, "model"), legend="{{model}} in"),
            Query(expr=rate(m.COMPLETION_TOKENS, OF, "model"), legend="{{model}} out"),
        ),
    ),
    Panel(
        title="Requests held, by priority",
        says="Batch work should fill what interactive requests leave.",
        queries=(Query(expr=total(m.HELD.series, "", "priority"), legend="{{priority}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Requests without a first token, by priority",
        says="They wait in engines, or are read there.",
        queries=(
            Query(expr=total(m.UNBEGUN.series, "", "priority"), legend="{{priority}}", needs=foreign.NEEDS_ENGINE),
        ),
        is_stacked=True,
    ),
    Panel(
        title="Tokens in an event of a stream",
        says="More than one: a replica's process has no time left for what its engine makes.",
        queries=(
            Query(expr=f"max by (model) ({m.TOKENS_PER_EVENT.series})", legend="{{model}}", needs=foreign.NEEDS_ENGINE),
        ),
    ),
    Panel(
        title="Longest wait for a first token",
        says="Of the streams that wait now.",
        queries=(Query(expr=f"max by (priority) ({m.FIRST_WAIT.series})", legend="{{priority}}"),),
        unit="s",
    ),
    Panel(
        title="Output tokens a second by key",
        says="Who uses the service.",
        queries=(Query(expr=rate(m.COMPLETION_TOKENS, OF, "key"), legend="{{key}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Response cache",
        says="Answers by what the cache did.",
        queries=(
            Query(
                expr=rate(m.CACHE_ANSWERS, "", "outcome"),
                legend="{{outcome}}",
                needs="only a service with cache=memory or cache=redis has one",
            ),
        ),
    ),
    Panel(
        title="Requests asked again",
        says="Requests whose first replica was lost; clients see nothing of it.",
        queries=(Query(expr=f"sum(increase({m.AGAIN.series}[{RATE}]))", legend="asked again"),),
    ),
    Panel(
        title="In engines",
        says="Requests that vLLM computes, and those that it has no room for.",
        queries=(
            Query(expr=total(foreign.RUNNING.series, ""), legend="running", needs=foreign.RUNNING.needs),
            Query(expr=total(foreign.WAITING.series, ""), legend="waiting", needs=foreign.WAITING.needs),
        ),
    ),
    Panel(
        title="KV cache in use",
        says="Of each replica; requests are preempted where it is full.",
        queries=(
            Query(
                expr=f"max by (replica) ({foreign.KV_USED.series})", legend="{{replica}}", needs=foreign.KV_USED.needs
            ),
            Query(
                expr=f"sum(increase({foreign.PREEMPTIONS.series}[{RATE}]))",
                legend="preemptions",
                needs=foreign.PREEMPTIONS.needs,
            ),
        ),
    ),
    Panel(
        title="Prompt tokens that were cached",
        says="Of the tokens that vLLM looked for in its prefix cache, those that were there.",
        queries=(
            Query(
                expr=f"sum(rate({foreign.PREFIX_HITS.series}[{RATE}]))"
                f" / sum(rate({foreign.PREFIX_QUERIES.series}[{RATE}]))",
                legend="hits",
                needs=foreign.PREFIX_HITS.needs,
            ),
        ),
        unit="percentunit",
    ),
)


def build_serve() -> Board:
    """Returns the board."""
    return Board(
        name="serve",
        title="services",
        says="What a service is asked, how fast it answers, and whom it refuses.",
        panels=(*_FIGURES, *_CHARTS),
        variables=(Variable(label="model", metric=m.REPLICAS_TARGET),),
    )
