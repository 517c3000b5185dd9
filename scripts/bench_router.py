"""Which rule finds the most cached prefixes and the first token soonest, and how long a decision takes.

    python scripts/bench_router.py --trace mooncake_synthetic_trace.jsonl --out docs/benchmarks/router.json

The trace (Mooncake's: arrival, lengths, ids of 512-token prefix blocks) is scaled down: lengths by `--scale`, arrivals
so that the prompts' tokens come at `--loads` times what the replicas compute without any cache. The engines are
simulated (simulated_replicas.py); the router is the real one and sees text, whose bytes a token vary and whose blocks
are not the engine's. `--seeds` vary the router's draws and the text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from router_rules import OurRule, RayPowerOfTwo, RayPrefix
from simulated_replicas import BLOCK_TOKENS, Machine, Request, Rule, SimulatedReplica, simulate

from conf.schema.router import RouterPolicy, RouterSpec
from serve.router.choose import Capacity
from serve.router.router import Router

TRACE_BLOCK_TOKENS = 512
UNBOUNDED = {"imbalance_bound": 1e9, "imbalance_slack_tokens": 10**12}
"""The plain forms of the rules that do not look at prefixes."""


def read_trace(path: str, scale: int, answer_scale: int, seed: int, kv_tokens: int) -> list[Request]:
    """Returns the trace's requests with their lengths divided by `scale` (which divides 32), arrivals unchanged.

    A prompt that would not fit a replica's cache is cut to half of it.
    """
    part = TRACE_BLOCK_TOKENS // scale
    each = part // BLOCK_TOKENS
    texts: dict[int, bytes] = {}
    requests = []
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        tokens = min(max(1, row["input_length"] // scale), kv_tokens // 2)
        blocks = [block * each + at for block in row["hash_ids"] for at in range(each)][: tokens // BLOCK_TOKENS]
        pieces = []
        for block in row["hash_ids"][: -(-tokens // part)]:
            if block not in texts:
                draw = Random(seed * 1_000_003 + block)
                texts[block] = draw.randbytes(sum(draw.choices(range(1, 8), k=part)))  # 4 bytes a token on average
            pieces.append(texts[block])
        text = b"".join(pieces)
        spare = -(-tokens // part) * part - tokens
        text = text[: len(text) - 4 * spare]
        answer = max(1, row["output_length"] // answer_scale)
        requests.append(Request(row["timestamp"] / 1000, blocks, tokens, answer, text))
    return requests


def hot_prefixes(num_requests: int, num_prefixes: int, seed: int) -> list[Request]:
    """Returns requests with few long prefixes: 1,024 tokens, then 256 of their own; Poisson arrivals."""
    rng = Random(seed)
    shared = [(rng.randbytes(4096), [index * 64 + at for at in range(64)]) for index in range(num_prefixes)]
    now_s, requests = 0.0, []
    for number in range(num_requests):
        now_s += rng.expovariate(1.0)
        text, blocks = rng.choice(shared)
        own = [10**9 + number * 16 + at for at in range(16)]
        requests.append(Request(now_s, [*blocks, *own], 1280, 32, text + rng.randbytes(1024)))
    return requests


def rules(
    num_replicas: int, machine: Machine, answer_tokens: int, spec: RouterSpec
) -> dict[str, Callable[[int], Rule]]:
    """Returns a maker (of a seed) for each rule."""

    def ours(**changes: Any) -> Callable[[int], Rule]:
        return lambda seed: OurRule(replace(spec, **changes), num_replicas, machine, answer_tokens, seed)

    return {
        "round_robin": ours(policy=RouterPolicy.round_robin, **UNBOUNDED),
        "power_of_two": ours(policy=RouterPolicy.power_of_two, **UNBOUNDED),
        "ray_power_of_two": lambda seed: RayPowerOfTwo(num_replicas, seed),
        "least_tokens": ours(policy=RouterPolicy.least_tokens, **UNBOUNDED),
        "ray_prefix": lambda seed: RayPrefix(num_replicas, seed),
        "ray_prefix_imbalance_10": lambda seed: RayPrefix(num_replicas, seed, imbalance=10),
        "ray_prefix_imbalance_10_evicting": lambda seed: RayPrefix(num_replicas, seed, imbalance=10, is_evicting=True),
        "prefix": ours(),
        "prefix_least_tokens": ours(fallback=RouterPolicy.least_tokens),
        "prefix_ends_only": lambda seed: OurRule(spec, num_replicas, machine, answer_tokens, seed, hears=False),
    }


def run(requests: Sequence[Request], rule: Rule, num_replicas: int, machine: Machine) -> dict[str, float]:
    """Returns what a run shows: hit rate, TTFT in ms, and how uneven the replicas' work is."""
    replicas = [SimulatedReplica(machine) for _ in range(num_replicas)]
    uneven = []
    for _ in simulate(requests, rule, replicas):
        waiting = [replica.waiting_tokens for replica in replicas]
        uneven.append(max(waiting) * num_replicas / max(1, sum(waiting)))
    ttft = sorted((request.first_token_s - request.arrival_s) * 1000 for request in requests)
    assigned = [replica.assigned_tokens for replica in replicas]
    computed = [replica.computed_tokens for replica in replicas]
    return {
        "hit_rate": sum(request.cached_tokens for request in requests) / sum(r.prompt_tokens for r in requests),
        "ttft_mean_ms": statistics.fmean(ttft),
        "ttft_p50_ms": ttft[len(ttft) // 2],
        "ttft_p99_ms": ttft[int(len(ttft) * 0.99)],
        "imbalance": max(assigned) / statistics.fmean(assigned),
        "imbalance_computed": max(computed) / statistics.fmean(computed),
        "imbalance_waiting": statistics.fmean(uneven),
    }


def at_load(requests: Sequence[Request], load: float, num_replicas: int, machine: Machine) -> list[Request]:
    """Returns fresh requests whose prompts arrive at `load` times the tokens that all replicas compute a second."""
    tokens = sum(request.prompt_tokens for request in requests)
    seconds = tokens / (load * num_replicas * machine.prefill_tokens_per_s)
    stretch = seconds / requests[-1].arrival_s
    return [replace(request, arrival_s=request.arrival_s * stretch) for request in requests]


def compare(args: argparse.Namespace, spec: RouterSpec) -> list[dict[str, Any]]:
    """Runs every rule at every load and cache size, with every seed."""
    rows = []
    for kv_tokens in args.kv_tokens:
        machine = Machine(kv_tokens=kv_tokens)
        if args.hot_prefixes:
            traces = {seed: hot_prefixes(4000, args.hot_prefixes, seed) for seed in range(args.seeds)}
        else:
            answer_scale = args.answer_scale or args.scale
            traces = {
                seed: read_trace(args.trace, args.scale, answer_scale, seed, kv_tokens) for seed in range(args.seeds)
            }
        answer_tokens = round(statistics.fmean(request.answer_tokens for request in traces[0]))
        for load in args.loads:
            for name, make in rules(args.replicas, machine, answer_tokens, spec).items():
                if args.rules and name not in args.rules:
                    continue
                runs = [
                    run(at_load(trace, load, args.replicas, machine), make(seed), args.replicas, machine)
                    for seed, trace in traces.items()
                ]
                rows.append({"kv_tokens": kv_tokens, "load": load, "rule": name, "runs": runs})
                mean = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
                print(f"kv {kv_tokens:>7} load {load:.2f} {name:33}", *(f"{k} {v:.3f}" for k, v in mean.items()))
    return rows


def decision_times(num_replicas: int, prompt_tokens: int, spec: RouterSpec, num_decisions: int) -> dict[str, Any]:
    """Returns microseconds of `choose`, and of `began`, `first_token` and `ended` together, with full caches.

    Half of each prompt is a prefix that half of the replicas hold, a quarter of the prompts are held whole by one, and
    a quarter are new to all. Five passes over the same prompts: the fastest of five is what a decision costs where
    nothing else wants the CPU; `choose_cpu` is the thread's own time, without what others took in between.
    """
    rng = Random(0)
    router = Router(spec, rng=rng)
    for number in range(num_replicas):
        router.place(f"replica-{number}", Capacity(kv_tokens=prompt_tokens * 40))
    size = round(prompt_tokens * spec.bytes_per_token)
    shared = [rng.randbytes(size // 2) for _ in range(8)]
    known = [rng.choice(shared) + rng.randbytes(size // 2) for _ in range(num_replicas * 32)]
    flights = []
    for at, prompt in enumerate(known):
        flights.append(router.began(f"replica-{at % num_replicas}", router.choose(prompt, 128)))
    for flight in flights[: -4 * num_replicas]:
        router.ended(flight)
    prompts = []
    for at in range(num_decisions):
        if at % 4 == 0:
            prompts.append(rng.choice(known))
        elif at % 4 == 1:
            prompts.append(rng.randbytes(size))
        else:
            prompts.append(rng.choice(shared) + rng.randbytes(size // 2))
    passes: list[list[float]] = []
    own: list[float] = []
    for _ in range(5):
        times = []
        for prompt in prompts:
            began, own_began = time.perf_counter_ns(), time.thread_time_ns()
            router.choose(prompt, 128)
            own_ended, ended = time.thread_time_ns(), time.perf_counter_ns()
            times.append((ended - began) / 1000)
            own.append((own_ended - own_began) / 1000)
        passes.append(times)
    counting = []
    for prompt in prompts:
        choice = router.choose(prompt, 128)
        began = time.perf_counter_ns()
        assert choice.replica_id is not None
        flight = router.began(choice.replica_id, choice)
        router.first_token(flight)
        router.ended(flight)
        counting.append((time.perf_counter_ns() - began) / 1000)

    def spread(values: list[float]) -> dict[str, float]:
        ordered = sorted(values)
        places = {"p50_us": 0.5, "p99_us": 0.99, "max_us": 1.0}
        return {name: ordered[min(len(ordered) - 1, int(len(ordered) * place))] for name, place in places.items()}

    return {
        "replicas": num_replicas,
        "prompt_tokens": prompt_tokens,
        "block_tokens": spec.block_tokens,
        "decisions": num_decisions,
        "blocks_remembered": router.num_blocks,
        "choose_cpu": spread(own),
        "choose": spread([took for times in passes for took in times]),
        "choose_fastest_of_5": spread([min(times) for times in zip(*passes, strict=True)]),
        "choose_held_whole": spread([min(times) for times in zip(*passes, strict=True)][::4]),
        "count": spread(counting),
    }


def main() -> None:
    """Runs the parts and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="mooncake_synthetic_trace.jsonl; without it, decision times alone")
    parser.add_argument("--out", help="where the figures go, as JSON; others that are there stay")
    parser.add_argument("--name", default="trace", help="the run's name in that file")
    parser.add_argument("--scale", type=int, default=8)
    parser.add_argument("--answer-scale", type=int, help="as --scale, for answers; without it the same")
    parser.add_argument(
        "--hot-prefixes", type=int, default=0, help="instead of the trace: requests with so many prefixes"
    )
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.9, 1.1])
    parser.add_argument("--kv-tokens", type=int, nargs="+", default=[131_072])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", nargs="*", help="only these")
    parser.add_argument("--decisions", type=int, default=1500)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values of the router's keys")
    args = parser.parse_args()
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in args.set)}
    spec = RouterSpec(**changes)
    figures: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "load_average": os.getloadavg(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {"ray": version("ray")},
        "arguments": {key: value for key, value in vars(args).items() if key not in ("trace", "out")},
        "decision_times": [
            decision_times(replicas, tokens, spec, args.decisions)
            for replicas, tokens in ((4, 1024), (64, 1024), (64, 8192))
            if args.decisions
        ],
    }
    for row in figures["decision_times"]:
        print(row)
    if args.trace or args.hot_prefixes:
        figures["simulation"] = compare(args, spec)
    if args.out:
        out = Path(args.out)
        others = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps({**others, args.name: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
