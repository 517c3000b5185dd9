"""The only importer of onnxruntime: takes steps of a graph over the slots of a cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from serve.engine.onnx.cache import KvCache
from serve.engine.onnx.layout import EdgeModel


class Session:
    """A graph, bound to a cache: nothing is copied between steps."""

    def __init__(self, folder: Path, model: EdgeModel, cache: KvCache, threads: int) -> None:
        """Loads the graph.

        Args:
            folder: the model's.
            model: its shapes.
            cache: where keys and values lie.
            threads: that compute a step.

        Raises:
            Exception: what onnxruntime raises when it cannot load it.
        """
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # an arena keeps what the longest prompt needed; weights that were packed for the kernels are dropped
        options.enable_cpu_mem_arena = False
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / model.file), options, providers=["CPUExecutionProvider"]
        )
        self._binding: Any = self._session.io_binding()
        self._model = model
        self._cache = cache

    def step(self, tokens: np.ndarray, lengths: np.ndarray, last: np.ndarray, slot: int) -> np.ndarray:
        """Computes new tokens of neighbouring slots.

        Args:
            tokens: int64 [sequences, new], filled up at the right ends.
            lengths: int32 [sequences]: tokens of each with the new ones. They may differ where a row is a whole
                prompt or one token.
            last: int64 [sequences], the place of each row's last token.
            slot: of the first sequence.

        Returns:
            Logits of the last tokens, float32 [sequences, vocabulary].

        Raises:
            Exception: what onnxruntime raises.
        """
        count, binding = len(tokens), self._binding
        logits = np.empty((count, self._model.vocabulary), np.float32)
        inputs = {
            "input_ids": np.ascontiguousarray(tokens, np.int64),
            "lengths": np.ascontiguousarray(lengths - 1, np.int32),
            "total": np.array([lengths.max()], np.int32),
            "last": np.ascontiguousarray(last, np.int64),
        }
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for index, layer in enumerate(self._cache.layers):
            slots = layer[slot : slot + count]
            name = f"{index // 2}.{'value' if index % 2 else 'key'}"
            at = slots.ctypes.data
            binding.bind_input(f"past.{name}", "cpu", 0, np.float32, slots.shape, at)
            binding.bind_output(f"present.{name}", "cpu", 0, np.float32, slots.shape, at)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits


def threads_of(share: int) -> int:
    """Returns the threads of an engine: its part of the cores that this process may use.

    Args:
        share: engines on this machine.
    """
    return max(1, len(os.sched_getaffinity(0)) // max(1, share))
