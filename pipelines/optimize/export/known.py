"""Which checkpoints the graph has words for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.schema.export import ExportFormat, ExportSpec
from pipelines.optimize.export.gguf_file import gguf_refusal

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Whose angles depend on the place alone."""


def refusal(config: Mapping[str, Any], spec: ExportSpec) -> str | None:
    """Returns why a checkpoint cannot be exported; null where it can.

    Args:
        config: the checkpoint's config.json.
        spec: the step's part.
    """
    kind = next(iter(config.get("architectures") or ()), "unknown")
    if kind not in ARCHITECTURES:
        return f"export knows {', '.join(ARCHITECTURES)}; the model is {kind}"
    if config.get("quantization_config"):
        return "export takes plain weights, and the model's are quantized: put export in the place of quantize"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    turned = rope.get("rope_type") or rope.get("type") or "default"
    if turned not in ROPE_TYPES:
        return f"export knows rope_type {', '.join(ROPE_TYPES)}; the model has {turned}"
    if config.get("hidden_act", "silu") != "silu":
        return f"export knows hidden_act silu; the model has {config['hidden_act']}"
    if spec.scheme.bits < 32 and config["hidden_size"] % spec.block_size:
        return f"export.block_size={spec.block_size} must divide hidden_size={config['hidden_size']}"
    kinds = sorted(set(config.get("layer_types") or ()))
    if len(kinds) > 1:
        return f"export knows layers of one kind; the model has {', '.join(kinds)}"
    if spec.format is ExportFormat.gguf and (why := gguf_refusal(config)):
        return why
    own = config["max_position_embeddings"]
    if spec.context is not None and spec.context > own:
        return f"export.context must be <= max_position_embeddings={own}, got {spec.context}"
    return None


def window(config: Mapping[str, Any]) -> int:
    """Returns how many tokens a token of a known model sees; -1 is all before it."""
    kinds = set(config.get("layer_types") or ())
    if kinds == {"full_attention"} or config.get("use_sliding_window") is False:
        return -1
    return config.get("sliding_window") or -1
