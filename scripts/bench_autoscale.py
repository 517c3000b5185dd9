"""Which autoscaling policy keeps the first token in time, and for how many replica-hours.

    python scripts/bench_autoscale.py --case azure --trace AzureLLMInferenceTrace_conv.csv --copies 4 --out peaks.json
    python scripts/bench_autoscale.py --case mooncake --trace mooncake_synthetic_trace.jsonl --copies 2 --ttft-s 30
    python scripts/bench_autoscale.py --case bursty_1 --bursty 1

All policies, a fixed fleet for the busiest ten seconds and one for the mean; `requests` with several targets, so that
one costs what a policy of ours does (cost is no steady function of the target: bisection fails).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench_traces import bursty

from conf.schema.autoscale import AutoscalePolicy, AutoscaleSpec
from conf.schema.simulate import ReplicaSpec, SimulateJob
from pipelines.simulate.fleet import Decide
from pipelines.simulate.score import (
    Score,
    busy_series,
    first_replicas,
    fixed,
    follow_policy,
    mean_replicas,
    peak_replicas,
    score,
    simulate,
)
from pipelines.simulate.trace import Trace, read_trace, replayed

REPLICA: dict[str, Any] = {"prefill_tokens_per_s": 10_000.0, "step_s": 0.02, "answer_token_s": 0.00015}
"""Some 8 B model on a GPU of the middle: small enough that the traces keep 4 to 30 busy."""


def spec_of(args: argparse.Namespace) -> AutoscaleSpec:
    """Returns the autoscaler's settings: a queue may take what the target of TTFT leaves, so the windows follow it."""
    short = max(20.0, 2 * args.ttft_s)
    drain = max(10.0, args.ttft_s)
    return AutoscaleSpec(
        ttft_target_s=args.ttft_s, short_window_s=short, long_window_s=max(60.0, 2 * short), queue_drain_s=drain
    )


def later(trace: Trace, share: float) -> Trace:
    """Returns what of a trace arrives after this share of its time."""
    kept = trace.arrival_s >= share * trace.seconds
    arrival = trace.arrival_s[kept]
    return Trace(arrival_s=arrival - arrival[0], prompt=trace.prompt[kept], answer=trace.answer[kept])


def compare(args: argparse.Namespace, tell: Callable[[Score, float], None]) -> dict[str, Any]:
    """Runs all of it for one trace, and returns the figures."""
    trace = (
        bursty(args.bursty, args.seconds, args.base)
        if args.trace is None
        else later(replayed(read_trace(args.trace), args.copies, 5.0, 1.0, 0), args.from_share)
    )
    spec = spec_of(args)
    job = SimulateJob(trace=args.case, replica=ReplicaSpec(**{**REPLICA, **json.loads(args.replica)}), autoscale=spec)
    first = first_replicas(trace, job)
    scores: list[Score] = []

    def run(name: str, step: Decide, initial: int) -> Score:
        began = time.process_time()
        scores.append(score(name, trace, simulate(trace, job, step, initial), job))
        tell(scores[-1], time.process_time() - began)
        return scores[-1]

    peak, mean = peak_replicas(trace, job), mean_replicas(trace, job)
    run(f"fixed peak ({peak})", fixed(peak), peak)
    run(f"fixed mean ({mean})", fixed(mean), mean)
    for policy in (AutoscalePolicy.tokens, AutoscalePolicy.slo, AutoscalePolicy.forecast):
        run(policy.value, follow_policy(replace(spec, policy=policy)), first)
    for target in args.targets:
        plain = replace(spec, policy=AutoscalePolicy.requests, target_ongoing_requests=target)
        run(f"requests ({target:g})", follow_policy(plain), first)
    busy = busy_series(trace, job)
    return {
        "requests": len(trace),
        "seconds": trace.seconds,
        "busy_mean": float(busy.mean()),
        "busy_peak_10s": float(busy.max()),
        "python": platform.python_version(),
        "autoscale": {**asdict(spec), "policy": None},
        "replica": asdict(job.replica),
        "arguments": {key: value for key, value in vars(args).items() if key not in ("trace", "out")},
        "scores": [each.plain() for each in scores],
    }


def main() -> None:
    """Runs one trace and adds its figures to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, help="its name in the file")
    parser.add_argument("--trace", help="a trace; without it, the bursty generator")
    parser.add_argument("--copies", type=int, default=1, help="of each request of the trace, within 5 s of it")
    parser.add_argument("--from-share", type=float, default=0.0, help="of the trace's time: only what comes later")
    parser.add_argument("--bursty", type=int, default=0, help="the generator's seed")
    parser.add_argument("--seconds", type=float, default=7200.0, help="the generator's length")
    parser.add_argument("--base", type=float, default=4.0, help="the generator's requests/s outside of peaks")
    parser.add_argument("--ttft-s", type=float, default=2.0)
    parser.add_argument("--replica", default="{}", help="JSON: other values of replica.*")
    parser.add_argument("--targets", type=float, nargs="+", default=[2, 8, 12, 16, 20, 24, 32, 48], help="of requests")
    parser.add_argument("--out", help="where the figures go, as JSON; others that are there stay")
    args = parser.parse_args()

    def tell(s: Score, cpu_s: float) -> None:
        print(
            f"{s.name:16} ttft {s.ttft_attained:.4f} tpot {s.tpot_attained:.4f} violations {s.violations:>6}"
            f" hours {s.replica_hours:7.2f} turns {s.direction_changes:>3} dropped {s.dropped} cpu {cpu_s:.1f} s",
            flush=True,
        )

    figures = compare(args, tell)
    if args.out:
        out = Path(args.out)
        others = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps({**others, args.case: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
