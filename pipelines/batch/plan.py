"""Everything that is decided, and every mistake that is found, before Ray and an engine start."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pyarrow import fs as pafs

from cluster.connect import local_devices
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.engine import Device, EngineKind
from pipelines.batch import columns as c
from pipelines.batch.identify import Identity, fingerprint_model
from pipelines.batch.source import Source, open_source, pack
from pipelines.batch.template import MessageBuilder
from pipelines.storage import Location, locate
from serve.engine.arguments import check_engine_arguments
from serve.engine.placement import Placement, place
from serve.engine.prompt import check_partition, context_tokens, read_model_config

_OURS = re.compile(r"(failed/)?part-[0-9a-f]{12}\.(parquet|jsonl)|_manta/job\.json|_manta/logs/.*")
"""What a job writes below its output folder."""
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 32, 1024
BLOCKS_PER_REPLICA = 16
"""Blocks that each replica should get: enough to balance them, few enough that a block's cost is small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A job, looked at."""

    job: BatchJob
    source: Source
    output: Location
    identity: Identity
    placement: Placement
    device: Device
    block_rows: int
    """Rows that travel together."""
    blocks_in_flight: int
    """Blocks that a replica works on at a time."""
    seconds: float
    """What looking took."""


def make_plan(job: BatchJob, now: float | None = None) -> Plan:
    """Checks a job and decides how it runs. Touches files, but neither Ray nor an engine.

    Args:
        job: the composed job.
        now: seconds since the epoch, for the name of an output folder that the user did not name.

    Raises:
        UserError: for the first mistake found.
    """
    began = time.monotonic()
    job.data.check()
    check_engine_arguments(job.engine.vllm)
    config = read_model_config(job.model)
    max_model_len = context_tokens(config, job.engine.max_model_len)
    check_partition(config, job.engine.tensor_parallel_size, job.engine.pipeline_parallel_size)
    source = open_source(job.data)
    columns = source.schema.names
    _check_columns(job, columns)
    MessageBuilder(job.data, columns)  # finds the templates' mistakes; readers build their own
    source = source.first(job.data.limit)
    device = _device(job)
    fingerprint = fingerprint_model(job.model)
    placement = place(job.engine, device)
    output = _prepare_output(job, source, now or time.time())  # last: it may delete
    in_flight = job.engine.in_flight_rows
    block_rows = source.rows // (job.engine.num_replicas * BLOCKS_PER_REPLICA)
    block_rows = min(max(block_rows, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS)
    return Plan(
        job=job,
        source=pack(source, block_rows),
        output=output,
        identity=Identity(
            model=job.model,
            model_fingerprint=fingerprint,
            data=job.data,
            sampling=job.sampling,
            columns=columns,
            max_model_len=max_model_len,
        ),
        placement=placement,
        device=device,
        block_rows=block_rows,
        blocks_in_flight=min(-(-in_flight // block_rows) + 1, 32),
        seconds=time.monotonic() - began,
    )


def _check_columns(job: BatchJob, columns: list[str]) -> None:
    from conf.errors import nearest

    for key in ("id", "answer"):
        name = getattr(job.data, key)
        if name is not None and name not in columns:
            hint = f"{nearest(name, columns)} (there are {', '.join(columns)})"
            raise UserError(f"data.{key} names the column '{name}', which the table lacks{hint}")
    for name in columns:
        if name in c.TYPES:
            raise UserError(f"data.input has a column '{name}': names that begin with __manta_ are Manta's own")
        if name in {job.output.prefix + ours for ours in c.ANSWER.values()}:
            raise UserError(f"data.input has a column '{name}' already; set output.prefix, say output.prefix=manta_")


def _device(job: BatchJob) -> Device:
    if job.engine.kind is EngineKind.fake:
        return Device.cpu
    gpus = local_devices()  # of a cluster that runs elsewhere, see on_device
    if job.engine.device is not Device.auto:
        if job.engine.device is Device.cuda and job.cluster.address is None and not gpus:
            raise UserError("engine.device=cuda, but this machine shows no NVIDIA GPU (see manta doctor)")
        return job.engine.device
    return Device.cuda if gpus else Device.cpu


def _prepare_output(job: BatchJob, source: Source, now: float) -> Location:
    """Makes the output folder and checks that it can be written and holds no former job."""
    path = job.output.path or f"out/{job.model.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
    output = locate(path, "output.path")
    try:
        info = output.filesystem.get_file_info(output.path)
        if info.type == pafs.FileType.File:
            raise UserError(f"output.path={path}: it is a file; a folder is wanted")
        former = _written(output) if info.type == pafs.FileType.Directory else []
        if former and not job.output.overwrite:
            what = PurePosixPath(former[0]).name
            raise UserError(
                f"output.path={path}: it holds a former job's {what}; choose another, or output.overwrite=true"
            )
        read = {split.location.path for split in source.splits}
        if own := read.intersection(former):
            raise UserError(
                f"output.overwrite=true would delete the input {sorted(own)[0]}; choose another output.path"
            )
        output.join("_manta", "probe").write_bytes(b"")
        output.filesystem.delete_file(output.join("_manta", "probe").path)
        for file in former:
            output.filesystem.delete_file(file)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"output.path={path}: cannot be written: {' '.join(str(error).split())[:300]}") from error
    return output


def _written(output: Location) -> list[str]:
    """Returns the paths that a former job wrote; what others put beside them is not ours."""
    listed = output.filesystem.get_file_info(pafs.FileSelector(output.path, recursive=True))
    paths = {
        entry.path: PurePosixPath(entry.path).relative_to(output.path).as_posix() for entry in listed if entry.is_file
    }
    return sorted(path for path, name in paths.items() if _OURS.fullmatch(name))


def on_device(plan: Plan, device: Device) -> Plan:
    """Returns the plan for another device: what a cluster has is known only once it is joined."""
    return replace(plan, device=device, placement=place(plan.job.engine, device))


def absolute(job: BatchJob) -> BatchJob:
    """Returns the job with local paths made absolute: workers run in other folders."""

    def path(value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser().absolute())

    model = replace(
        job.model,
        path=path(job.model.path) or "",
        tokenizer=path(job.model.tokenizer),
        chat_template=path(job.model.chat_template),
    )
    return replace(job, model=model, data=replace(job.data, prompt_file=path(job.data.prompt_file)))
