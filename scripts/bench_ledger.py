"""What the ledger costs: memory at millions of requests, the time to go on with a large job, rows a second.

    python scripts/bench_ledger.py --parts claims,resume,cost,dedupe --out docs/benchmarks/ledger.json

`claims`: claims and outcomes of 1 M and 10 M synthetic requests; the memory of the one process that holds them.
`resume`: a job with 1 M committed rows and 2,000 new ones: seconds until the first new row is computed, the driver's
memory. `cost`: rows a second with the fake engine, with the ledger and without it, interleaved; without is a copy of
the code whose log and done-marks write nothing. `cost_vllm`: the same with vLLM. `dedupe`: rows a second with half of
the rows duplicated, and with none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
TICKETS = ROOT / "demo" / "tickets.jsonl"


def memory(process: psutil.Process) -> dict[str, int]:
    """Returns MiB that a process holds: its own (anonymous), and pages of files, which the kernel takes back."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) >> 10 for name in ("RssAnon", "RssFile", "VmHWM")}


def bench_claims(counts: list[int]) -> list[dict[str, Any]]:
    """Claims and answers so many requests, 1,000 at a time, as replicas do."""
    results = []
    for count in counts:
        code = f"import scripts.bench_ledger as b; b.claim_many({count})"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(results[-1]), flush=True)
    return results


def claim_many(count: int) -> None:
    """Prints the memory and time of ``count`` requests; runs in a process of its own."""
    from pipelines.ledger.claims import Claims

    outcome = json.dumps(["c", 180, [["x" * 100, "stop", 25, None]]]).encode()
    claims, anonymous = Claims(), 0
    keys: list[bytes] = []
    began = time.monotonic()
    for start in range(0, count, 1000):
        keys = [hashlib.blake2b(number.to_bytes(8), digest_size=16).digest() for number in range(start, start + 1000)]
        answer = claims.claim("r", keys)
        claims.settle("r", [(key, outcome) for key in answer.mine])
        if start % 100_000 == 0:
            anonymous = max(anonymous, memory(psutil.Process())["RssAnon"])
    seconds = time.monotonic() - began
    again = claims.claim("r2", keys)
    assert len(again.known) == 1000
    result = {
        "requests": count,
        "peak_anonymous_mib": max(anonymous, memory(psutil.Process())["RssAnon"]),
        "file_pages_mib": memory(psutil.Process())["RssFile"],
        "us_per_request": round(seconds / count * 1e6, 2),
    }
    claims.close()
    print(json.dumps(result))


def write_rows(path: Path, rows: int, share_equal: float = 0.0, letters: int = 1000) -> None:
    """Writes tickets, the last of them repeating the first ones for a share of all; cut to so many letters."""
    tickets = [json.loads(line)["ticket"][:letters] for line in TICKETS.read_text().splitlines()]
    distinct = int(rows * (1 - share_equal))
    with path.open("w") as stream:
        for number in range(rows):
            one = number if number < distinct else number - distinct
            stream.write(json.dumps({"n": number, "ticket": f"{one}: {tickets[one % len(tickets)]}"}) + "\n")


def run_job(source: Path, out: Path, *words: str, root: Path = ROOT) -> dict[str, Any]:
    """Runs a job; returns its record, with the seconds and memory of its driver."""
    command = [
        *(sys.executable, "-m", "conf.cli", "batch", "model=demo", "data.prompt={{ ticket }}", f"data.input={source}"),
        *(f"output.path={out}", "progress.quiet=true", *words),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    began = time.time()
    process = subprocess.Popen(command, cwd=root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = {"RssAnon": 0, "VmHWM": 0}
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.1):
            try:
                seen = memory(psutil.Process(process.pid))
            except (psutil.Error, OSError, KeyError):
                return
            for name in peak:
                peak[name] = max(peak[name], seen[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    stopped.set()
    watcher.join()
    if process.returncode not in (0, 3):
        raise RuntimeError(output[-2000:])
    record = json.loads((out / "_manta" / "job.json").read_text())
    return record | {"began": began, "wall_s": time.time() - began, "driver_mib": peak}


def bench_resume(rows: int, new: int) -> dict[str, Any]:
    """Goes on with a job of ``rows`` committed rows after ``new`` ones were appended."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source, out, computed = Path(folder, "in.jsonl"), Path(folder, "out"), Path(folder, "computed")
        write_rows(source, rows)
        words = ("engine=fake", "sampling.max_tokens=24", "engine.max_in_flight=2000")
        first = run_job(source, out, *words)
        size = source.stat().st_size
        with source.open("a") as stream:
            for number in range(rows, rows + new):
                stream.write(json.dumps({"n": number, "ticket": f"a new ticket, number {number}"}) + "\n")
        nothing = None
        began = time.time()
        stopped = threading.Event()
        first_new: list[float] = []

        def watch() -> None:
            while not stopped.wait(0.02):
                if computed.exists():
                    first_new.append(time.time())
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        second = run_job(source, out, *words, f"engine.fault.computed_file={computed}")
        stopped.set()
        watcher.join()
        nothing = run_job(source, out, *words)
        return {
            "rows": rows,
            "input_mib": size >> 20,
            "first_run_rows_per_s": round(first["rows_per_s"]),
            "first_run_wall_s": round(first["wall_s"], 1),
            "new_rows": new,
            "computed": second["requests"],
            "seconds_to_first_new_row": round(first_new[0] - began, 1),
            "seconds": {name: round(value, 1) for name, value in second["seconds"].items()},
            "driver_mib": second["driver_mib"],
            "finished_again_wall_s": round(nothing["wall_s"], 1),
        }


def spread(values: list[float], digits: int = 1) -> dict[str, Any]:
    """Returns median and range."""
    ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in ends.items()}


def without_ledger(folder: Path) -> Path:
    """Copies the code and takes the writing out of its ledger; returns the copy."""
    for name in ("conf", "serve", "pipelines", "cluster", "demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    nothing = "lambda self, *args, **named: None"
    with (folder / "pipelines" / "ledger" / "log.py").open("a") as stream:
        stream.write(f"\n\nLogWriter.begin = LogWriter.begin_alone = LogWriter.end = LogWriter.flush = {nothing}\n")
    with (folder / "pipelines" / "ledger" / "mark.py").open("a") as stream:
        stream.write(f"\n\nMark.write = {nothing}\n")
    return folder


def bench_cost(rows: int, runs: int, letters: int, *words: str) -> dict[str, Any]:
    """Rows a second with the ledger and without, interleaved."""
    ways = {"without": "off", "with, batch.dedupe=off": "off", "with, batch.dedupe=deterministic": "deterministic"}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source, bare = Path(folder, "in.jsonl"), without_ledger(Path(folder, "bare"))
        write_rows(source, rows, letters=letters)
        for run in range(runs):
            for number, (name, dedupe) in enumerate(ways.items()):
                out = Path(folder, f"out{run}{number}")
                root = bare if name == "without" else ROOT
                record = run_job(source, out, f"batch.dedupe={dedupe}", *words, root=root)
                rates[name].append(record["rows_per_s"])
                print(name, round(record["rows_per_s"]), flush=True)
                shutil.rmtree(out)
    ratios = {name: [w / o for w, o in zip(values, rates["without"], strict=True)] for name, values in rates.items()}
    return {
        "rows": rows,
        "runs": runs,
        "rows_per_s": {name: spread(values) for name, values in rates.items()},
        "ratio": {name: spread(values, 3) for name, values in ratios.items() if name != "without"},
    }


def bench_dedupe(rows: int, runs: int, share: float, *words: str) -> dict[str, Any]:
    """Rows a second where a share of the rows repeats others, with sharing and without, interleaved."""
    rates: dict[str, list[float]] = {"off": [], "deterministic": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source = Path(folder, "in.jsonl")
        write_rows(source, rows, share)
        for run in range(runs):
            for dedupe in rates:
                record = run_job(source, Path(folder, f"out{run}{dedupe}"), f"batch.dedupe={dedupe}", *words)
                rates[dedupe].append(record["rows_per_s"])
                print(share, dedupe, round(record["rows_per_s"], 1), record["requests"], flush=True)
    ratio = statistics.median(rates["deterministic"]) / statistics.median(rates["off"])
    return {
        "rows": rows,
        "equal_share": share,
        "runs": runs,
        "rows_per_s": {name: spread(values) for name, values in rates.items()},
        "ratio": round(ratio, 3),
    }


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="claims,resume,cost,dedupe")
    parser.add_argument("--claims", default="1000000,10000000")
    parser.add_argument("--resume-rows", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=40_000, help="of `cost`, with the fake engine")
    parser.add_argument("--dedupe-rows", type=int, default=2400, help="of `dedupe`, with vLLM")
    parser.add_argument("--words", default="", help="more words for the jobs of cost and dedupe")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    words = options.words.split()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPUs, {psutil.virtual_memory().total >> 30} GiB",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ray", "lmdb", "pyarrow")},
    }
    if options.out is not None and options.out.exists():
        result = json.loads(options.out.read_text()) | result
    for part in options.parts.split(","):
        if part == "claims":
            result[part] = bench_claims([int(count) for count in options.claims.split(",")])
        elif part == "resume":
            result[part] = bench_resume(options.resume_rows, 2000)
        elif part == "cost":
            fake = ("engine=fake", "sampling.max_tokens=8", "engine.max_in_flight=2000")
            result[part] = bench_cost(options.rows, options.runs, 20, *fake, *words)
        elif part == "cost_vllm":
            result[part] = bench_cost(options.dedupe_rows, options.runs, 1000, "sampling.max_tokens=24", *words)
        else:
            each = [bench_dedupe(options.dedupe_rows, options.runs, share, *words) for share in (0.5, 0.0)]
            result["dedupe"] = each
        print(json.dumps({part: result.get(part)}), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
