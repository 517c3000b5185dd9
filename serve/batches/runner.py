"""Runs batches, each as a job of `manta batch` that asks the service itself, at batch priority.

All that is known stands in the records and in the jobs' ledgers: after a restart the same commands run again and go on.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conf.schema.batches import BatchesSpec
from serve.batches.ask import Checked, check_lines
from serve.batches.records import Kind, Object
from serve.batches.shelf import Shelf

TICK_S = 1.0
AGAIN_S = 5.0
"""How long a job that ended too soon is left alone; another's lease is given up within a minute."""
MAX_FAILURES = 20
"""A job that so often ends too soon, with no row done between, is given up."""
LEAVE_S = 30.0
"""How long jobs may take to keep what is finished when the service ends."""
DONE = (0, 3)
"""Exit codes of `manta batch` at its end: all rows answered, or some failed."""
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Job:
    """A batch's process."""

    process: subprocess.Popen[bytes] | None = None
    told_at: float | None = None
    """When it was told to end; once more, and it ends at once."""
    num_failures: int = 0
    rest_until: float = 0.0
    num_done: int = 0


class Runner:
    """One for a service. `tick` does what is to be done; a thread calls it."""

    def __init__(
        self,
        shelf: Shelf,
        spec: BatchesSpec,
        models: Callable[[], Sequence[str]],
        command: Callable[[Path, Path], Sequence[str]],
        environment: Mapping[str, str],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Starts nothing yet.

        Args:
            shelf: where batches are.
            spec: the limits.
            models: tells the names that the service has models under now.
            command: makes the job's command of the input file and the output folder.
            environment: of the jobs.
            now: seconds since 1970.
        """
        self._shelf, self._records, self._spec = shelf, shelf.records, spec
        self._models, self._command, self._environment, self._now = models, command, environment, now
        self._jobs: dict[str, _Job] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tells the jobs to keep what is finished, and returns when they have; the next service goes on with them."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)
        running = [job.process for job in self._jobs.values() if job.process is not None]
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + LEAVE_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            try:
                self.tick()
            except Exception as error:  # a full disk, say: the next tick tries again
                _log.error("batches: %s: %s", type(error).__name__, error)

    def tick(self) -> None:
        """Looks once at each batch that is not at its end, the oldest first."""
        for owner, batch in self._records.labelled(Kind.batch, _OPEN):
            job = self._jobs.setdefault(batch["id"], _Job())
            is_late = self._now() >= batch["expires_at"]
            code = job.process.poll() if job.process is not None else None
            if job.process is not None and code is None:
                self._count(batch)
                is_over = is_late or batch["status"] == "cancelling"
                if is_over and (job.told_at is None or self._now() - job.told_at > LEAVE_S):
                    job.process.send_signal(signal.SIGINT)
                    job.told_at = self._now()
            elif batch["status"] == "cancelling" or is_late:
                self._finish(owner, batch, "expired" if is_late else "cancelled")
            elif code in DONE or batch["status"] == "finalizing":
                self._finish(owner, batch, "completed")
            elif batch["status"] == "validating":
                if self._has_room():
                    self._begin(owner, batch, job)
            else:
                self._go_on(owner, batch, job, code)

    def _has_room(self) -> bool:
        running = sum(job.process is not None and job.process.poll() is None for job in self._jobs.values())
        return running < self._spec.max_running

    def _begin(self, owner: str, batch: Object, job: _Job) -> None:
        try:
            with self._shelf.content(batch["input_file_id"]).open("rb") as lines:
                checked = check_lines(lines, batch["endpoint"], self._models(), self._spec.max_lines)
        except OSError:
            checked = Checked()
            checked.note("file_not_found", "The input file is not there any more.")
        if checked.errors:
            self._fail(batch, checked.errors)
            return
        counts = {"total": checked.total, "completed": 0, "failed": 0}
        if self._move(batch, "in_progress", ("validating",), request_counts=counts):
            self._launch(batch, job)

    def _launch(self, batch: Object, job: _Job) -> None:
        folder = self._shelf.job(batch["id"])
        folder.mkdir(mode=0o700, exist_ok=True)
        source = folder / "input.jsonl"
        if not source.exists():  # the job goes on when its owner deletes the file
            source.hardlink_to(self._shelf.content(batch["input_file_id"]))
        with (folder / "log").open("ab") as said:
            job.process = subprocess.Popen(
                list(self._command(source, folder / "out")),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=dict(self._environment),
                start_new_session=True,  # a terminal's Ctrl-C is the service's, which tells its jobs
            )
        job.told_at = None

    def _go_on(self, owner: str, batch: Object, job: _Job, code: int | None) -> None:
        """Starts a job again that ended too soon, or that a former service began."""
        if code is not None:
            job.process = None
            num_done = sum(self._count(batch))
            job.num_failures = job.num_failures + 1 if num_done == job.num_done else 1
            job.num_done, job.rest_until = num_done, self._now() + AGAIN_S
            _log.warning("batch %s ended with %d, see its log", batch["id"], code)
            if job.num_failures >= MAX_FAILURES:
                self._collect(owner, batch)
                said = "The job of this batch ends too soon, again and again."
                self._fail(batch, [{"code": "internal_error", "message": said, "line": None, "param": None}])
        elif self._now() >= job.rest_until and self._has_room():
            self._launch(batch, job)

    def _finish(self, owner: str, batch: Object, status: str) -> None:
        self._move(batch, "finalizing", ("in_progress",))
        completed, failed = self._count(batch)
        found = self._collect(owner, batch)
        counts = {**batch["request_counts"], "completed": completed, "failed": failed}
        self._move(batch, status, ("validating", "finalizing", "cancelling"), request_counts=counts, **found)
        self._jobs.pop(batch["id"], None)

    def _fail(self, batch: Object, errors: list[Object]) -> None:
        self._move(batch, "failed", ("validating", "in_progress"), errors={"object": "list", "data": errors})
        self._jobs.pop(batch["id"], None)

    def _collect(self, owner: str, batch: Object) -> dict[str, str]:
        """Makes files of what the job has written."""
        found: dict[str, str] = {}
        for field, name in (("output_file_id", "output"), ("error_file_id", "errors")):
            path = self._shelf.job(batch["id"]) / "out" / f"{name}.jsonl"
            if path.is_file() and path.stat().st_size:
                with path.open("rb") as source:
                    own = f"{batch['id']}/{name}"  # the same name when it is done twice
                    filename = f"{batch['id']}_{name}.jsonl"
                    found[field] = self._shelf.put(owner, source, filename, "batch_output", own=own)["id"]
        return found

    def _count(self, batch: Object) -> tuple[int, int]:
        """Returns how many of its rows are answered and failed, as its ledger says, and tells whoever asks."""
        completed = failed = 0
        with suppress(OSError):
            for mark in (self._shelf.job(batch["id"]) / "out" / "_manta" / "done").glob("*.json"):
                with suppress(OSError, ValueError, KeyError, TypeError):  # one that is just written
                    read = json.loads(mark.read_bytes())
                    completed, failed = completed + int(read["answers"]), failed + int(read["failed"])
        counts = {**batch["request_counts"], "completed": completed, "failed": failed}
        if counts != batch["request_counts"]:
            self._records.change(batch["id"], lambda now: {**now, "request_counts": counts})
        return completed, failed

    def _move(self, batch: Object, status: str, before: tuple[str, ...], **more: object) -> bool:
        """Gives a batch another status, where it has one of those before; returns whether it has it."""
        moment = {f"{status}_at": int(self._now())}

        def move(now: Object) -> Object | None:
            return {**now, **more, **moment, "status": status} if now["status"] in before else None

        moved = self._records.change(batch["id"], move)
        return moved is not None and moved["status"] == status
