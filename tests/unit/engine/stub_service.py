"""A service that says what a test tells it to, byte for byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.service import AdmissionSpec, ServiceSpec
from conf.schema.task import Task
from serve.engine.service.engine import ServiceEngine

PAGE = """vllm:num_requests_running{{engine="0",replica="a"}} {running}
vllm:num_requests_waiting{{engine="0",replica="a"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",replica="a"}} 0.1
manta_requests_held{{priority="interactive",replica="a"}} {interactive}
manta_first_token_wait_seconds{{priority="interactive",replica="a"}} {wait_s}
"""


def reply(status: int, body: Any, **headers: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(raw)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def completion(body: dict[str, Any]) -> bytes:
    """What vLLM answers: here the number of the prompt's first token."""
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1, "total_tokens": 0}
    choice = {"index": 0, "text": str(body["prompt"][0]), "finish_reason": "stop", "logprobs": None}
    return reply(200, {"choices": [choice], "usage": usage})


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> bytes:
    return reply(status, {"error": {"message": message, "type": "x", "param": None, "code": code}}, **headers)


@dataclass
class Stub:
    """Answers each POST by `answer`, until it is told otherwise."""

    answer: Callable[[dict[str, Any]], bytes | Awaitable[bytes | None] | None] = completion
    """Bytes are sent as they are; None cuts the connection."""
    models: bytes = reply(200, {"data": [{"id": "demo", "max_model_len": 64}]})
    load: dict[str, float] = field(default_factory=lambda: {"running": 0, "waiting": 0, "interactive": 0, "wait_s": 0})
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)
    gone: int = 0
    """Clients that left before they were answered."""
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.headers.append(head)
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                raw = await reader.readexactly(int(length or 0))
                said = await self._said(head.split()[1].decode(), raw, reader)
                if said is None:
                    return
                writer.write(said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _said(self, path: str, raw: bytes, reader: asyncio.StreamReader) -> bytes | None:
        if path == "/v1/models":
            return self.models
        if path == "/metrics":
            return reply(200, PAGE.format(**self.load).encode())
        body = json.loads(raw)
        self.asked.append(body)
        said = self.answer(body)
        if not isinstance(said, Awaitable):
            return said
        answering, leaving = asyncio.ensure_future(said), asyncio.ensure_future(reader.read(1))
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            return answering.result()
        answering.cancel()
        self.gone += 1
        return None


@asynccontextmanager
async def running(stub: Stub) -> AsyncIterator[Stub]:
    """Listens on a free port."""
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=1 << 20)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stub
    finally:
        server.close()


@asynccontextmanager
async def engine_on(
    stub: Stub, task: Task = Task.generate, rows: int = 8, **fields: Any
) -> AsyncIterator[ServiceEngine]:
    """An engine in front of a running stub."""
    admission = AdmissionSpec(**{"poll_s": 0.01, "cooldown_s": 0.05, **fields.pop("admission", {})})
    service = ServiceSpec(**{"url": stub.url, "admission": admission, **fields})
    spec = EngineSpec(kind=EngineKind.service, service=service, max_in_flight=rows)
    engine = ServiceEngine(ModelSpec(path="/nowhere", name="demo"), spec, 1024, task, "sk-secret")
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
