"""`manta batch`: runs a planned job to its end, whatever the rows and engines do."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.connect import connect
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.engine import Device
from pipelines.batch.monitor import JobState, now
from pipelines.batch.plan import Plan, absolute, make_plan, on_device
from pipelines.batch.progress import Display, Readings, make_display
from pipelines.batch.summary import Result, Seconds, Totals
from pipelines.batch.terminal import divert_output, scratch_folder
from pipelines.storage import Location

POLL_S = 0.25


class JobFailed(Exception):
    """The job ended for a cause that is no row's."""


def run(job: BatchJob) -> int:
    """Runs a job; prints progress to stderr and the summary to stdout.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for the user's mistake, before Ray and an engine start.
    """
    began = now()
    plan = make_plan(absolute(job), began)
    logs = plan.output.join("_manta", "logs")
    with scratch_folder() as scratch:
        log = Path(logs.path if plan.output.is_local else scratch, "driver.log")
        try:
            with divert_output(log) as terminal:
                display = make_display(job.progress, plan.source.rows, terminal)
                try:
                    result = _execute(plan, display, began, Path(scratch))
                finally:
                    display.close()
        except JobFailed as error:
            print(f"manta batch: {error}\nlogs: {logs.path}", file=sys.stderr)
            return 1
    record = json.dumps(result.record(), indent=2, ensure_ascii=False)
    plan.output.join("_manta", "job.json").write_bytes(record.encode())
    print(result.text())
    if shown := result.first_rows():
        print(f"\nfirst rows:\n{shown}")
    return result.exit_code


def _execute(plan: Plan, display: Display, began: float, scratch: Path) -> Result:
    files = len({split.location.path for split in plan.source.splits})
    display.note(f"{plan.source.rows:,} rows in {files:,} file{'s' if files > 1 else ''} -> {plan.output.path}")

    engine = plan.job.engine
    readers = max(1, min(len(plan.source.splits), 8))
    num_cpus = int(engine.num_replicas * plan.placement.total.get("CPU", 1)) + 2
    with connect(plan.job.cluster, num_cpus, scratch) as connection:
        import ray

        from pipelines.batch.monitor import Monitor
        from pipelines.batch.pipeline import build_pipeline
        from serve.engine.placement import ReplicaActors

        if engine.device is Device.auto and plan.job.cluster.address is not None:
            plan = on_device(plan, Device.cuda if connection.resources.get("GPU") else Device.cpu)
        _check_room(plan, connection.resources)
        if plan.job.cluster.address is None:
            readers = min(readers, 2)
        seconds = Seconds(plan=plan.seconds, cluster=connection.start_s)
        monitor = ray.remote(num_cpus=0)(Monitor).remote(engine.max_restarts)
        actors = ReplicaActors(plan.placement, engine.num_replicas, engine.world_size > 1)
        connected = now()
        try:
            dataset = build_pipeline(plan, monitor, actors, readers)
            consumer = Consumer(dataset)
            with _interruptible() as interruption:
                state = _watch(consumer, monitor, display, plan, interruption)
        finally:
            actors.release()
            _keep_logs(connection.logs, plan.output)
    first = state.first_answer_at
    seconds.engines = first - connected if first else 0.0
    seconds.inference = state.inference_s
    seconds.total = now() - began
    result = Result(
        plan=plan,
        totals=consumer.totals,
        state=state,
        seconds=seconds,
        is_interrupted=interruption.is_set(),
    )
    done = result.totals.answers + result.totals.failed
    if done != plan.source.rows and not result.is_interrupted:
        raise JobFailed(f"{plan.source.rows - done} of {plan.source.rows} rows are unaccounted for")
    return result


class Consumer:
    """Pulls the pipeline in a thread and adds up what comes out."""

    def __init__(self, dataset: Any) -> None:
        """Starts pulling."""
        self.totals = Totals()
        self.error: BaseException | None = None
        self._dataset = dataset
        self._thread = threading.Thread(target=self._pull, name="pipeline", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Waits for the end; returns whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _pull(self) -> None:
        try:
            for batch in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for unit in batch.to_pylist():
                    self.totals.add(unit)
        except BaseException as error:
            self.error = error


def _watch(consumer: Consumer, monitor: Any, display: Display, plan: Plan, interruption: threading.Event) -> JobState:
    """Shows progress until the pipeline ends, or until an interrupted one has nothing to finish.

    Raises:
        JobFailed: when no engine can do the work.
        UserError: when a worker finds a mistake of the user's, such as a broken tokenizer.
    """
    import ray

    readings = Readings(plan.source.rows)
    is_told = False
    while not consumer.wait(POLL_S):
        if interruption.is_set() and not is_told:
            display.note("interrupted: writing what is finished (Ctrl-C again to stop at once)")
            ray.get(monitor.stop.remote())
            is_told = True
        state: JobState = ray.get(monitor.state.remote())
        _check_engines(state, plan.job.engine.max_restarts)
        if interruption.is_set() and not state.ready:
            return state
        readings.update(state, time.monotonic())
        display.show(readings)
    state = ray.get(monitor.state.remote())
    if consumer.error is not None:
        _check_engines(state, plan.job.engine.max_restarts)
        cause = _innermost(consumer.error)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from consumer.error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise JobFailed(f"{type(cause).__name__}: {lines[-1] if lines else 'see the logs'}") from consumer.error
    return state


def _check_engines(state: JobState, max_restarts: int) -> None:
    if state.start_failure is not None:
        raise JobFailed(f"an engine did not start: {state.start_failure}")
    if len(state.deaths) > max_restarts:
        died = f"{len(state.deaths)} engines died, engine.max_restarts={max_restarts}"
        raise JobFailed(f"{died}; the last one: {state.deaths[-1]}")


def _check_room(plan: Plan, resources: dict[str, float]) -> None:
    """Checks that the cluster can hold all replicas and a reader.

    Raises:
        UserError: when it cannot.
    """
    for name, amount in plan.placement.total.items():
        needed = amount * plan.job.engine.num_replicas + (1 if name == "CPU" else 0)
        if resources.get(name, 0) < needed:
            have = resources.get(name, 0)
            raise UserError(
                f"engine.num_replicas={plan.job.engine.num_replicas} of {amount:g} {name} each"
                f"{' and a reader' if name == 'CPU' else ''} need {needed:g} {name}, the cluster has {have:g}"
            )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C finishes early and keeps what is done, the second ends at once."""
    interrupted = threading.Event()

    def on_signal(signum: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()  # no more than this: the handler may run in the midst of a print

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_logs(logs: Path | None, output: Location) -> None:
    """Copies the logs of Ray, its workers and the engines into the job's folder."""
    if logs is None or not output.is_local:
        return
    target = Path(output.join("_manta", "logs").path)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(logs.glob("**/*")):
        wanted = path.name.startswith(("worker-", "ray-data", "raylet", "gcs_server", "python-core-driver"))
        if wanted and path.is_file() and path.stat().st_size:
            shutil.copyfile(path, target / path.name)


def _innermost(error: BaseException) -> BaseException:
    """What began it: Ray wraps errors in errors."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error
