"""Tokens are drawn by the rules of SamplingSpec."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from conf.schema.sampling import SamplingSpec
from serve.engine.onnx.sampler import Sampler

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))


def draws(count: int = 400, prompt: tuple[int, ...] = (), **fields: object) -> Counter[int]:
    spec = SamplingSpec(**{"temperature": 1.0, "seed": 1, **fields})  # type: ignore[arg-type]
    sampler = Sampler(spec, prompt, 0)
    return Counter(sampler.draw(LOGITS)[0] for _ in range(count))


def test_tokens_come_as_often_as_they_are_likely() -> None:
    counts = draws(4000)
    for token, share in enumerate((0.5, 0.25, 0.15, 0.07, 0.03)):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    "fields, kept",
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"min_p": 0.4}, {0, 1}),
        ({"min_p": 0.2, "top_k": 2}, {0, 1}),
        ({"top_k": 3, "top_p": 0.8}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_unlikely_tokens_are_left_out(fields: dict[str, float], kept: set[int]) -> None:
    assert set(draws(**fields)) == kept


def test_a_seed_repeats_and_each_answer_has_its_own_numbers() -> None:
    spec = SamplingSpec(temperature=1.0, seed=7, n=2)

    def drawn(index: int) -> list[int]:
        sampler = Sampler(spec, (), index)
        return [sampler.draw(LOGITS)[0] for _ in range(20)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_greedy_takes_the_likeliest_and_says_how_likely() -> None:
    token, logprob, likely = Sampler(SamplingSpec(logprobs=2), (), 0).draw(LOGITS)
    assert token == 0
    assert logprob == pytest.approx(np.log(0.5), abs=1e-6)
    assert [other for other, _ in likely] == [0, 1]
    assert likely[1][1] == pytest.approx(np.log(0.25), abs=1e-6)


def test_penalties_turn_from_what_was_said() -> None:
    # positive logits shrink and negative ones grow by the repetition penalty, which counts the prompt too
    scores = np.array([2.0, 1.5, -1.0], np.float32)
    assert Sampler(SamplingSpec(repetition_penalty=1.5), (0,), 0).draw(scores)[0] == 1
    assert Sampler(SamplingSpec(), (0,), 0).draw(scores)[0] == 0
    one = Sampler(SamplingSpec(presence_penalty=1.0), (0,), 0)
    assert [one.draw(scores)[0] for _ in range(3)] == [0, 1, 0]  # the prompt does not count, then both have been said
    often = Sampler(SamplingSpec(frequency_penalty=0.3), (), 0)
    assert [often.draw(scores)[0] for _ in range(4)] == [0, 0, 1, 0]


def test_log_probabilities_are_the_model_s_own_whatever_the_penalties() -> None:
    spec = SamplingSpec(repetition_penalty=2.0, temperature=2.0, seed=1, logprobs=5)
    _, _, likely = Sampler(spec, (0, 1, 2), 0).draw(LOGITS)
    assert [value for _, value in likely] == pytest.approx(LOGITS.tolist(), abs=1e-6)
