r"""Offline work in the gaps of interactive load on a service:

    python scripts/bench_gaps.py http://127.0.0.1:8000 AZURE.csv --seconds 20 --rate 1 --max-ttft-ms 3000
    python scripts/bench_gaps.py llama_8b AZURE.csv --device cuda --seconds 60 --rate 8 --scale 1 --rows-in-flight 512 \
        --offline-prompt 200 --offline-answer 150 --out gaps.json

Replays the beginning of a trace at a rate, each way of admitting rows in its turn, and prints what the interactive
clients saw beside what the job got; ratios are to the runs without a job. The job is its engine in a process of its
own, without Ray: what is compared is admission. In the place of a URL a model of bench_models.py, or demo: its service
is started and ended here, without weights and without the network. Another should have `cache=off`, and be warm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_models
from bench_answers import DONE, Seen, percentile
from bench_batch import ENGINE, pair
from bench_machine import machine
from bench_ray_apps import NAME
from bench_servers import Contender, serving

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
    "gaps_tpot": (AdmissionRule.room, 100),
    "gaps_p99": (AdmissionRule.room, 100),
    "priority": (AdmissionRule.all, 100),
    "no_admission": (AdmissionRule.all, 0),
}
"""No job; the job as it is; with a limit for TPOT as well, near its median without a job; with limits for TTFT and
TPOT, near their p99 without a job; vLLM's priority alone; neither priority nor admission."""
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
    max_tpot_ms: float | None


async def run_job(job: Job) -> dict[str, Any]:
    """Asks for rows without end and counts the tokens of those that ended in time."""
    admission = AdmissionSpec(rule=AdmissionRule[job.rule], max_ttft_ms=job.max_ttft_ms, max_tpot_ms=job.max_tpot_ms)
    service = ServiceSpec(url=job.url, priority=job.priority, admission=admission)
    spec = EngineSpec(kind=EngineKind.service, service=service, max_in_flight=job.rows_in_flight)
    engine = ServiceEngine(ModelSpec(path=".", name=job.model), spec, 1 << 20, Task.generate, None)
    await engine.start()
    print("begun", flush=True)
    drawn = random.Random(1)

    def rows() -> Iterator[Request]:
        number = 0
        while True:
            tokens = [drawn.randint(*TOKENS) for _ in range(job.prompt_tokens)]
            # equal lengths would end, and begin, all at once
            limit = drawn.randint(job.answer_tokens // 2, job.answer_tokens + job.answer_tokens // 2)
            sampling = SamplingSpec(max_tokens=max(1, limit), ignore_eos=True)
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
                        seen.tokens = body["max_tokens"]  # vLLM puts several into an event where a client is slow
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
            max_ttft_ms=args.p99_ms[0] if way == "gaps_p99" else args.max_ttft_ms,
            max_tpot_ms={"gaps_tpot": args.max_tpot_ms, "gaps_p99": args.p99_ms[1]}.get(way),
        )
        words = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(asdict(job))]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
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


@contextmanager
def service_of(args: argparse.Namespace) -> Iterator[None]:
    """Has a service while it lasts: the one that is asked for, or one that is started here."""
    if "://" in args.where:
        args.url = args.where
        yield
        return
    # admission looks at what vLLM tells of itself
    settings = ENGINE[args.device] | {"disable_log_stats": False} | args.engine
    own = Contender(name="manta", server="manta", words=("cache=off", "access.open=true", *args.words))
    with tempfile.TemporaryDirectory(prefix="g", ignore_cleanup_errors=True) as scratch:
        folder, model = Path(scratch) / "s", str(bench_models.SHIPPED.get(args.where, Path(scratch) / "model"))
        folder.mkdir()
        if args.where not in bench_models.SHIPPED:
            bench_models.make_model(bench_models.model_config(args.where), Path(model))
            settings = {"load_format": "dummy", "max_model_len": 16_384} | settings
        with serving(own, model, args.device, settings, folder, args.start_timeout_s) as server:
            print(f"service up after {server.start_s:.0f} s", file=sys.stderr, flush=True)
            args.url, args.model = server.url, NAME
            yield


def compared(args: argparse.Namespace, loads: list[tuple[float, int, int]]) -> dict[str, Any]:
    """Runs all ways and tells of each as it ends."""

    def tell(found: dict[str, Any]) -> None:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}), flush=True)

    asyncio.run(run_interactive(args, loads[: args.warm_up]))
    # nobody else asks: what is idle is this, less what the others take
    job = asyncio.run(measure(args, "priority", []))["offline_tokens_per_s"]
    tell({"way": "job alone", "offline_tokens_per_s": job})
    runs = []
    for way in args.ways:
        runs.append(found := asyncio.run(measure(args, way, loads)))
        if way == "none" and args.p99_ms[1] is None and found["tpot_p50_ms"]:
            args.p99_ms = found["ttft_p99_ms"], found["tpot_p99_ms"]
            args.max_tpot_ms = args.max_tpot_ms or args.tpot_slack * found["tpot_p50_ms"]
        if (gained := found.get("offline_tokens_per_s")) is not None:
            found["gained_of_idle"] = gained / max(job - found["interactive_tokens_per_s"], 1e-9)
        tell(found)
    calm = [found for found in runs if found["way"] == "none"]
    for found in runs:
        for name in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99"):
            alone = [each[f"{name}_ms"] for each in calm if each[f"{name}_ms"]]
            if alone and found[f"{name}_ms"]:
                found[f"{name}_ratio"] = found[f"{name}_ms"] / (sum(alone) / len(alone))
    print(f"{'way':14}{'of idle':>9}{'TTFT p50':>10}{'p99':>7}{'TPOT p50':>10}{'p99':>7}  (times those without a job)")
    for found in runs:
        ratios = [found.get(f"{name}_ratio", float("nan")) for name in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")]
        gained = found.get("gained_of_idle", 0.0)
        print("{:14}{:9.2f}{:10.2f}{:7.2f}{:10.2f}{:7.2f}".format(found["way"], gained, *ratios), flush=True)
    return {"job_alone_tokens_per_s": job, "runs": runs}


def main() -> None:
    """Runs all ways and prints a line of JSON for each, and then a table."""
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(asyncio.run(run_job(Job(**json.loads(sys.argv[2]))))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", help="the URL of a service, or a model whose service is started here")
    parser.add_argument("trace")
    parser.add_argument("--model", default="demo", help="its name at the URL")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each way")
    parser.add_argument("--rate", type=float, default=2.0, help="interactive requests a second, on average")
    parser.add_argument("--scale", type=float, default=0.1, help="of the trace's token counts")
    parser.add_argument("--rows-in-flight", type=int, default=64)
    parser.add_argument("--offline-prompt", type=int, default=64, help="tokens")
    parser.add_argument("--offline-answer", type=int, default=64, help="tokens")
    parser.add_argument("--max-ttft-ms", type=float, default=1000.0)
    parser.add_argument("--max-tpot-ms", type=float, help="of gaps_tpot; null is --tpot-slack times what none has")
    parser.add_argument("--tpot-slack", type=float, default=1.1)
    parser.add_argument("--warm-up", type=int, default=16, help="interactive requests before the first way")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", choices=list(ENGINE), default="cpu")
    parser.add_argument("--engine", action="append", type=pair, default=[], metavar="NAME=VALUE", help="of vLLM")
    parser.add_argument("--words", nargs="+", default=[], help="further words for manta serve")
    parser.add_argument("--start-timeout-s", type=float, default=300.0)
    parser.add_argument("--case", default="gaps", help="its name in the file")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON; others that are there stay")
    args = parser.parse_args()
    args.engine, args.p99_ms = dict(args.engine), (args.max_ttft_ms, args.max_tpot_ms)
    loads = loads_of(args)
    kept = {key: value for key, value in vars(args).items() if key not in ("trace", "out", "case")}
    with service_of(args):
        figures = {"arguments": kept, "machine": machine(), "requests": len(loads), **compared(args, loads)}
    if args.out:
        others = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps({**others, args.case: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
