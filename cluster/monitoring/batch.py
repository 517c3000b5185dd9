"""The board of batch jobs."""

from __future__ import annotations

from cluster.monitoring import foreign
from cluster.monitoring.panel import Board, Panel, Query, Variable, chosen, figures, rate, total
from conf import metrics as m

OF = chosen("model", "run")
LATELY = "1m"
"""The span of a trend: of gauges that are totals."""


_DONE, _PENDING = total(m.BATCH_ROWS.series, OF), total(m.BATCH_PENDING.series, OF)
_SPEED = rate(m.BATCH_ENGINE_ROWS, OF)
_FIGURES = figures(
    Panel(
        title="Done",
        says="Rows that are written, of those that were to be done.",
        queries=(Query(expr=f"{_DONE} / {_PENDING}"),),
        unit="percentunit",
    ),
    Panel(
        title="Time to go",
        says="What is left, at the speed of the last minutes.",
        queries=(Query(expr=f"({_PENDING} - {_DONE}) / {_SPEED}"),),
        unit="s",
    ),
    Panel(
        title="Rows a second",
        says="Rows that engines are done with, all jobs together.",
        queries=(Query(expr=_SPEED),),
    ),
    Panel(
        title="Output tokens a second",
        says="Tokens of answers, all jobs together.",
        queries=(Query(expr=rate(m.BATCH_COMPLETION_TOKENS, OF)),),
    ),
    Panel(
        title="Failed rows",
        says="Rows without an answer; manta redrive asks them again.",
        queries=(Query(expr=f"sum({m.BATCH_ROWS.series}{chosen('model', 'run', outcome='failed')}) or vector(0)"),),
        decimals=0,
    ),
    Panel(
        title="Engines ready",
        says="Replicas whose model is loaded.",
        queries=(Query(expr=total(m.BATCH_READY.series, OF)),),
        decimals=0,
    ),
)
_CHARTS = (
    Panel(
        title="Rows a second, each replica",
        says="A replica that falls behind the others has a slow device, or longer answers.",
        queries=(Query(expr=rate(m.BATCH_ENGINE_ROWS, OF, "replica"), legend="{{replica}}"),),
    ),
    Panel(
        title="Output tokens a second, each replica",
        says="The speed that a plan is about (manta plan).",
        queries=(Query(expr=rate(m.BATCH_COMPLETION_TOKENS, OF, "replica"), legend="{{replica}}"),),
    ),
    Panel(
        title="Prompt tokens a second, each replica",
        says="Prompts are computed in bulk: far more of them than of answers is right.",
        queries=(Query(expr=rate(m.BATCH_PROMPT_TOKENS, OF, "replica"), legend="{{replica}}"),),
    ),
    Panel(
        title="What engines do",
        says="Engines by what their time goes to, over the last minute: starved ones wait for input.",
        queries=(
            Query(
                expr=f"clamp_min(sum by (cause) (deriv({m.BATCH_SECONDS.series}{OF}[{LATELY}])), 0)",
                legend="{{cause}}",
            ),
        ),
        is_stacked=True,
    ),
    Panel(
        title="Where the time went",
        says="Seconds of all engines since the jobs began; the same as in report.html.",
        queries=(Query(expr=total(m.BATCH_SECONDS.series, OF, "cause"), legend="{{cause}}"),),
        unit="s",
        is_stacked=True,
    ),
    Panel(
        title="Rows in engines",
        says="Rows that each engine holds; it should stay near engine.max_num_seqs until the tail.",
        queries=(Query(expr=total(m.BATCH_RUNNING.series, OF, "replica"), legend="{{replica}}"),),
    ),
    Panel(
        title="Failed rows by class",
        says="What went wrong with rows; manta inspect OUT shows examples.",
        queries=(
            Query(
                expr=total(m.BATCH_FAILED.series, OF, "error"),
                legend="{{error}}",
                needs="only a job with failed rows has any",
            ),
        ),
    ),
    Panel(
        title="Prompt tokens that were cached",
        says="Of all prompt tokens, what the engines' prefix caches held.",
        queries=(
            Query(
                expr=f"{rate(m.BATCH_CACHED_TOKENS, OF)} / {rate(m.BATCH_PROMPT_TOKENS, OF)}",
                legend="cached",
                needs="only an engine with a prefix cache, and prompts that begin alike, have any",
            ),
        ),
        unit="percentunit",
    ),
    Panel(
        title="Engines replaced",
        says="Engines that died, and others started in their place.",
        queries=(
            Query(
                expr=total(m.BATCH_RESTARTS.series, OF, "run"),
                legend="{{run}}",
                needs="only a job whose engines died has any",
            ),
        ),
    ),
    Panel(
        title="CPU",
        says="Of each node.",
        queries=(
            Query(
                expr=f"avg by (NodeAddress) ({foreign.NODE_CPU.series}) / 100",
                legend="{{NodeAddress}}",
                needs=foreign.NODE_CPU.needs,
            ),
        ),
        unit="percentunit",
    ),
    Panel(
        title="GPU",
        says="Of each device, the share of time in which it computed anything.",
        queries=(
            Query(
                expr=f"avg by (NodeAddress, GpuIndex) ({foreign.NODE_GPU.series}) / 100",
                legend="{{NodeAddress}} {{GpuIndex}}",
                needs=foreign.NODE_GPU.needs,
            ),
        ),
        unit="percentunit",
    ),
    Panel(
        title="GPU memory",
        says="In use on each device.",
        queries=(
            Query(
                expr=f"sum by (NodeAddress, GpuIndex) ({foreign.NODE_GRAM.series})",
                legend="{{NodeAddress}} {{GpuIndex}}",
                needs=foreign.NODE_GRAM.needs,
            ),
        ),
        unit="mbytes",
    ),
)


def build_batch() -> Board:
    """Returns the board."""
    return Board(
        name="batch",
        title="batch jobs",
        says="How far jobs are, how fast, and where their engines' time goes.",
        panels=(*_FIGURES, *_CHARTS),
        variables=(Variable(label="model", metric=m.BATCH_PENDING), Variable(label="run", metric=m.BATCH_PENDING)),
    )
