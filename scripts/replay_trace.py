"""A trace replayed against a running service, request by request, whatever becomes of them (an open loop):

    python scripts/replay_trace.py --url http://127.0.0.1:8000 --model demo --trace azure.csv --for-s 600 --out run.json
    python scripts/replay_trace.py --url http://127.0.0.1:8000 --model demo --steps 1:30 8:60 1:60 --service manta

Traces are those of `manta simulate`: Azure's CSV, Mooncake's JSONL, or columns arrival_s, prompt_tokens, answer_tokens.
Each request is a stream; its prompt has as many words as the trace has tokens (scaled and bounded as asked for), no two
begin alike. Times are the client's, from when the request was due: a generator that falls behind makes latencies worse.
With --service, replicas of that service on this machine are looked at twice a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from bench_answers import Seen, percentile
from bench_load import PATH, send

from conf.errors import UserError
from pipelines.simulate.trace import Trace, read_trace, replayed
from serve.state import read_state, services_folder

WORDS = ("the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with")
LOOK_S = 0.5


def load(args: argparse.Namespace) -> Trace:
    """Returns what is replayed.

    Raises:
        UserError: for a trace that cannot be read, or of which nothing is left.
    """
    if args.trace is None:
        trace = stepped([tuple(map(float, step.split(":"))) for step in args.steps], args.seed)  # type: ignore[misc]
    else:
        trace = replayed(read_trace(args.trace), args.copies, 5.0, 1.0, args.seed)
    kept = (trace.arrival_s >= args.from_s) & (trace.arrival_s < args.from_s + args.for_s)
    if not kept.any():
        raise UserError(f"--from-s {args.from_s:g} --for-s {args.for_s:g}: no request arrives then")
    return Trace(
        arrival_s=(trace.arrival_s[kept] - args.from_s) / args.speed_up,
        prompt=_scaled(trace.prompt[kept], args.prompt_scale, args.max_prompt),
        answer=_scaled(trace.answer[kept], args.answer_scale, args.max_answer),
    )


def stepped(steps: list[tuple[float, float]], seed: int) -> Trace:
    """Returns Poisson arrivals of requests of 64 words and 32 tokens.

    Args:
        steps: requests a second, and for how many seconds.
        seed: of the draws.
    """
    drawn, at_s, times = np.random.default_rng(seed), 0.0, []
    for rate, seconds in steps:
        times.append(at_s + np.sort(drawn.uniform(0, seconds, drawn.poisson(rate * seconds))))
        at_s += seconds
    arrival = np.concatenate(times)
    return Trace(arrival_s=arrival, prompt=np.full(len(arrival), 64), answer=np.full(len(arrival), 32))


def _scaled(lengths: np.ndarray, scale: float, most: int) -> np.ndarray:
    return np.clip(np.round(lengths * scale), 1, most).astype(np.int64)


def bodies(trace: Trace, model: str, seed: int) -> list[bytes]:
    """Returns the requests, made before the clock starts."""
    drawn = random.Random(seed)
    made = []
    for number, (prompt, answer) in enumerate(zip(trace.prompt.tolist(), trace.answer.tolist(), strict=True)):
        text = " ".join([str(number), *drawn.choices(WORDS, k=prompt - 1)])
        wants = {"max_tokens": answer, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        made.append(json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **wants}).encode())
    return made


async def replay(args: argparse.Namespace, trace: Trace) -> tuple[list[Seen], list[tuple[float, int, int]]]:
    """Sends all requests when they are due.

    Returns:
        What became of each, from the beginning of the replay, and changes of the fleet: (time, running, wanted).
    """
    import aiohttp

    made = bodies(trace, args.model, args.seed)
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {args.key}"} if args.key else {})}
    limits = aiohttp.ClientTimeout(total=args.timeout_s)
    connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(connector=connections, timeout=limits, headers=headers) as session:
        began_s, tasks, fleet = loop.time(), [], []

        async def one(body: bytes, due_s: float) -> Seen:
            seen = await send(session, args.url + PATH, body, is_stream=True)
            seen.start_s = due_s
            return seen

        watch = asyncio.create_task(_watch(args.service, began_s, fleet)) if args.service else None
        for body, at_s in zip(made, trace.arrival_s.tolist(), strict=True):
            if (rest_s := began_s + at_s - loop.time()) > 0:
                await asyncio.sleep(rest_s)
            tasks.append(asyncio.create_task(one(body, began_s + at_s)))
        seen = list(await asyncio.gather(*tasks))
        if watch is not None:
            await asyncio.sleep(args.after_s)
            watch.cancel()
    for each in seen:
        each.start_s -= began_s
        each.end_s -= began_s
        each.first_s = None if each.first_s is None else each.first_s - began_s
        each.last_s = None if each.last_s is None else each.last_s - began_s
    return seen, fleet


async def _watch(name: str, began_s: float, fleet: list[tuple[float, int, int]]) -> None:
    folder, last = services_folder(os.environ), None
    while True:
        state = read_state(folder, name)
        if state is not None and state.replicas is not None and state.replicas != last:
            last = state.replicas
            fleet.append((round(asyncio.get_running_loop().time() - began_s, 2), last.running, last.wanted))
        await asyncio.sleep(LOOK_S)


def figures(seen: list[Seen], fleet: list[tuple[float, int, int]], ttft_s: float, tpot_s: float) -> dict[str, Any]:
    """Returns what a replay comes to; goodput is of requests that kept both targets."""
    good = [each for each in seen if each.error is None and each.first_s is not None]
    ttft = [each.first_s - each.start_s for each in good if each.first_s is not None]
    tpot = [
        (each.last_s - each.first_s) / (each.tokens - 1)
        for each in good
        if each.first_s is not None and each.last_s is not None and each.tokens > 1
    ]
    kept = sum(
        each.first_s - each.start_s <= ttft_s and (each.last_s - each.first_s) <= tpot_s * max(1, each.tokens - 1)
        for each in good
        if each.first_s is not None and each.last_s is not None
    )
    seconds = max(each.end_s for each in seen)
    errors: dict[str, int] = {}
    for each in seen:
        if each.error is not None:
            errors[each.error[:200]] = errors.get(each.error[:200], 0) + 1
    found: dict[str, Any] = {
        "requests": len(seen),
        "lost": len(seen) - len(good),
        "errors": errors,
        "seconds": seconds,
        "prompt_tokens": sum(each.prompt_tokens for each in good),
        "answer_tokens": sum(each.tokens for each in good),
        "ttft_attained": sum(value <= ttft_s for value in ttft) / len(seen),
        "tpot_attained": sum(value <= tpot_s for value in tpot) / len(tpot) if tpot else None,
        "goodput_per_s": kept / seconds,
    }
    for name, values in (("ttft", ttft), ("tpot", tpot)):
        for percent in (50, 99):
            found[f"{name}_p{percent}_s"] = percentile(values, percent) if values else None
    if fleet:
        ends = [*(at_s for at_s, _, _ in fleet[1:]), seconds]
        spans = [max(0.0, min(end, seconds) - max(0.0, at_s)) for (at_s, _, _), end in zip(fleet, ends, strict=True)]
        found["replica_s"] = sum(max(r, w) * span for (_, r, w), span in zip(fleet, spans, strict=True))
        found["most_running"] = max(running for _, running, _ in fleet)
        found["fleet"] = fleet
    return found


def main() -> int:
    """Replays, and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the service's, without /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default=os.environ.get("KEY", ""), help="the API key")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--trace", help=".csv, .jsonl or .parquet")
    what.add_argument("--steps", nargs="+", metavar="RATE:SECONDS", help="in the place of a trace: Poisson arrivals")
    parser.add_argument("--copies", type=int, default=1, help="of each request, within 5 s of it")
    parser.add_argument("--from-s", type=float, default=0.0, help="of the trace, what arrives from then on")
    parser.add_argument("--for-s", type=float, default=1e9, help="of the trace, so many seconds")
    parser.add_argument("--speed-up", type=float, default=1.0, help="arrivals come so many times as fast")
    parser.add_argument("--prompt-scale", type=float, default=1.0, help="prompts are so many times as long")
    parser.add_argument("--answer-scale", type=float, default=1.0, help="answers are so many times as long")
    parser.add_argument("--max-prompt", type=int, default=1 << 20, help="tokens")
    parser.add_argument("--max-answer", type=int, default=1 << 20, help="tokens")
    parser.add_argument("--ttft-s", type=float, default=2.0, help="the target of a first token")
    parser.add_argument("--tpot-s", type=float, default=0.2, help="the target of each further token")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of a request")
    parser.add_argument("--service", help="its name, on this machine: looks at its replicas")
    parser.add_argument("--after-s", type=float, default=0.0, help="goes on looking after the last answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file; it also gets each request")
    args = parser.parse_args()
    try:
        trace = load(args)
    except UserError as error:
        print(f"replay_trace: {error}", file=sys.stderr)
        return 2
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    seen, fleet = run(replay(args, trace))
    found = figures(seen, fleet, args.ttft_s, args.tpot_s)
    print(json.dumps(found, indent=1))
    if args.out:
        rows = [
            [round(s.start_s, 4), s.first_s, s.last_s, round(s.end_s, 4), s.prompt_tokens, s.tokens, s.error]
            for s in seen
        ]
        columns = ["start_s", "first_s", "last_s", "end_s", "prompt_tokens", "answer_tokens", "error"]
        Path(args.out).write_text(json.dumps({**found, "columns": columns, "rows": rows}) + "\n")
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
