from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.forecast.prefix import best_prefix_hit_rate

PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=12)


def by_hand(prompts: list[list[int]], block: int) -> float:
    known: set[tuple[int, ...]] = set()
    saved = 0
    for prompt in prompts:
        hit = 0
        while hit + block <= len(prompt) - 1 and tuple(prompt[: hit + block]) in known:
            hit += block
        saved += hit
        known |= {tuple(prompt[:end]) for end in range(block, len(prompt) + 1, block)}
    total = sum(map(len, prompts))
    return saved / total if total else 0.0


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 4))
def test_it_is_what_a_cache_of_whole_prefixes_would_save(prompts: list[list[int]], block: int):
    assert best_prefix_hit_rate(prompts, block) == by_hand(prompts, block)


def test_only_full_blocks_are_shared_and_the_last_token_is_always_computed():
    assert best_prefix_hit_rate([list(range(32))] * 2) == 16 / 64
    assert best_prefix_hit_rate([list(range(33))] * 2) == 32 / 66
    assert best_prefix_hit_rate([list(range(15))] * 9) == 0


def test_a_block_counts_only_behind_an_equal_beginning():
    same = list(range(100, 116))
    assert best_prefix_hit_rate([[1] * 16 + same + [0], [2] * 16 + same + [0]]) == 0


def test_nothing_has_nothing_to_save():
    assert best_prefix_hit_rate([]) == best_prefix_hit_rate([[], []]) == 0


def test_ten_thousand_rows_take_a_moment():
    draw = random.Random(0)
    prompts = [draw.choices(range(50_000), k=250) for _ in range(10_000)]
    began = time.process_time()
    best_prefix_hit_rate(prompts)
    assert time.process_time() - began < 3
