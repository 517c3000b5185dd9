from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conf.schema.batch import BatchJob
from conf.schema.data import DataSpec
from conf.schema.engine import EngineSpec, Sizing
from conf.schema.hardware import HardwareSpec
from conf.schema.model import ModelSpec
from pipelines.batch.plan import make_plan
from pipelines.forecast.verb import forecast_job, with_planned_sizes


@pytest.fixture
def job(tickets: Path, demo_model: Path) -> BatchJob:
    data = DataSpec(input=str(tickets), prompt="{{ ticket }}", answer="answer")
    return BatchJob(model=ModelSpec(path=str(demo_model)), data=data, engine=EngineSpec(sizing=Sizing.planned))


def test_a_plan_with_other_sizes_is_the_plan_that_a_second_look_would_make(job: BatchJob) -> None:
    plan = make_plan(job, now=0.0)
    sized = with_planned_sizes(plan)
    assert sized.job.engine.max_num_seqs == forecast_job(job).shape.max_num_seqs != plan.job.engine.max_num_seqs
    assert replace(sized, seconds=0.0) == replace(
        make_plan(replace(job, engine=sized.job.engine), now=0.0), seconds=0.0
    )
    assert sized.source is plan.source
    assert sized.seconds > plan.seconds


def test_sizes_that_somebody_set_stay(job: BatchJob) -> None:
    own = replace(job, engine=replace(job.engine, max_num_seqs=48, num_replicas="1..2"))
    engine = with_planned_sizes(make_plan(own, now=0.0)).job.engine
    assert (engine.max_num_seqs, engine.max_in_flight, engine.num_replicas) == (48, 96, "1..2")


def test_several_engines_on_a_gpu_are_told_their_cache(job: BatchJob, demo_model: Path) -> None:
    """Of another machine: a driver may lack the GPUs of its cluster."""
    data = replace(job.data, input=str(demo_model.parent / "tickets.jsonl"))
    own = replace(job, data=data, hardware=HardwareSpec(name="h200", num_devices=2))
    shape, engine = forecast_job(own).shape, with_planned_sizes(make_plan(own, now=0.0)).job.engine
    assert shape.engines_per_device > 1
    assert engine.engines_per_device == shape.engines_per_device
    assert engine.kv_cache_bytes == shape.kv_cache_bytes
    assert engine.num_replicas == str(2 * shape.engines_per_device)
