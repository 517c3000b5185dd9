"""How many layers, heads and channels a share is."""

from __future__ import annotations

from typing import Any

from conf.schema.prune import PruneSpec
from pipelines.optimize.prune.kept import head_dim
from pipelines.optimize.step.task import StepFailed


def count_kept(key: str, share: float, total: int, multiple: int = 1) -> int:
    """Returns the number that a share is, rounded to a multiple, which is one multiple at least.

    Args:
        key: The share's key, for the message.
        share: In (0, 1]; 1 is all, whatever the multiple.
        total: What there is.
        multiple: What the number must be a multiple of.

    Raises:
        StepFailed: when a share below 1 leaves nothing out.
    """
    if share == 1:
        return total
    count = max(multiple, round(share * total / multiple) * multiple)
    if count >= total:
        most = (total - 1) // multiple * multiple
        if most:
            room = f"at most {most} can stay if something is to go (about {most / total:.3g})"
        else:
            room = f"nothing can go in multiples of {multiple}"
        raise StepFailed(f"{key}={share:g} keeps all of {total}: {room}")
    return count


def count_width(spec: PruneSpec, config: Any) -> tuple[int, int, int]:
    """Returns how many KV heads, feed-forward channels and hidden channels stay.

    Raises:
        StepFailed: when they are none that can be, or that vLLM could not load.
    """
    heads = count_kept("prune.heads", spec.heads, config.num_key_value_heads)
    ffn = count_kept("prune.ffn", spec.ffn, config.intermediate_size, spec.multiple)
    hidden = count_kept("prune.hidden", spec.hidden, config.hidden_size, spec.multiple)
    queries = heads * config.num_attention_heads // config.num_key_value_heads
    if config.model_type == "qwen2" and hidden // queries != head_dim(config):
        # vLLM's Qwen2 reads no head_dim: it divides the one number by the other.
        raise StepFailed(
            f"prune.heads and prune.hidden must keep hidden_size / num_attention_heads = {head_dim(config)} of a"
            f" qwen2 model, got {hidden} / {queries}: prune both by the same share, or prune.ffn alone"
        )
    return heads, ffn, hidden
