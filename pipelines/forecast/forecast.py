"""The forecast of a job: rows, tokens, shape, seconds and cost. Pure: all that was looked at comes as arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

from conf.schema.batch import BatchJob
from conf.schema.engine import EngineSpec
from conf.schema.task import Task
from pipelines.forecast.duplicates import duplicate_share
from pipelines.forecast.efficiency import Efficiency
from pipelines.forecast.lengths import Answers
from pipelines.forecast.prefix import best_prefix_hit_rate
from pipelines.forecast.sample import Sample
from pipelines.forecast.start import start_seconds
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize
from serve.engine.roofline import Workload
from serve.engine.room import Wish, leaves_graphs
from serve.engine.shape import Shape, choose_shape

START_SPREAD = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Token counts of rows."""

    mean: float
    p50: int
    p90: int
    longest: int
    histogram: dict[int, int]
    """Rows that have at most so many tokens, and more than half of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a job will come to."""

    rows: int
    sampled_rows: int
    bad_rows: float
    bad: dict[str, int]
    """In the sample, by class of error."""
    requests: int
    """Rows that an engine computes."""
    duplicate_fraction: float
    is_shared: bool
    """Whether equal requests run once."""
    prompt: Spread
    answer: Spread | None
    """Null where only the mean is known."""
    answers: Answers
    prefix_hit_rate: float
    """At best."""
    size: ModelSize
    hardware: Hardware
    shape: Shape
    efficiency: Efficiency
    start_s: float
    inference_s: float
    low_s: float
    high_s: float
    price_per_hour: float | None
    context_tokens: int
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the command to its end."""
        return self.start_s + self.inference_s

    @property
    def prompt_tokens(self) -> float:
        """Of all requests that are computed, those that the prefix cache saves included."""
        return self.requests * self.prompt.mean

    @property
    def completion_tokens(self) -> float:
        """Of all requests that are computed."""
        return self.requests * self.answers.mean

    def cost(self, seconds: float) -> float | None:
        """Returns the price of the devices for so long; null where no price is known."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * self.shape.num_devices * seconds / 3600

    def plain(self) -> dict[str, Any]:
        """Returns it as what JSON can hold."""
        hardware = {**asdict(self.hardware), "device": self.hardware.device.value}
        answers = {key: value for key, value in asdict(self.answers).items() if key != "values"}
        return {
            "input": {
                "rows": self.rows,
                "sampled_rows": self.sampled_rows,
                "bad_rows": self.bad_rows,
                "bad_in_sample": self.bad,
                "requests": self.requests,
                "duplicate_fraction": self.duplicate_fraction,
                "is_shared": self.is_shared,
                "best_prefix_hit_rate": self.prefix_hit_rate,
                "prompt_tokens": {**asdict(self.prompt), "total": self.prompt_tokens},
                "completion_tokens": {
                    **answers,
                    "histogram": None if self.answer is None else self.answer.histogram,
                    "total": self.completion_tokens,
                },
            },
            "model": {**asdict(self.size), "context_tokens": self.context_tokens},
            "hardware": hardware,
            "shape": {**asdict(self.shape), "num_devices": self.shape.num_devices},
            "forecast": {
                "start_s": self.start_s,
                "inference_s": self.inference_s,
                "seconds": self.seconds,
                "low_s": self.low_s,
                "high_s": self.high_s,
                "completion_tokens_per_s": self.completion_tokens / self.inference_s,
                "prompt_tokens_per_s": self.prompt_tokens / self.inference_s,
                "rows_per_s": self.requests / self.inference_s,
                "efficiency": asdict(self.efficiency),
                "cost": self.cost(self.seconds),
                "cost_low": self.cost(self.low_s),
                "cost_high": self.cost(self.high_s),
            },
            "warnings": self.warnings,
        }


def make_forecast(
    job: BatchJob,
    sample: Sample,
    answers: Answers,
    size: ModelSize,
    hardware: Hardware,
    efficiency: Efficiency,
    context_tokens: int,
) -> Forecast:
    """Makes the forecast of a job.

    Args:
        job: what is asked.
        sample: what was looked at; it has a request at least.
        answers: how long answers are.
        size: the model.
        hardware: the devices.
        efficiency: what finished jobs of the kind have taught.
        context_tokens: prompt and answer together.

    Raises:
        UserError: when the model does not fit on the devices.
    """
    bad = sum(sample.bad.values())
    bad_rows = bad / sample.rows * sample.total_rows
    good = sample.total_rows - bad_rows
    duplicates = duplicate_share(sample.keys, round(good))
    is_shared = sample.shares * 2 > len(sample.keys)
    requests = max(1, round(good * (1 - duplicates if is_shared else 1)))
    prompts = list(dict(zip(sample.keys, sample.prompts, strict=True)).values()) if is_shared else sample.prompts
    saving = best_prefix_hit_rate(prompts)
    lengths = [len(prompt) for prompt in prompts]
    is_cached = job.task is Task.generate and job.engine.vllm.get("enable_prefix_caching", True)
    prompt = spread_of(lengths)
    workload = Workload(
        prompt_tokens=prompt.mean,
        answer_tokens=answers.mean,
        longest_answer_tokens=answers.longest,
        rows=requests,
        saved_fraction=saving if is_cached else 0.0,
    )
    wish = wish_of(job.engine)
    shape = choose_shape(size, hardware, workload, context_tokens, wish)
    inference = shape.seconds / efficiency.ratio
    prompt_error = 0.0 if sample.is_whole else 1.28 * pstdev(lengths) / math.sqrt(len(lengths)) / prompt.mean
    error = math.sqrt(efficiency.spread**2 + answers.error_fraction**2 + prompt_error**2)
    start = efficiency.start_s or start_seconds(job, size, hardware, shape, wish)
    return Forecast(
        rows=sample.total_rows,
        sampled_rows=sample.rows,
        bad_rows=bad_rows,
        bad=dict(sample.bad.most_common()),
        requests=requests,
        duplicate_fraction=duplicates,
        is_shared=is_shared,
        prompt=prompt,
        answer=spread_of(answers.values) if answers.values else None,
        answers=answers,
        prefix_hit_rate=saving,
        size=size,
        hardware=hardware,
        shape=shape,
        efficiency=efficiency,
        start_s=start,
        inference_s=inference,
        low_s=start * (1 - START_SPREAD) + inference / (1 + error),
        high_s=start * (1 + START_SPREAD) + inference * (1 + error),
        price_per_hour=(hardware.price_per_hour if job.cluster.price_per_hour is None else job.cluster.price_per_hour),
        context_tokens=context_tokens,
    )


def wish_of(engine: EngineSpec) -> Wish:
    """Returns what the user has set: what is not the schema's default."""
    plain = EngineSpec()

    def own(key: str) -> Any:
        value = getattr(engine, key)
        return None if value == getattr(plain, key) else value

    return Wish(
        tensor_parallel_size=own("tensor_parallel_size"),
        pipeline_parallel_size=own("pipeline_parallel_size"),
        engines_per_device=own("engines_per_device"),
        num_replicas=engine.max_replicas if own("num_replicas") else None,
        max_num_seqs=own("max_num_seqs"),
        in_flight_rows=engine.max_in_flight,
        kv_cache_bytes=engine.vllm.get("kv_cache_memory_bytes") or engine.kv_cache_bytes,
        memory_fraction=engine.vllm.get("gpu_memory_utilization"),
        captures_graphs=leaves_graphs(engine.vllm),
    )


def as_set(engine: EngineSpec) -> Wish:
    """Returns the shape that an engine has if nobody chooses another: all of it is set."""
    return replace(
        wish_of(engine),
        tensor_parallel_size=engine.tensor_parallel_size,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        engines_per_device=engine.engines_per_device,
        num_replicas=engine.max_replicas,
        max_num_seqs=engine.max_num_seqs,
        in_flight_rows=engine.in_flight_rows,
    )


def spread_of(values: Sequence[int]) -> Spread:
    """Returns what is shown of counts; of none, zeros."""
    ordered = sorted(values) or [0]
    histogram: dict[int, int] = {}
    for value in ordered:
        bound = 1 << max(value - 1, 0).bit_length()
        histogram[bound] = histogram.get(bound, 0) + 1
    return Spread(
        mean=fmean(ordered),
        p50=ordered[len(ordered) // 2],
        p90=ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)],
        longest=ordered[-1],
        histogram=histogram,
    )
