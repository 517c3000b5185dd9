from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from bench_simulation import (
    REPLICA,
    phases,
    real_figures,
    simulated,
    simulated_figures,
    start_times,
)

from pipelines.simulate.trace import Trace

ARGUMENTS = argparse.Namespace(
    trace="t.csv",
    ttft_s=2.0,
    tpot_s=0.2,
    words=[
        *("engine.num_replicas=1..4", "autoscale=tokens", "autoscale.short_window_s=10", "autoscale.long_window_s=20"),
        "autoscale.scale_down_window_s=30",
    ],
)


def trace_of(rate: float, seconds: int) -> Trace:
    arrival = np.arange(int(rate * seconds)) / rate
    return Trace(arrival_s=arrival, prompt=np.full(len(arrival), 500), answer=np.full(len(arrival), 100))


def test_starts_are_of_those_that_were_wanted_first():
    fleet = [[0.0, 1, 1], [10.0, 1, 3], [18.0, 2, 3], [20.0, 3, 3], [30.0, 3, 4], [33.0, 3, 3], [40.0, 2, 2]]
    assert start_times(fleet) == [8.0, 10.0]
    # one that is wanted, given up and wanted again starts with the last wish
    assert start_times([[0.0, 1, 1], [10.0, 1, 2], [12.0, 1, 1], [15.0, 1, 2], [22.0, 2, 2]]) == [7.0]


def test_a_run_like_the_simulation_has_its_figures():
    trace = trace_of(2.0, 120)
    run = simulated(ARGUMENTS, trace, REPLICA, 8.0)
    said = simulated_figures(trace, run, ARGUMENTS)
    rows = [
        [at, first, end, end, prompt, answer, None]
        for at, first, end, prompt, answer in zip(
            trace.arrival_s, run.first_s, run.end_s, trace.prompt, trace.answer, strict=True
        )
    ]
    fleet = [[at, running, target] for at, target, running, *_ in run.ticks]
    columns = ["start_s", "first_s", "last_s", "end_s", "prompt_tokens", "answer_tokens", "error"]
    found = {"rows": rows, "columns": columns, "fleet": fleet, "replica_s": said["replica_s"], "seconds": run.seconds}
    assert real_figures(found, ARGUMENTS) == pytest.approx(said)
    assert said["most_replicas"] > 1
    found["rows"] = [*rows[:-1], [*rows[-1][:-1], "status 503"]]
    assert real_figures(found, ARGUMENTS)["lost"] == 1


def test_a_phase_is_the_same_slice_at_another_moment():
    trace = trace_of(1.0, 30)
    for late in phases(trace):
        figures = simulated_figures(late, simulated(ARGUMENTS, late, REPLICA, 8.0), ARGUMENTS)
        assert figures["lost"] == 0
        assert np.diff(late.arrival_s) == pytest.approx(np.diff(trace.arrival_s))
