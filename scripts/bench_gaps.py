"""Offline work in the gaps of interactive load on a running service: python scripts/bench_gaps.py URL TRACE --help

Replays the beginning of a trace at a rate, each way of admitting rows in its turn, and prints what the interactive
clients saw beside what the job got. The job is its engine in a process of its own, without Ray: what is compared is
admission. The service should have `cache=off`, and be measured warm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_answers import DONE, Seen, percentile

from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.service import AdmissionRule, AdmissionSpec, ServiceSpec
from conf.schema.task import Task
from pipelines.simulate.trace import read_trace
from serve.engine.protocol import Completion, Request
from serve.engine.service.engine import ServiceEngine

WAYS: dict[str, tuple[AdmissionRule, int] | None] = {
    "none": None,
    "gaps": (AdmissionRule.room, 100),
    "priority": (AdmissionRule.all, 100),
    "no_admission": (AdmissionRule.all, 0),
}
"""No job; the job as it is; vLLM's priority alone; neither priority nor admission."""
TOKENS = (5, 400)
"""Token ids of prompts are drawn from this range, which every model has."""


@dataclass(kw_only=True, slots=True)
class Job:
    """An offline job, for its process."""

    url: str
    model: str
    rule: str
    priority: int
    seconds: float
    rows_in_flight: int
    prompt_tokens: int
    answer_tokens: int
    max_ttft_ms: float


async def run_job(job: Job) -> dict[str, Any]:
    """Asks for rows without end and counts the tokens of those that ended in time."""
    admission = AdmissionSpec(rule=AdmissionRule[job.rule], max_ttft_ms=job.max_ttft_ms)
    service = ServiceSpec(url=job.url, priority=job.priority, admission=admission)
    spec = EngineSpec(kind=EngineKind.service, service=service, max_in_flight=job.rows_in_flight)
    engine = ServiceEngine(ModelSpec(path=".", name=job.model), spec, 1 << 20, Task.generate, None)
    await engine.start()
    drawn = random.Random(1)
    sampling = SamplingSpec(max_tokens=job.answer_tokens, ignore_eos=True)

    def rows() -> Iterator[Request]:
        number = 0
        while True:
            tokens = [drawn.randint(*TOKENS) for _ in range(job.prompt_tokens)]
            yield Request(id=str(number), token_ids=tokens, sampling=sampling)
            number += 1

    found = {"rows": 0, "tokens": 0}
    stream = engine.generate(rows())
    try:
        async with asyncio.timeout(job.seconds):
            async for outcome in stream:
                assert isinstance(outcome, Completion), outcome
                found["rows"] += 1
                found["tokens"] += outcome.completion_tokens
    except TimeoutError:
        pass
    await stream.aclose()  # type: ignore[attr-defined]
    await engine.close()
    return {**found, "called_back": engine.called_back}


async def ask(session: Any, url: str, body: dict[str, Any]) -> Seen:
    """One interactive request, streamed."""
    import aiohttp

    seen, rest = Seen(start_s=time.perf_counter()), b""
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                seen.error = f"status {response.status}"
            async for chunk in response.content.iter_any():
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    if event.startswith(b"data:") and event[5:].strip() != DONE:
                        seen.last_s = time.perf_counter()
                        seen.first_s = seen.first_s or seen.last_s
                        seen.tokens += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        seen.error = type(error).__name__
    seen.end_s = time.perf_counter()
    return seen


async def run_interactive(args: argparse.Namespace, loads: list[tuple[float, int, int]]) -> list[Seen]:
    """Replays arrivals, come what may."""
    import aiohttp

    drawn, loop, tasks = random.Random(2), asyncio.get_running_loop(), []
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        began = loop.time()
        for at_s, prompt, answer in loads:
            await asyncio.sleep(max(0.0, began + at_s - loop.time()))
            tokens = [drawn.randint(*TOKENS) for _ in range(prompt)]
            body = {"model": args.model, "prompt": tokens, "max_tokens": answer, "ignore_eos": True, "stream": True}
            tasks.append(asyncio.ensure_future(ask(session, args.url, body)))
        return list(await asyncio.gather(*tasks))


async def measure(args: argparse.Namespace, way: str, loads: list[tuple[float, int, int]]) -> dict[str, Any]:
    """Runs one way; with no loads it is what the service has for a job when nobody else asks."""
    process = None
    if (chosen := WAYS[way]) is not None:
        rule, priority = chosen
        job = Job(
            url=args.url,
            model=args.model,
            rule=rule.value,
            priority=priority,
            seconds=args.seconds,
            rows_in_flight=args.rows_in_flight,
            prompt_tokens=args.offline_prompt,
            answer_tokens=args.offline_answer,
            max_ttft_ms=args.max_ttft_ms,
        )
        words = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(asdict(job))]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    seen = await run_interactive(args, loads)
    found: dict[str, Any] = {"way": way, "requests": len(seen), "failed": sum(s.error is not None for s in seen)}
    good = [(s, s.first_s, s.last_s) for s in seen if s.first_s is not None and s.last_s is not None and not s.error]
    found["interactive_tokens_per_s"] = sum(s.tokens for s, _, _ in good) / args.seconds
    times = {
        "ttft": [first - s.start_s for s, first, _ in good],
        "tpot": [(last - first) / (s.tokens - 1) for s, first, last in good if s.tokens > 1],
    }
    for name, values in times.items():
        for percent in (50, 99):
            found[f"{name}_p{percent}_ms"] = 1000 * percentile(values, percent) if values else None
    if process is not None:
        output, _ = await process.communicate()
        offline = json.loads(output)
        found |= {"offline_tokens_per_s": offline["tokens"] / args.seconds, "called_back": offline["called_back"]}
    return found


def loads_of(args: argparse.Namespace) -> list[tuple[float, int, int]]:
    """The trace's beginning: seconds, tokens in and out; its gaps are stretched to the rate, its lengths scaled."""
    trace = read_trace(args.trace, max(2, int(args.rate * args.seconds)))
    stretch = args.seconds / float(trace.arrival_s[-1])
    return [
        (at * stretch, max(1, int(prompt * args.scale)), max(2, int(answer * args.scale)))
        for at, prompt, answer in zip(
            trace.arrival_s.tolist(), trace.prompt.tolist(), trace.answer.tolist(), strict=True
        )
    ]


def main() -> None:
    """Runs all ways and prints a line of JSON for each, the last with what the job gained."""
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(asyncio.run(run_job(Job(**json.loads(sys.argv[2]))))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("trace")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each way")
    parser.add_argument("--rate", type=float, default=2.0, help="interactive requests a second, on average")
    parser.add_argument("--scale", type=float, default=0.1, help="of the trace's token counts")
    parser.add_argument("--rows-in-flight", type=int, default=64)
    parser.add_argument("--offline-prompt", type=int, default=64, help="tokens")
    parser.add_argument("--offline-answer", type=int, default=64, help="tokens")
    parser.add_argument("--max-ttft-ms", type=float, default=1000.0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    loads = loads_of(args)
    alone = asyncio.run(measure(args, "priority", []))["offline_tokens_per_s"]
    print(json.dumps({"way": "job alone", "offline_tokens_per_s": alone}), flush=True)
    for way in args.ways:
        found = asyncio.run(measure(args, way, loads))
        if (gained := found.get("offline_tokens_per_s")) is not None:
            found["gained_of_idle"] = gained / max(alone - found["interactive_tokens_per_s"], 1e-9)
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
