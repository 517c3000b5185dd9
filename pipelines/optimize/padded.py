"""Rows as tensors: padded on the right, where a causal model never looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.optimize.step.task import Example

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Padded:
    """Some rows."""

    ids: torch.Tensor
    """int64 [rows, tokens]; 0 where a row has ended."""
    real: torch.Tensor
    """bool [rows, tokens]: what belongs to a row."""
    asks: torch.Tensor
    """bool [rows, tokens]: what stands before an answer's token, so that the model predicts that token there."""

    def to(self, device: torch.device) -> Padded:
        """Returns the same on another device."""
        return Padded(ids=self.ids.to(device), real=self.real.to(device), asks=self.asks.to(device))

    @property
    def next_ids(self) -> torch.Tensor:
        """int64 [answers' tokens]: what follows where `asks`."""
        return self.ids.roll(-1, dims=1)[self.asks]


def pad_rows(rows: Sequence[Example]) -> Padded:
    """Returns rows, prompt and answer, as tensors on the CPU."""
    import torch

    texts = [[*row.prompt, *(row.answer or ())] for row in rows]
    width = max(len(text) for text in texts)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real, asks = torch.zeros(2, len(rows), width, dtype=torch.bool)
    for at, (row, text) in enumerate(zip(rows, texts, strict=True)):
        ids[at, : len(text)] = torch.tensor(text)
        real[at, : len(text)] = True
        asks[at, len(row.prompt) - 1 : len(text) - 1] = row.answer is not None
    return Padded(ids=ids, real=real, asks=asks)


def pad_all(rows: Sequence[Example], batch_size: int) -> Iterator[Padded]:
    """Yields all rows, those of about equal length together."""
    order = sorted(rows, key=lambda row: len(row.prompt) + len(row.answer or ()))
    for at in range(0, len(order), batch_size):
        yield pad_rows(order[at : at + batch_size])
