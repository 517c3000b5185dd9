"""The job as a Ray Data pipeline: read -> identify -> infer -> commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from conf.schema.engine import Device
from pipelines.batch.commit import Sink, commit
from pipelines.batch.identify import identify
from pipelines.batch.infer import Infer, Replica
from pipelines.batch.plan import Plan
from pipelines.batch.read import read_split
from pipelines.batch.source import Split
from serve.engine.placement import ReplicaActors

READER_CPUS = 0.5
"""CPUs of a task that reads and tokenizes.

Ray Data fuses a task with the actor after it when both ask for the same. On a CPU that is welcome: the engine's process
has imported the tokenizer's libraries already (3 s saved on two cores). Beside a GPU, tokenizing must run ahead of the
engine in processes of its own, so it asks for something else.
"""


class SplitSource(Datasource):
    """Reads splits, each in a task."""

    def __init__(self, plan: Plan, monitor: Any) -> None:
        """Args are the plan and the job's monitor, which says when to read no more."""
        self._plan = plan
        self._monitor = monitor

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: text compresses differently."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """Returns a task for each split, whatever the parallelism."""
        source, id_column = self._plan.source, self._plan.job.data.id
        tasks = []
        for split in source.splits:
            metadata = BlockMetadata(num_rows=split.rows, size_bytes=None, input_files=None, exec_stats=None)
            read = partial(_read, split, source.schema, source.json_columns, id_column, self._monitor)
            tasks.append(ReadTask(read, metadata))
        return tasks


def _read(
    split: Split, schema: pa.Schema, json_columns: frozenset[str], id_column: str | None, monitor: Any
) -> Iterable[pa.Table]:
    return _until_stopped(read_split(split, schema, json_columns, id_column), monitor)


def _until_stopped(tables: Iterator[pa.Table], monitor: Any) -> Iterator[pa.Table]:
    for table in tables:
        stopping = ray.get(monitor.stopping.remote())
        yield table.slice(0, 0) if stopping else table


def build_pipeline(plan: Plan, monitor: Any, actors: ReplicaActors, readers: int) -> Dataset:
    """Builds the pipeline; nothing runs before it is iterated.

    Args:
        plan: what to run.
        monitor: handle of the job's `Monitor`.
        actors: the replicas' Ray options.
        readers: tasks that read and tokenize at a time.

    Returns:
        A dataset of one row of counts for each unit written; see `commit.unit_counts`.
    """
    engine = plan.job.engine
    replica = Replica(
        model=plan.job.model,
        engine=engine,
        device=plan.device,
        sampling=plan.job.sampling,
        max_model_len=plan.identity.max_model_len,
        share=engine.num_replicas,
    )
    sink = Sink(
        output=plan.output,
        format=plan.job.output.format,
        prefix=plan.job.output.prefix,
        answer_column=plan.job.data.answer,
    )
    pool = ActorPoolStrategy(
        size=engine.num_replicas,
        max_tasks_in_flight_per_actor=plan.blocks_in_flight + 1,
        max_concurrent_calls_per_actor=plan.blocks_in_flight,
        enable_true_multi_threading=True,
    )
    rows = ray.data.read_datasource(
        SplitSource(plan, monitor), override_num_blocks=len(plan.source.splits), concurrency=readers
    ).map_batches(
        partial(identify, identity=plan.identity),
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=readers),
        num_cpus=None if plan.device is Device.cpu else READER_CPUS,
    )
    if max(split.rows for split in plan.source.splits) > 2 * plan.block_rows:
        rows = rows.repartition(target_num_rows_per_block=plan.block_rows)
    answers = rows.map_batches(
        Infer,
        fn_constructor_kwargs={"replica": replica, "monitor": monitor},
        # Ray Data demands a size beside a GPU; else whatever block comes is a batch
        batch_size=plan.block_rows if actors.num_gpus else None,
        batch_format="pyarrow",
        compute=pool,
        ray_remote_args_fn=actors if engine.world_size > 1 else None,
        num_cpus=actors.num_cpus,
        num_gpus=actors.num_gpus,
    )
    return answers.map_batches(
        partial(commit, sink=sink),
        batch_size=plan.job.output.rows_per_file,
        batch_format="pyarrow",
        num_cpus=0.5,
    )
