"""Shows what a submitted job writes, until it is over or says that it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.submit.attempt import Phase, Submission
from cluster.submit.client import ClusterGone, JobClient

POLL_S = 0.25
"""Seconds between two looks at a job: Ray's own end of a log comes up to 3 s late."""
AGAIN_S, GONE_S = 1.0, 10.0
"""Seconds between two tries to reach a cluster, and after which it is gone."""
WAIT_S = 20.0
"""Seconds that a job may take to begin before it is said that it waits."""
_RAYS = ("Running entrypoint for job ", "Runtime env is setting up.")
"""Lines that Ray writes into the log of every job."""


class Log:
    """What is known of a job's log, shown line by line and each once, however often it is read from its beginning."""

    def __init__(self, show: Callable[[str], None], marker: str | None = None) -> None:
        """Args: what shows a line; a text after which a service is ready."""
        self._show = show
        self._marker = marker
        self._taken = 0
        self._rest = ""
        self.is_ready = False

    def take(self, position: int, text: str) -> int:
        """Takes a piece of the log that begins at a position; returns the position after it."""
        end = position + len(text)
        if end > self._taken:
            new = text[max(0, self._taken - position) :]
            self._taken = end
            *lines, self._rest = (self._rest + new).split("\n")
            for line in lines:
                self._line(line)
        return end

    def close(self) -> None:
        """Shows a last line that has no end."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _line(self, line: str) -> None:
        if self._marker is not None and self._marker in line:
            self.is_ready = True
        if not any(part in line for part in _RAYS):
            self._show(line)


def follow(
    client: JobClient,
    submission_id: str,
    show: Callable[[str], None],
    marker: str | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Submission:
    """Returns how a submission stands when it is over, or when its log holds a text.

    Args:
        client: the cluster.
        submission_id: the submission.
        show: takes each line of the log.
        marker: the text; null waits for the end.
        on_wait: called once where it does not begin for long.

    Raises:
        ClusterGone: when the cluster does not answer any more.
        UserError: when it knows no such submission.
    """
    return asyncio.run(_follow(client, submission_id, Log(show, marker), on_wait))


async def _follow(client: JobClient, submission_id: str, log: Log, on_wait: Callable[[], None] | None) -> Submission:
    began = time.monotonic()
    reading = asyncio.create_task(_read(client, submission_id, log))
    try:
        while True:
            submission = await _look(client, submission_id)
            if submission.phase.is_over or log.is_ready:
                break
            if on_wait is not None and submission.phase is Phase.pending and time.monotonic() - began > WAIT_S:
                on_wait()
                on_wait = None
            await asyncio.sleep(POLL_S)
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    if submission.phase.is_over:
        with suppress(ClusterGone):  # it went with its node
            log.take(0, await asyncio.to_thread(client.log, submission_id))
        log.close()
    return submission


async def _read(client: JobClient, submission_id: str, log: Log) -> None:
    while True:
        position = 0
        try:
            async for text in client.tail(submission_id):
                position = log.take(position, text)
            return
        except ClusterGone:
            await asyncio.sleep(AGAIN_S)


async def _look(client: JobClient, submission_id: str) -> Submission:
    began = time.monotonic()
    while True:
        try:
            return await asyncio.to_thread(client.submission, submission_id)
        except ClusterGone:
            if time.monotonic() - began > GONE_S:
                raise
        await asyncio.sleep(AGAIN_S)
