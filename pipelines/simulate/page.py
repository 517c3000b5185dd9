"""A simulation as a person reads it: in the terminal, and as an HTML page with plots."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup

from conf.schema.simulate import SimulateJob
from pipelines.batch.progress import duration
from pipelines.batch.report.page import FOLDER as REPORT
from pipelines.batch.report.page import environment
from pipelines.batch.report.plot import MAX_BINS, Plot
from pipelines.simulate.fleet import Run
from pipelines.simulate.score import Score, busy_series
from pipelines.simulate.trace import Trace

CHART_WIDTH, CHART_HEIGHT = 72, 8
"""Of the chart in the terminal, in signs."""


def page(job: SimulateJob, trace: Trace, scores: list[Score], run: Run, took_s: float) -> str:
    """Returns the page.

    Args:
        job: what was asked.
        trace: what was replayed.
        scores: the policy's first.
        run: of the policy.
        took_s: seconds that all of it took.
    """
    first, scale = scores[0], job.autoscale
    lines = [
        f"manta simulate: autoscale={first.name}, {first.ttft_attained:.2%} of first tokens within"
        f" {scale.ttft_target_s:g} s, {first.replica_hours:,.2f} replica-hours"
    ]
    lines += ["", *_load(trace, job), "", *_table(scores, scale.ttft_target_s, scale.tpot_target_s)]
    lines += ["", *_chart(run, trace, job), "", f"  simulated {duration(first.seconds)} in {took_s:.1f} s"]
    if first.dropped:
        lines.append(f"  {first.dropped:,} requests have no end: a fault of the simulator")
    return "\n".join(lines)


def _row(name: str, value: str, more: str = "") -> str:
    return f"  {name:<22}{value:>12}" + (f"   {more}" if more else "")


def _load(trace: Trace, job: SimulateJob) -> Iterator[str]:
    busy = busy_series(trace, job)
    yield "load"
    yield _row("requests", f"{len(trace):,}", f"in {duration(trace.seconds)}")
    yield _row("tokens a request", f"{trace.prompt.mean():,.0f}", f"in, {trace.answer.mean():,.0f} out")
    peak = f"{busy.max():,.1f} in the busiest ten seconds"
    yield _row("busy replicas", f"{busy.mean():,.1f}", f"on average, {peak}")


def _table(scores: list[Score], ttft_s: float, tpot_s: float) -> Iterator[str]:
    ttft, tpot = f"TTFT<={ttft_s:g}s", f"TPOT<={tpot_s:g}s"
    yield (
        f"  {'fleet':<12}{ttft:>12}{tpot:>12}{'violations':>12}{'TTFT p99':>10}{'replica-h':>11}"
        f"{'mean':>7}{'most':>6}{'turns':>7}{'dropped':>9}{'cost':>10}"
    )
    for s in scores:
        cost = "-" if s.cost is None else f"{s.cost:,.2f}"
        yield (
            f"  {s.name:<12}{s.ttft_attained:>12.2%}{s.tpot_attained:>12.2%}{s.violations:>12,}"
            f"{s.ttft_p99_s:>9.2f}s{s.replica_hours:>11,.2f}{s.mean_replicas:>7.1f}{s.most_replicas:>6,}"
            f"{s.direction_changes:>7}{s.dropped:>9,}{cost:>10}"
        )


def _chart(run: Run, trace: Trace, job: SimulateJob) -> Iterator[str]:
    """Replicas that are paid for as a line of o, busy replicas as filled columns."""
    paid = _binned(run, CHART_WIDTH)["paid for"]
    busy = _busy(run, trace, job, CHART_WIDTH)
    top = max(*paid, *busy, 1.0)
    yield "  replicas (o paid for, # kept busy by what arrives)"
    for level in range(CHART_HEIGHT, 0, -1):
        low = top * (level - 0.5) / CHART_HEIGHT
        high = top * (level + 0.5) / CHART_HEIGHT
        signs = ["o" if low <= p < high else "#" if b >= low else " " for p, b in zip(paid, busy, strict=True)]
        yield f"  {top * level / CHART_HEIGHT:>7.1f} |{''.join(signs)}".rstrip()
    yield f"  {'0':>7} +{'-' * CHART_WIDTH} {duration(run.seconds)}"


def _binned(run: Run, bins: int) -> dict[str, list[float]]:
    """Means of what there was at decisions, in equal spans of time."""
    ticks = np.array(run.ticks, dtype=float)
    places = np.linspace(0, run.seconds, bins, endpoint=False) + run.seconds / bins / 2
    at = np.clip(np.searchsorted(ticks[:, 0], places, side="right") - 1, 0, len(ticks) - 1)
    running, starting, draining = ticks[at, 2], ticks[at, 3], ticks[at, 4]
    return {
        "paid for": (running + starting + draining).tolist(),
        "running": running.tolist(),
        "waiting": ticks[at, 5].tolist(),
    }


def _busy(run: Run, trace: Trace, job: SimulateJob, bins: int) -> list[float]:
    span_s = max(run.seconds / bins, 1e-9)
    series = busy_series(trace, job, span_s)
    return np.resize(np.concatenate([series, np.zeros(bins)]), bins).tolist()


def html(job: SimulateJob, trace: Trace, scores: list[Score], run: Run) -> str:
    """Returns one HTML page with plots, which needs nothing else and runs nothing; see `page` for the arguments."""
    bins = max(1, min(MAX_BINS, int(run.seconds)))
    series = _binned(run, bins)
    replicas = {"kept busy by what arrives": _busy(run, trace, job, bins)}
    replicas |= {name: series[name] for name in ("running", "paid for")}
    wall_s = max(run.seconds, 1e-9)
    plots = [
        Plot(name="replicas", title="Replicas against load", unit="replicas", wall_s=wall_s, lines=replicas),
        Plot(
            name="waiting",
            title="Requests whose answer has not begun",
            unit="requests",
            wall_s=wall_s,
            lines={"waiting": series["waiting"]},
        ),
    ]
    style = (REPORT / "page.css").read_text(encoding="utf-8")
    return (
        environment(Path(__file__).parent)
        .get_template("simulation.html.jinja")
        .render(
            style=Markup(style),
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            job=job,
            scores=scores,
            plots=plots,
            requests=len(trace),
            length=duration(run.seconds),
        )
    )
