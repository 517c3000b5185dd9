"""Models and devices that shapes are chosen for."""

from __future__ import annotations

from typing import Any

from conf.schema.engine import Device
from conf.schema.hardware import HardwareSpec
from serve.engine.hardware import Hardware, find_hardware
from serve.engine.model_size import ModelSize, measure_model
from serve.engine.roofline import Workload

PLAIN: dict[str, Any] = {"model_type": "llama", "dtype": "bfloat16"}


def llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int = 128256) -> ModelSize:
    return measure_model(
        {
            **PLAIN,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
        }
    )


LLAMA_1B = llama(2048, 5632, 22, 32, 4, 32000)
LLAMA_8B = llama(4096, 14336, 32, 32, 8)
LLAMA_70B = llama(8192, 28672, 80, 64, 8)
MEASURED = Workload(prompt_tokens=245, answer_tokens=153, longest_answer_tokens=1000, rows=9000)
"""The table that the constants were fitted to."""


def gpus(name: str, num_devices: int = 1) -> Hardware:
    return find_hardware(HardwareSpec(name=name, num_devices=num_devices), Device.cuda, 0)
