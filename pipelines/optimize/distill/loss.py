"""How far a student is from its teacher, over the tokens of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the sum over tokens of KL(teacher || student), in nats, times the temperature squared.

    Source: Hinton et al., https://arxiv.org/abs/1503.02531: the square keeps gradients alike over temperatures.

    Args:
        student: Logits, float32 [tokens, vocabulary].
        teacher: The same.
        temperature: Both are divided by it.
    """
    import torch

    ours = torch.log_softmax(student / temperature, -1)
    theirs = torch.log_softmax(teacher / temperature, -1)
    return temperature**2 * torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="sum")


def stored_divergence(
    student: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns the same against a teacher of whom K tokens are known; all others are one event.

    It is never more than the divergence of the whole vocabularies (merging events loses information), and equals it
    where K is the vocabulary.

    Args:
        student: Logits, float32 [tokens, vocabulary].
        ids: The teacher's likeliest tokens, int64 [tokens, K].
        logprobs: Theirs, at the same temperature, float32 [tokens, K].
        temperature: The student's logits are divided by it.
    """
    import torch

    ours = torch.log_softmax(student / temperature, -1)
    known = ours.gather(-1, ids)
    others = torch.ones_like(ours, dtype=torch.bool).scatter_(-1, ids, False)
    # Summed over the others themselves: 1 - sum of the known loses all digits where the known are nearly all.
    rest = ours.masked_fill(~others, -torch.inf).logsumexp(-1).clamp_min(-100.0)
    their_rest = (1 - logprobs.exp().sum(-1)).clamp_min(0.0)
    summed = (logprobs.exp() * (logprobs - known)).sum() + torch.special.xlogy(their_rest, their_rest).sum()
    return temperature**2 * (summed - (their_rest * rest).sum())
