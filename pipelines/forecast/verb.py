"""`manta plan`, and `manta batch dry_run=true`: looks at a job without running it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.engine import Device, EngineKind
from pipelines.batch.plan import Plan, absolute, make_plan, on_device
from pipelines.forecast.efficiency import key_of, look_up
from pipelines.forecast.forecast import Forecast, make_forecast
from pipelines.forecast.lengths import answer_lengths
from pipelines.forecast.offline import OfflineWork, offline_work
from pipelines.forecast.page import page
from pipelines.forecast.sample import take_sample
from pipelines.forecast.target import hardware_of, size_of
from pipelines.forecast.warning import warnings_of
from serve.engine.hardware import Hardware


def run(job: BatchJob) -> int:
    """Prints the forecast of a job.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for what `manta batch` would refuse, and for a model that does not fit on the devices.
    """
    began = time.monotonic()
    if job.engine.kind in (EngineKind.onnx, EngineKind.gguf):
        name = "edge" if job.engine.kind is EngineKind.onnx else "gguf"
        raise UserError(f"manta plan knows vLLM's speed, not that of engine={name}: time a small job, data.limit=200")
    if job.engine.kind is EngineKind.service:
        plan = make_plan(absolute(job))
        sample = take_sample(plan, job.plan)
        forecast = offline_work(sample, answer_lengths(plan, sample))
    else:
        forecast = forecast_job(absolute(job))
    looked = time.monotonic() - began
    text = json.dumps({**forecast.plain(), "looked_s": looked}, indent=2, ensure_ascii=False)
    place = job.plan.json_file
    for_person = forecast.page if isinstance(forecast, OfflineWork) else partial(page, forecast)
    print(text if place == "-" else for_person(job.engine, looked))
    if place is not None and place != "-":
        try:
            Path(place).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"plan.json_file={place}: cannot be written: {error.strerror}") from error
    return 0


def forecast_job(job: BatchJob) -> Forecast:
    """Looks at a job's input, model and devices, and makes its forecast. Takes no GPU, starts nothing.

    Args:
        job: with absolute paths.

    Raises:
        UserError: see `run`.
    """
    # the devices of the plan are those of `hardware`, which this machine need not have
    return _forecast(make_plan(replace(job, engine=replace(job.engine, device=Device.auto))), hardware_of(job))


def _forecast(plan: Plan, hardware: Hardware) -> Forecast:
    job = plan.job
    size = size_of(plan, hardware)
    sample = take_sample(plan, job.plan)
    if not sample.prompts:
        worst = ", ".join(f"{name} {rows:,}" for name, rows in sample.bad.most_common(3))
        raise UserError(f"data.input={job.data.input}: none of {sample.rows:,} rows makes a request ({worst})")
    efficiency = look_up(key_of(hardware.name, size.size_class, size.weight_kind))
    context = plan.identity.max_model_len
    forecast = make_forecast(job, sample, answer_lengths(plan, sample), size, hardware, efficiency, context)
    forecast.warnings.extend(warnings_of(job, sample, forecast))
    if job.output.path is not None and plan.output.spec.exists():
        forecast.warnings.append("output.path holds a job already: what is done there is not computed again")
    return forecast


def with_planned_sizes(plan: Plan) -> Plan:
    """Returns a plan with the sizes that its forecast chose in the place of those that nobody set.

    The input is not looked at again: sizes do not change what is read, nor what a row's answer is.

    Raises:
        UserError: see `run`.
    """
    began = time.monotonic()
    job = plan.job
    shape = _forecast(plan, hardware_of(job)).shape
    is_shared = shape.engines_per_device > 1
    engine = replace(
        job.engine,
        tensor_parallel_size=shape.tensor_parallel_size,
        pipeline_parallel_size=shape.pipeline_parallel_size,
        engines_per_device=shape.engines_per_device,
        num_replicas=job.engine.num_replicas if job.engine.is_elastic else str(shape.num_replicas),
        max_num_seqs=shape.max_num_seqs,
        max_in_flight=shape.in_flight_rows,
        # alone on its device an engine finds out itself what is free, more exactly
        kv_cache_bytes=shape.kv_cache_bytes if is_shared else job.engine.kv_cache_bytes,
    )
    sized = on_device(replace(plan, job=replace(job, engine=engine)), plan.device)
    return replace(sized, seconds=plan.seconds + time.monotonic() - began)
