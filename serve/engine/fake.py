"""An engine with no model: deterministic answers, and faults on demand. For tests of what stands around an engine."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
import struct
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from pathlib import Path

from conf.schema.engine import EngineSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.adapters import check_adapter_name
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import Completion, EngineStats, ForcedToken, Outcome, Pooled, Request, Sample, TokenLogprob

Decode = Callable[[Sequence[int]], str]
VECTOR_SIZES = {Task.embed: 8, Task.classify: 3, Task.score: 1}
"""Numbers in a vector of the fake's, by task."""


class FakeEngine:
    """Answers with the prompt's own last tokens, `sampling.max_tokens` of them at most, or with a hash of the prompt.

    It knows nothing of grammars: json_schema and regex change nothing, choice picks one of the texts.
    """

    def __init__(
        self,
        spec: EngineSpec,
        max_model_len: int,
        decode: Decode,
        task: Task = Task.generate,
        adapters: Collection[str] = (),
    ) -> None:
        """Makes the engine.

        Args:
            spec: the engine's node; its ``fault`` says what goes wrong.
            max_model_len: the context in tokens.
            decode: turns token ids into text.
            task: text, or which vector.
            adapters: the names that requests may ask for.

        Raises:
            EngineDead: where ``fault.fail_start`` asks for it.
        """
        if spec.fault.fail_start:
            raise EngineDead("injected: the engine does not start")
        self._fault = spec.fault
        self._decode = decode
        self._task = task
        self._adapters = adapters
        self._stats = EngineStats(max_model_len=max_model_len, start_s={"load": 0.0})
        self._in_flight = InFlight(spec.in_flight_rows, self._stats)
        self._death: str | None = None
        self._is_hung = False
        self._computed: int | None = None

    async def start(self) -> None:
        """Gets ready, late where ``fault.slow_start_file`` asks for it."""
        if self._fault.slow_start_file is None:
            return
        memory = Path(self._fault.slow_start_file)
        try:
            memory.touch(exist_ok=False)
        except FileExistsError:
            return
        while memory.exists():
            await asyncio.sleep(0.05)

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._answer, exclusive)

    async def health(self) -> None:
        """See `Engine.health`."""
        self._check()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        self._death = self._death or "closed"

    def _check(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)

    async def _answer(self, request: Request) -> Outcome:
        self._check()
        limit = self._stats.max_model_len - (self._task is Task.generate)  # text needs room for a token
        if len(request.token_ids) > limit:
            message = f"the prompt has {len(request.token_ids)} tokens, the context {self._stats.max_model_len}"
            raise RequestRejected("prompt_too_long", message)
        if request.adapter is not None:
            check_adapter_name(request.adapter, self._adapters)
        prompt = self._decode(request.token_ids)
        self._injure(prompt)
        if self._fault.latency_ms:
            await asyncio.sleep(self._fault.latency_ms / 1000)
            self._check()
        if self._is_hung:
            await asyncio.get_running_loop().create_future()
        if self._fault.computed_file:
            self._note(self._fault.computed_file, request)
        if self._task is not Task.generate:
            vector = fake_vector(request, self._task)
            return Pooled(request_id=request.id, vector=vector, prompt_tokens=len(request.token_ids))
        if request.forced_from is not None:
            forced = tuple(map(_forced, request.token_ids[request.forced_from :]))
            return Completion(request_id=request.id, samples=(), forced=forced, prompt_tokens=len(request.token_ids))
        sample = self._sample(request)
        samples = (sample,) if request.sampling.n == 1 else _numbered(sample, request.sampling.n)
        return Completion(request_id=request.id, samples=samples, prompt_tokens=len(request.token_ids))

    def _note(self, path: str, request: Request) -> None:
        if self._computed is None:
            self._computed = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        digest = hashlib.blake2b(array("i", request.token_ids).tobytes(), digest_size=8)
        os.write(self._computed, digest.hexdigest().encode() + b"\n")

    def _injure(self, prompt: str) -> None:
        """Does what the faults ask for, given this prompt."""
        fault = self._fault
        if fault.kill_marker and fault.kill_marker in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.hang_marker and fault.hang_marker in prompt:
            self._is_hung = True
        if fault.reject_marker and fault.reject_marker in prompt:
            raise RequestRejected("engine_rejected", f"injected: the prompt has '{fault.reject_marker}'")
        if fault.die_marker and fault.die_marker in prompt:
            self._die(f"injected: the prompt has '{fault.die_marker}'")
        if fault.die_after and self._stats.completions >= fault.die_after and fault.die_once_file:
            memory = Path(fault.die_once_file)
            if not memory.exists():
                memory.touch()
                self._die(f"injected: {fault.die_after} completions")

    def _sample(self, request: Request) -> Sample:
        sampling = request.sampling
        room = min(sampling.max_tokens, self._stats.max_model_len - len(request.token_ids))
        answer = request.token_ids[-room:]
        text, reason = self._decode(answer), "length" if len(answer) == room else "stop"
        if sampling.choice:
            text, reason = sampling.choice[sum(request.token_ids) % len(sampling.choice)], "stop"
        if request.adapter is not None:
            text = f"{request.adapter}: {text}"
        for stop in sampling.stop:
            if stop in text:
                text, reason = text.split(stop)[0], "stop"
        return Sample(
            text=text,
            finish_reason=reason,
            completion_tokens=len(answer),
            logprobs=None if sampling.logprobs is None else self._logprobs(answer, sampling),
        )

    def _logprobs(self, answer: Sequence[int], sampling: SamplingSpec) -> tuple[TokenLogprob, ...]:
        """Log-probabilities by the token's id: -1/8 to -7/8, and the others less likely one by one."""
        places = []
        for token_id in answer:
            token, logprob = self._decode([token_id]), -(token_id % 7 + 1) / 8
            others = range(sampling.logprobs or 0)
            top = tuple((token if not rank else f"{token}?{rank}", logprob - rank) for rank in others)
            places.append(TokenLogprob(token=token, logprob=logprob, top=top))
        return tuple(places)

    def _die(self, cause: str) -> None:
        self._death = cause
        raise EngineDead(cause)


def _forced(token_id: int) -> ForcedToken:
    """Even odds for the text's own token."""
    return ForcedToken(token_id=token_id, logprob=-math.log(2), top=((token_id, -math.log(2)),))


def _numbered(sample: Sample, n: int) -> tuple[Sample, ...]:
    """The same answer `n` times, with its number, so that they differ."""
    texts = (f"{sample.text} ({number})" for number in range(1, n + 1))
    return tuple(
        Sample(
            text=text,
            finish_reason=sample.finish_reason,
            completion_tokens=sample.completion_tokens,
            logprobs=sample.logprobs,
        )
        for text in texts
    )


def fake_vector(request: Request, task: Task) -> bytes:
    """Returns the vector that the fake answers with: equal prompts have equal ones.

    Returns:
        float32, little-endian: 8 of length 1 for embed, 3 with the sum 1 for classify, one in 0..1 for score.
    """
    asked = array("q", request.token_ids).tobytes() + f"{request.split}{request.adapter}".encode()
    numbers = [1 + n for n in struct.unpack("<8I", hashlib.blake2b(asked, digest_size=32).digest())]
    size = VECTOR_SIZES[task]
    if task is Task.score:
        values = [numbers[0] / (1 << 32)]
    elif task is Task.classify:
        values = [n / sum(numbers[:size]) for n in numbers[:size]]
    else:
        signed = [n - (1 << 31) for n in numbers]
        length = sum(n * n for n in signed) ** 0.5
        values = [n / length for n in signed]
    return struct.pack(f"<{size}f", *values)
