"""How large a model is, from its config.json and the headers of its safetensors files: no weights are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.engine.architecture import Parts, count_parts, is_known, text_config

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
FLOAT_TAGS = {"F32", "F16", "BF16", "F64"}
"""Of safetensors: what vLLM turns into the model's dtype when it loads."""
TAG_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Bytes of a value by its tag in safetensors; all others take one."""
PLAIN_FORMATS = ("auto", "dummy", "safetensors")
"""Of vLLM's load_format, those that leave weights as they are."""
_NOT_PLAIN = ("compression_config", "quantization_config", "text_config")
"""In a config.json: other formats, and other models beside the decoder."""
_FORMATS = {"dtype", "kv_cache_dtype", "quantization", "quantization_config"}
"""Of vLLM's arguments, those that say of formats."""
GROUP_SCALE_BYTES = 2 / 128
"""Four-bit weights carry a 16-bit scale for each 128 of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What decides memory and speed."""

    parameters: int
    active_parameters: int
    """Those that a token meets: of experts, the chosen ones."""
    multiplied_parameters: int
    """Of the active ones, those in matrix products: a look-up in the input embedding multiplies nothing."""
    weight_bytes: int
    embedding_bytes: int
    """Of the weights, one embedding matrix: pipeline stages share the layers, and each end holds one of these."""
    num_embeddings: int
    """1 where the output embedding is the input's, else 2."""
    kv_bytes_per_token: int | None
    """Of all layers and heads, an upper bound where layers have a window; null where the cache has another shape."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    is_moe: bool
    arithmetic: str
    """What matrix products are computed in: bf16, fp8, int8 or fp32."""
    weight_kind: str
    """What the weights are kept in: bf16, fp8, int8, int4, fp32."""
    has_files: bool
    """Whether weight_bytes were taken from files."""
    is_estimate: bool
    """Whether the architecture is unknown and was counted as a Llama."""

    @property
    def size_class(self) -> str:
        """The active parameters to a power of two, such as ``1b``, ``8b``, ``64b``; of experts all too, ``8b-a1b``."""
        active = _power_of_two(self.active_parameters)
        return f"{_power_of_two(self.parameters)}-a{active}" if self.is_moe else active

    def device_weight_bytes(self, tensor_parallel_size: int, pipeline_parallel_size: int) -> int:
        """Returns the weights that the fullest device holds."""
        embedding = self.embedding_bytes * self.num_embeddings
        layers = self.weight_bytes - embedding
        share = math.ceil(self.num_layers / pipeline_parallel_size) / self.num_layers
        if pipeline_parallel_size > 1:
            embedding = self.embedding_bytes
        return math.ceil((layers * share + embedding) / tensor_parallel_size)

    def device_kv_bytes(self, tensor_parallel_size: int, pipeline_parallel_size: int) -> int | None:
        """Returns the bytes that a token's keys and values take on one device; heads are repeated, never parted."""
        if self.kv_bytes_per_token is None:
            return None
        heads = max(1, math.ceil(self.num_kv_heads / tensor_parallel_size))
        layers = math.ceil(self.num_layers / pipeline_parallel_size)
        return math.ceil(self.kv_bytes_per_token * heads / self.num_kv_heads * layers / self.num_layers)

    def flop_per_token(self, context_tokens: float) -> float:
        """Returns the operations of one token that attends to so many."""
        attention = 4.0 * self.num_heads * self.head_dim * context_tokens * self.num_layers
        return 2.0 * self.multiplied_parameters + attention


def _power_of_two(parameters: int) -> str:
    step = round(math.log2(max(parameters, 1) / 1e9))
    return f"{2**step}b" if step >= 0 else f"{max(round(1024 * 2.0**step), 1)}m"


def measure_model(
    config: Mapping[str, Any],
    folder: str | None = None,
    dtype: str = "auto",
    arguments: Mapping[str, Any] | None = None,
    device: str = "cuda",
) -> ModelSize:
    """Measures a model.

    Args:
        config: its config.json, with `hf_overrides` put over it (`serve.engine.capability.overridden`).
        folder: where weights may lie; null counts by the config alone.
        dtype: `model.dtype`.
        arguments: the node `engine.vllm`; quantization, kv_cache_dtype and load_format count.
        device: cuda or cpu.
    """
    arguments = arguments or {}
    text = text_config(config)
    parts = count_parts(text)
    bytes_each = DTYPE_BYTES[_served_dtype(config, dtype)]
    method, bits, is_activation = _quantization(config, arguments)
    linear_bytes = bytes_each if bits is None else bits / 8 + (GROUP_SCALE_BYTES if bits == 4 else 0)
    from_config = parts.linear * linear_bytes + (parts.total - parts.linear) * bytes_each
    is_dummy = arguments.get("load_format") == "dummy"
    tensors = {} if folder is None or is_dummy else read_headers(folder)
    is_online = method is not None and not _in_config(config)
    from_files = _file_bytes(tensors, bytes_each)
    kv_bytes = _kv_bytes(text, parts, bytes_each, str(arguments.get("kv_cache_dtype") or "auto"))
    plain = "bf16" if bytes_each == 2.0 else "fp32"
    kind = plain if bits is None else method or "int8" if bits == 8 else f"int{bits}"
    return ModelSize(
        parameters=parts.total,
        active_parameters=parts.active,
        multiplied_parameters=parts.active - (parts.embedding if not parts.is_tied else 0),
        weight_bytes=round(from_files if tensors and not is_online else from_config),
        embedding_bytes=round(parts.embedding * bytes_each),
        num_embeddings=1 if parts.is_tied else 2,
        kv_bytes_per_token=kv_bytes,
        num_layers=parts.layers,
        num_heads=parts.heads,
        num_kv_heads=parts.kv_heads,
        head_dim=parts.head_dim,
        hidden_size=parts.hidden,
        vocab_size=parts.vocab,
        is_moe=parts.active < parts.total,
        arithmetic=kind if is_activation and kind in ("fp8", "int8") and device == "cuda" else plain,
        weight_kind=kind,
        has_files=bool(tensors),
        is_estimate=not is_known(text),
    )


def plain_parameters(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> int | None:
    """Returns the parameters of a dense model of a known kind whose weights and KV cache have plain formats.

    Args:
        config: as `measure_model` takes it.
        arguments: the node `engine.vllm`.

    Returns:
        Null for any other, whose kernels may want a format of their own, and for a config.json that is no decoder's.
    """
    is_plain = not any(config.get(name) for name in _NOT_PLAIN) and not arguments.keys() & _FORMATS
    if not is_plain or arguments.get("load_format", "auto") not in PLAIN_FORMATS:
        return None
    try:
        parts = count_parts(config) if is_known(config) else None
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return None
    return parts.total if parts is not None and parts.active == parts.total else None


def read_headers(folder: str) -> dict[str, tuple[str, int]]:
    """Returns each tensor's dtype tag and number of values, from the headers of a folder's safetensors files.

    Source: https://huggingface.co/docs/safetensors: eight bytes of length, then JSON.
    """
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(Path(folder).expanduser().glob("*.safetensors")):
        if path.name.startswith("consolidated"):  # Mistral's own copy of the same weights
            continue
        try:
            with path.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except (OSError, ValueError):
            continue  # the engine says what is wrong with it
        for name, tensor in header.items():
            if name != "__metadata__":
                found[name] = (tensor["dtype"], math.prod(tensor["shape"]))
    return found


def _file_bytes(tensors: Mapping[str, tuple[str, int]], bytes_each: float) -> float:
    return sum(count * (bytes_each if tag in FLOAT_TAGS else TAG_BYTES.get(tag, 1)) for tag, count in tensors.values())


def _served_dtype(config: Mapping[str, Any], dtype: str) -> str:
    """The dtype that the weights are served in; vLLM makes float32 checkpoints 16-bit where it may choose."""
    text = text_config(config)
    own = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype") or "")
    chosen = own.removeprefix("torch.") if dtype == "auto" else dtype
    if dtype == "auto" and chosen not in ("bfloat16", "float16"):
        return "bfloat16"
    return chosen


def _in_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = config.get("quantization_config") or text_config(config).get("quantization_config")
    return found if isinstance(found, Mapping) else None


def _quantization(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str | None, int | None, bool]:
    """Returns what 8-bit weights are (fp8, int8), the bits of a weight, and whether activations are quantized too."""
    stored = _in_config(config)
    if stored is None:
        asked = str(arguments.get("quantization") or "")
        return ("fp8", 8, True) if asked.startswith(("fp8", "ptpc_fp8")) else (None, None, False)
    method = str(stored.get("quant_method") or "")
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8", 8, True
    if method == "compressed-tensors":
        group = next(iter(dict(stored.get("config_groups") or {}).values()), {})
        weights = dict(group.get("weights") or {})
        kind = "fp8" if weights.get("type") == "float" else "int8"
        return kind, int(weights.get("num_bits") or 8), group.get("input_activations") is not None
    if method == "bitsandbytes":
        return "int8", 8 if stored.get("load_in_8bit") else 4, False
    if method == "mxfp4":
        return None, 4, False
    bits = stored.get("bits") or stored.get("w_bit") or stored.get("num_bits")
    return "int8", int(bits or 8), False


def _kv_bytes(text: Mapping[str, Any], parts: Parts, bytes_each: float, kv_dtype: str) -> int | None:
    if any(key in text for key in ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "linear_num_key_heads", "state_size")):
        return None  # latent attention, or layers whose state does not grow by the token
    if kv_dtype.startswith("fp8"):
        bytes_each = 1.0
    elif kv_dtype in DTYPE_BYTES:
        bytes_each = DTYPE_BYTES[kv_dtype]
    return round(2 * parts.layers * parts.kv_heads * parts.head_dim * bytes_each)
