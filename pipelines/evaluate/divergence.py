"""How far the next-token distributions of a model lie from its parent's, from the likely tokens of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from serve.engine.protocol import ForcedToken


class Divergence(NamedTuple):
    """Of one place, or summed over some."""

    nats: float
    """KL(parent || model)."""
    covered: float
    """What of the parent's probability lies on tokens that were told apart."""


def place_divergence(parent: ForcedToken, model: ForcedToken) -> Divergence:
    """Returns the KL divergence of one place.

    Engines give the k likeliest tokens, not the distribution. Tokens that both give (the text's own is always among
    them) are told apart; all others are one outcome, with what is left of each side's probability. Joining outcomes
    never makes a divergence larger (the log-sum inequality), so this is a lower bound, and exact where k is the
    vocabulary.

    Source: Cover & Thomas, Elements of Information Theory, 2nd edition, theorem 2.7.1. KL to the uncompressed model as
    a measure of compressed ones: Dutta et al., Accuracy is Not All You Need, 2024, arXiv:2407.09141.

    Args:
        parent: the place under the parent.
        model: the same place of the same text under the model.
    """
    ps, qs = _known(parent), _known(model)
    nats = p_sum = q_sum = 0.0
    for token_id in ps.keys() & qs.keys():
        p, q = math.exp(ps[token_id]), math.exp(qs[token_id])
        p_sum, q_sum = p_sum + p, q_sum + q
        if p > 0:
            nats += p * (ps[token_id] - qs[token_id])
    p_rest, q_rest = 1 - p_sum, 1 - q_sum
    # engines compute in 32 bits or less: what is left of 1 may be noise, and below 0
    if p_rest > NOISE:
        nats += p_rest * math.log(p_rest / max(q_rest, NOISE))
    return Divergence(max(nats, 0.0), min(p_sum, 1.0))


NOISE = 1e-6
"""Probability below which the sum of k log-probabilities in float32 says nothing."""


def text_divergence(parent: Sequence[ForcedToken], model: Sequence[ForcedToken]) -> Divergence:
    """Returns the sums over the places of a text."""
    places = [place_divergence(p, q) for p, q in zip(parent, model, strict=True)]
    return Divergence(math.fsum(place.nats for place in places), math.fsum(place.covered for place in places))


def _known(place: ForcedToken) -> dict[int, float]:
    return {place.token_id: place.logprob, **dict(place.top)}
