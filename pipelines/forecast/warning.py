"""What a forecast should make a person think of before the job runs."""

from __future__ import annotations

from collections.abc import Iterator

from conf.schema.batch import BatchJob
from conf.schema.engine import EngineKind
from pipelines.forecast.forecast import Forecast
from pipelines.forecast.sample import Sample

MANY = 0.02
"""Shares from which on something is worth a word."""


def warnings_of(job: BatchJob, sample: Sample, forecast: Forecast) -> Iterator[str]:
    """Yields one line for each thing that is likely not meant."""
    f, whole = forecast, f" of {sample.rows:,} rows"
    if too_long := sample.bad.get("prompt_too_long"):
        yield f"{too_long:,}{whole} do not fit in the context of {f.context_tokens:,} tokens (engine.max_model_len)"
    if other := sum(sample.bad.values()) - (too_long or 0):
        classes = ", ".join(name for name in sample.bad if name != "prompt_too_long")
        yield f"{other:,}{whole} are bad ({classes}): they will be in OUT/failed/"
    pairs = zip(sample.prompts, sample.max_tokens, strict=True)
    tight = sum(len(prompt) + most > f.context_tokens for prompt, most in pairs) if f.answers.mean else 0
    if tight:
        yield f"{tight:,}{whole} leave less than sampling.max_tokens of the context for their answer"
    if f.answers.cut_fraction is not None and f.answers.cut_fraction >= MANY:
        yield (
            f"{f.answers.cut_fraction:.0%} of the answers are longer than sampling.max_tokens="
            f"{job.sampling.max_tokens}: they will be cut off"
        )
    if f.duplicate_fraction >= MANY and not f.is_shared:
        yield (
            f"{f.duplicate_fraction:.0%} of the requests equal another one and each runs anew:"
            f" batch.dedupe={job.batch.dedupe.value} (all shares their answers)"
        )
    shape = f.shape
    if shape.kv_seqs is not None and shape.kv_seqs < shape.max_num_seqs:
        yield f"the KV cache holds {shape.kv_seqs:,} sequences of mean length, max_num_seqs is {shape.max_num_seqs:,}"
    if f.prefix_hit_rate >= MANY and not job.engine.vllm.get("enable_prefix_caching", True):
        yield f"prefixes could save {f.prefix_hit_rate:.0%} of the prompt tokens, but prefix caching is off"
    if f.size.kv_bytes_per_token is None:
        yield "the size of this model's cache entries is not known: max_num_seqs may be more than it holds"
    if f.size.is_estimate:
        yield "this architecture is not known: its parameters were counted as a Llama's"
    if shape.num_devices < f.hardware.num_devices:
        yield f"{f.hardware.num_devices - shape.num_devices} of {f.hardware.num_devices} devices have nothing to do"
    if job.cluster.address is not None and job.hardware.name == "auto":
        yield "hardware=auto looked at this machine, not at the cluster; say hardware=NAME hardware.num_devices=N"
    if f.hardware.note is not None:
        yield f.hardware.note
    if job.engine.kind is EngineKind.fake:
        yield "engine.kind=fake computes nothing: the times are those of the real engine"
