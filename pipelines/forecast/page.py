"""A forecast as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from conf.schema.engine import EngineSpec
from pipelines.batch.progress import duration
from pipelines.forecast.forecast import Forecast, Spread
from serve.engine.room import gigabytes
from serve.engine.shape import Shape

BAR = 24
"""The longest bar of a histogram, in signs."""


def page(forecast: Forecast, engine: EngineSpec, looked_s: float) -> str:
    """Returns the page.

    Args:
        forecast: what is told.
        engine: what the job would run with as it is set.
        looked_s: what looking took.
    """
    lines = [f"manta plan: {duration(forecast.seconds)} expected; nothing was run, looking took {looked_s:.1f} s"]
    lines += ["", *_input(forecast), "", *_model(forecast), "", *_shape(forecast.shape, engine)]
    lines += ["", *_forecast(forecast)]
    if forecast.warnings:
        lines += ["", "warnings", *(f"  - {warning}" for warning in forecast.warnings)]
    return "\n".join(lines)


def _row(name: str, value: str, more: str = "") -> str:
    return f"  {name:<22}{value:>12}" + (f"   {more}" if more else "")


def _input(f: Forecast) -> Iterator[str]:
    is_whole = f.sampled_rows >= f.rows
    about = "" if is_whole else "about "
    yield "input"
    yield _row("rows", f"{f.rows:,}", "all looked at" if is_whole else f"{f.sampled_rows:,} looked at")
    yield _row("bad rows", f"{f.bad_rows:,.0f}", ", ".join(f"{name} {rows:,}" for name, rows in f.bad.items()))
    shared = "run once" if f.is_shared else "each run anew"
    yield _row("duplicates", f"{f.duplicate_fraction:.1%}", f"{about}{f.requests:,} requests to compute ({shared})")
    yield _row("prefix saving", f"{f.prefix_hit_rate:.1%}", "of the prompt tokens, with the best order and cache")
    p, a = f.prompt, f.answers
    yield _row("tokens in", f"{f.prompt_tokens:,.0f}", f"{p.mean:,.0f} a row, p90 {p.p90:,}, longest {p.longest:,}")
    yield from _histogram(p)
    yield _row("tokens out", f"{f.completion_tokens:,.0f}", f"{a.mean:,.0f} a row, from {a.source}")
    if f.answer is not None:
        yield from _histogram(f.answer)


def _histogram(spread: Spread) -> Iterator[str]:
    if len(spread.histogram) < 2:
        return
    total, top = sum(spread.histogram.values()), max(spread.histogram.values())
    for bound, rows in spread.histogram.items():
        yield f"    {f'<= {bound:,}':<20}{rows / total:>12.1%}   {'#' * max(1, round(BAR * rows / top))}"


def _model(f: Forecast) -> Iterator[str]:
    s, h = f.size, f.hardware
    yield "model"
    active = f"{s.active_parameters / 1e6:,.1f} M of them for a token" if s.is_moe else ""
    yield _row("parameters", f"{s.parameters / 1e6:,.1f} M", active)
    known = "by its files" if s.has_files else "by config.json"
    yield _row("weights", gigabytes(s.weight_bytes), f"{s.weight_kind}, {known}; computed in {s.arithmetic}")
    kv = "unknown" if s.kv_bytes_per_token is None else f"{s.kv_bytes_per_token:,}"
    yield _row("KV bytes a token", kv)
    yield _row("FLOP a token", f"{s.flop_per_token(f.prompt.mean + f.answers.mean) / 1e9:,.2f} G", "at the mean length")
    count = f"{h.num_devices} x " if h.num_devices > 1 else ""
    speed = f"{h.bytes_per_s / 1e9:,.0f} GB/s, {h.flops_of(s.arithmetic) / 1e12:,.1f} TFLOP/s {s.arithmetic}"
    yield _row("hardware", count + h.name, f"{gigabytes(h.memory_bytes)}, {speed}")


def _shape(s: Shape, engine: EngineSpec) -> Iterator[str]:
    yield "shape"
    for key, reason in s.reasons.items():
        value = getattr(s, key)
        yield _row(key, gigabytes(value) if key == "kv_cache_bytes" else f"{value:,}", reason)
    yield _row("memory a device", gigabytes(s.device_bytes))
    words = words_for(s, engine)
    if words:
        yield f"  to run it so: engine.sizing=planned, or {' '.join(words)}"


def words_for(shape: Shape, engine: EngineSpec) -> list[str]:
    """Returns the overrides that make an engine run in a shape; none where it does already."""
    wanted = {
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "engines_per_device": engine.engines_per_device,
        "num_replicas": engine.max_replicas,
        "max_num_seqs": engine.max_num_seqs,
    }
    words = [f"engine.{key}={getattr(shape, key)}" for key, now in wanted.items() if getattr(shape, key) != now]
    if shape.in_flight_rows != (engine.max_in_flight or 2 * shape.max_num_seqs):
        words.append(f"engine.max_in_flight={shape.in_flight_rows}")
    if shape.engines_per_device > 1 and engine.kv_cache_bytes is None:
        words.append(f"engine.kv_cache_bytes={shape.kv_cache_bytes}")
    return words


def _forecast(f: Forecast) -> Iterator[str]:
    rate, e = f.shape.rate, f.efficiency
    yield "forecast"
    yield _row("tokens/s out", f"{f.completion_tokens / f.inference_s:,.0f}", f"bound by {rate.bound}")
    yield _row("rows/s", f"{f.requests / f.inference_s:,.1f}")
    learned = f"roofline x {e.ratio:.2f}, learned from {e.jobs} job{'s' if e.jobs > 1 else ''}"
    yield _row(
        "inference", duration(f.inference_s), learned if e.jobs else "roofline; no job of this kind was seen yet"
    )
    yield _row("start-up", duration(f.start_s), "as jobs before took" if e.start_s else "assumed")
    yield _row("time", duration(f.seconds), f"{duration(f.low_s)} to {duration(f.high_s)}")
    if (cost := f.cost(f.seconds)) is not None:
        low, high = f.cost(f.low_s) or 0.0, f.cost(f.high_s) or 0.0
        devices = f"{f.shape.num_devices} device{'s' if f.shape.num_devices > 1 else ''}"
        yield _row("cost", f"{cost:,.4g}", f"{low:,.4g} to {high:,.4g}; {devices} at {f.price_per_hour:g} an hour")
