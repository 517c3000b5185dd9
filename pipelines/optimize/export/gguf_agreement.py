"""Whether a GGUF file computes what its checkpoint does: both say how likely the next token of the same texts is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.engine.gguf.server import LlamaServer

PROMPTS, MOST_TOKENS, LIKELY = 32, 24, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokens:
    """What the file said beside its checkpoint."""

    places: int
    """Texts whose next token llama.cpp told: it keeps back one that ends the answer, or is a part of a character."""
    equal: int
    """Of these, those that both go on with the same token."""
    difference: float
    """The largest of the likeliest tokens' log-probabilities' differences, in nats."""
    relative: float
    """Their root mean square, in standard deviations of the checkpoint's logits."""


def likeliest(file: Path, prompts: list[list[int]]) -> list[dict[int, float]]:
    """Returns log-probabilities of each prompt's likeliest next tokens by llama.cpp; empty where it tells none."""
    server = LlamaServer(file, 256, 1, threads=1)
    found: list[dict[int, float]] = []

    def hear(piece: dict[str, Any]) -> bool:
        for choice in piece["choices"]:
            for place in (choice["logprobs"] or {}).get("content", ()):
                found[-1] |= {one["id"]: one["logprob"] for one in place["top_logprobs"]}
        return False

    for prompt in prompts:
        found.append({})
        server.complete({"prompt": prompt, "max_tokens": 1, "temperature": 0, "n_probs": LIKELY}, hear)
    return found


def compare_next(hf: Any, file: Path, seed: int) -> NextTokens:
    """Has both read the same texts.

    Args:
        hf: the checkpoint in float32, of transformers.
        file: the GGUF file.
        seed: of the texts, which are tokens drawn by chance.
    """
    import torch

    random = np.random.default_rng(seed)
    sizes = random.integers(4, MOST_TOKENS, PROMPTS)
    prompts = [random.integers(0, hf.config.vocab_size, size).tolist() for size in sizes]
    got = likeliest(file, prompts)
    errors: list[float] = []
    spreads: list[float] = []
    equal = 0
    for prompt, told in zip(prompts, got, strict=True):
        if told:
            with torch.no_grad():
                logits = hf(input_ids=torch.tensor([prompt])).logits[0, -1].float()
            wanted = torch.log_softmax(logits, -1)
            errors += [logprob - wanted[token].item() for token, logprob in told.items()]
            spreads.append(logits.std().item())
            equal += max(told, key=lambda token: told[token]) == int(wanted.argmax())
    return NextTokens(
        places=len(spreads),
        equal=equal,
        difference=float(np.abs(errors).max()) if errors else float("nan"),
        relative=float(np.sqrt(np.square(errors).mean()) / np.mean(spreads)) if errors else float("nan"),
    )
