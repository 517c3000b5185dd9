from __future__ import annotations

import random

import pytest

from pipelines.forecast.duplicates import duplicate_share


def test_of_a_whole_input_it_is_exact():
    assert duplicate_share(["a", "b", "a", "a"], 4) == 0.5
    assert duplicate_share([], 0) == 0


@pytest.mark.parametrize("distinct", [500, 5_000, 20_000])
def test_of_a_sample_it_is_near(distinct: int):
    draw = random.Random(1)
    keys = [str(draw.randrange(distinct)) for _ in range(20_000)]
    whole = duplicate_share(keys, len(keys))
    assert duplicate_share(draw.sample(keys, 2_000), len(keys)) == pytest.approx(whole, abs=0.15)


def test_no_duplicate_seen_means_none_expected():
    assert duplicate_share([str(index) for index in range(1_000)], 100_000) == 0
