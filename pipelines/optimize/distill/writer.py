"""Answers that a model writes: the teacher's best, or a sample of the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.optimize.step.task import Example


def end_ids(model: Any) -> list[int]:
    """Returns the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def write_answers(model: Any, rows: Sequence[Example], max_tokens: int, sample: bool) -> list[Example]:
    """Returns the rows with answers that a model wrote; each ends with its end token, or where max_tokens are reached.

    Args:
        model: A causal language model.
        rows: Whose prompts are answered.
        max_tokens: Of an answer.
        sample: By the model's own probabilities (temperature 1), with torch's random state; else greedily.
    """
    import torch

    ends = end_ids(model)
    width = max(len(row.prompt) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        # Generation appends on the right, so prompts are padded on the left.
        ids[at, width - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[at, width - len(row.prompt) :] = 1
    was_training = model.training
    model.eval()
    with torch.no_grad():
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_tokens,
            do_sample=sample,
            temperature=1.0 if sample else None,
            top_k=0 if sample else None,
            top_p=1.0 if sample else None,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
    model.train(was_training)
    return [
        Example(prompt=row.prompt, answer=_cut(answer, ends))
        for row, answer in zip(rows, written[:, width:].tolist(), strict=True)
    ]


def _cut(answer: list[int], ends: list[int]) -> list[int]:
    for at, token in enumerate(answer):
        if token in ends:
            return answer[: at + 1]
    return answer
