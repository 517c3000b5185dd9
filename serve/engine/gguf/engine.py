"""An `Engine` over a `LlamaServer`: a thread for each answer, which sleeps while the server computes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from serve.engine.checkpoint import read_model_config
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.gguf.folder import gguf_file
from serve.engine.gguf.limits import check_gguf_request, count_slots
from serve.engine.gguf.server import LlamaServer, Refused
from serve.engine.in_flight import InFlight
from serve.engine.protocol import Completion, EngineStats, Outcome, Request, Sample, TokenLogprob

SEEDS = 2**32 - 1
"""llama.cpp takes the one above for none."""


@dataclass(kw_only=True, slots=True)
class Heard:
    """What has come of an answer."""

    text: str = ""
    finish_reason: str = "abort"
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    places: list[TokenLogprob] = field(default_factory=list)

    def take(self, piece: dict[str, Any], top: int) -> None:
        """Adds a piece of a streamed answer.

        Args:
            piece: as llama.cpp sends it.
            top: likely tokens of each place that were asked for.
        """
        for choice in piece["choices"]:
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            for place in (choice["logprobs"] or {}).get("content", ()):
                likely = tuple((one["token"], one["logprob"]) for one in place["top_logprobs"][:top])
                self.places.append(TokenLogprob(token=place["token"], logprob=place["logprob"], top=likely))
        if usage := piece.get("usage"):
            self.tokens, self.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def body_of(request: Request, number: int, context: int) -> dict[str, Any]:
    """Returns what llama.cpp is asked; all that its own defaults could change is said.

    Args:
        request: its tokens go as they are.
        number: of the answer, among `SamplingSpec.n`.
        context: tokens of a sequence.
    """
    spec: SamplingSpec = request.sampling
    body: dict[str, Any] = {
        "prompt": request.token_ids,
        "max_tokens": min(spec.max_tokens, context - len(request.token_ids)),
        # vLLM's order; its own would draw from what is likely before the temperature
        "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "top_k": spec.top_k,
        "min_p": spec.min_p,
        "repeat_penalty": spec.repetition_penalty,
        "repeat_last_n": context,
        "stop": spec.stop,
        "ignore_eos": spec.ignore_eos,
        "cache_prompt": True,
    }
    if spec.seed is not None:
        body["seed"] = (spec.seed + number) % SEEDS
    if spec.logprobs is not None:
        body["n_probs"] = max(1, spec.logprobs)
    return body


class GgufEngine:
    """An engine whose server computes in threads of this process."""

    def __init__(self, model: ModelSpec, spec: EngineSpec, stats: EngineStats, share: int) -> None:
        """Args: the folder, sizes, the counters to keep, and the engines on this machine."""
        self._model, self._spec, self._stats = model, spec, stats
        self._threads = max(1, len(os.sched_getaffinity(0)) // share)
        self._in_flight = InFlight(spec.in_flight_rows, stats)
        self._death: str | None = None

    async def start(self) -> None:
        """Loads the model.

        Raises:
            Exception: what loading it raises.
        """
        context = self._stats.max_model_len
        slots = count_slots(read_model_config(self._model), self._spec, context)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="gguf-answer")
        self._server = await asyncio.to_thread(LlamaServer, gguf_file(self._model.path), context, slots, self._threads)

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._answer, exclusive)

    async def health(self) -> None:
        """See `Engine.health`."""
        if self._death is not None:
            raise EngineDead(self._death)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._death is None:
            self._death = "closed"
            await asyncio.to_thread(self._pool.shutdown)
            del self._server

    async def _answer(self, request: Request) -> Completion:
        await self.health()
        check_gguf_request(request, self._stats.max_model_len)
        dropped = threading.Event()
        answers = [
            asyncio.wrap_future(self._pool.submit(self._hear, request, number, dropped))
            for number in range(request.sampling.n)
        ]
        try:
            heard = await asyncio.gather(*answers)
        except Refused as error:
            raise RequestRejected("engine_rejected", str(error)) from error
        except RuntimeError as error:
            self._death = self._death or f"llama.cpp failed: {error}"
            raise EngineDead(self._death) from error
        finally:
            dropped.set()
            await asyncio.gather(*answers, return_exceptions=True)
        return Completion(
            request_id=request.id,
            samples=tuple(_sample(one, request.sampling) for one in heard),
            prompt_tokens=len(request.token_ids),
            cached_tokens=heard[0].cached_tokens,
        )

    def _hear(self, request: Request, number: int, dropped: threading.Event) -> Heard:
        """One answer, in a thread of the pool."""
        heard, top = Heard(), request.sampling.logprobs or 0

        def hear(piece: dict[str, Any]) -> bool:
            heard.take(piece, top)
            self._stats.steps += 1
            return dropped.is_set()

        if not dropped.is_set():
            self._server.complete(body_of(request, number, self._stats.max_model_len), hear)
        return heard


def _sample(heard: Heard, spec: SamplingSpec) -> Sample:
    places = None if spec.logprobs is None else tuple(heard.places)
    return Sample(text=heard.text, finish_reason=heard.finish_reason, completion_tokens=heard.tokens, logprobs=places)
