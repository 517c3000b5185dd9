"""Prefix routing on real engines: hit rate as vLLM counts it, time to the first token, imbalance.

    python scripts/bench_router_engines.py --trace mooncake_synthetic_trace.jsonl --out docs/benchmarks/router.json

    python scripts/bench_router_engines.py --trace mooncake_synthetic_trace.jsonl --device cuda --model llama_1b \
        --scale 4 --sample 1 --max-model-len 32768 --kv-tokens 262144 --requests 1200 --rates 20 40 --out FILE

Each policy gets a service of its own (`manta serve` behind HAProxy; on a GPU its replicas share one) and the same
requests at the same times. The trace is scaled down: of the trees its prompts form, every `--sample`-th, lengths by
`--scale`, arrivals so that a rate of `--rates` requests come a second; each rate has prompts of its own. Policies take
turns, `--runs` times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import bench_models
from bench_answers import percentile
from bench_machine import machine
from bench_ray_apps import NAME
from bench_router import TRACE_BLOCK_TOKENS
from bench_servers import KEY, Contender, Server, serving

from serve.engine.model_size import measure_model

POLICIES = ("prefix", "power_of_two")
MAX_ANSWER_TOKENS = 64
COUNTERS = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A request of the trace, scaled."""

    arrival_s: float
    prompt: list[int]
    answer_tokens: int


def read_trace(args: argparse.Namespace, rate: float) -> list[Ask]:
    """Returns the requests of every `--sample`-th tree of prompts; equal blocks of the trace are equal tokens."""
    rows = [json.loads(line) for line in Path(args.trace).read_text().splitlines()]
    roots = {root: place for place, root in enumerate(dict.fromkeys(row["hash_ids"][0] for row in rows))}
    rows = [row for row in rows if roots[row["hash_ids"][0]] % args.sample == 0][: args.requests]
    scale, part = args.scale, TRACE_BLOCK_TOKENS // args.scale
    stretch = len(rows) / rate / (rows[-1]["timestamp"] - rows[0]["timestamp"])
    asks = []
    for row in rows:
        answer = max(1, min(row["output_length"] // scale, MAX_ANSWER_TOKENS))
        size = max(1, min(row["input_length"] // scale, args.max_model_len - MAX_ANSWER_TOKENS))
        seeds = [f"{rate}:{block}" for block in row["hash_ids"]]
        tokens = [token for seed in seeds for token in Random(seed).choices(range(300, 2000), k=part)]
        arrival_s = (row["timestamp"] - rows[0]["timestamp"]) * stretch
        asks.append(Ask(arrival_s=arrival_s, prompt=tokens[:size], answer_tokens=answer))
    return asks


def samples(server: Server) -> list[Any]:
    """Returns what the service's metrics say now."""
    from prometheus_client.parser import text_string_to_metric_families

    request = urllib.request.Request(f"{server.url}/metrics", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as response:
        page = response.read().decode()
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def counted(server: Server) -> dict[str, Counter[str]]:
    """Returns vLLM's counters of prefix tokens by replica."""
    found: dict[str, Counter[str]] = {name: Counter() for name in COUNTERS}
    for sample in samples(server):
        if sample.name in found:
            found[sample.name][sample.labels["replica"]] += int(sample.value)
    return found


def cache_tokens(server: Server) -> list[int]:
    """Returns what vLLM made of `--kv-tokens`, each size once."""
    sizes = [sample.labels for sample in samples(server) if sample.name == "vllm:cache_config_info"]
    return sorted({int(size["num_gpu_blocks"]) * int(size["block_size"]) for size in sizes})


async def run_load(url: str, asks: Sequence[Ask]) -> list[float]:
    """Sends all at their times; returns the seconds to each first token.

    Raises:
        RuntimeError: when a request fails.
    """
    import aiohttp

    limits = aiohttp.ClientTimeout(total=300)
    headers = {"authorization": f"Bearer {KEY}"}
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=limits, headers=headers
    ) as session:

        async def ask(what: Ask) -> float:
            body = {"model": NAME, "prompt": what.prompt, "max_tokens": what.answer_tokens, "stream": True}
            began = time.perf_counter()
            async with session.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}) as response:
                if response.status != 200:
                    raise RuntimeError(f"status {response.status}: {await response.text()}")
                first = await response.content.readuntil(b"\n\n")
                took = time.perf_counter() - began
                rest = first + await response.read()
            if not rest.rstrip().endswith(b"[DONE]") or b'"error"' in rest:
                raise RuntimeError(f"a stream ended with {rest[-300:]!r}")
            return took

        began, tasks = loop.time(), []
        for what in asks:
            await asyncio.sleep(max(0.0, began + what.arrival_s - loop.time()))
            tasks.append(asyncio.ensure_future(ask(what)))
        return list(await asyncio.gather(*tasks))


def measure(server: Server, asks: Sequence[Ask], num_replicas: int) -> dict[str, Any]:
    """Returns what a policy comes to, once every replica has answered something."""
    strangers = [Ask(arrival_s=0.05 * at, prompt=[5 + at] * 64, answer_tokens=4) for at in range(16)]
    deadline = time.monotonic() + 60
    while True:
        asyncio.run(run_load(server.url, strangers))
        time.sleep(1.5)  # a replica keeps its page for a second
        before = counted(server)
        if sum(tokens > 0 for tokens in before[COUNTERS[1]].values()) == num_replicas or time.monotonic() > deadline:
            break
    began = time.perf_counter()
    ttft = [1000 * seconds for seconds in asyncio.run(run_load(server.url, asks))]
    seconds = time.perf_counter() - began
    time.sleep(1.5)
    after = counted(server)
    hits, asked = ({name: after[key][name] - before[key][name] for name in after[key]} for key in COUNTERS)
    shares = list(asked.values())
    return {
        "replicas": len(shares),
        "kv_tokens": cache_tokens(server),
        "requests": len(asks),
        "prompt_tokens": sum(shares),
        "seconds": seconds,
        "hit_rate": sum(hits.values()) / sum(shares),
        "imbalance": max(shares) / statistics.fmean(shares),
        "ttft_mean_ms": statistics.fmean(ttft),
        "ttft_p50_ms": percentile(ttft, 50),
        "ttft_p99_ms": percentile(ttft, 99),
    }


def settings(args: argparse.Namespace, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns vLLM's engine arguments and words of manta's command line."""
    block = TRACE_BLOCK_TOKENS // args.scale
    engine: dict[str, Any] = {"max_model_len": args.max_model_len}
    if args.device == "cpu":
        engine |= {"max_num_seqs": 16, "enforce_eager": True, "block_size": block}
    if args.model not in bench_models.SHIPPED:
        engine["load_format"] = "dummy"
    config = json.loads(Path(model, "config.json").read_text())
    dtype = "float32" if args.device == "cpu" else "bfloat16"
    kv_bytes = measure_model(config, dtype=dtype).kv_bytes_per_token
    assert kv_bytes
    engine["kv_cache_memory_bytes"] = args.kv_tokens * kv_bytes
    words = ("cache=off", "deployment.proxy=direct", f"model.dtype={dtype}", f"engine.num_replicas={args.replicas}")
    words += (f"router.block_tokens={block}",)
    if args.device == "cuda":
        words += (f"engine.engines_per_device={args.replicas}",)
    return engine, words


def main() -> None:
    """Runs the policies in turn and writes their figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trace", required=True, help="mooncake_synthetic_trace.jsonl")
    add("--out", type=Path, help="where the figures go, as JSON; others that are there stay")
    add("--name", default="engines", help="the run's name in that file")
    add("--replicas", type=int, default=4)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--model", default="demo", help="demo, or one of bench_models.py, without weights")
    add("--rates", type=float, nargs="+", default=[6.0], help="requests a second, one load after the other")
    add("--requests", type=int, default=1000, help="of each load, at most")
    add("--sample", type=int, default=8)
    add("--scale", type=int, default=16, help="divides 512")
    add("--max-model-len", type=int, default=4096)
    add("--kv-tokens", type=int, default=16384, help="of each replica's cache")
    add("--runs", type=int, default=1)
    add("--policies", nargs="+", default=POLICIES)
    args = parser.parse_args()
    loads = {rate: read_trace(args, rate) for rate in args.rates}
    arguments = {name: value for name, value in vars(args).items() if name not in ("trace", "out")}
    where = {name: value for name, value in machine().items() if name != "cpu"}
    report: dict[str, Any] = {"machine": where, "arguments": arguments, "runs": []}
    with tempfile.TemporaryDirectory(prefix="b", ignore_cleanup_errors=True) as folder:
        model = str(bench_models.SHIPPED.get(args.model) or Path(folder, "model"))
        if args.model not in bench_models.SHIPPED:
            bench_models.make_model(bench_models.model_config(args.model), Path(model))
        engine, words = settings(args, model)
        for run in range(args.runs):
            for policy in args.policies if run % 2 == 0 else args.policies[::-1]:
                own = Path(folder, f"{run}{policy[:2]}")
                own.mkdir()
                who = Contender(name=policy, server="manta", words=(*words, f"router.policy={policy}"))
                with serving(who, model, args.device, engine, own, 500) as server:
                    for rate, asks in loads.items():
                        found = {"policy": policy, "run": run, "rate": rate, "start_s": server.start_s}
                        found |= measure(server, asks, args.replicas) | {"load_average": os.getloadavg()[0]}
                        print(found, flush=True)
                        report["runs"].append(found)
                        if args.out:
                            others = json.loads(args.out.read_text()) if args.out.exists() else {}
                            args.out.write_text(json.dumps({**others, args.name: report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
