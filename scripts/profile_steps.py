r"""Says where the time of an engine's steps goes, kernel by kernel: why a model is as fast as it is.

    python scripts/profile_steps.py llama_8b llama_8b+fp8 --device cuda --out steps.json

Each model (bench_models.py) is loaded without weights, in a process of its own, and does one load twice: once for its
seconds, once under torch's profiler. The load is prompts of one length that begin together, so the first steps are
prefill and all others decode. What vLLM says of the kernels and backends that it chose is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_models
from bench_batch import ENGINE, pair
from bench_machine import machine
from bench_models import ROOT


def profile(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns a model's seconds, and the kernels (on a CPU the operators) that take the most time.

    Args:
        name: of `bench_models.model_config`.
        args: the command line.
    """
    import torch
    from torch.profiler import ProfilerActivity
    from vllm import LLM, SamplingParams

    config = bench_models.model_config(name)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        bench_models.make_model(config, model)
        engine = ENGINE[args.device] | {"load_format": "dummy", "max_model_len": 2048} | args.engine
        llm = LLM(model=str(model), **engine)
    vocabulary = config["vocab_size"] - 2
    sampling = SamplingParams(temperature=0, max_tokens=args.output_tokens, ignore_eos=True)

    def run(first: int) -> float:
        places = range(args.input_tokens)
        # no two prompts begin alike, in either run: the prefix cache finds nothing
        prompts: Any = [
            {"prompt_token_ids": [(first + row * 7919 + at * 104729) % vocabulary + 2 for at in places]}
            for row in range(args.rows)
        ]
        began = time.monotonic()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.monotonic() - began

    run(1)
    seconds = run(2)
    activities = [ProfilerActivity.CUDA] if args.device == "cuda" else [ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        profiled = run(3)
    kernels = []
    for event in profiler.key_averages():
        spent_us = event.self_device_time_total if args.device == "cuda" else event.self_cpu_time_total
        kernels.append({"name": event.key[:160], "calls": event.count, "s": spent_us / 1e6})
    kernels.sort(key=lambda kernel: -kernel["s"])
    total = sum(kernel["s"] for kernel in kernels)
    tokens = args.rows * args.output_tokens
    figures = {"s": seconds, "tokens_per_s": tokens / seconds, "profiled_s": profiled, "in_kernels_s": total}
    return {"model": name, **figures, "kernels": kernels[: args.top]}


def main() -> int:
    """Profiles each model and writes the JSON; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names of bench_models.py, with a scheme where wanted")
    parser.add_argument("--device", choices=list(ENGINE), default="cpu")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--input-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--engine", action="append", type=pair, default=[], metavar="NAME=VALUE")
    parser.add_argument("--top", type=int, default=25, help="kernels that are kept")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--alone", action="store_true", help="one model, in this process")
    args = parser.parse_args()
    args.engine = dict(args.engine)
    if args.alone:
        print("RESULT " + json.dumps(profile(args.models[0], args)), flush=True)
        return 0
    options = [word for word in sys.argv[1:] if word not in args.models]
    report: dict[str, Any] = {"machine": machine(), "models": []}
    for name in args.models:
        command = [sys.executable, __file__, name, "--alone", *options]
        environment = {**os.environ, "PYTHONPATH": search_path(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True).stdout
        print(*(line for line in said.splitlines() if "Selected" in line or "Using" in line), sep="\n")
        found = [json.loads(line.removeprefix("RESULT ")) for line in said.splitlines() if line.startswith("RESULT ")]
        for result in found:
            print(name, {key: round(value, 2) for key, value in result.items() if isinstance(value, float)})
            for kernel in result["kernels"]:
                print(f"  {kernel['s']:8.3f} s  {kernel['calls']:6}  {kernel['name']}", flush=True)
        report["models"] += found
        if args.out:
            args.out.write_text(json.dumps(report, indent=2) + "\n")
    return int(len(report["models"]) < len(args.models))


def search_path() -> str:
    """Returns PYTHONPATH with this code in it."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


if __name__ == "__main__":
    sys.exit(main())
