from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.evaluate.divergence import place_divergence, text_divergence
from serve.engine.protocol import ForcedToken


def place(probabilities: np.ndarray, token_id: int, k: int) -> ForcedToken:
    logs = np.log(probabilities)
    top = np.argsort(-probabilities)[:k]
    pairs = tuple((int(at), float(logs[at])) for at in top)
    return ForcedToken(token_id=token_id, logprob=float(logs[token_id]), top=pairs)


def exact(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def drawn(seed: int, size: int = 50) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, size)
    near = logits + random.normal(0, 0.5, size)
    return np.exp(logits) / np.exp(logits).sum(), np.exp(near) / np.exp(near).sum()


@pytest.mark.parametrize("seed", range(20))
def test_with_the_whole_vocabulary_it_is_exact_and_with_less_a_lower_bound(seed: int):
    p, q = drawn(seed)
    truth = exact(p, q)
    whole = place_divergence(place(p, 3, 50), place(q, 3, 50))
    assert whole.nats == pytest.approx(truth, rel=1e-6)
    assert whole.covered == pytest.approx(1.0)
    bounds = [place_divergence(place(p, 3, k), place(q, 3, k)) for k in (1, 5, 20)]
    assert all(-1e-12 <= bound.nats <= truth + 1e-9 for bound in bounds)
    assert bounds[2].nats > 0.5 * truth
    assert bounds[0].covered <= bounds[1].covered <= bounds[2].covered < 1


def test_equal_distributions_do_not_differ():
    p, _ = drawn(0)
    assert place_divergence(place(p, 40, 5), place(p, 40, 5)).nats == pytest.approx(0, abs=1e-9)


def test_tokens_that_only_one_side_names_are_taken_together():
    parent = ForcedToken(token_id=0, logprob=math.log(0.5), top=((0, math.log(0.5)), (1, math.log(0.4))))
    model = ForcedToken(token_id=0, logprob=math.log(0.2), top=((2, math.log(0.7)), (0, math.log(0.2))))
    found = place_divergence(parent, model)
    assert found.nats == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8))
    assert found.covered == pytest.approx(0.5)


def test_what_rounding_leaves_of_one_is_no_divergence():
    sure = ForcedToken(token_id=0, logprob=0.0, top=((0, 0.0), (1, -20.0)))
    nearly = ForcedToken(token_id=0, logprob=-1e-7, top=((0, -1e-7), (1, -17.0)))
    assert place_divergence(sure, nearly).nats == pytest.approx(0, abs=1e-6)
    assert place_divergence(nearly, sure).nats == pytest.approx(0, abs=1e-6)


def test_places_of_a_text_are_summed():
    p, q = drawn(1)
    one = place_divergence(place(p, 3, 20), place(q, 3, 20))
    both = text_divergence([place(p, 3, 20)] * 2, [place(q, 3, 20)] * 2)
    assert both == pytest.approx((2 * one.nats, 2 * one.covered))
