"""The edge engine beside vLLM on the CPU: python scripts/bench_edge.py --edge int8=FOLDER [--edge ...] --out FILE.json

Each engine runs in a process of its own, by turns. A process loads the model, answers single prompts with one token
(time to first token) and with whole answers, and then all rows of the demo at once. Answers are compared with those of
vLLM, which runs the checkpoint in bfloat16.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTEXT, MAX_TOKENS, SEQUENCES = 1024, 128, 64
SINGLES, STREAMS = 60, 12
"""Prompts answered alone, with one token and with a whole answer."""
MIB = 1 << 20


def main() -> None:
    """Runs the engines by turns, prints their medians and writes every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", action="append", default=[], help="NAME=FOLDER, an exported model")
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"), help="the checkpoint that vLLM runs")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=int, default=1, help="engines that would share the cores: 2 is half of them")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print("RESULT " + json.dumps(asyncio.run(measure(**json.loads(args.task)))), flush=True)
        return
    engines = {"vllm": ("vllm", args.model)}
    engines |= {name: ("onnx", folder) for name, _, folder in (edge.partition("=") for edge in args.edge)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    answers: dict[str, list[str]] = {}
    for number in range(args.rounds):
        for name, (kind, folder) in engines.items():
            found = _in_own_process({"kind": kind, "folder": folder, "rows": args.rows, "share": args.share})
            answers.setdefault(name, found.pop("answers"))
            runs[name].append(found)
            print(f"round {number + 1} {name}: {json.dumps(found)}", flush=True)
    summary = {name: summarize(found, answers[name], answers["vllm"]) for name, found in runs.items()}
    for name, figures in summary.items():
        print(f"{name}: {json.dumps(figures)}")
    if args.out:
        args.out.write_text(
            json.dumps({"rows": args.rows, "share": args.share, "summary": summary, "runs": runs}, indent=1) + "\n"
        )


def summarize(runs: list[dict[str, Any]], answers: list[str], wanted: list[str]) -> dict[str, Any]:
    """Returns the median of each figure with its least and largest, and the answers that equal the others."""
    figures: dict[str, Any] = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        figures[key] = [round(value, 3) for value in (statistics.median(values), min(values), max(values))]
    same = sum(a == b for a, b in zip(answers, wanted, strict=True))
    return {**figures, "equal_answers": [same, len(wanted)]}


async def measure(kind: str, folder: str, rows: int, share: int) -> dict[str, Any]:
    """Measures one engine in this process.

    Args:
        kind: of `EngineKind`.
        folder: the model's.
        rows: of the demo.
        share: engines on this machine, which gives each its part of the cores.

    Returns:
        Seconds, tokens a second, MiB, and the answers in the order of the rows.
    """
    from conf.schema.engine import Device, EngineKind, EngineSpec
    from conf.schema.model import ModelSpec
    from conf.schema.sampling import SamplingSpec
    from serve.engine.prompt import load_renderer
    from serve.engine.protocol import Completion, Request
    from serve.engine.start import start_engine

    model = ModelSpec(path=folder)
    spec = EngineSpec(kind=EngineKind[kind], max_num_seqs=SEQUENCES, max_model_len=CONTEXT, max_in_flight=4 * SEQUENCES)
    began = time.perf_counter()
    engine = await start_engine(model, spec, Device.cpu, CONTEXT, share)
    load_s = time.perf_counter() - began
    renderer = load_renderer(model, CONTEXT, None)
    lines = (ROOT / "demo" / "tickets.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    texts = [renderer.text([{"role": "user", "content": json.loads(line)["ticket"]}]) for line in lines]
    prompts = renderer.tokens(texts)
    greedy = SamplingSpec(max_tokens=MAX_TOKENS)
    loaded = _resident_mib()

    async def ask(numbers: range, sampling: SamplingSpec) -> list[Completion]:
        requests = [Request(id=str(n), token_ids=prompts[n % len(prompts)], sampling=sampling) for n in numbers]
        outcomes = [outcome async for outcome in engine.generate(requests)]
        assert all(isinstance(outcome, Completion) for outcome in outcomes)
        return [outcome for outcome in outcomes if isinstance(outcome, Completion)]

    await ask(range(8), greedy)
    first = replace(greedy, max_tokens=1)
    ttft = []
    for number in range(100, 100 + SINGLES):  # a prompt that the engine has not seen: vLLM keeps prefixes
        began = time.perf_counter()
        await ask(range(number, number + 1), first)
        ttft.append(1000 * (time.perf_counter() - began))
    began, tokens = time.perf_counter(), 0
    for number in range(200, 200 + STREAMS):
        (outcome,) = await ask(range(number, number + 1), greedy)
        tokens += outcome.completion_tokens
    stream_s = time.perf_counter() - began
    began = time.perf_counter()
    outcomes = {int(outcome.request_id): outcome for outcome in await ask(range(len(prompts)), greedy)}
    seconds = time.perf_counter() - began
    found = {
        "load_s": load_s,
        "ttft_ms_p50": statistics.median(ttft),
        "ttft_ms_p90": statistics.quantiles(ttft, n=10)[8],
        "one_stream_tokens_per_s": tokens / stream_s,
        "all_rows_per_s": len(prompts) / seconds,
        "all_tokens_per_s": sum(outcome.completion_tokens for outcome in outcomes.values()) / seconds,
        "loaded_mib": loaded,
        "peak_mib": _peak_mib(),
    }
    await engine.close()
    return {**found, "answers": [outcomes[number].text for number in range(len(prompts))]}


def _in_own_process(task: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{task} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def _resident_mib() -> float:
    import psutil

    return psutil.Process().memory_info().rss / MIB


def _peak_mib() -> float:
    """Of this process since it began."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
