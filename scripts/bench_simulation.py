r"""Whether `manta simulate` says what a service does: a slice of a trace against both.

    python scripts/bench_simulation.py AzureLLMInferenceTrace_conv.csv --from-s 0 --for-s 600 --share 0.4 \
        --out docs/benchmarks/peaks_real.json autoscale=tokens engine.num_replicas=1..8

The service is paced_service.py: replicas that really start, answer and stop, but compute nothing. Its clients are
replay_trace.py. The simulation gets the same slice, the same replica and the start-up time that was seen: what is left
to differ is Ray Serve, HTTP and this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_answers import percentile

from conf import entry
from conf.schema.autoscale import AutoscaleSpec
from conf.schema.simulate import ReplicaSpec, SimulateJob, SimulateSpec
from pipelines.simulate.fleet import Run
from pipelines.simulate.score import direction_changes, follow_policy, simulate
from pipelines.simulate.trace import Trace, read_trace

HERE = Path(__file__).resolve().parent
REPLICA: dict[str, Any] = {
    "start_s": 5.0,
    "step_s": 0.04,
    "answer_token_s": 0.0005,
    "prefill_tokens_per_s": 5000.0,
    "max_num_seqs": 8,
    "step_tokens": 512,
    "kv_tokens": 20_000,
}
READY_S = 240.0
WORDS = ("access.open=true", "cache=off", "cluster.object_store_bytes=100000000")


def sliced(args: argparse.Namespace) -> Trace:
    """Returns the part of the trace that is replayed: drawn by chance, so that its shape stays."""
    trace = read_trace(args.trace)
    kept = (trace.arrival_s >= args.from_s) & (trace.arrival_s < args.from_s + args.for_s)
    kept &= np.random.default_rng(args.seed).random(len(trace)) < args.share
    arrival = trace.arrival_s[kept]
    return Trace(arrival_s=arrival - arrival[0], prompt=trace.prompt[kept], answer=trace.answer[kept])


def write(trace: Trace, path: Path) -> None:
    """Writes a trace as `read_trace` takes it."""
    columns = (trace.arrival_s.tolist(), trace.prompt.tolist(), trace.answer.tolist())
    rows = "".join(f"{at:.6f},{prompt},{answer}\n" for at, prompt, answer in zip(*columns, strict=True))
    path.write_text("arrival_s,prompt_tokens,answer_tokens\n" + rows)


def run_service(args: argparse.Namespace, path: Path, folder: Path, replica: dict[str, Any]) -> dict[str, Any]:
    """Replays the slice against a service, and returns what replay_trace.py wrote."""
    environment = {**os.environ, "MANTA_HOME": str(folder)}
    said, out = folder / "said", folder / "run.json"
    where = (f"deployment.port={args.port}", f"deployment.logs={folder}/logs")
    words = [sys.executable, str(HERE / "paced_service.py"), json.dumps(replica), *WORDS, *where, *args.words]
    with said.open("wb") as log:
        service = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + READY_S
        while "ready after" not in said.read_text():
            if service.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(said.read_text())
            time.sleep(0.2)
        replay = [sys.executable, str(HERE / "replay_trace.py"), "--url", f"http://127.0.0.1:{args.port}"]
        replay += ["--model", "demo", "--trace", str(path), "--service", "manta", "--out", str(out)]
        replay += ["--ttft-s", str(args.ttft_s), "--tpot-s", str(args.tpot_s)]
        subprocess.run(replay, env=environment, check=False, stdout=subprocess.DEVNULL)
        return {**json.loads(out.read_text()), "said": said.read_text()}
    finally:
        service.terminate()
        try:
            service.wait(90)
        except subprocess.TimeoutExpired:
            service.kill()


def start_times(fleet: list[list[float]]) -> list[float]:
    """Returns what replicas took from being wanted to being there: the first wanted is the first that came."""
    due: list[float] = []
    found: list[float] = []
    _, running, wanted = fleet[0]
    for at_s, now_running, now_wanted in fleet[1:]:
        due += [at_s] * int(now_wanted - wanted)
        for _ in range(int(wanted - now_wanted)):
            due[-1:] = []
        for _ in range(int(now_running - running)):
            if due:
                found.append(at_s - due.pop(0))
        running, wanted = now_running, now_wanted
    return found


def real_figures(found: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Returns what the real run came to."""
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    good = [row for row in rows if row["error"] is None]
    first = np.array([row["first_s"] - row["start_s"] for row in good])
    whole = np.array([row["end_s"] - row["start_s"] for row in good])
    long = [row for row in good if row["answer_tokens"] > 1]
    tpot = np.array([(row["last_s"] - row["first_s"]) / (row["answer_tokens"] - 1) for row in long])
    fleet = found["fleet"]
    return {
        "lost": len(rows) - len(good),
        **_times(first, whole, tpot, args),
        "replica_s": found["replica_s"],
        "most_replicas": max(max(running, wanted) for _, running, wanted in fleet),
        "turns": direction_changes([wanted for _, _, wanted in fleet]),
        "seconds": found["seconds"],
    }


def simulated_figures(trace: Trace, run: Run, args: argparse.Namespace) -> dict[str, float]:
    """Returns the same of a simulation."""
    is_long = trace.answer > 1
    tpot = (run.end_s - run.first_s)[is_long] / (trace.answer[is_long] - 1)
    first, whole = run.first_s - trace.arrival_s, run.end_s - trace.arrival_s
    ends = [*(tick[0] for tick in run.ticks[1:]), run.seconds]
    spans = [end - tick[0] for tick, end in zip(run.ticks, ends, strict=True)]
    sizes = [max(target, running) for _, target, running, *_ in run.ticks]
    return {
        "lost": int(np.isnan(run.end_s).sum()),
        **_times(first, whole, tpot, args),
        "replica_s": sum(size * span for size, span in zip(sizes, spans, strict=True)),
        "most_replicas": max(sizes),
        "turns": direction_changes([target for _, target, *_ in run.ticks]),
        "seconds": run.seconds,
    }


def _times(first: np.ndarray, whole: np.ndarray, tpot: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    return {
        "ttft_attained": float((first <= args.ttft_s).mean()),
        "tpot_attained": float((tpot <= args.tpot_s).mean()),
        "ttft_mean_s": float(first.mean()),
        "ttft_p50_s": percentile(first.tolist(), 50),
        "ttft_p99_s": percentile(first.tolist(), 99),
        "tpot_p50_s": percentile(tpot.tolist(), 50),
        "tpot_p99_s": percentile(tpot.tolist(), 99),
        "answer_mean_s": float(whole.mean()),
    }


def simulated(args: argparse.Namespace, trace: Trace, replica: dict[str, Any], start_s: float) -> Run:
    """Replays the slice in simulated time, from the fleet that the service began with."""
    job = entry.compose("serve", "model=demo", *WORDS, *args.words)
    engine = job.engine
    scale: AutoscaleSpec = replace(job.autoscale, min_replicas=engine.min_replicas, max_replicas=engine.max_replicas)
    spec = ReplicaSpec(**{**replica, "start_s": start_s})
    made = SimulateJob(trace=args.trace, autoscale=scale, replica=spec, simulate=SimulateSpec())
    return simulate(trace, made, follow_policy(scale), max(1, engine.min_replicas))


def phases(trace: Trace) -> list[Trace]:
    """Returns the slice as it comes where the service happens to decide, and replicas to tell, a bit sooner."""
    return [replace(trace, arrival_s=trace.arrival_s + late_s) for late_s in np.arange(0.0, 2.0, 0.25).tolist()]


def main() -> None:
    """Runs both, prints them side by side and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("words", nargs="*", help="of manta serve")
    parser.add_argument("--from-s", type=float, default=0.0)
    parser.add_argument("--for-s", type=float, default=600.0)
    parser.add_argument("--share", type=float, default=0.4, help="of the slice's requests, drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replica", default="{}", help="JSON: other values of replica.*")
    parser.add_argument("--start-s", type=float, help="a start-up time for the simulation, in place of the one seen")
    parser.add_argument("--run", help="a file that --out wrote: what is real is taken from there")
    parser.add_argument("--ttft-s", type=float, default=2.0)
    parser.add_argument("--tpot-s", type=float, default=0.2)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--case", default="azure", help="its name in the file")
    parser.add_argument("--out", help="where the figures go, as JSON; others that are there stay")
    args = parser.parse_intermixed_args()
    replica, trace = {**REPLICA, **json.loads(args.replica)}, sliced(args)
    if args.run:
        found = json.loads(Path(args.run).read_text())[args.case]["run"]
    else:
        with tempfile.TemporaryDirectory(prefix="manta-") as folder:
            path = Path(folder) / "slice.csv"
            write(trace, path)
            found = run_service(args, path, Path(folder), replica)
    starts = start_times(found["fleet"])
    start_s = args.start_s or (sum(starts) / len(starts) if starts else replica["start_s"])
    run = simulated(args, trace, replica, start_s)
    real, said = real_figures(found, args), simulated_figures(trace, run, args)
    spread = [simulated_figures(late, simulated(args, late, replica, start_s), args) for late in phases(trace)]
    print(f"starts seen: {', '.join(f'{start:.1f}' for start in starts)} s; simulated with {start_s:.1f} s")
    columns = ("real", "simulated", "apart", "mean", "apart", "least", "most")
    print(f"{'':16}{''.join(f'{column:>10}' for column in columns)}  (the last four where decisions fall otherwise)")
    for name, value in real.items():
        others = [each[name] for each in spread]
        mean = sum(others) / len(others)
        cells = [said[name], said[name] / value - 1 if value else None, mean, mean / value - 1 if value else None]
        shown = [f"{cell:10.3f}" if cell is not None else f"{'':10}" for cell in cells]
        print(f"{name:16}{value:10.3f}{''.join(shown)}{min(others):10.3f}{max(others):10.3f}")
    print("real fleet     ", [tuple(change) for change in found["fleet"]])
    print("simulated fleet", [(at_s, target) for at_s, target, _ in run.reasons])
    if args.out:
        out = Path(args.out)
        others = json.loads(out.read_text()) if out.exists() else {}
        kept = {key: value for key, value in vars(args).items() if key not in ("trace", "out", "run", "port", "case")}
        figures = {"arguments": kept, "requests": len(trace), "starts_s": starts, "start_s": start_s}
        figures |= {"real": real, "simulated": said, "simulated_phases": spread, "run": found}
        out.write_text(json.dumps({**others, args.case: figures}) + "\n")


if __name__ == "__main__":
    main()
