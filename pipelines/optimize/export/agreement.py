"""Whether a graph computes what its checkpoint does: both read the same texts, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.engine.onnx.cache import KvCache
from serve.engine.onnx.layout import EdgeModel
from serve.engine.onnx.session import Session

PROMPT_TOKENS = (5, 9, 16, 24)
ANSWER_TOKENS = 24
TIE = 1e-3
"""Logits that differ by less than this part of their spread may change places."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What the graph computed beside its checkpoint."""

    places: int
    """Tokens that both chose."""
    equal: int
    """Of these, the same ones, or ones that are as likely."""
    difference: float
    """The largest of all logits' differences."""
    relative: float
    """The root mean square of the differences, in standard deviations of the checkpoint's logits."""


def prompts_of(vocabulary: int, context: int, seed: int) -> list[list[int]]:
    """Returns prompts of several lengths, of tokens drawn by chance: no text of the user's is needed."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, min(size, context // 2)).tolist() for size in PROMPT_TOKENS]


def compare(hf: Any, folder: Path, edge: EdgeModel, prompts: list[list[int]]) -> Agreement:
    """Has the checkpoint answer greedily, and the graph read the same prompts and answers.

    Args:
        hf: the checkpoint in float32, of transformers.
        folder: where the graph is.
        edge: its shapes.
        prompts: of different lengths; they are read side by side.
    """
    steps = min(ANSWER_TOKENS, edge.context - max(map(len, prompts)))
    wanted, tokens = _answers(hf, prompts, steps)
    cache = KvCache(edge, len(prompts), edge.context, len(prompts) * edge.context)
    session = Session(folder, edge, cache, threads=1)
    sizes = np.array([len(prompt) for prompt in prompts])
    filled = np.zeros((len(prompts), sizes.max()), np.int64)
    for row, prompt in zip(filled, prompts, strict=True):
        row[: len(prompt)] = prompt
    found = [session.step(filled, sizes, sizes - 1, 0)]
    last = np.zeros(len(prompts), np.int64)
    for step in range(1, steps):
        found.append(session.step(tokens[:, step - 1 : step], sizes + step, last, 0))
    got = np.stack(found, 1)
    chosen = np.take_along_axis(wanted, got.argmax(-1)[..., None], -1)[..., 0]
    spread = float(wanted.std())
    equal = wanted.max(-1) - chosen <= TIE * spread
    return Agreement(
        places=equal.size,
        equal=int(equal.sum()),
        difference=float(np.abs(got - wanted).max()),
        relative=float(np.sqrt(np.square(got - wanted).mean()) / spread),
    )


def _answers(hf: Any, prompts: list[list[int]], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoint's logits float32 [prompts, steps, vocabulary], and the likeliest tokens int64 [prompts, steps]."""
    import torch

    logits, tokens = [], []
    with torch.no_grad():
        for prompt in prompts:
            ids, past, rows, chosen = torch.tensor([prompt]), None, [], []
            for _ in range(steps):
                output = hf(input_ids=ids, past_key_values=past, use_cache=True)
                past, scores = output.past_key_values, output.logits[0, -1].float()
                ids = scores.argmax().view(1, 1)
                rows.append(scores.numpy())
                chosen.append(int(ids))
            logits.append(np.stack(rows))
            tokens.append(chosen)
    return np.stack(logits), np.array(tokens, np.int64)
