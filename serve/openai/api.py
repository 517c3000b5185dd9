"""A running edge engine, and the ASGI app that answers for it: what `VllmApi` is for vLLM."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from serve.engine.errors import EngineDead
from serve.engine.onnx import start_onnx
from serve.engine.onnx.engine import OnnxEngine
from serve.engine.onnx.layout import read_edge_model
from serve.engine.prompt import load_renderer
from serve.engine.protocol import Request
from serve.engine.speed import Speed, Unbegun, Waiting
from serve.openai.app import OpenAiApp
from serve.openai.asked import Reader

SPEED_TOKENS, SPEED_STEPS, SPEED_SEQUENCES = 512, 16, 16


class EdgeApi:
    """A running engine, and its app."""

    def __init__(self, engine: OnnxEngine, app: Any, hang_timeout_s: float) -> None:
        """Args: the engine, its app, and how long one with requests may take no step."""
        self._engine = engine
        self.app = app
        self._hang_timeout_s = hang_timeout_s
        self._steps, self._moved_at = 0, time.monotonic()

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache has room for."""
        return self._engine.kv_tokens

    @property
    def is_dead(self) -> bool:
        """Whether the engine has ended."""
        return self._engine.is_dead

    def waiting(self) -> Waiting:
        """Requests whose answer has not begun."""
        return self._engine.waiting()

    def unbegun(self) -> Unbegun | None:
        """Not known: the engine has no priorities."""
        return None

    @property
    def tokens_per_event(self) -> int | None:
        """Not known: whatever has come since the last event."""
        return None

    async def measure(self, max_num_seqs: int) -> Speed:
        """Measures what the engine does; to be called before it has requests.

        Args:
            max_num_seqs: sequences that it computes at a time.
        """
        prompt = min(SPEED_TOKENS, self._engine.stats().max_model_len - SPEED_STEPS - 1)
        await self._took_s(1, prompt, 1)
        prefill = prompt / await self._took_s(1, prompt, 1)
        sequences = min(SPEED_SEQUENCES, max_num_seqs)
        return Speed(prefill, sequences * SPEED_STEPS / await self._took_s(sequences, 1, SPEED_STEPS))

    async def check(self) -> None:
        """Returns when the engine lives and does not hang.

        Raises:
            EngineDead: when it answers nothing any more.
        """
        await self._engine.health()
        now, stats = time.monotonic(), self._engine.stats()
        if not stats.running or stats.steps != self._steps:
            self._steps, self._moved_at = stats.steps, now
        elif now - self._moved_at > self._hang_timeout_s:
            raise EngineDead(f"the engine holds requests and took no step for {now - self._moved_at:.0f} s")

    def close(self) -> None:
        """Nothing is left behind: the engine lives in this process."""

    async def _took_s(self, sequences: int, prompt: int, answer: int) -> float:
        sampling = SamplingSpec(max_tokens=answer, ignore_eos=True)
        requests = [Request(id=f"speed-{i}", token_ids=[1] * prompt, sampling=sampling) for i in range(sequences)]
        began = time.perf_counter()
        await asyncio.gather(*map(self._engine.answer, requests))
        return time.perf_counter() - began


async def start_edge_api(model: ModelSpec, spec: EngineSpec, share: int) -> EdgeApi:
    """Starts an edge engine with OpenAI's API in front of it.

    Args:
        model: the folder.
        spec: sizes.
        share: engines that share this machine's cores.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    context = spec.max_model_len or read_edge_model(model.path).context
    engine = await start_onnx(model, spec, context, share)
    path = Path(model.path) / "generation_config.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    chat, plain = (load_renderer(model, context, is_chat) for is_chat in (None, False))
    reader = Reader(model.name, chat, plain, context, own)
    return EdgeApi(engine, OpenAiApp(engine, reader, model.name).build(), spec.hang_timeout_s)
