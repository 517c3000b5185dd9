r"""Compares servers of one model under one load: manta serve, bare vLLM, ray.serve.llm in both modes, a trivial app.

    python scripts/bench_serve.py --runs 3 --loads closed:32:stream closed:32 open:20:stream \
        --generators ours vllm --out docs/benchmarks/serve_cpu.json
    python scripts/bench_serve.py --device cuda --model llama_1b --input-tokens 256 --output-tokens 128 \
        --requests 2000 --loads closed:256:stream open:50:stream --contenders manta vllm ray_serve_llm --out FILE

A load is closed:CLIENTS or open:REQUESTS_PER_S (Poisson), with :stream where answers are streamed. Every contender gets
the same prompts in the same order, the same engine arguments (--engine adds to them) and answers of one length, in
processes of its own; a server that starts once does all loads, and runs are interleaved (a b c a b c ...), because the
speed of shared machines drifts. --together starts each once and has all up at the same time, idle while another is
asked: more turns in less time, for machines with cores to spare. No prompt is sent twice to a server, so that a
response cache answers none. A load in which one request fails, or has another number of tokens, is a failure and has
no figures. Figures are medians with their spread.

--append adds to what --out holds: a comparison that takes longer than one command may.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import bench_models
from bench_batch import ENGINE, pair, variant
from bench_load import Load, LoadTask, write_task
from bench_machine import machine, run_measured, wait_for_gpus
from bench_ray_apps import NAME
from bench_serve_summary import by_load, ratios, spent, table, warnings, with_shares
from bench_servers import CONTENDERS, KEY, SCRIPTS, Contender, Server, serving
from bench_workloads import Shape, tickets, uniform

TICKET_TOKENS = 512
"""No ticket is longer, with the chat template."""
GENERATORS = {"ours": "bench_load.py", "vllm": "bench_vllm_load.py"}


def contenders(args: argparse.Namespace) -> list[Contender]:
    """Returns the table's rows: those asked for, and manta with further words."""
    variants = [
        Contender(name=f"manta_{name}", server="manta", words=("cache=memory", *words)) for name, words in args.variant
    ]
    return [*(CONTENDERS[name] for name in args.contenders), *variants]


def engine_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns vLLM's engine arguments, for all."""
    is_dummy = args.model not in bench_models.SHIPPED
    longest = (args.input_tokens if is_dummy else TICKET_TOKENS) + args.output_tokens
    needed: dict[str, Any] = {"max_model_len": max(2048, math.ceil(longest / 256) * 256)}
    if args.together and args.device == "cuda":
        needed["gpu_memory_utilization"] = round(0.9 / len(contenders(args)), 2)
    return ENGINE[args.device] | needed | ({"load_format": "dummy"} if is_dummy else {}) | args.engine


def make_prompts(args: argparse.Namespace, count: int) -> list[str]:
    """Returns prompts, no two equal: tickets for a real model, else words of which each is a token."""
    if args.model in bench_models.SHIPPED:
        rows = tickets(Shape(num_rows=count, vocab_size=0))
        return [f"{number}: {row.text}" for number, row in enumerate(rows)]
    vocab_size = bench_models.model_config(args.model)["vocab_size"]
    return [row.text for row in uniform(Shape(num_rows=count, vocab_size=vocab_size), args.input_tokens)]


def plan_of(args: argparse.Namespace) -> list[tuple[str, Load]]:
    """Returns what is measured of each start, in order: generator and load. vLLM's generator only streams."""
    pairs = [(generator, load) for load in args.loads for generator in args.generators]
    return [(generator, load) for generator, load in pairs if generator == "ours" or load.is_stream]


def run_generator(generator: str, task: LoadTask, model: str, folder: Path, timeout_s: float) -> dict[str, Any]:
    """Runs a load generator in a process of its own.

    Raises:
        RuntimeError: when it fails: a request failed or had another number of tokens.
    """
    path = folder / "load.json"
    write_task(task, path)
    search_path = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
    words = [str(SCRIPTS / GENERATORS[generator]), str(path), model]
    output, _ = run_measured(words, {"PYTHONPATH": search_path, "VLLM_LOGGING_LEVEL": "ERROR"}, timeout_s)
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))


class Asker:
    """Puts loads on one server, no prompt twice."""

    def __init__(self, server: Server, model: str, prompts: Sequence[str], args: argparse.Namespace, folder: Path):
        """Args: a server that answers, the folder of its model, prompts for all loads, and a folder of its own."""
        self._server, self._model, self._args, self._folder = server, model, args, folder
        self._waiting = iter(prompts)

    def warm_up(self) -> None:
        """Sends requests that are not measured, streamed and whole."""
        for is_stream in (True, False):
            load = Load(kind="closed", amount=32, is_stream=is_stream)
            task = self._task(load, self._args.warm_up)
            run_generator("ours", task, self._model, self._folder, self._args.timeout_s)

    def measure(self) -> Iterator[dict[str, Any]]:
        """Yields the measurement of each load, or the error that it ended with."""
        for generator, load in plan_of(self._args):
            asked, before = self._task(load, self._args.requests), self._server.cpu_s()
            what = {"load": load.name, "generator": generator, "start_s": self._server.start_s}
            try:
                result = run_generator(generator, asked, self._model, self._folder, self._args.timeout_s)
            except RuntimeError as error:
                yield {**what, "error": str(error)}
            else:
                yield with_shares({**what, **result, "server_cpu_s": spent(before, self._server.cpu_s())})

    def _task(self, load: Load, count: int) -> LoadTask:
        own = [next(self._waiting) for _ in range(count)]
        args = self._args
        common = {"url": self._server.url, "model": NAME, "key": KEY, "output_tokens": args.output_tokens}
        return LoadTask(**common, prompts=own, load=load.name, request_timeout_s=args.request_timeout_s)


@contextmanager
def asking(
    contender: Contender, model: str, prompts: Sequence[str], args: argparse.Namespace, folder: Path
) -> Iterator[Asker]:
    """Starts a server and warms it up; ends it.

    Raises:
        RuntimeError: when it does not answer, with the end of what it said.
    """
    folder.mkdir()
    with serving(contender, model, args.device, engine_of(args), folder, args.start_timeout_s, args.profile) as server:
        print(f"{contender.name}: up after {server.start_s:.1f} s", file=sys.stderr, flush=True)
        asker = Asker(server, model, prompts, args, folder)
        asker.warm_up()
        yield asker


def run_all(args: argparse.Namespace, report: dict[str, Any], folder: Path) -> None:
    """Runs all contenders in turn and puts their measurements into the report, which is written after each."""
    model, found = str(bench_models.SHIPPED.get(args.model, "")), contenders(args)
    if not model:
        model = str(folder / "model")
        bench_models.make_model(bench_models.model_config(args.model), Path(model))
    rounds = args.runs if args.together else 1
    prompts = make_prompts(args, 2 * args.warm_up + rounds * len(plan_of(args)) * args.requests)
    groups = [found] if args.together else [[contender] for contender in found]
    first_run = 1 + max((run["run"] for run in report["runs"]), default=0)
    starts = range(first_run, first_run + args.runs, rounds)
    for first, (number, group) in product(starts, enumerate(groups)):
        if args.device == "cuda":
            wait_for_gpus()
        with ExitStack() as stack:
            up: dict[str, Asker] = {}
            for place, contender in enumerate(group):
                # HAProxy's sockets lie below this folder, their paths may have 97 characters
                start = asking(contender, model, prompts, args, folder / f"{first}-{number}-{place}")
                try:
                    up[contender.name] = stack.enter_context(start)
                except RuntimeError as error:
                    failure = {"load": "start", "generator": "none", "error": str(error)}
                    note(report, args, contender.name, first, failure)
            for run, (name, asker) in product(range(first, first + rounds), up.items()):
                for result in asker.measure():
                    note(report, args, name, run, result)


def note(report: dict[str, Any], args: argparse.Namespace, name: str, run: int, result: dict[str, Any]) -> None:
    """Puts a measurement or a failure into the report, says it, and writes the file."""
    result = {"contender": name, "run": run, **result}
    report["failures" if "error" in result else "runs"].append(result)
    summary = report["summary"] = by_load(report["runs"])
    report["ratios"] = {load: ratios(part, args.contenders[0]) for load, part in summary.items()}
    shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()}
    print(json.dumps(shown), file=sys.stderr, flush=True)
    if args.out:  # after each measurement: a run that is cut off leaves those before
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def new_report(args: argparse.Namespace) -> dict[str, Any]:
    """Returns a report without measurements, or with --append the one that --out holds.

    Raises:
        ValueError: when that one is about something else.
    """
    names = ("model", "device", "input_tokens", "output_tokens", "requests", "warm_up", "together")
    settings = {name: getattr(args, name) for name in names} | {"engine": engine_of(args)}
    command = shlex.join(["python", "scripts/bench_serve.py", *sys.argv[1:]])
    about = {"settings": settings, "machine": machine()}
    if args.append and args.out and args.out.exists():
        report = json.loads(args.out.read_text())
        for name, value in about.items():
            if report[name] != json.loads(json.dumps(value)):
                raise ValueError(f"--append: {args.out} has another {name}: {report[name]}, this run {value}")
        report["commands"].append(command)
        return report
    return {"commands": [command], "date": time.strftime("%Y-%m-%d"), **about, "failures": [], "runs": []}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="the first is compared")
    add("--variant", action="append", type=variant, default=[], metavar="NAME=WORDS", help="manta with further words")
    add("--loads", nargs="+", type=Load.parse, default=[Load.parse("closed:32:stream"), Load.parse("closed:32")])
    add("--generators", nargs="+", choices=list(GENERATORS), default=["ours"], help="vllm: vllm bench serve")
    add("--runs", type=int, default=3, help="starts of each contender, or turns with --together")
    add("--together", action="store_true", help="all are up at once, idle while another is asked; --runs of one start")
    add("--requests", type=int, default=500, help="of each load")
    add("--warm-up", type=int, default=64, help="requests before, streamed, and as many that are not")
    add("--model", default="demo", help="demo, or one of bench_models.py, without weights")
    add("--input-tokens", type=int, default=256, help="of each prompt; the demo's model gets tickets, about 105 tokens")
    add("--output-tokens", type=int, default=16, help="of each answer")
    add("--device", choices=list(ENGINE), default="cpu")
    add("--engine", action="append", type=pair, default=[], metavar="NAME=VALUE", help="an engine argument for all")
    add("--start-timeout-s", type=float, default=300.0, help="for one server")
    add("--request-timeout-s", type=float, default=120.0, help="for one request")
    add("--timeout-s", type=float, default=600.0, help="for one load")
    add("--profile", type=Path, metavar="FOLDER", help="where each server's processes write what they do; slows them")
    add("--append", action="store_true", help="add to the measurements in --out")
    add("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args(words)
    args.engine = dict(args.engine)
    if not plan_of(args):
        parser.error("--generators vllm only streams: name a load with :stream")
    return args


def main() -> int:
    """Runs all, prints the tables, writes the JSON; 1 where something failed."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server is ended with it
    report = new_report(args)
    with tempfile.TemporaryDirectory(prefix="b", ignore_cleanup_errors=True) as folder:
        run_all(args, report, Path(folder))
    for load, summary in report.get("summary", {}).items():
        print(f"\n{load}\n\n{table(summary, args.contenders[0])}", flush=True)
        print(*warnings(summary), sep="\n", file=sys.stderr)
    return int(bool(report["failures"]))


if __name__ == "__main__":
    sys.exit(main())
