"""What the student is to make small: a torch module, so that the gradients of several workers can meet in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from conf.schema.distill import DistillSpec
from pipelines.optimize.distill.lesson import Stored, answer_logits
from pipelines.optimize.distill.loss import divergence, stored_divergence
from pipelines.optimize.padded import pad_rows
from pipelines.optimize.step.task import Example


class Objective(torch.nn.Module):
    """A student, and what tells it how wrong it is: a teacher, or what is stored of one."""

    def __init__(self, spec: DistillSpec, student: Any, teacher: Any | None, stored: Stored | None) -> None:
        super().__init__()
        self.spec, self.student, self.stored = spec, student, stored
        # In a list, for the teacher is no part of what is trained and synchronized.
        self.teacher = [teacher]

    def forward(self, taken: Sequence[Example], numbers: Sequence[int], written: bool) -> torch.Tensor:
        """Returns the mean loss of the answers' tokens.

        Args:
            taken: Rows with answers.
            numbers: Theirs in what is stored.
            written: Whether the student wrote these answers, which are then nothing to copy.
        """
        spec = self.spec
        batch = pad_rows(taken).to(self.student.device)
        ours = answer_logits(self.student, batch)
        total = ours.new_zeros(())
        if spec.kl_weight and self.stored is not None:
            ids, logprobs = (part.to(ours.device) for part in self.stored.of(numbers))
            total = total + spec.kl_weight * stored_divergence(ours, ids, logprobs, spec.temperature)
        elif spec.kl_weight:
            with torch.no_grad():
                theirs = answer_logits(self.teacher[0], batch)
            total = total + spec.kl_weight * divergence(ours, theirs, spec.temperature)
        if spec.answer_weight and not written:
            wrong = torch.nn.functional.cross_entropy(ours, batch.next_ids, reduction="sum")
            total = total + spec.answer_weight * wrong
        return total / max(1, len(ours))
