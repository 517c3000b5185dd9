"""The tools that a benchmark compares, each run in a process of its own: python scripts/bench_runners.py TASK.json

A runner answers the rows of a folder that `bench_workloads.write_rows` has filled and returns what it measured. All get
vLLM's engine arguments under vLLM's own names. Steady state is the time from the first request that an engine got to
its last answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}
TUNED_BATCH_ROWS = 32


def engine_environment(device: str, engine: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment variables that all engines get; a CPU's would outdo a cache that `engine` names."""
    is_sized = "kv_cache_memory_bytes" in engine
    return ENVIRONMENT | (CPU_ENVIRONMENT if device == "cpu" and not is_sized else {})


@dataclass(kw_only=True, slots=True)
class Task:
    """What a runner does."""

    runner: str
    input: str
    """A folder with rows.jsonl and requests.jsonl."""
    model: str
    device: str
    """cpu or cuda."""
    out: str
    """A folder for the answers, which the runner makes."""
    engine: dict[str, Any]
    """vLLM's engine arguments."""
    words: list[str] = field(default_factory=list)
    """Further words of manta's command line."""
    has_answers: bool = False
    """Whether the rows say what is expected: then the model ends its answers."""
    repeats: int = 1
    """Times that `LLM.generate` does it all in one process."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of all runners."""
        return engine_environment(self.device, self.engine)

    def rows(self) -> list[dict[str, Any]]:
        """Reads the table."""
        return [json.loads(line) for line in Path(self.input, "rows.jsonl").read_text().splitlines()]

    def sampling(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns vLLM's sampling parameters of a row."""
        return {"temperature": 0, "max_tokens": row["max_tokens"], "ignore_eos": row["answer"] is None}


def run_manta(task: Task) -> list[dict[str, Any]]:
    """`manta batch`, as a user types it: tickets as a table, other rows as an OpenAI Batch file, for their limits."""
    began = time.time()
    command = [sys.executable, "-m", "conf.cli", "batch", *manta_words(task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {(done.stderr or done.stdout)[-2000:]}")
    record = json.loads(Path(task.out, "_manta", "job.json").read_text())
    seconds = record["seconds"]
    result = {
        "rows": record["answers"],
        "prompt_tokens": record["prompt_tokens"],
        "completion_tokens": record["completion_tokens"],
        "inference_s": seconds["inference"],
        "first_row_s": seconds["plan"] + seconds["cluster"] + seconds["engines"],
        "prefix_hit_rate": record.get("prefix_hit_rate"),
        "wall_s": time.time() - began,
        "record": {key: value for key, value in record.items() if key not in ("job", "inputs", "versions")},
    }
    return [result | ({"exact_match": record["exact_match"]} if task.has_answers else {})]


def manta_words(task: Task) -> list[str]:
    """Returns the words of manta's command line for a task."""
    if task.has_answers:
        table = f"{task.input}/rows.jsonl"
        limit = max(row["max_tokens"] for row in task.rows())
        data = [f"data.input={table}", "data.prompt={{ text }}", "data.answer=answer", f"sampling.max_tokens={limit}"]
    else:
        data = ["data=openai_batch", f"data.input={task.input}/requests.jsonl"]
    words = [f"model.path={task.model}", *data, f"output.path={task.out}", "progress.quiet=true"]
    words.append(f"engine.device={task.device}")
    return [*words, *engine_words(task.engine), *task.words]


def engine_words(engine: dict[str, Any]) -> list[str]:
    """Returns engine arguments as words of manta's command line."""
    own = {"max_num_seqs": "max_num_seqs", "max_model_len": "max_model_len", "kv_cache_memory_bytes": "kv_cache_bytes"}
    return [f"engine.{own.get(name, f'vllm.{name}')}={json.dumps(value)}" for name, value in engine.items()]


def run_llm_generate(task: Task) -> list[dict[str, Any]]:
    """`LLM.chat` (`LLM.generate` behind the chat template), its core in a process of its own, as it ships."""
    began = time.time()
    from vllm import LLM, SamplingParams

    rows = task.rows()
    llm = LLM(model=task.model, **task.engine)
    chats: Any = [[{"role": "user", "content": row["text"]}] for row in rows]
    sampling = [SamplingParams(**task.sampling(row)) for row in rows]
    measured = []
    for _ in range(task.repeats):
        ready = time.time()
        outputs = llm.chat(chats, sampling, use_tqdm=False)
        ended = time.time()
        texts = [output.outputs[0].text for output in outputs]
        with Path(f"{task.out}.jsonl").open("w") as stream:
            for row, text in zip(rows, texts, strict=True):
                stream.write(json.dumps({**row, "output": text}) + "\n")
        cached = [output.num_cached_tokens for output in outputs]
        result = {
            "rows": len(outputs),
            "prompt_tokens": sum(len(output.prompt_token_ids or ()) for output in outputs),
            "completion_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
            "cached_tokens": sum(count or 0 for count in cached) if any(c is not None for c in cached) else None,
            "inference_s": ended - ready,
            "first_row_s": ended - began,
            "wall_s": time.time() - began,
        }
        measured.append(result | _exact_match(rows, texts))
        llm.reset_prefix_cache()
    return measured


def run_llm_generate_inline(task: Task) -> list[dict[str, Any]]:
    """The same with the core in the caller's process, which manta batch uses on CPU too."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return run_llm_generate(task)


def run_vllm_run_batch(task: Task) -> list[dict[str, Any]]:
    """`vllm run-batch`, by its module: the CPU wheel's `vllm` command fails for want of its own metadata."""
    began = time.time()
    import asyncio

    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        from vllm.entrypoints.launchers import run_batch
    except ImportError:  # before 0.30 or so
        from vllm.entrypoints.openai import run_batch  # type: ignore[no-redef]
    times: list[float] = []
    engine: Any = AsyncLLM
    generate = engine.generate

    async def timed(*args: Any, **kwargs: Any) -> Any:
        times.append(time.time())
        async for output in generate(*args, **kwargs):
            yield output
        times.append(time.time())

    engine.generate = timed
    answers = Path(f"{task.out}.jsonl")
    words = ["-i", f"{task.input}/requests.jsonl", "-o", str(answers), "--model", task.model]
    sys.argv = ["run-batch", *words, *command_line(task.engine)]
    args: Any = run_batch.parse_args()
    asyncio.run(run_batch.main(args))
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    if bad := next((line for line in lines if line["error"] or line["response"]["status_code"] != 200), None):
        raise RuntimeError(f"run-batch answers with an error: {str(bad)[:500]}")
    bodies = [line["response"]["body"] for line in lines]
    texts = {
        line["custom_id"]: body["choices"][0]["message"]["content"] for line, body in zip(lines, bodies, strict=True)
    }
    rows = task.rows()
    result = {
        "rows": len(lines),
        "prompt_tokens": sum(body["usage"]["prompt_tokens"] for body in bodies),
        "completion_tokens": sum(body["usage"]["completion_tokens"] for body in bodies),
        "inference_s": max(times) - min(times),
        "first_row_s": time.time() - began,
        "wall_s": time.time() - began,
    }
    return [result | _exact_match(rows, [texts[row["id"]] for row in rows])]


def command_line(engine: dict[str, Any]) -> list[str]:
    """Returns engine arguments as flags of vLLM's command line."""
    words = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def run_ray_data_llm(task: Task) -> list[dict[str, Any]]:
    """`ray.data.llm` with its defaults; on a CPU what makes it run there is set."""
    return _ray_data_llm(task, {})


def run_ray_data_llm_tuned(task: Task) -> list[dict[str, Any]]:
    """`ray.data.llm` with batches of 32 rows, as many at a time as hold twice the engine's sequences."""
    concurrent = max(8, -(-2 * task.engine.get("max_num_seqs", 1024) // TUNED_BATCH_ROWS))
    return _ray_data_llm(task, {"batch_size": TUNED_BATCH_ROWS, "max_concurrent_batches": concurrent})


def _ray_data_llm(task: Task, tuning: dict[str, Any]) -> list[dict[str, Any]]:
    began = time.time()
    import pyarrow.parquet as pq
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    on_cpu = {"placement_group_config": {"bundles": [{"CPU": 1}]}, "accelerator_type": None}
    config = vLLMEngineProcessorConfig(
        model_source=task.model,
        engine_kwargs=dict(task.engine),
        concurrency=1,
        runtime_env={"env_vars": task.environment},
        **(on_cpu if task.device == "cpu" else {}),
        **tuning,
    )

    def before(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "messages": [{"role": "user", "content": row["text"]}], "sampling_params": task.sampling(row)}

    def after(row: dict[str, Any]) -> dict[str, Any]:
        names = ("id", "answer", "num_input_tokens", "num_generated_tokens", "time_taken_llm")
        return {**{name: row[name] for name in names}, "output": row["generated_text"], "ended_at": time.time()}

    # its five stages hold a CPU each; with fewer the job waits for ever
    num_cpus = max(8, len(os.sched_getaffinity(0)))
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    table = ray.data.read_json(f"{task.input}/rows.jsonl")
    if tuning:
        table = table.repartition(target_num_rows_per_block=TUNED_BATCH_ROWS)
    build_processor(config, preprocess=before, postprocess=after)(table).write_parquet(task.out)
    ray.shutdown()
    rows = [row for path in Path(task.out).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    first = min(row["ended_at"] - row["time_taken_llm"] for row in rows)
    result = {
        "rows": len(rows),
        "prompt_tokens": sum(row["num_input_tokens"] for row in rows),
        "completion_tokens": sum(row["num_generated_tokens"] for row in rows),
        "inference_s": max(row["ended_at"] for row in rows) - first,
        "first_row_s": min(row["ended_at"] for row in rows) - began,
        "wall_s": time.time() - began,
    }
    return [result | _exact_match(rows, [row["output"] for row in rows])]


def _exact_match(rows: list[dict[str, Any]], texts: list[str]) -> dict[str, float]:
    if any(row["answer"] is None for row in rows):
        return {}
    return {"exact_match": sum(text == row["answer"] for row, text in zip(rows, texts, strict=True)) / len(rows)}


RUNNERS: dict[str, Callable[[Task], list[dict[str, Any]]]] = {
    "manta": run_manta,
    "llm_generate": run_llm_generate,
    "llm_generate_inline": run_llm_generate_inline,
    "vllm_run_batch": run_vllm_run_batch,
    "ray_data_llm": run_ray_data_llm,
    "ray_data_llm_tuned": run_ray_data_llm_tuned,
}

if __name__ == "__main__":
    asked = Task(**json.loads(Path(sys.argv[1]).read_text()))
    os.environ.update(asked.environment)
    print("RESULT " + json.dumps(RUNNERS[asked.runner](asked)), flush=True)
