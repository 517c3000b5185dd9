"""From a checkpoint to a folder that engine=edge or engine=gguf runs: weights, tokenizer, configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema.export import ExportFormat, ExportScheme, ExportSpec
from pipelines.optimize.decoder import load_decoder
from pipelines.optimize.export.known import refusal, window
from pipelines.optimize.step.task import StepFailed, StepTask
from serve.engine.onnx.layout import EdgeModel

GRAPH, WEIGHTS, GGUF = "model.onnx", "model.onnx.data", "model.gguf"
WRONG = 0.5
"""Standard deviations of logits: few bits move them less, a graph that computes something else moves them more."""
HALF = 0.05
"""The same of a GGUF file in float32: llama.cpp keeps keys and values in 16 bits."""


def run(task: StepTask) -> dict[str, Any]:
    """Exports a checkpoint, and compares what the graph computes with it.

    Returns:
        ``parameters``, ``bytes`` of graph and weights, ``greedy_tokens`` compared and how many of them are equal,
        ``logit_error`` in standard deviations of the logits, and the largest difference of logits (of a GGUF file, of
        log-probabilities).

    Raises:
        StepFailed: when the model is of no kind that is known, or the graph does not compute what it does.
    """
    import torch

    spec = task.spec.export
    plain = json.loads((task.source / "config.json").read_text(encoding="utf-8"))
    if why := refusal(plain, spec):
        raise StepFailed(why)
    context = spec.context or plain["max_position_embeddings"]
    hf = load_decoder(task.source, torch.float32)
    is_gguf = spec.format is ExportFormat.gguf
    measured = _export_gguf(hf, task, context) if is_gguf else _export_graph(hf, plain, task, context)
    _copy_configuration(task.source, task.target, context)
    files = [task.target / name for name in (GRAPH, WEIGHTS, GGUF)]
    size = sum(path.stat().st_size for path in files if path.exists())
    return {"parameters": sum(weight.numel() for weight in hf.parameters()), "bytes": size, **measured}


def _export_gguf(hf: Any, task: StepTask, context: int) -> dict[str, Any]:
    from pipelines.optimize.export.gguf_agreement import compare_next
    from pipelines.optimize.export.gguf_file import write_gguf

    scheme, file = task.spec.export.scheme, task.target / GGUF
    write_gguf(hf, task.source, scheme, context, _end_ids(hf, hf.config), file)
    found = compare_next(hf, file, task.seed)
    if not found.relative < (HALF if scheme is ExportScheme.fp32 else WRONG):  # nan too
        raise StepFailed(
            f"llama.cpp computes something else: its log-probabilities are off by {found.relative:.2g} deviations"
        )
    return {
        "max_logprob_difference": found.difference,
        "logit_error": found.relative,
        "greedy_tokens": found.places,
        "greedy_tokens_equal": found.equal,
    }


def _export_graph(hf: Any, plain: dict[str, Any], task: StepTask, context: int) -> dict[str, Any]:
    from pipelines.optimize.export.agreement import compare, prompts_of

    spec = task.spec.export
    edge = _write_graph(hf, window(plain), spec, context, task.target)
    edge.write(task.target)
    agreement = compare(hf, task.target, edge, prompts_of(edge.vocabulary, context, task.seed))
    if spec.scheme is ExportScheme.fp32 and agreement.equal < agreement.places:
        raise StepFailed(
            f"the graph chose other tokens than the model at {agreement.places - agreement.equal} of"
            f" {agreement.places} places (logits differ by {agreement.difference:.2g})"
        )
    if not agreement.relative < WRONG:  # nan too
        raise StepFailed(
            f"the graph computes something else: its logits are off by {agreement.relative:.2g} deviations"
        )
    return {
        "max_logit_difference": agreement.difference,
        "logit_error": agreement.relative,
        "greedy_tokens": agreement.places,
        "greedy_tokens_equal": agreement.equal,
    }


def _write_graph(hf: Any, seen: int, spec: ExportSpec, context: int, target: Path) -> EdgeModel:
    import onnx  # pyright: ignore[reportMissingImports]

    from pipelines.optimize.export.graph import Decoder, Precision, build_graph

    weights, config = hf.state_dict(), hf.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    first = "model.layers.0.self_attn"
    decoder = Decoder(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=dim,
        epsilon=config.rms_norm_eps,
        window=seen,
        is_tied=bool(config.tie_word_embeddings),
        has_bias=f"{first}.q_proj.bias" in weights,
        has_output_bias=f"{first}.o_proj.bias" in weights,
        has_mlp_bias="model.layers.0.mlp.up_proj.bias" in weights,
        has_head_norm=f"{first}.q_norm.weight" in weights,
    )
    bits = spec.scheme.bits
    is_dynamic = spec.scheme is ExportScheme.int8
    # 4 bits are too few for the head, which every answer goes through
    precision = Precision(bits=32 if is_dynamic else bits, block_size=spec.block_size, head_bits=max(8, bits))
    cos, sin = _angles(hf, dim, context)
    graph = build_graph(decoder, precision, lambda name: weights[name].float().numpy(), cos, sin)
    if is_dynamic:
        graph = _quantized(graph, target)
    onnx.save_model(graph, str(target / GRAPH), save_as_external_data=True, location=WEIGHTS, size_threshold=1024)
    (target / WEIGHTS).chmod((target / GRAPH).stat().st_mode)  # onnx gives it to its owner alone
    return EdgeModel(
        file=GRAPH,
        scheme=spec.scheme.value,
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=dim,
        vocabulary=config.vocab_size,
        context=context,
        end_ids=_end_ids(hf, config),
    )


def _angles(hf: Any, dim: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    rotary = hf.model.rotary_emb
    frequencies = rotary.inv_freq.double().numpy()
    if 2 * len(frequencies) != dim:
        raise StepFailed(f"export knows heads that are turned whole; of {dim} numbers here {2 * len(frequencies)} are")
    angles = np.arange(context)[:, None] * frequencies[None]
    scale = float(rotary.attention_scaling)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def _quantized(graph: Any, target: Path) -> Any:
    """The graph after onnxruntime's own dynamic quantization."""
    import onnx  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]

    plain, made = target / "plain.onnx", target / "made.onnx"
    onnx.save_model(graph, str(plain), save_as_external_data=True, location="plain.data", size_threshold=1024)
    quantize_dynamic(
        plain,
        made,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # it knows no shapes behind fused operators
    )
    quantized = onnx.load(str(made))
    for path in target.iterdir():
        if path.name.startswith(("plain.", "made.")):
            path.unlink()
    return quantized


def _end_ids(hf: Any, config: Any) -> list[int]:
    """Tokens that end an answer, as vLLM takes them: of both configurations."""
    ids: set[int] = set()
    for source in (config, hf.generation_config):
        end = getattr(source, "eos_token_id", None)
        ids |= set(end) if isinstance(end, (list, tuple)) else ({end} if end is not None else set())
    return sorted(ids)


def _copy_configuration(source: Path, target: Path, context: int) -> None:
    """Writes the tokenizer as a tokenizer.json, whatever it was, and copies what says how the model is used.

    Raises:
        StepFailed: when the tokenizer cannot be written so.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True)
    if not tokenizer.is_fast:
        raise StepFailed("export needs a tokenizer that tokenizer.json can hold, and this one has no such form")
    tokenizer.save_pretrained(target)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = context
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", target / "generation_config.json")
