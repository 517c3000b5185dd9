"""A decoder of the Llama family as an ONNX graph, made of onnxruntime's own fused operators.

Each sequence of a batch has its own length, and its keys and values lie in buffers that a step writes to in place
(GroupQueryAttention where past and present are the same memory): no step copies a cache. What `torch.onnx.export`
makes of the same model returns new, longer caches of all layers with every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

from pipelines.optimize.export.blocks import to_blocks

OPSET, MICROSOFT = 17, "com.microsoft"
Read = Callable[[str], np.ndarray]
"""Returns a weight of the checkpoint by its name, float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """What of a checkpoint's configuration the graph is made of."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    """Of the norms."""
    window: int
    """Tokens that a token sees; -1 is all before it."""
    is_tied: bool
    """Whether the embedding's matrix is the head's too."""
    has_bias: bool
    """Of queries, keys and values."""
    has_output_bias: bool
    """Of what attention returns."""
    has_mlp_bias: bool
    has_head_norm: bool
    """Whether each head's query and key is normed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """How matrices lie in the file."""

    bits: int
    """32, or 8 or 4 with a scale for each block."""
    block_size: int
    head_bits: int
    """Of the embedding and the head."""


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self, precision: Precision) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._precision = precision

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        made = outputs or [name]
        self.nodes.append(helper.make_node(kind, inputs, made, name=name, **attributes))
        return made[0]

    def linear(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None = None, bits: int = 0) -> str:
        """``x @ weight.T + bias`` in the precision of the file; weight is [outputs, inputs]."""
        bits = bits or self._precision.bits
        if bits == 32:
            made = self.node("MatMul", [x, self.weight(f"{name}.weight", weight.T)], name)
            if bias is None:
                return made
            return self.node("Add", [made, self.weight(f"{name}.bias", bias)], f"{name}.biased")
        blocks = to_blocks(weight, bits, self._precision.block_size)
        inputs = [x, self.weight(f"{name}.quanta", blocks.quanta), self.weight(f"{name}.scales", blocks.scales)]
        if bias is not None:
            inputs += ["", "", self.weight(f"{name}.bias", bias)]
        rows, columns = weight.shape
        sizes: dict[str, Any] = {"N": rows, "K": columns, "bits": bits, "block_size": blocks.size}
        # 4: activations go to 8 bits too, by a scale for each row and block: no answer depends on its neighbours
        return self.node("MatMulNBits", inputs, name, domain=MICROSOFT, accuracy_level=4, **sizes)


def build_graph(
    decoder: Decoder, precision: Precision, read: Read, cos: np.ndarray, sin: np.ndarray
) -> onnx.ModelProto:
    """Builds the graph.

    Args:
        decoder: the model.
        precision: how matrices lie.
        read: gives the checkpoint's weights.
        cos: of the rotary embedding, float32 [context, head_dim / 2].
        sin: likewise.

    Returns:
        A model with the inputs ``input_ids`` int64 [batch, new], rows filled up at their right ends; ``lengths`` int32
        [batch], tokens of each sequence with the new ones, less one; ``total`` int32 [1], the largest of them and one;
        ``last`` int64 [batch], the place of each row's last token; ``past.N.key`` and ``past.N.value`` float32 [batch,
        kv_heads, room, head_dim]. Outputs are ``logits`` float32 [batch, vocabulary] of the last tokens, and
        ``present.N.key`` and ``.value``, to be bound to the same memory as the past.
    """
    graph = _Graph(precision)
    graph.weight("cos", cos)
    graph.weight("sin", sin)
    embedding = read("model.embed_tokens.weight")
    _embed(graph, embedding, precision)
    first = graph.weight("layers.0.norm", read("model.layers.0.input_layernorm.weight"))
    normed = graph.node(
        "SimplifiedLayerNormalization", ["hidden", first], "layers.0.normed", axis=-1, epsilon=decoder.epsilon
    )
    hidden = "hidden"
    for layer in range(decoder.layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        attended = _attention(graph, decoder, read, layer, normed)
        gamma = graph.weight(f"{ours}.mlp_norm", read(f"{theirs}.post_attention_layernorm.weight"))
        normed, hidden = _skip_norm(graph, f"{ours}.mlp_normed", attended, hidden, gamma, decoder.epsilon)
        fed = _mlp(graph, decoder, read, layer, normed)
        is_last = layer + 1 == decoder.layers
        name = "model.norm.weight" if is_last else f"model.layers.{layer + 1}.input_layernorm.weight"
        following = "norm" if is_last else f"layers.{layer + 1}.norm"
        gamma = graph.weight(following, read(name))
        normed, hidden = _skip_norm(graph, f"{following}ed", fed, hidden, gamma, decoder.epsilon)
    _head(graph, decoder, precision, read, normed, embedding)
    return _model(graph, decoder, vocabulary=embedding.shape[0])


def _embed(graph: _Graph, embedding: np.ndarray, precision: Precision) -> None:
    if precision.head_bits == 32:
        graph.node("Gather", [graph.weight("embedding", embedding), "input_ids"], "hidden")
        return
    blocks = to_blocks(embedding, precision.head_bits, precision.block_size)
    rows, columns = embedding.shape
    flat = blocks.quanta.reshape(rows, -1)
    inputs = [graph.weight("embedding", flat), "input_ids", graph.weight("embedding.scales", blocks.scales)]
    sizes: dict[str, Any] = {"bits": precision.head_bits, "block_size": blocks.size}
    assert columns % blocks.size == 0, (columns, blocks.size)
    graph.node("GatherBlockQuantized", inputs, "hidden", domain=MICROSOFT, gather_axis=0, quantize_axis=1, **sizes)


def _skip_norm(graph: _Graph, name: str, x: str, skip: str, gamma: str, epsilon: float) -> tuple[str, str]:
    """The norm of ``x + skip``, and that sum."""
    total = f"{name}.sum"
    outputs = [name, "", "", total]
    graph.node("SkipSimplifiedLayerNormalization", [x, skip, gamma], name, outputs, domain=MICROSOFT, epsilon=epsilon)
    return name, total


def _attention(graph: _Graph, decoder: Decoder, read: Read, layer: int, x: str) -> str:
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}.self_attn"
    parts = [f"{theirs}.{part}_proj" for part in "qkv"]
    weight = np.concatenate([read(f"{part}.weight") for part in parts])
    bias = np.concatenate([read(f"{part}.bias") for part in parts]) if decoder.has_bias else None
    packed = graph.linear(f"{ours}.qkv", x, weight, bias)
    inputs = [packed, "", ""]
    if decoder.has_head_norm:
        inputs = _normed_heads(graph, decoder, read, layer, packed)
    past = [f"past.{layer}.key", f"past.{layer}.value"]
    present = [f"present.{layer}.key", f"present.{layer}.value"]
    attended = graph.node(
        "GroupQueryAttention",
        [*inputs, *past, "lengths", "total", "cos", "sin"],
        f"{ours}.attention",
        [f"{ours}.attended", *present],
        domain=MICROSOFT,
        num_heads=decoder.heads,
        kv_num_heads=decoder.kv_heads,
        do_rotary=1,
        local_window_size=decoder.window,
    )
    bias = read(f"{theirs}.o_proj.bias") if decoder.has_output_bias else None
    return graph.linear(f"{ours}.output", attended, read(f"{theirs}.o_proj.weight"), bias)


def _normed_heads(graph: _Graph, decoder: Decoder, read: Read, layer: int, packed: str) -> list[str]:
    """Queries, keys and values apart, each head's query and key normed."""
    ours, theirs, dim = f"layers.{layer}", f"model.layers.{layer}.self_attn", decoder.head_dim
    sizes = np.array([decoder.heads * dim, decoder.kv_heads * dim, decoder.kv_heads * dim], np.int64)
    names = [f"{ours}.query", f"{ours}.key", f"{ours}.value"]
    graph.node("Split", [packed, graph.weight(f"{ours}.sizes", sizes)], f"{ours}.split", names, axis=-1)
    made = []
    for name, part in zip(names[:2], ("q_norm", "k_norm"), strict=True):
        by_head = graph.weight(f"{name}.by_head", np.array([0, 0, -1, dim], np.int64))
        flat = graph.weight(f"{name}.flat", np.array([0, 0, -1], np.int64))
        gamma = graph.weight(f"{name}.norm", read(f"{theirs}.{part}.weight"))
        heads = graph.node("Reshape", [name, by_head], f"{name}.heads")
        normed = graph.node(
            "SimplifiedLayerNormalization", [heads, gamma], f"{name}.normed", axis=-1, epsilon=decoder.epsilon
        )
        made.append(graph.node("Reshape", [normed, flat], f"{name}.rejoined"))
    return [*made, names[2]]


def _mlp(graph: _Graph, decoder: Decoder, read: Read, layer: int, x: str) -> str:
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}.mlp"
    has_bias = decoder.has_mlp_bias
    made = []
    for part in ("gate_proj", "up_proj"):
        bias = read(f"{theirs}.{part}.bias") if has_bias else None
        made.append(graph.linear(f"{ours}.{part}", x, read(f"{theirs}.{part}.weight"), bias))
    gate, up = made
    opened = graph.node("QuickGelu", [gate], f"{ours}.opened", domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
    fed = graph.node("Mul", [opened, up], f"{ours}.gated")
    bias = read(f"{theirs}.down_proj.bias") if has_bias else None
    return graph.linear(f"{ours}.down_proj", fed, read(f"{theirs}.down_proj.weight"), bias)


def _head(graph: _Graph, decoder: Decoder, precision: Precision, read: Read, x: str, embedding: np.ndarray) -> None:
    """Logits of each row's last token: nobody asks for those of the others."""
    place = graph.node("Unsqueeze", ["last", graph.weight("one", np.array([1], np.int64))], "last.place")
    final = graph.node("GatherND", [x, place], "final", batch_dims=1)
    if decoder.is_tied and precision.head_bits == 32:
        graph.node("Gemm", [final, "embedding"], "logits", transB=1)
        return
    weight = embedding if decoder.is_tied else read("lm_head.weight")
    graph.linear("logits", final, weight, bits=precision.head_bits)


def _model(graph: _Graph, decoder: Decoder, vocabulary: int) -> onnx.ModelProto:
    cache = ["batch", decoder.kv_heads, "room", decoder.head_dim]
    names = [f"{layer}.{part}" for layer in range(decoder.layers) for part in ("key", "value")]
    info = helper.make_tensor_value_info
    inputs = [
        info("input_ids", TensorProto.INT64, ["batch", "new"]),
        info("lengths", TensorProto.INT32, ["batch"]),
        info("total", TensorProto.INT32, [1]),
        info("last", TensorProto.INT64, ["batch"]),
        *(info(f"past.{name}", TensorProto.FLOAT, cache) for name in names),
    ]
    outputs = [
        info("logits", TensorProto.FLOAT, ["batch", vocabulary]),
        *(info(f"present.{name}", TensorProto.FLOAT, cache) for name in names),
    ]
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="manta")
