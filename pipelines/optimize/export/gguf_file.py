"""A checkpoint as a GGUF file: llama.cpp's names and order of weights, and the tokenizer as it knows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema.export import ExportScheme
from pipelines.optimize.prune.kept import head_dim
from pipelines.optimize.step.task import StepFailed

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's name of each `model_type`; a Mistral without a window is a Llama."""
BLOCK = 32
"""Weights of Q8_0 and Q4_0 that share a scale."""
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
"""Kinds of tokens. Source: gguf.TokenType."""


def gguf_refusal(config: Mapping[str, Any]) -> str | None:
    """Returns why a checkpoint cannot be written as GGUF; null where it can.

    Args:
        config: its config.json, of a model that `known.refusal` lets through.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"export.format=gguf knows the models {', '.join(ARCHITECTURES)}, got model_type={kind}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    turned = rope.get("rope_type") or rope.get("type") or "default"
    if turned != "default":
        return f"export.format=gguf knows rope_type default; the model has {turned}"
    if config.get("sliding_window") and config.get("use_sliding_window") is not False:
        return "export.format=gguf knows no sliding window, and the model has one"
    for key in ("hidden_size", "intermediate_size"):
        if config[key] % BLOCK:
            return f"export.format=gguf has blocks of {BLOCK}, which must divide {key}={config[key]}"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            return f"export.format=gguf knows no {key}, and the model has it"
    return None


def write_gguf(hf: Any, source: Path, scheme: ExportScheme, context: int, end_ids: list[int], target: Path) -> None:
    """Writes the file.

    Args:
        hf: the checkpoint in float32, of transformers.
        source: its folder, for the tokenizer.
        scheme: how matrices lie.
        context: tokens that a sequence may have.
        end_ids: tokens that end an answer; GGUF has places for three.
        target: the file.

    Raises:
        StepFailed: when the tokenizer is of another kind than llama.cpp's.
    """
    import gguf  # pyright: ignore[reportMissingImports]

    config = hf.config
    writer = gguf.GGUFWriter(str(target), ARCHITECTURES[config.model_type])
    writer.add_name(source.name)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(_base(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, source, config.vocab_size, end_ids)
    plain = gguf.GGMLQuantizationType.F32
    for name, values, is_head in _tensors(hf):
        kind = plain if values.ndim == 1 else _type(gguf.GGMLQuantizationType, scheme, is_head)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type(types: Any, scheme: ExportScheme, is_head: bool) -> Any:
    if scheme is ExportScheme.fp32:
        return types.F32
    # 4 bits are too few for the head, which every answer goes through
    return types.Q8_0 if scheme is ExportScheme.int8_blocks or is_head else types.Q4_0


def _tensors(hf: Any) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yields each weight under llama.cpp's name, and whether it is the embedding or the head."""
    import gguf  # pyright: ignore[reportMissingImports]

    config, arch = hf.config, ARCHITECTURES[hf.config.model_type]
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[arch], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        part = name.split(".")[-2]
        if arch == "llama" and part in heads:
            values = interleaved(values, heads[part])
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise StepFailed(f"export.format=gguf has no name for {name}")
        yield renamed, np.ascontiguousarray(values), part in ("embed_tokens", "lm_head")


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Returns a projection's rows in the order of llama.cpp's rotation, which turns neighbours, not halves.

    Args:
        values: [heads x head_dim, inputs].
        heads: that it has.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _base(config: Any) -> float:
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0)


def _add_tokenizer(writer: Any, source: Path, vocabulary: int, end_ids: list[int]) -> None:
    """Byte-level BPE alone.

    llama.cpp cuts texts into words by rules that it knows by name, and a tokenizer.json may have any. Manta sends
    tokens, so the name says nothing here; who gives such a file texts gets GPT-2's words.
    """
    saved = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    kind, decoder = saved["model"].get("type"), (saved.get("decoder") or {}).get("type")
    if (kind, decoder) != ("BPE", "ByteLevel"):
        raise StepFailed(f"export.format=gguf knows byte-level BPE; the tokenizer is {kind} with decoder {decoder}")
    tokens = {number: token for token, number in saved["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, _NORMAL)
    for added in saved["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens.get(number, f"[UNUSED{number}]") for number in range(vocabulary)])
    writer.add_token_types([kinds.get(number, _UNUSED) for number in range(vocabulary)])
    writer.add_token_merges(pairs)
    writer.add_add_bos_token(False)
    places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(end_ids) > len(places):
        raise StepFailed(f"export.format=gguf has places for {len(places)} end tokens, the model has {len(end_ids)}")
    for number, add in zip(end_ids, places, strict=False):
        add(number)
