"""The board of cost: what is there where cluster.price_per_hour is set."""

from __future__ import annotations

from cluster.monitoring.panel import Board, Panel, Query, Variable, chosen, figures, rate, total
from conf import metrics as m

OF = chosen("model")
DAY, STEP_S = "24h", 10
"""The span of what is summed up, and the seconds between two looks at a price in it."""
_FLEET = total(m.REPLICA_PRICE.series, OF)
_JOBS = total(m.BATCH_COST.series, OF)
_SECONDS = f"sum({m.BATCH_SECONDS.series}{OF})"
_IDLE = f"sum({m.BATCH_SECONDS.series}{chosen('model', cause='start_up|starved|tail|retries')})"
_OUT_IN_AN_HOUR = f"({rate(m.COMPLETION_TOKENS, OF)} * 3600 > 0)"

_FIGURES = figures(
    Panel(title="Services, an hour", says="The price of all replicas.", queries=(Query(expr=_FLEET),), decimals=2),
    Panel(
        title="Services, a day",
        says="What the replicas of the last 24 hours cost.",
        queries=(Query(expr=f"sum(sum_over_time({_FLEET}[{DAY}:{STEP_S}s])) * {STEP_S} / 3600"),),
        decimals=2,
    ),
    Panel(
        title="A million output tokens, services",
        says="At the speed of this moment: an idle fleet costs the most.",
        queries=(Query(expr=f"{_FLEET} / {_OUT_IN_AN_HOUR} * 1e6"),),
        decimals=2,
    ),
    Panel(title="Jobs that run", says="What they have cost so far.", queries=(Query(expr=_JOBS),), decimals=2),
    Panel(
        title="A million output tokens, jobs",
        says="Of the jobs that run, start-up and waiting included.",
        queries=(Query(expr=f"{_JOBS} / {total(m.BATCH_COMPLETION_TOKENS.series, OF)} * 1e6"),),
        decimals=2,
    ),
    Panel(
        title="Paid for, not computing",
        says="Of the jobs' engine time, start-up, starving, tail and retries.",
        queries=(Query(expr=f"{_IDLE} / {_SECONDS}"),),
        unit="percentunit",
    ),
)
_CHARTS = (
    Panel(
        title="Price of the fleet in an hour, by model",
        says="Replicas that the autoscaler adds cost from their first second.",
        queries=(Query(expr=total(m.REPLICA_PRICE.series, OF, "model"), legend="{{model}}"),),
        is_stacked=True,
        width=12,
    ),
    Panel(
        title="A million output tokens, by model",
        says="The price of the fleet by what it makes.",
        queries=(
            Query(
                expr=f"{total(m.REPLICA_PRICE.series, OF, 'model')}"
                f" / ({rate(m.COMPLETION_TOKENS, OF, 'model')} * 3600 > 0) * 1e6",
                legend="{{model}}",
            ),
        ),
        width=12,
    ),
    Panel(
        title="Cost of jobs",
        says="What each run has cost so far.",
        queries=(Query(expr=total(m.BATCH_COST.series, OF, "run"), legend="{{run}}"),),
    ),
    Panel(
        title="A thousand rows, by run",
        says="What a thousand written rows have cost.",
        queries=(
            Query(
                expr=f"{total(m.BATCH_COST.series, OF, 'run')} / {total(m.BATCH_ROWS.series, OF, 'run')} * 1000",
                legend="{{run}}",
            ),
        ),
    ),
    Panel(
        title="Cost by what the time went to",
        says="What jobs have paid for computing, and for all else.",
        queries=(
            Query(
                expr=f"sum by (run, cause) ({m.BATCH_SECONDS.series}{OF})"
                f" / on (run) group_left () sum by (run) ({m.BATCH_SECONDS.series}{OF})"
                f" * on (run) group_left () sum by (run) ({m.BATCH_COST.series}{OF})",
                legend="{{run}} {{cause}}",
            ),
        ),
        is_stacked=True,
    ),
    Panel(
        title="Share of output tokens by key",
        says="Whom the price of the services falls to.",
        queries=(
            Query(
                expr=f"{rate(m.COMPLETION_TOKENS, OF, 'key')} / on () group_left () {rate(m.COMPLETION_TOKENS, OF)}",
                legend="{{key}}",
            ),
        ),
        unit="percentunit",
        is_stacked=True,
    ),
)


def build_cost() -> Board:
    """Returns the board."""
    return Board(
        name="cost",
        title="cost",
        says="What services and jobs cost, where cluster.price_per_hour says what a device does.",
        panels=(*_FIGURES, *_CHARTS),
        variables=(Variable(label="model", metric=m.REPLICA_PRICE),),
    )
