"""`manta serve` with replicas that really start, answer and stop, but compute nothing:

    python scripts/paced_service.py '{"start_s": 5, "step_s": 0.02, "max_num_seqs": 16}' engine.num_replicas=1..8 ...

A replica is `manta simulate`'s engine in real time: what differs between a run and its simulation is Ray, HTTP and this
machine. The first word is its `ReplicaSpec`; the others are those of `manta serve`. A word of a prompt is a token, and
answers have as many as max_tokens asks for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from conf import entry
from conf.schema.simulate import ReplicaSpec
from pipelines.simulate.replica import IDLE, SimulatedReplica, capacity_of
from serve.app import run
from serve.deployment import build_replicas
from serve.engine.speed import Speed, Waiting
from serve.replica import Replica

DEFAULT_ANSWER_TOKENS = 16
TPOT_S = 0.2
"""The time of a token that capacity is reckoned with."""


class PacedApi:
    """Stands in for `VllmApi`."""

    kv_tokens, is_dead = 0, False

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._engine = SimulatedReplica(spec)
        self._numbers = count()
        self._begun: dict[int, asyncio.Event] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self._prompts: dict[int, int] = {}  # of those that have not begun
        self._timer: asyncio.TimerHandle | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/v1/completions", self._answer, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    def waiting(self) -> Waiting:
        """Requests whose answer has not begun."""
        return Waiting(len(self._prompts), sum(self._prompts.values()))

    def unbegun(self) -> None:
        """It has no priorities."""

    @property
    def tokens_per_event(self) -> None:
        """It has no stream interval."""

    async def measure(self, max_num_seqs: int) -> Speed:
        """What it was told that it does."""
        capacity = capacity_of(self._spec, TPOT_S, 1.0)
        return Speed(capacity.prefill_tokens_per_s, capacity.decode_tokens_per_s)

    async def check(self) -> None:
        """It never dies by itself."""

    def close(self) -> None:
        """It holds nothing."""

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    async def _answer(self, request: Request) -> Response:
        ask = await request.json()
        text = ask.get("prompt") or " ".join(message["content"] for message in ask["messages"])
        prompt = max(1, len(text.split()))
        answer = ask.get("max_tokens") or ask.get("max_completion_tokens") or DEFAULT_ANSWER_TOKENS
        number, now_s = next(self._numbers), asyncio.get_running_loop().time()
        begun, ended = self._begun[number], self._ended[number] = asyncio.Event(), asyncio.Event()
        self._prompts[number] = prompt
        self._engine.add(number, prompt, answer, now_s)
        self._wind()
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        if ask.get("stream"):
            return StreamingResponse(_events(begun, ended, usage), media_type="text/event-stream")
        await ended.wait()
        return JSONResponse({"object": "text_completion", "choices": [{"index": 0, "text": "x"}], "usage": usage})

    def _wind(self) -> None:
        """Sets the alarm to when the engine has next something to tell."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._engine.next_s != IDLE:
            self._timer = asyncio.get_running_loop().call_at(self._engine.next_s, self._advance)

    def _advance(self) -> None:
        # an alarm that comes late has more than one thing to tell
        now_s = asyncio.get_running_loop().time() + 1e-4
        while self._engine.next_s <= now_s:
            begun, ended = self._engine.advance()
            for number in begun:
                self._prompts.pop(number, None)
                self._begun.pop(number).set()
            for number in ended:
                self._ended.pop(number).set()
        self._wind()


class PacedReplica(Replica):
    """A replica around `PacedApi`."""

    spec = ReplicaSpec()

    async def _start(self) -> Any:
        await asyncio.sleep(self.spec.start_s)
        return PacedApi(self.spec)


async def _events(begun: asyncio.Event, ended: asyncio.Event, usage: dict[str, int]) -> AsyncIterator[bytes]:
    await begun.wait()
    yield _event(choices=[{"index": 0, "delta": {"content": "x"}, "text": "x"}])
    await ended.wait()
    yield _event(choices=[{"index": 0, "delta": {"content": "x"}, "text": "x", "finish_reason": "length"}])
    yield _event(choices=[], usage=usage)
    yield b"data: [DONE]\n\n"


def _event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def main(words: list[str]) -> int:
    """Serves; see `serve.app.run`."""
    spec = PacedReplica.spec = ReplicaSpec(**json.loads(words[0]))
    job = entry.compose("serve", "model=demo", f"engine.max_num_seqs={spec.max_num_seqs}", *words[1:])
    return run(job, partial(build_replicas, kind=PacedReplica))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
