"""Measures what a row costs above the engine: `manta batch` with the fake engine, which answers at once.

    python scripts/bench_overhead.py --rows 5000 20000 50000 --runs 3

Steady state is `seconds.inference` of the job's record, from the first request to the last answer. The fake's own work
(it turns each prompt and answer into text) is measured beside it, in a process with nothing else, and taken off. The
slope is the cost of a further row between the smallest and the largest job: what ramps up and down is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_machine import machine
from bench_workloads import Row, Shape, tickets, write_rows

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "demo" / "model"
MAX_TOKENS = 16


def measure(rows: list[Row], folder: Path, words: list[str]) -> dict[str, float]:
    """Runs one job.

    Returns:
        ``inference_s``, ``wall_s`` and milliseconds a row of the former.

    Raises:
        RuntimeError: when the job fails, or gives fewer answers than there are rows.
    """
    table = ["data.prompt={{ text }}", "batch.dedupe=off", f"sampling.max_tokens={MAX_TOKENS}"]
    command = [sys.executable, "-m", "conf.cli", "batch", "engine=fake", f"model.path={MODEL}", *table]
    command += [f"data.input={folder / 'rows.jsonl'}", f"output.path={folder / 'out'}", "output.overwrite=true"]
    began = time.time()
    done = subprocess.run(
        [*command, "progress.quiet=true", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    wall_s = time.time() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    record = json.loads((folder / "out" / "_manta" / "job.json").read_text())
    if record["answers"] != len(rows):
        raise RuntimeError(f"{record['answers']} answers for {len(rows)} rows")
    inference_s = record["seconds"]["inference"]
    return {"inference_s": inference_s, "wall_s": wall_s, "row_ms": 1000 * inference_s / len(rows)}


def engine_row_ms(rows: list[Row]) -> float:
    """Returns milliseconds a row of the fake engine alone."""
    from conf.schema.engine import EngineKind, EngineSpec
    from conf.schema.model import ModelSpec
    from conf.schema.sampling import SamplingSpec
    from serve.engine.fake import FakeEngine
    from serve.engine.prompt import PromptRenderer
    from serve.engine.protocol import Request

    renderer = PromptRenderer(ModelSpec(path=str(MODEL)), 4096, None)
    texts = [renderer.text([{"role": "user", "content": row.text}]) for row in rows]
    sampling = SamplingSpec(max_tokens=MAX_TOKENS)
    requests = [
        Request(id=str(number), token_ids=token_ids, sampling=sampling)
        for number, token_ids in enumerate(renderer.tokens(texts))
    ]

    async def answer() -> float:
        engine = FakeEngine(EngineSpec(kind=EngineKind.fake), 4096, renderer.decode)
        began = time.perf_counter()
        answers = [outcome async for outcome in engine.generate(requests)]
        assert len(answers) == len(rows)
        return time.perf_counter() - began

    return 1000 * asyncio.run(answer()) / len(rows)


def main() -> int:
    """Measures every size in turn, and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[5_000, 20_000, 50_000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--words", nargs="*", default=[], help="further words of manta's command line")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {num_rows: [] for num_rows in args.rows}
    engine_ms: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        inputs: dict[int, list[Row]] = {}
        for num_rows in args.rows:
            inputs[num_rows] = list(tickets(Shape(num_rows=num_rows, vocab_size=0)))
            write_rows(inputs[num_rows], Path(name, str(num_rows)), "demo")
        for run in range(args.runs):
            engine_ms.append(engine_row_ms(inputs[min(args.rows)][:5000]))
            for num_rows, rows in inputs.items():
                runs[num_rows].append(measure(rows, Path(name, str(num_rows)), args.words))
                print(f"run {run + 1} {num_rows}: {json.dumps(runs[num_rows][-1])}", file=sys.stderr, flush=True)
    report = {"machine": machine(), "engine_row_ms": engine_ms, "runs": runs, **summarize(runs, engine_ms)}
    for line in report["table"]:
        print(line)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def summarize(runs: dict[int, list[dict[str, float]]], engine_ms: list[float]) -> dict[str, Any]:
    """Returns the medians, the slope in milliseconds a row, and both as a Markdown table."""
    own = statistics.median(engine_ms)
    lines = ["| rows | steady state, s | ms a row | ms a row above the engine | wall, s |", "| " + "--- | " * 5]
    medians = {}
    for num_rows, results in runs.items():
        medians[num_rows] = {key: statistics.median(result[key] for result in results) for key in results[0]}
        m = medians[num_rows]
        above = m["row_ms"] - own
        lines.append(f"| {num_rows:,} | {m['inference_s']:.2f} | {m['row_ms']:.3f} | {above:.3f} | {m['wall_s']:.1f} |")
    least, most = min(runs), max(runs)
    slope_ms = None
    if most > least:
        slope_ms = 1000 * (medians[most]["inference_s"] - medians[least]["inference_s"]) / (most - least) - own
        lines.append(f"\nA further row above the engine: {slope_ms:.3f} ms; the fake engine's own: {own:.3f} ms.")
    return {"medians": medians, "slope_ms": slope_ms, "table": lines}


if __name__ == "__main__":
    sys.exit(main())
