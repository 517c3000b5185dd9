"""An `Engine` over an `OnnxStepper`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.errors import EngineDead
from serve.engine.in_flight import InFlight
from serve.engine.onnx.answer import Answer
from serve.engine.onnx.stepper import OnnxStepper
from serve.engine.protocol import Completion, EngineStats, Outcome, Request, TokenLogprob
from serve.engine.speed import Waiting
from serve.engine.step_loop import StepLoop


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What a token added to an answer."""

    index: int
    """Of the answer, among `SamplingSpec.n`."""
    text: str
    """Not yet told of; empty where it may still turn out to be the beginning of a stop text."""
    tokens: int
    """Of the answer so far."""
    places: tuple[TokenLogprob, ...]
    finish_reason: str | None


class OnnxEngine:
    """An engine whose steps are taken in a thread of this process."""

    def __init__(self, model: ModelSpec, spec: EngineSpec, stats: EngineStats, share: int) -> None:
        """Args: the folder, sizes, the counters to keep, and the engines on this machine."""
        self._model, self._spec, self._share = model, spec, share
        self._stats = stats
        self._in_flight = InFlight(spec.in_flight_rows, stats)
        self._stepper: OnnxStepper | None = None

    async def start(self) -> None:
        """Loads the model.

        Raises:
            Exception: what loading it raises.
        """
        self._loop = StepLoop(self._build)
        await self._loop.start()

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._loop.answer, exclusive)

    async def stream(self, request: Request) -> AsyncIterator[Piece | Completion]:
        """Answers one request piece by piece; its completion is last. Closing the iterator aborts it.

        Raises:
            RequestRejected: when it can never be answered.
            EngineDead: when the engine answers nothing any more.
        """
        assert self._stepper is not None, "started"
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Piece | None] = asyncio.Queue()
        told: dict[int, tuple[int, int]] = {}

        def hear(answer: Answer) -> None:  # in the engine's thread
            text, places = told.get(answer.index, (0, 0))
            settled = max(text, answer.settled)
            told[answer.index] = settled, len(answer.places)
            piece = Piece(
                index=answer.index,
                text=answer.text[text:settled],
                tokens=len(answer.token_ids),
                places=tuple(answer.places[places:]),
                finish_reason=answer.finish_reason,
            )
            loop.call_soon_threadsafe(heard.put_nowait, piece)

        self._stepper.hear(request.id, hear)
        self._stats.running += 1
        answered = asyncio.ensure_future(self._loop.answer(request))
        answered.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            while (piece := await heard.get()) is not None:
                yield piece
            outcome = await answered
            assert isinstance(outcome, Completion)
            self._stats.count(outcome)
            yield outcome
        finally:
            self._stats.running -= 1
            answered.cancel()
            await asyncio.gather(answered, return_exceptions=True)

    async def answer(self, request: Request) -> Completion:
        """Answers one request.

        Raises:
            RequestRejected: when it can never be answered.
            EngineDead: when the engine answers nothing any more.
        """
        self._stats.running += 1
        try:
            outcome = await self._loop.answer(request)
        finally:
            self._stats.running -= 1
        assert isinstance(outcome, Completion)
        self._stats.count(outcome)
        return outcome

    @property
    def is_dead(self) -> bool:
        """Whether the engine answers nothing any more."""
        try:
            self._loop.check()
        except EngineDead:
            return True
        return False

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache has room for."""
        return self._stepper.kv_tokens if self._stepper is not None else 0

    def waiting(self) -> Waiting:
        """Requests whose answer has not begun."""
        return Waiting(*self._stepper.waiting()) if self._stepper is not None else Waiting(0, 0)

    async def health(self) -> None:
        """See `Engine.health`."""
        self._loop.check()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._loop.close()

    def _build(self) -> OnnxStepper:
        self._stepper = OnnxStepper(self._model, self._spec, self._stats, self._share)
        return self._stepper
