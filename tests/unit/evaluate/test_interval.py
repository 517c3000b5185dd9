from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluate.interval import bootstrap, difference, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    "hits,rows,low,high",
    [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_limits_of_the_paper(hits: int, rows: int, low: float, high: float):
    found = wilson(hits, rows)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    mirrored = wilson(rows - hits, rows)
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - high, abs=5e-5), pytest.approx(1 - low, abs=5e-5))


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = [True] * (both + first) + [False] * (second + neither)
    two = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(one, bool), np.array(two, bool)


@pytest.mark.parametrize(
    "table,value,low,high",
    [  # Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10; Fagerland et al. 2014 for the second
        ((36, 12, 2, 0), 0.20, 0.0569, 0.3404),
        ((1, 1, 7, 12), -0.286, -0.507, -0.026),
    ],
)
def test_a_paired_difference_has_the_limits_of_the_paper(
    table: tuple[int, int, int, int], value: float, low: float, high: float
):
    found = paired_difference(*pairs(*table))
    digits = 5e-5 if abs(low) < 0.1 else 6e-4
    assert found.value == pytest.approx(value, abs=6e-4)
    assert (found.low, found.high) == (pytest.approx(low, abs=digits), pytest.approx(high, abs=6e-4))
    one, two = pairs(*table)
    swapped = paired_difference(two, one)
    assert (swapped.low, swapped.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_models_that_never_differ_are_still_not_known_to_be_alike():
    one, two = pairs(30, 0, 0, 10)
    found = paired_difference(one, two)
    assert found.value == 0
    assert found.low < 0 < found.high
    assert mcnemar(one, two) == 1


def test_pairs_tell_more_than_two_groups_of_the_same_shares():
    one, two = pairs(80, 6, 2, 12)
    paired, apart = paired_difference(one, two), difference(wilson(86, 100), wilson(82, 100))
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.8 * (apart.high - apart.low)


def test_the_difference_of_two_groups_has_the_limits_of_the_paper():
    # Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10: 56/70 and 48/80
    found = difference(wilson(56, 70), wilson(48, 80))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@pytest.mark.parametrize("first,second,p", [(1, 9, 22 / 1024), (5, 5, 1.0), (0, 6, 2 / 64), (0, 0, 1.0)])
def test_mcnemar_is_the_binomial_of_the_rows_that_differ(first: int, second: int, p: float):
    assert mcnemar(*pairs(7, first, second, 3)) == pytest.approx(p)


def test_intervals_of_pairs_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        hard = random.random(150)
        one, two = hard + random.normal(0, 0.2, 150) < 0.8, hard + random.normal(0, 0.2, 150) < 0.7
        found = paired_difference(one, two)
        hits += found.low <= TRUTH <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def truth() -> float:
    random = np.random.default_rng(0)
    hard = random.random(400_000)
    noise = random.normal(0, 0.2, (2, 400_000))
    return float((hard + noise[0] < 0.8).mean() - (hard + noise[1] < 0.7).mean())


TRUTH = truth()


def test_a_bootstrap_of_a_mean_is_about_what_theory_says_and_the_same_each_time():
    values = np.random.default_rng(3).normal(5, 2, 400)
    found = bootstrap(values[:, None], lambda totals: totals[:, 0] / 400, 2000, seed=0)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.04)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04)
    assert bootstrap(values[:, None], lambda totals: totals[:, 0] / 400, 2000, seed=0) == found
    assert bootstrap(values[:, None], lambda totals: totals[:, 0] / 400, 2000, seed=1) != found


def test_rows_of_a_bootstrap_stay_whole():
    # tokens of one answer belong together: a thousand tokens of two rows are two pieces of evidence
    sums = np.array([[1000.0, 1000.0], [0.0, 1000.0]])
    found = bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], 1000, seed=0)
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)
