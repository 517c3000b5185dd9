from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from bench_nodes import middle_rate, summarize  # noqa: E402


def test_the_steady_rate_is_that_of_the_middle_of_the_job():
    slow_start = [(float(at), at) for at in range(20)]
    middle = [(20.0 + at / 10, 20 + at) for at in range(61)]
    slow_end = [(26.0 + at, 80 + at) for at in range(1, 21)]
    assert middle_rate([*slow_start, *middle, *slow_end], 100) == pytest.approx(10.0)


def test_ratios_are_those_of_runs_next_to_each_other():
    rates = ("steady_rows_per_s", "inference_rows_per_s", "whole_rows_per_s")
    one, three = ([dict.fromkeys(rates, rate) for rate in run] for run in ([10.0, 20.0, 30.0], [30.0, 50.0, 93.0]))
    summary = summarize({1: one, 3: three})
    assert summary["3"]["steady_ratio"] == pytest.approx({"median": 3.0, "min": 2.5, "max": 3.1})
    assert summary["1"]["whole_ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert summary["3"]["steady_rows_per_s"] == {"median": 50.0, "min": 30.0, "max": 93.0}
