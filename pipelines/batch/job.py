"""`manta batch`: runs a planned job to its end, whatever the rows and engines do."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from cluster.connect import connect, keep_logs
from cluster.terminal import divert_output, interruptible, scratch_folder
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.engine import Device, EngineKind, Sizing
from conf.schema.output import OutputFormat
from conf.schema.service import API_KEY
from pipelines.batch.cost import engine_price_per_s
from pipelines.batch.desk import ON_HEAD, start_claims
from pipelines.batch.meter import Meter
from pipelines.batch.monitor import JobState, now
from pipelines.batch.openai_part import join_parts
from pipelines.batch.plan import Plan, absolute, make_plan, on_device
from pipelines.batch.pool import pool_size
from pipelines.batch.progress import Display, make_display
from pipelines.batch.resume import Work, open_output
from pipelines.batch.summary import Result, Seconds, Written
from pipelines.batch.watch import Consumer, HeadLost, JobFailed, timeline_of, unwritable, watch
from pipelines.forecast.actual import with_prediction
from pipelines.forecast.verb import with_planned_sizes
from pipelines.ledger.lease import Lease


def run(job: BatchJob) -> int:
    """Runs a job, or goes on with it; prints progress to stderr and the summary to stdout.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for the user's mistake, before Ray and an engine start.
    """
    plan = make_plan(absolute(job), now())
    if job.engine.sizing is Sizing.planned:
        plan = with_planned_sizes(plan)
    return run_plan(plan, open_output)


def run_plan(plan: Plan, find_work: Callable[[Plan], Work]) -> int:
    """Runs a planned job under the output's lease.

    Args:
        plan: the job.
        find_work: prepares the output and says what is to be done.

    Returns:
        The exit code.

    Raises:
        UserError: for the user's mistake.
    """
    if plan.job.engine.kind is EngineKind.service:
        _check_service(plan.job)
    began = now() - plan.seconds
    lost = threading.Event()
    try:
        with Lease(plan.output, lost.set) as lease:
            try:
                result = _run_leased(plan, find_work(plan), lease.run, lost, began)
            except JobFailed as error:
                again = f"; {plan.again}" if isinstance(error, HeadLost) else ""
                print(f"manta batch: {error}{again}\nlogs: {plan.output.logs.path}", file=sys.stderr)
                return 1
            record = with_prediction(result.plan, result.record())
            plan.output.record.write_bytes(json.dumps(record, indent=2, ensure_ascii=False).encode())
            if plan.format is OutputFormat.openai_batch:
                join_parts(plan.output, result.work.units)
            if result.timeline is not None or not plan.output.report.exists():  # a run with nothing to do shows nothing
                plan.output.report.write_bytes(result.page(record).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(unwritable(plan.output.root.path, error)) from error
    except KeyboardInterrupt:
        print(f"manta batch: stopped at once; what was finished is kept, {plan.again}", file=sys.stderr)
        sys.stderr.flush()
        # threads may still speak to Ray, which would end the process with another exit code; its own processes on this
        # machine end with this one
        os._exit(130)
    print(result.text())
    if shown := result.first_rows():
        print(f"\nfirst rows:\n{shown}")
    return result.exit_code


def _check_service(job: BatchJob) -> None:
    import asyncio

    from serve.engine.service.client import check_service

    service = job.engine.service
    asyncio.run(check_service(service, service.model or job.model.name, os.environ.get(API_KEY)))


def _run_leased(plan: Plan, work: Work, run_id: str, lost: threading.Event, began: float) -> Result:
    if not work.readings:
        seconds = Seconds(plan=plan.seconds, total=now() - began)
        return Result(plan=plan, work=work, written=Written(), state=JobState(), seconds=seconds, run=run_id)
    with scratch_folder() as scratch:
        log = Path(plan.output.logs.path if plan.output.root.is_local else scratch, "driver.log")
        with divert_output(log) as terminal:
            display = make_display(plan.job.progress, work.pending_rows, terminal)
            try:
                return _execute(plan, work, run_id, lost, display, began, Path(scratch))
            finally:
                display.close()


def _execute(
    plan: Plan, work: Work, run_id: str, lost: threading.Event, display: Display, began: float, scratch: Path
) -> Result:
    files = len({split.location.path for split in plan.source.splits})
    before = f", {work.done_rows:,} of them done before" if work.done_rows else ""
    display.note(
        f"{plan.source.rows:,} rows in {files:,} file{'s' if files > 1 else ''}{before} -> {plan.output.root.path}"
    )
    engine = plan.job.engine
    num_cpus = int(engine.min_replicas * plan.placement.total.get("CPU", 1)) + 2
    with connect(plan.job.cluster, num_cpus, scratch) as connection:
        import ray

        from pipelines.batch.monitor import Monitor
        from pipelines.batch.pipeline import build_pipeline
        from serve.engine.placement import ReplicaActors

        if engine.device is Device.auto and plan.job.cluster.address is not None:
            plan = on_device(plan, Device.cuda if connection.resources.get("GPU") else Device.cpu)
        _check_room(plan, connection.resources)
        seconds = Seconds(plan=plan.seconds, cluster=connection.start_s)
        pool = pool_size(engine, plan.placement, len(work.pending), work.pending_rows, connection.resources)
        monitor = ray.remote(num_cpus=0, resources=ON_HEAD)(Monitor).remote(pool.most, engine.max_restarts)
        claims = start_claims(plan, work, scratch if plan.job.cluster.address is None else None)
        actors = ReplicaActors(plan.placement, pool.most, engine.world_size > 1 and not engine.is_elastic)
        connected = now()
        try:
            meter = Meter(plan.job.model.name, run_id, work.pending_rows, engine_price_per_s(plan, pool.most))
            consumer = Consumer(build_pipeline(plan, work, run_id, monitor, claims, actors, pool), meter.wrote)
            with interruptible() as interruption:
                try:
                    state = watch(consumer, monitor, display, meter, plan, work, interruption, lost)
                    timeline = timeline_of(monitor)
                finally:
                    if not isinstance(sys.exception(), KeyboardInterrupt):
                        consumer.leave(monitor)
        finally:
            actors.release()
            if plan.output.root.is_local:
                keep_logs(connection.logs, Path(plan.output.logs.path))
    first = state.first_answer_at
    seconds.engines = first - connected if first else 0.0
    seconds.inference = state.inference_s
    seconds.total = now() - began
    result = Result(
        plan=plan,
        work=work,
        written=consumer.written,
        state=state,
        seconds=seconds,
        run=run_id,
        timeline=timeline,
        is_interrupted=interruption.is_set(),
    )
    missing = plan.source.rows - result.totals.rows
    if missing > 0 and not result.is_interrupted:
        raise JobFailed(
            f"{missing} of {plan.source.rows} rows are unaccounted for: did the input change meanwhile? The same"
            " command goes on"
        )
    return result


def _check_room(plan: Plan, resources: dict[str, float]) -> None:
    """Checks that the cluster can hold all replicas and a reader.

    Raises:
        UserError: when it cannot.
    """
    for name, amount in plan.placement.total.items():
        needed = amount * plan.job.engine.min_replicas + (1 if name == "CPU" else 0)
        if resources.get(name, 0) < needed:
            have = resources.get(name, 0)
            raise UserError(
                f"engine.num_replicas={plan.job.engine.num_replicas} of {amount:g} {name} each"
                f"{' and a reader' if name == 'CPU' else ''} need {needed:g} {name}, the cluster has {have:g}"
            )
