r"""Compares ways to push one table through one model: manta batch, vllm.LLM, vllm run-batch, ray.data.llm.

    python scripts/bench_batch.py --cases demo:tickets:2400 --runs 3 --out docs/benchmarks/batch_cpu.json
    python scripts/bench_batch.py --device cuda --cases llama_1b:longtail:6000 llama_8b:longtail:3000 \
        --runners manta ray_data_llm --llm-seqs 512 1024 --variant input_order=batch.order=input --shipped

A case is MODEL:WORKLOAD:ROWS; see bench_models.py and bench_workloads.py. Every runner gets the same rows and the same
engine arguments (--engine adds to them), each in a process of its own; runs are interleaved (a b c a b c ...), because
the speed of shared machines drifts. Where a workload's answers have fixed lengths, a runner that gives other numbers of
tokens has failed. Figures are medians with their spread.

Steady state is rows over the time from the first request that an engine got to its last answer. Wall time is the whole
process, start-up included. Peak memory is the proportional set size of the process and all below it, sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import bench_models
from bench_machine import machine, run_measured, wait_for_gpus
from bench_runners import ROOT, RUNNERS, Task
from bench_summary import check_work, ratios, summarize, table, with_rates
from bench_workloads import WORKLOADS, Row, Shape, Unavailable, context_tokens, describe, write_rows

SCRIPTS = Path(__file__).resolve().parent
TRACE = ROOT.parent / "shared" / "data" / "mooncake_synthetic_trace.jsonl"
ENGINE = {
    "cpu": {"max_num_seqs": 256, "max_num_batched_tokens": 4096, "enforce_eager": True, "disable_log_stats": True},
    "cuda": {"max_num_seqs": 512, "max_num_batched_tokens": 8192, "disable_log_stats": True},
}
"""vLLM's engine arguments by device, for every runner that does not run as it ships."""
SHIPPED_WORDS = {"cpu": ["engine=cpu"], "cuda": ["engine=h200"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A runner with its settings: a row of the table."""

    name: str
    runner: str
    engine: dict[str, Any] = field(default_factory=dict)
    """Put over the engine arguments that all have."""
    words: tuple[str, ...] = ()
    is_shipped: bool = False
    """With its own engine arguments, but for those that the model needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What all contenders do."""

    model: str
    workload: str
    num_rows: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Reads MODEL:WORKLOAD:ROWS.

        Raises:
            ValueError: for anything else.
        """
        model, workload, rows = [*text.rsplit(":", 2), "", ""][:3]
        if workload not in WORKLOADS or not rows.isdigit():
            raise ValueError(f"'{text}': no MODEL:WORKLOAD:ROWS (workloads are {', '.join(WORKLOADS)})")
        if workload != "tickets":
            bench_models.model_config(model)
        return cls(model=model, workload=workload, num_rows=int(rows))


def contenders(args: argparse.Namespace) -> list[Contender]:
    """Returns the table's rows: runners, LLM.generate with other sizes, manta's variants, and all as they ship."""
    found = [Contender(name=runner, runner=runner) for runner in args.runners]
    for seqs in args.llm_seqs:
        engine = {"max_num_seqs": seqs}
        found.append(Contender(name=f"llm_generate_{seqs}", runner="llm_generate", engine=engine))
    for name, words in args.variant:
        found.append(Contender(name=f"manta_{name}", runner="manta", words=words))
    if args.shipped:
        for runner in args.runners:
            words = tuple(SHIPPED_WORDS[args.device]) if runner == "manta" else ()
            found.append(Contender(name=f"{runner} (as it ships)", runner=runner, words=words, is_shipped=True))
    return found


def engine_of(contender: Contender, args: argparse.Namespace, context: int, is_dummy: bool) -> dict[str, Any]:
    """Returns a contender's engine arguments.

    Args:
        contender: who.
        args: the command line; ``args.engine`` holds what all get beside `ENGINE`.
        context: tokens of the longest row.
        is_dummy: whether the model has no weights.
    """
    needed = {"max_model_len": context} | ({"load_format": "dummy"} if is_dummy else {})
    if args.device == "cpu":
        needed["enforce_eager"] = True
    if contender.is_shipped:
        return needed
    return ENGINE[args.device] | needed | args.engine | contender.engine


def measure(contender: Contender, task: Task, args: argparse.Namespace, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs one contender in a process of its own.

    Returns:
        A measurement; several where `LLM.generate` repeats its work. Their wall time is the start-up and their own.

    Raises:
        RuntimeError: when it fails.
        ValueError: when it has done other work than the rest.
    """
    if args.device == "cuda":
        wait_for_gpus()
    task_file = Path(f"{task.out}.task.json")
    task_file.write_text(json.dumps(asdict(task)))
    search_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**task.environment, "PYTHONPATH": search_path, "RAY_USAGE_STATS_ENABLED": "0"}
    words = [str(SCRIPTS / "bench_runners.py"), str(task_file)]
    output, process = run_measured(words, environment, args.timeout_s)
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))  # vLLM prints there too
    results = json.loads(line.removeprefix("RESULT "))
    together = sum(result["inference_s"] for result in results)
    measured = []
    for result in results:
        check_work(result, facts)
        own = process | {"process_wall_s": process["process_wall_s"] - together + result["inference_s"]}
        measured.append({"contender": contender.name, **with_rates(result), **own})
    return measured


def run_case(
    case: Case,
    found: Sequence[Contender],
    args: argparse.Namespace,
    folder: Path,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Runs all contenders of a case in turn; saves what there is after each.

    Raises:
        Unavailable: where the workload's data is absent.
        ValueError: where rows do not fit.
    """
    is_dummy = case.workload != "tickets"
    model, vocab_size = str(bench_models.SHIPPED.get(case.model, case.model)), 0
    parameters = None
    if is_dummy:
        config = bench_models.model_config(case.model)
        vocab_size, parameters = config["vocab_size"], bench_models.num_parameters(config)
        model = str(folder / "model")
        bench_models.make_model(config, Path(model))
    shape = Shape(num_rows=case.num_rows, vocab_size=vocab_size, max_tokens=args.max_tokens)
    rows: list[Row] = list(WORKLOADS[case.workload](replace(shape, trace=args.trace, scale=args.scale)))
    write_rows(rows, folder / "input", model)
    facts, context = describe(rows), context_tokens(rows)
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in found}
    failures: dict[str, list[str]] = {}
    engines = {contender.name: engine_of(contender, args, context, is_dummy) for contender in found}

    def report() -> dict[str, Any]:
        summary = summarize(runs)
        figures = {"summary": summary, "ratios": ratios(summary, found[0].name), "failures": failures, "runs": runs}
        return {**asdict(case), "parameters": parameters, "facts": facts, "engines": engines, **figures}

    for run in range(args.runs):
        for number, contender in enumerate(found):
            task = Task(
                runner=contender.runner,
                input=str(folder / "input"),
                model=model,
                device=args.device,
                out=str(folder / f"out-{number}-{run}"),
                engine=engines[contender.name],
                words=[*args.manta_words, *contender.words] if contender.runner == "manta" else [],
                has_answers=not is_dummy,
                repeats=args.repeats,
            )
            where = f"{case.model}:{case.workload} run {run + 1} {contender.name}"
            try:
                measured = measure(contender, task, args, facts)
            except (RuntimeError, ValueError) as error:
                failures.setdefault(contender.name, []).append(str(error))
                print(f"{where}: FAILED: {error}", file=sys.stderr, flush=True)
            else:
                runs[contender.name] += measured
                for result in measured:
                    shown = {key: round(value, 2) for key, value in result.items() if isinstance(value, (int, float))}
                    print(f"{where}: {json.dumps(shown)}", file=sys.stderr, flush=True)
            save(report())
    return report()


def pair(text: str) -> tuple[str, Any]:
    """Reads NAME=VALUE; the value is JSON, or a text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def variant(text: str) -> tuple[str, tuple[str, ...]]:
    """Reads NAME=WORDS, words as a shell parts them."""
    name, _, words = text.partition("=")
    return name, tuple(shlex.split(words))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    default = [Case.parse("demo:tickets:2400")]
    add("--cases", nargs="+", type=Case.parse, default=default, metavar="MODEL:WORKLOAD:ROWS")
    add("--runs", type=int, default=3, help="processes of each contender")
    add("--repeats", type=int, default=1, help="measurements of LLM.generate in each of its processes")
    add("--device", choices=list(ENGINE), default="cpu")
    add("--runners", nargs="*", choices=list(RUNNERS), default=list(RUNNERS), help="the first is compared to all")
    add("--llm-seqs", nargs="*", type=int, default=[], help="LLM.generate with these max_num_seqs too")
    add("--variant", action="append", type=variant, default=[], metavar="NAME=WORDS", help="manta with further words")
    add("--manta-words", nargs="*", default=[], help="words that manta always gets")
    add("--shipped", action="store_true", help="each runner also with its own engine arguments")
    add("--engine", action="append", type=pair, default=[], metavar="NAME=VALUE", help="an engine argument for all")
    add("--max-tokens", type=int, help="cuts every answer's limit")
    add("--trace", type=Path, default=TRACE, help="of workload prefix")
    add("--scale", type=int, default=16, help="of workload prefix: lengths are divided by it")
    add("--timeout-s", type=float, default=1200.0, help="for one process")
    add("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args(words)
    args.engine = dict(args.engine)
    return args


def main() -> int:
    """Runs all cases, prints the tables, writes the JSON; 1 where a runner failed."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a runner is ended with it
    report: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/bench_batch.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "cases": [],
    }
    found = contenders(args)
    for case in args.cases:
        before = list(report["cases"])

        def save(result: dict[str, Any], before: list[Any] = before) -> None:
            report["cases"] = [*before, result]
            if args.out:  # after each measurement: a run that is cut off leaves those before
                args.out.write_text(json.dumps(report, indent=2) + "\n")

        with tempfile.TemporaryDirectory() as folder:
            try:
                result = run_case(case, found, args, Path(folder), save)
            except Unavailable as error:
                print(f"skipped: {error}", file=sys.stderr, flush=True)
                continue
        print(f"\n{case.model}, {case.workload}: {json.dumps(result['facts'])}\n")
        print(table(result["summary"], result["ratios"], found[0].name), flush=True)
    return int(any(case["failures"] for case in report["cases"]))


if __name__ == "__main__":
    sys.exit(main())
