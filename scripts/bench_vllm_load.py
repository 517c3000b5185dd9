"""The same load from vLLM's own generator, `vllm bench serve`: python scripts/bench_vllm_load.py TASK.json

Called by its functions: the `vllm` command of the CPU wheel fails for want of its own metadata. It sends the prompts of
the task, in their order, and always streams.

Source: vllm/benchmarks/serve.py (0.26-0.32).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_load import PATH, Load, LoadTask


def command_line(task: LoadTask, prompts: Path, tokenizer: str) -> list[str]:
    """Returns the words of `vllm bench serve` for a task.

    Args:
        task: the load.
        prompts: a JSONL file with them.
        tokenizer: a folder; the tool counts the tokens of prompts with it.

    Raises:
        ValueError: for a load without streaming.
    """
    load = Load.parse(task.load)
    if not load.is_stream:
        raise ValueError(f"vllm bench serve always streams: '{task.load}' does not")
    pace = (
        ["--max-concurrency", str(int(load.amount))] if load.kind == "closed" else ["--request-rate", str(load.amount)]
    )
    return [
        *("--backend", "openai-chat", "--base-url", task.url, "--endpoint", PATH),
        *("--model", task.model, "--served-model-name", task.model, "--tokenizer", tokenizer),
        *("--dataset-name", "custom", "--dataset-path", str(prompts), "--disable-shuffle", "--skip-chat-template"),
        *("--num-prompts", str(len(task.prompts)), "--custom-output-len", str(task.output_tokens)),
        *("--ignore-eos", "--temperature", "0", "--disable-tqdm", "--seed", str(task.seed)),
        # its check of the server would send the first prompt twice, and a response cache would answer it
        *("--ready-check-timeout-sec", "0"),
        *("--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "50,99"),
        *pace,
    ]


def converted(result: Mapping[str, Any], task: LoadTask) -> dict[str, Any]:
    """Returns the tool's figures under the names of `bench_load.figures`.

    Raises:
        ValueError: when a request failed or the number of tokens is another.
    """
    count = len(task.prompts)
    if result["completed"] != count:
        errors = [error for error in result.get("errors", ()) if error]
        raise ValueError(f"{count - result['completed']} of {count} requests failed: {str(errors[:1])[:500]}")
    if result["total_output_tokens"] != count * task.output_tokens:
        raise ValueError(f"{result['total_output_tokens']} tokens instead of {count * task.output_tokens}")
    names = {"ttft": "ttft", "tpot": "tpot", "e2el": "e2e"}
    times = {f"{own}_p{p}_ms": result[f"p{p}_{name}_ms"] for name, own in names.items() for p in (50, 99)}
    return {
        "requests": count,
        "seconds": result["duration"],
        "prompt_tokens": result["total_input_tokens"],
        "completion_tokens": result["total_output_tokens"],
        "requests_per_s": result["request_throughput"],
        "tokens_per_s": result["output_throughput"],
        **times,
    }


def run_tool(task: LoadTask, tokenizer: str, folder: Path) -> dict[str, Any]:
    """Runs it in this process.

    Returns:
        As `bench_load.run_load`; its CPU seconds are those of the benchmark, without imports.

    Raises:
        ValueError: see `converted`.
    """
    from vllm.benchmarks import serve

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser  # type: ignore[no-redef]

    if task.key:
        os.environ["OPENAI_API_KEY"] = task.key
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in task.prompts))
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    args: Any = parser.parse_args(command_line(task, prompts, tokenizer))
    measured: dict[str, Any] = {}
    benchmark = serve.benchmark

    async def timed(*words: Any, **named: Any) -> Any:
        before_s = time.process_time()
        result = await benchmark(*words, **named)
        measured.update(result, generator_cpu_s=time.process_time() - before_s)  # main_async drops the errors
        return result

    serve.benchmark = timed  # type: ignore[assignment]
    with contextlib.redirect_stdout(sys.stderr):
        asyncio.run(serve.main_async(args))
    return {**converted(measured, task), "generator_cpu_s": measured["generator_cpu_s"]}


def main() -> None:
    """Runs the task of a file and prints its result."""
    path, tokenizer = Path(sys.argv[1]), sys.argv[2]
    task = LoadTask(**json.loads(path.read_text()))
    print("RESULT " + json.dumps(run_tool(task, tokenizer, path.parent)), flush=True)


if __name__ == "__main__":
    main()
