"""From logits to a token, by `SamplingSpec`'s rules, in vLLM's order.

Source: vllm/v1/sample/sampler.py (0.32): log-probabilities are the model's own; then penalties, temperature, min_p,
top_k, top_p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conf.schema.sampling import SamplingSpec

Likely = list[tuple[int, float]]
"""Token ids with their log-probabilities."""


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, spec: SamplingSpec, prompt: Sequence[int], index: int) -> None:
        """Args.

        spec: the rules.
        prompt: token ids, which the repetition penalty counts.
        index: of the answer, among `spec.n`; each has its own stream of random numbers.
        """
        self._spec = spec
        seed = None if spec.seed is None else [spec.seed & (1 << 64) - 1, index]
        self._random = None if spec.temperature == 0 else np.random.default_rng(seed)
        self._seen = set(prompt) if spec.repetition_penalty != 1 else set()
        self._counts: dict[int, int] = {}
        self._has_penalty = spec.repetition_penalty != 1 or spec.presence_penalty != 0 or spec.frequency_penalty != 0

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        return self._random is None and not self._has_penalty and self._spec.logprobs is None

    def draw(self, logits: np.ndarray) -> tuple[int, float | None, Likely]:
        """Draws a token.

        Args:
            logits: float32 [vocabulary].

        Returns:
            The token, its log-probability and the likeliest ones with theirs; null and nothing where they were not
            asked for.
        """
        spec = self._spec
        scores = self._penalized(logits) if self._has_penalty else logits
        token = int(scores.argmax()) if self._random is None else self._random_token(scores)
        if self._has_penalty:
            self._seen.add(token)
            self._counts[token] = self._counts.get(token, 0) + 1
        if spec.logprobs is None:
            return token, None, []
        return token, *log_probabilities(logits, token, spec.logprobs)

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        scores = logits.copy()
        if self._seen and self._spec.repetition_penalty != 1:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            values, penalty = scores[ids], self._spec.repetition_penalty
            scores[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            scores[ids] -= self._spec.frequency_penalty * counts + self._spec.presence_penalty
        return scores

    def _random_token(self, scores: np.ndarray) -> int:
        spec, random = self._spec, self._random
        assert random is not None
        scaled = scores.astype(np.float64) / spec.temperature
        scaled -= scaled.max()
        ids: np.ndarray | None = None
        if spec.min_p > 0:
            ids = np.flatnonzero(scaled >= np.log(spec.min_p))
        if 0 < spec.top_k < (len(scaled) if ids is None else len(ids)):
            held = scaled if ids is None else scaled[ids]
            best = np.argpartition(held, -spec.top_k)[-spec.top_k :]
            ids = best if ids is None else ids[best]
        if spec.top_p < 1:
            ids = np.arange(len(scaled)) if ids is None else ids
            ids = ids[np.argsort(-scaled[ids], kind="stable")]
            weights = np.exp(scaled[ids])
            before = np.cumsum(weights) - weights  # of the likelier ones: the first is always kept
            ids = ids[before < spec.top_p * weights.sum()]
        weights = np.exp(scaled if ids is None else scaled[ids])
        ends = np.cumsum(weights)
        place = min(int(np.searchsorted(ends, random.random() * ends[-1], side="right")), len(ends) - 1)
        return place if ids is None else int(ids[place])


def log_probabilities(logits: np.ndarray, token: int, top: int) -> tuple[float, Likely]:
    """Returns a token's log-probability, and the likeliest tokens with theirs.

    Args:
        logits: float32 [vocabulary].
        token: the one.
        top: how many likely ones.
    """
    logprobs = logits - logits.max()
    logprobs -= np.log(np.exp(logprobs, dtype=np.float64).sum())
    return float(logprobs[token]), _likeliest(logprobs, top)


def _likeliest(logprobs: np.ndarray, count: int) -> Likely:
    """The likeliest tokens, the likeliest first; of equal ones that with the smaller id."""
    if not count:
        return []
    count = min(count, len(logprobs))
    least = np.partition(logprobs, -count)[-count]
    ids = np.flatnonzero(logprobs >= least)
    ids = ids[np.argsort(-logprobs[ids], kind="stable")][:count]
    return [(int(token), float(logprobs[token])) for token in ids]
