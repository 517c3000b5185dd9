"""`manta simulate`: a trace of arrivals against an autoscaler, in simulated time. Starts nothing, takes no GPU."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from conf.errors import UserError
from conf.schema.simulate import SimulateJob
from pipelines.simulate.page import html, page
from pipelines.simulate.score import (
    busy_series,
    first_replicas,
    fixed,
    follow_policy,
    mean_replicas,
    peak_replicas,
    score,
    simulate,
)
from pipelines.simulate.trace import Trace, read_trace, replayed

MAX_REQUESTS = 20_000_000
"""Of a replay: some 10 GB of memory, and many minutes."""


def run(job: SimulateJob) -> int:
    """Replays a trace, and prints what came of it.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for a trace that cannot be read or replayed, or a file that cannot be written; one line.
    """
    began = time.monotonic()
    trace = load(job)
    policy = job.autoscale.policy.value
    followed = simulate(trace, job, follow_policy(job.autoscale), first_replicas(trace, job))
    scores = [score(policy, trace, followed, job)]
    if job.simulate.is_compared:
        for name, replicas in (("fixed peak", peak_replicas(trace, job)), ("fixed mean", mean_replicas(trace, job))):
            scores.append(score(name, trace, simulate(trace, job, fixed(replicas), replicas), job))
    took_s = time.monotonic() - began
    text = json.dumps(
        {
            "trace": job.trace,
            "autoscale": {**asdict(job.autoscale), "policy": policy},
            "replica": asdict(job.replica),
            "simulate": asdict(job.simulate),
            "busy_replicas": {"mean": _mean(trace, job), "peak_10s": float(busy_series(trace, job).max())},
            "scores": [each.plain() for each in scores],
            "changes": [{"at_s": at, "target": target, "reason": reason} for at, target, reason in followed.reasons],
            "took_s": took_s,
        },
        indent=2,
    )
    place = job.simulate.json_file
    print(text if place == "-" else page(job, trace, scores, followed, took_s))
    if place is not None and place != "-":
        _write("json_file", place, text + "\n")
    if job.simulate.plot_file is not None:
        _write("plot_file", job.simulate.plot_file, html(job, trace, scores, followed))
    return 0


def load(job: SimulateJob) -> Trace:
    """Returns what is replayed.

    Raises:
        UserError: see `run`.
    """
    how = job.simulate
    trace = read_trace(job.trace, how.max_requests)
    if len(trace) * how.copies > MAX_REQUESTS:
        rule = f"at most {MAX_REQUESTS:,} requests in all"
        raise UserError(f"simulate.copies must make {rule}, got {how.copies:,} x {len(trace):,}")
    longest = int((trace.prompt + trace.answer).max())
    if longest > job.replica.kv_tokens:
        rule = f">= {longest:,}, the trace's longest request"
        raise UserError(f"replica.kv_tokens must be {rule}, got {job.replica.kv_tokens:,}")
    return replayed(trace, how.copies, how.jitter_s, how.speed_up, how.seed)


def _mean(trace: Trace, job: SimulateJob) -> float:
    return float(busy_series(trace, job).mean())


def _write(key: str, place: str, text: str) -> None:
    try:
        Path(place).expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"simulate.{key}={place}: cannot be written: {error.strerror}") from error
