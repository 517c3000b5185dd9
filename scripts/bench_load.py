"""A load on an OpenAI API and what its clients saw: python scripts/bench_load.py TASK.json

One process with one event loop, which may share two cores with the server: bodies are made before the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_answers import EventReader, Seen, figures, read_usage

PATH = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How requests follow each other."""

    kind: str
    """closed: so many clients, each with one request at a time; open: so many requests a second, come what may."""
    amount: float
    is_stream: bool

    @classmethod
    def parse(cls, text: str) -> Load:
        """Reads KIND:AMOUNT or KIND:AMOUNT:stream.

        Raises:
            ValueError: for anything else.
        """
        kind, amount, *more = [*text.split(":"), ""][:4]
        mistake = f"'{text}': no closed:CLIENTS[:stream] or open:REQUESTS_PER_S[:stream]"
        try:
            value = float(amount)
        except ValueError:
            raise ValueError(mistake) from None
        is_whole = kind == "open" or value == int(value)
        if kind not in ("closed", "open") or not 0 < value < math.inf or not is_whole:
            raise ValueError(mistake)
        if more not in ([""], ["stream"], ["stream", ""]):
            raise ValueError(mistake)
        return cls(kind=kind, amount=value, is_stream=more[0] == "stream")

    @property
    def name(self) -> str:
        """What `parse` reads."""
        return f"{self.kind}:{self.amount:g}" + (":stream" if self.is_stream else "")


@dataclass(kw_only=True, slots=True)
class LoadTask:
    """What the load generator does."""

    url: str
    """The server's, without a path."""
    model: str
    prompts: list[str]
    """Each is sent once, as a chat."""
    output_tokens: int
    """Of each answer, whatever the model says."""
    load: str
    """See `Load.parse`."""
    key: str = ""
    """The API key; empty is none."""
    seed: int = 0
    """Of the arrivals of an open loop."""
    request_timeout_s: float = 120.0

    @property
    def headers(self) -> dict[str, str]:
        """Of each request."""
        return {"content-type": "application/json", **({"authorization": f"Bearer {self.key}"} if self.key else {})}

    def body(self, prompt: str) -> bytes:
        """Returns a request: greedy, so that a response cache looks at it, and of a fixed length."""
        ask: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        if Load.parse(self.load).is_stream:
            ask |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(ask).encode()


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Returns when requests of a Poisson process begin, in seconds from its start; the first at 0.

    Args:
        rate: requests a second.
        count: how many.
        seed: of the gaps, which are exponential.
    """
    drawn, at_s, times = random.Random(seed), 0.0, []
    for _ in range(count):
        times.append(at_s)
        at_s += drawn.expovariate(rate)
    return times


async def run_load(task: LoadTask) -> dict[str, Any]:
    """Sends all prompts and measures.

    Returns:
        `figures`, and the CPU seconds that this process took for it.

    Raises:
        ValueError: see `figures`.
    """
    import aiohttp

    load = Load.parse(task.load)
    bodies = [task.body(prompt) for prompt in task.prompts]
    limits = aiohttp.ClientTimeout(total=task.request_timeout_s)
    connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connections, timeout=limits, headers=task.headers) as session:

        async def ask(body: bytes) -> Seen:
            return await send(session, task.url + PATH, body, load.is_stream)

        before_s = time.process_time()
        if load.kind == "closed":
            seen = await _closed(ask, bodies, int(load.amount))
        else:
            seen = await _open(ask, bodies, arrivals(load.amount, len(bodies), task.seed))
        cpu_s = time.process_time() - before_s
    return {**figures(seen, task.output_tokens), "generator_cpu_s": cpu_s}


Ask = Callable[[bytes], Awaitable[Seen]]


async def _closed(ask: Ask, bodies: Sequence[bytes], num_clients: int) -> list[Seen]:
    waiting: Iterator[bytes] = iter(bodies)

    async def client() -> list[Seen]:
        return [await ask(body) for body in waiting]

    return [seen for part in await asyncio.gather(*(client() for _ in range(num_clients))) for seen in part]


async def _open(ask: Ask, bodies: Sequence[bytes], times: Sequence[float]) -> list[Seen]:
    loop = asyncio.get_running_loop()
    began, tasks = loop.time(), []
    for body, at_s in zip(bodies, times, strict=True):
        if (rest_s := began + at_s - loop.time()) > 0:
            await asyncio.sleep(rest_s)
        tasks.append(asyncio.ensure_future(ask(body)))
    return list(await asyncio.gather(*tasks))


async def send(session: Any, url: str, body: bytes, is_stream: bool) -> Seen:
    """Sends a request and reads its answer; what went wrong stands in ``error``."""
    import aiohttp

    seen = Seen(start_s=time.perf_counter())
    try:
        async with session.post(url, data=body) as response:
            if response.status != 200:
                seen.error = f"status {response.status}: {(await response.text())[:300]}"
            elif is_stream:
                reader = EventReader(seen=seen)
                async for chunk in response.content.iter_any():
                    reader.feed(chunk, time.perf_counter())
                if not reader.is_done and seen.error is None:
                    seen.error = "the stream broke off"
            else:
                read_usage(seen, await response.read())
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    seen.end_s = time.perf_counter()
    return seen


def write_task(task: LoadTask, path: Path) -> None:
    """Writes what `main` reads."""
    path.write_text(json.dumps(asdict(task)))


def main() -> None:
    """Runs the task of a file and prints its result; uvloop where it is, which halves the CPU that is taken."""
    task = LoadTask(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    print("RESULT " + json.dumps(run(run_load(task))), flush=True)


if __name__ == "__main__":
    main()
