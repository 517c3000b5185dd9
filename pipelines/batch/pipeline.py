"""The job as a Ray Data pipeline: read -> identify -> infer -> commit."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from conf.schema.engine import Device, EngineKind
from conf.schema.service import API_KEY
from pipelines.batch.commit import Sink
from pipelines.batch.cut import cuttable
from pipelines.batch.identify import Identity, identify
from pipelines.batch.infer import Infer, Replica
from pipelines.batch.order import plan_order
from pipelines.batch.plan import Plan
from pipelines.batch.pool import PoolSize
from pipelines.batch.read import read_split
from pipelines.batch.resume import Reading, Work
from pipelines.batch.seat import SeatedInfer
from pipelines.batch.unit import Parcel, cut_units, over_units, wrap
from serve.engine.placement import ReplicaActors

READER_CPUS = 0.5
"""CPUs of a task that reads and tokenizes.

Ray Data fuses a task with the actor after it when both ask for the same, and for no number of tasks. On a CPU that is
welcome: the engine's process has imported the tokenizer's libraries already (4 s saved on two cores), and tokenizing
takes all cores beside its Python. Beside a GPU, it must run ahead of the engine in processes of its own, so it asks for
something else.
"""

MAX_READERS, MAX_LOCAL_READERS = 8, min(2, max(1, len(os.sched_getaffinity(0)) // 2))
"""Tasks that read and tokenize at a time, on a cluster and on this machine."""


class UnitSource(Datasource):
    """Reads splits, each in a task, and yields their units, a row each."""

    def __init__(self, plan: Plan, work: Work, monitor: Any) -> None:
        """Args are the plan, what is to be done, and the job's monitor, which says when to read no more."""
        self._plan = plan
        self._work = work
        self._monitor = monitor

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: text compresses differently."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """Returns a task for each split, whatever the parallelism."""
        source, id_column = self._plan.source, self._plan.job.data.id
        tasks = []
        for reading in self._work.readings:
            metadata = BlockMetadata(num_rows=len(reading.wanted), size_bytes=None, input_files=None, exec_stats=None)
            read = partial(
                _read, reading, source.schema, source.json_columns, id_column, self._work.unit_rows, self._monitor
            )
            tasks.append(ReadTask(read, metadata))
        return tasks


def _read(
    reading: Reading,
    schema: pa.Schema,
    json_columns: frozenset[str],
    id_column: str | None,
    unit_rows: int,
    monitor: Any,
) -> Iterable[pa.Table]:
    tables = read_split(reading.split, schema, json_columns, id_column)
    for unit, table in cut_units(reading.units, tables, unit_rows):
        if unit.id in reading.wanted:
            if ray.get(monitor.stopping.remote()):
                yield wrap([])
                return
            yield wrap([Parcel(unit=unit, table=table, note={})])


def build_pipeline(
    plan: Plan, work: Work, run: str, monitor: Any, claims: Any, actors: ReplicaActors, pool: PoolSize
) -> Dataset:
    """Builds the pipeline; nothing runs before it is iterated.

    Args:
        plan: the job.
        work: what of it is to be done.
        run: names this run; see `Lease`.
        monitor: handle of the job's `Monitor`.
        claims: handle of the job's `Claims`, or null.
        actors: the replicas' Ray options.
        pool: how many replicas there are.

    Returns:
        A dataset of one row for each unit written; see `commit.COMMITTED`.
    """
    job, engine = plan.job, plan.job.engine
    ordering = plan_order(job, work, pool.most)
    replica = Replica(
        model=job.model,
        engine=engine,
        device=plan.device,
        task=job.task,
        sampling=job.sampling,
        max_model_len=plan.identity.max_model_len,
        share=pool.most,
        folder=plan.output,
        run=run,
        answer_names=plan.answer_names,
        labels=plan.labels,
        prefix=job.output.prefix,
        max_attempts=job.batch.max_attempts,
        is_redrive=work.is_redrive,
        ordering=ordering,
        api_key=os.environ.get(API_KEY) if engine.kind is EngineKind.service else None,
    )
    sink = Sink(
        folder=plan.output,
        run=run,
        format=plan.format,
        prefix=job.output.prefix,
        answer_column=job.data.answer,
        model=job.model.name,
        task=job.task,
    )
    context = ray.data.DataContext.get_current()
    cuttable(context)
    if pool.is_elastic:  # Ray's threshold is above what the tasks of `max_tasks_in_flight_per_actor` can reach
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    strategy = ActorPoolStrategy(
        min_size=pool.fewest,
        max_size=pool.most,
        initial_size=pool.first,
        max_tasks_in_flight_per_actor=ordering.units + ordering.next_units,
        max_concurrent_calls_per_actor=ordering.units,
        enable_true_multi_threading=True,
    )
    readers = max(1, min(len(work.readings), MAX_READERS if job.cluster.address else MAX_LOCAL_READERS))
    units = ray.data.read_datasource(
        UnitSource(plan, work, monitor), override_num_blocks=len(work.readings), concurrency=readers
    )
    if any(len(reading.wanted) > 1 for reading in work.readings):
        units = units.repartition(target_num_rows_per_block=1)
    identified = units.map_batches(
        partial(_identify, identity=plan.identity),
        batch_size=1,
        batch_format="pyarrow",
        compute=None if plan.device is Device.cpu else TaskPoolStrategy(size=readers),
        num_cpus=None if plan.device is Device.cpu else READER_CPUS,
    )
    return identified.map_batches(
        SeatedInfer if actors.is_reserved else Infer,
        fn_constructor_kwargs={"replica": replica, "sink": sink, "monitor": monitor, "claims": claims},
        batch_size=1,
        batch_format="pyarrow",
        compute=strategy,
        ray_remote_args_fn=actors if actors.is_reserved else None,
        num_cpus=actors.num_cpus,
        num_gpus=actors.num_gpus,
    )


_IDENTIFYING = threading.Lock()
"""The tokenizer takes all cores for one unit: in an actor of many threads the first would be ready with the last."""


def _identify(wrapped: pa.Table, identity: Identity) -> pa.Table:
    with _IDENTIFYING:
        return over_units(wrapped, lambda parcel: replace(parcel, table=identify(parcel.table, identity)))
