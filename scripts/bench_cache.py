"""What an answer from the cache takes beyond a trivial app, over real sockets.

    python scripts/bench_cache.py --requests 2000 --runs 7 --out docs/benchmarks/cache.json

Each case is an app under uvicorn in a process of its own; one client asks over one connection, a request after the
other, and the cases take turns within each run, so that the noise of the machine meets all alike. `trivial` is a
Starlette app that reads the body and answers with as many bytes. `not_as_expected` counts requests for which the cache
had to do without Redis: it took longer than cache.timeout_s. `herd` asks an empty cache 1,000 times at once.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conf.schema.cache import CacheKind, CacheSpec
from pipelines.batch.openai_response import chat_body
from serve.cache.store import build_store
from serve.engine.protocol import Sample
from serve.middleware.cache import Cache

ROOT = Path(__file__).resolve().parent.parent
PATH = "/v1/chat/completions"
ASKED = {
    "model": "demo",
    "messages": [{"role": "user", "content": "word " * 400}],
    "temperature": 0,
    "max_tokens": 256,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "trivial": ("off", {}),
    "bypass": ("memory", {"temperature": 0.7}),
    "memory hit": ("memory", {}),
    "memory hit, streamed": ("memory", {"stream": True}),
    "redis hit": ("redis", {}),
}
"""The app's cache, and what the request has beside `ASKED`."""


def build_app() -> Any:
    """Returns the app under test; uvicorn calls it in the process of its own."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    sample = Sample(text="answer " * 150, finish_reason="stop", completion_tokens=256)
    body = json.dumps(chat_body(request_id="1", created=1, model="demo", samples=[sample], prompt_tokens=400)).encode()
    count = 0

    async def chat(request: Request) -> Response:
        nonlocal count
        await request.body()
        count += 1
        if "x-wait" in request.headers:  # the herd's generation takes a while
            await asyncio.sleep(3)
        return Response(body, media_type="application/json")

    async def counted(request: Request) -> Response:
        return JSONResponse(count)

    app = Starlette(routes=[Route(PATH, chat, methods=["POST"]), Route("/count", counted)])
    spec = CacheSpec(kind=CacheKind(os.environ["BENCH_CACHE"]))
    store = build_store(spec)
    return app if store is None else Cache(app, spec, "fingerprint", store)


def start_app(stack: ExitStack, kind: str, redis_url: str) -> int:
    """Starts uvicorn on a free port; returns the port."""
    command = [sys.executable, "-m", "uvicorn", "scripts.bench_cache:build_app", "--factory", "--port", "0"]
    env = {**os.environ, "BENCH_CACHE": kind, "MANTA_REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--no-access-log"], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stderr is not None
    for line in process.stderr:
        if "running on" in line:
            return int(line.split("http://127.0.0.1:")[1].split()[0])
    raise RuntimeError("uvicorn has ended")


def start_redis(stack: ExitStack) -> tuple[str, str]:
    """Starts a Redis on a free port; returns its URL and version."""
    import socket

    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("redis-server or valkey-server is not on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    for line in process.stdout:
        if "ready to accept connections" in line.lower():
            named = subprocess.run([program, "--version"], text=True, capture_output=True, check=True).stdout
            return f"redis://127.0.0.1:{port}/0", " ".join(named.split()[:3])
    raise RuntimeError("Redis has ended")


def ask_many(port: int, body: bytes, num_requests: int, says: str | None) -> tuple[list[float], int]:
    """Returns milliseconds of each request, sorted, and for how many the cache said something else."""
    client = http.client.HTTPConnection("127.0.0.1", port)
    took, num_others = [], 0
    for _ in range(num_requests):
        began = time.perf_counter()
        client.request("POST", PATH, body, {"content-type": "application/json"})
        answered = client.getresponse()
        answered.read()
        took.append((time.perf_counter() - began) * 1000)
        assert answered.status == 200
        num_others += answered.headers.get("x-manta-cache") != says
    client.close()
    return sorted(took), num_others


def bench_latency(ports: dict[str, int], num_requests: int, runs: int) -> dict[str, Any]:
    """Asks all cases in turn; the first requests of each fill the cache."""
    expected = {name: None if name == "trivial" else name.split()[-1].rstrip(",") for name in CASES}
    expected |= {"memory hit, streamed": "hit"}
    bodies = {name: json.dumps({**ASKED, **more}).encode() for name, (_, more) in CASES.items()}
    for kind in ("memory", "redis"):
        ask_many(ports[kind], bodies["redis hit"], 1, "miss")
    each: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    others = dict.fromkeys(CASES, 0)
    for run in range(runs + 1):
        for name, (kind, _) in CASES.items():
            took, num_others = ask_many(ports[kind], bodies[name], num_requests, expected[name])
            if run > 0:  # the first one warms processes up
                others[name] += num_others
                each[name].append((took[num_requests // 2], took[num_requests * 99 // 100]))
    result: dict[str, Any] = {}
    for name, values in each.items():
        result[name] = {"not_as_expected": others[name]}
        for place, label in enumerate(("p50_ms", "p99_ms")):
            beyond = [v[place] - t[place] for v, t in zip(values, each["trivial"], strict=True)]
            result[name] |= {label: spread([v[place] for v in values]), f"{label[:3]}_beyond_ms": spread(beyond)}
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Returns median and range."""
    ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in ends.items()}


async def ask_herd(port: int, num_requests: int) -> dict[str, Any]:
    """Asks the same so many times at once, each over a connection of its own."""
    body = json.dumps({**ASKED, "max_tokens": 255}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: test\r\nx-wait: 1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answered = await reader.read()
        writer.close()
        return answered

    began = time.perf_counter()
    answers = await asyncio.gather(*(ask() for _ in range(num_requests)))
    took = time.perf_counter() - began
    says = [next(w.split(b": ")[1].decode() for w in a.split(b"\r\n") if b"x-manta-cache" in w) for a in answers]
    return {"requests": num_requests, "seconds": round(took, 2), "says": {word: says.count(word) for word in set(says)}}


def count_of(port: int) -> int:
    """Returns how many answers an app has computed."""
    client = http.client.HTTPConnection("127.0.0.1", port)
    client.request("GET", "/count")
    return int(client.getresponse().read())


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        redis_url, redis_version = start_redis(stack)
        ports = {kind: start_app(stack, kind, redis_url) for kind in ("off", "memory", "redis")}
        latency = bench_latency(ports, options.requests, options.runs)
        herds = {}
        for kind in ("memory", "redis"):
            before = count_of(ports[kind])
            herd = asyncio.run(ask_herd(ports[kind], 1000))
            herds[kind] = {**herd, "generations": count_of(ports[kind]) - before}
    names = ("starlette", "uvicorn", "uvloop", "redis", "cachetools", "msgspec")
    result = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {"python": platform.python_version(), "server": redis_version} | {n: version(n) for n in names},
        "requests": options.requests,
        "runs": options.runs,
        "latency": latency,
        "herd": herds,
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
