"""Measures how a job's speed grows with the nodes of a cluster on this machine: a fake engine with a fixed delay.

    python scripts/bench_nodes.py --nodes 1 2 3 --rows 3000 --runs 3 --out docs/benchmarks/nodes.json

Each node has the same few logical CPUs and one replica, which holds so many rows and answers each after the delay: a
replica's speed is known, and the machine's cores are not what limits. So the figures say what Manta and Ray take away
from nodes that compute, not how fast a model is. Runs are interleaved (1 2 3 1 2 3 ...). Each has a cluster of its own,
started by `manta cluster up`; the cluster's start is measured and is in no other figure.

Three rates: *steady*, of the middle of the job: from a fifth of the answers to four fifths, when all replicas compute
(the engines' own count of answers, looked at ten times a second); *first to last*, rows over the time from the first
request that an engine got to the last answer (`seconds.inference` of the job's record), with replicas that came later
and ended earlier than others; and the *whole job*, rows over the time from the command to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_machine import machine

ROOT = Path(__file__).resolve().parent.parent
RATES = ("steady_rows_per_s", "inference_rows_per_s", "whole_rows_per_s")
COLUMNS = (
    *("nodes", "steady rows/s", "x", "of what the delay allows", "first to last rows/s", "x"),
    *("whole job rows/s", "x", "start-up, s", "whole job, s", "cluster up, s"),
)
MIDDLE = (0.2, 0.8)
LINE_BYTES = 17
"""The fake engine appends so much for each request that it has answered."""
TIMEOUT_S = 900.0


def manta(folder: Path, *words: str) -> None:
    """Runs a verb.

    Raises:
        RuntimeError: when it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MANTA_CLUSTERS": str(folder / "clusters")}
    done = subprocess.run(
        [sys.executable, "-m", "conf.cli", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"manta {shlex.join(words)}: exit code {done.returncode}: {done.stderr[-2000:]}")


@contextmanager
def watched(path: Path) -> Iterator[list[tuple[float, int]]]:
    """Yields times with how many answers there were then; it fills as long as the context lasts."""
    seen: list[tuple[float, int]] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            seen.append((time.monotonic(), path.stat().st_size // LINE_BYTES if path.exists() else 0))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def middle_rate(seen: Sequence[tuple[float, int]], rows: int) -> float:
    """Returns rows a second between the two parts of the rows that `MIDDLE` says."""
    low, high = (next((at, count) for at, count in seen if count >= part * rows) for part in MIDDLE)
    return (high[1] - low[1]) / (high[0] - low[0])


def measure(nodes: int, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Runs one job on a cluster of its own.

    Raises:
        RuntimeError: when a row has no answer.
    """
    began = time.monotonic()
    manta(folder, "cluster", "up", f"cluster.nodes={nodes}", f"cluster.num_cpus={args.cpus}")
    up_s = time.monotonic() - began
    try:
        out = folder / "out"
        words = [f"data.input={folder / 'rows.jsonl'}", "data.prompt={{ question }}", f"output.path={out}"]
        words += ["cluster=running", f"engine.num_replicas={nodes * args.replicas}"]
        words += [f"engine.max_in_flight={args.in_flight}", f"engine.fault.latency_ms={args.delay_ms}"]
        words += [f"engine.max_num_seqs={args.in_flight}", f"engine.fault.computed_file={folder / 'computed'}"]
        words += ["model=demo", "engine=fake", "output.overwrite=true", "progress.quiet=true", *args.word]
        began = time.monotonic()
        with watched(folder / "computed") as seen:
            manta(folder, "batch", *words)
        whole_s = time.monotonic() - began
    finally:
        manta(folder, "cluster", "down")
        (folder / "computed").unlink(missing_ok=True)
    record = json.loads((out / "_manta" / "job.json").read_text())
    if record["answers"] != args.rows:
        raise RuntimeError(f"{record['answers']} answers for {args.rows} rows")
    seconds = record["seconds"]
    return {
        "steady_rows_per_s": middle_rate(seen, args.rows),
        "inference_rows_per_s": args.rows / seconds["inference"],
        "whole_rows_per_s": args.rows / whole_s,
        "inference_s": seconds["inference"],
        "start_up_s": whole_s - seconds["inference"],
        "whole_s": whole_s,
        "cluster_up_s": up_s,
    }


def summarize(runs: dict[int, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Returns the median, the least and the most of each figure, and how often the first size's rate each rate is."""
    first = min(runs)
    summary: dict[str, dict[str, Any]] = {}
    for nodes, measured in runs.items():
        figures: dict[str, Any] = {}
        for name in measured[0]:
            values = [run[name] for run in measured]
            figures[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name in RATES:
            pairs = [run[name] / base[name] for run, base in zip(measured, runs[first], strict=True)]
            figures[f"{name.removesuffix('_rows_per_s')}_ratio"] = {
                "median": statistics.median(pairs),
                "min": min(pairs),
                "max": max(pairs),
            }
        summary[str(nodes)] = figures
    return summary


def page(facts: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    settings = facts["settings"]
    ideal = settings["replicas"] * settings["in_flight"] / settings["delay_ms"] * 1000
    versions = ", ".join(f"{name} {value}" for name, value in facts["machine"]["versions"].items())
    lines = [
        "# Nodes of a cluster on one machine",
        "",
        f"    {facts['command']}",
        "",
        f"{facts['date']}; {facts['machine']['cores']} cores ({facts['machine']['cpu']}), Python"
        f" {facts['machine']['python']}, {versions}.",
        "",
        f"{settings['rows']:,} rows; the fake engine with a delay of {settings['delay_ms']:g} ms; a node has"
        f" {settings['replicas']} replica(s) that hold {settings['in_flight']} rows each ({ideal:g} rows/s), and"
        f" {settings['cpus']} logical CPUs. Medians of {settings['runs']} interleaved runs, the least and the most in"
        " brackets. What is measured is what Manta and Ray take away from nodes that compute, not a model.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for nodes, figures in facts["summary"].items():
        share = figures["steady_rows_per_s"]["median"] / (ideal * int(nodes))
        cells = [
            nodes,
            _cell(figures["steady_rows_per_s"]),
            _cell(figures["steady_ratio"], 2),
            f"{share:.0%}",
            _cell(figures["inference_rows_per_s"]),
            _cell(figures["inference_ratio"], 2),
            _cell(figures["whole_rows_per_s"]),
            _cell(figures["whole_ratio"], 2),
            _cell(figures["start_up_s"]),
            _cell(figures["whole_s"]),
            _cell(figures["cluster_up_s"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(figure: dict[str, float], digits: int = 1) -> str:
    return f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f} to {figure['max']:.{digits}f})"


def main() -> None:
    """Measures, and writes JSON with a page beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=500.0)
    parser.add_argument("--in-flight", type=int, default=16, help="rows that a replica holds at a time")
    parser.add_argument("--replicas", type=int, default=1, help="of each node")
    parser.add_argument("--cpus", type=int, default=2, help="logical CPUs of each node")
    parser.add_argument("--word", nargs="*", default=[], help="overrides for manta batch, such as batch.order=input")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {nodes: [] for nodes in sorted(args.nodes)}
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as name:
        folder = Path(name)
        rows = ({"question": f"How many legs have {number} spiders?"} for number in range(args.rows))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in range(args.runs):
            for nodes in runs:
                runs[nodes].append(measure(nodes, args, folder))
                print(f"run {number + 1}, {nodes} nodes: {json.dumps(runs[nodes][-1])}", file=sys.stderr, flush=True)
    facts = {
        "command": f"python scripts/bench_nodes.py {shlex.join(sys.argv[1:])}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "summary": summarize(runs),
        "runs": {str(nodes): measured for nodes, measured in runs.items()},
    }
    text = json.dumps(facts, indent=2) + "\n"
    if args.out is None:
        print(text, end="")
        return
    args.out.write_text(text)
    args.out.with_suffix(".md").write_text(page(facts))


if __name__ == "__main__":
    main()
