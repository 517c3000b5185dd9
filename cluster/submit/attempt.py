"""Submission ids, which a job's content decides, and what a further submission of the same job means."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

PREFIX = "manta"
FAILED_ROWS = 3
"""The exit code of a job that is done though some rows failed."""
RESTARTED = ("batch", "serve")
"""Verbs whose driver is started again when it dies: batch goes on from its ledger, serve answers again."""
_SIGNAL = 128
"""A shell's exit code for a process that a signal ended begins here."""
_INTERRUPTED = 130


class Phase(Enum):
    """How a submission stands."""

    pending = "pending"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    stopped = "stopped"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self not in (Phase.pending, Phase.running)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job on a cluster, as Ray tells of it."""

    id: str
    phase: Phase
    exit_code: int | None = None
    """Of the driver's process; null while it runs, and where it died with its node."""
    message: str = ""
    began_s: float | None = None
    """Seconds since the epoch."""
    ended_s: float | None = None
    node: str = ""
    """Of the driver, by Ray's id."""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        """Which verb runs there; empty where it is no job of Manta's."""
        return self.metadata.get("verb", "")

    @property
    def is_done(self) -> bool:
        """Whether it did what it was for."""
        return self.phase is Phase.succeeded or self.exit_code == FAILED_ROWS

    @property
    def has_died(self) -> bool:
        """Whether its driver ended without saying so: with its node, or by a signal."""
        if self.phase is not Phase.failed:
            return False
        code = self.exit_code
        return code is None or code < 0 or (code > _SIGNAL and code != _INTERRUPTED)

    @property
    def restarts(self) -> int:
        """How often it was started again after its driver had died."""
        return int(self.metadata.get("restarts", "0"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """It is started under this id."""

    id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Follow:
    """It runs already."""

    submission: Submission


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """It has run already."""

    submission: Submission


def derive_id(verb: str, job: Mapping[str, Any], files: Mapping[str, str], place: str) -> str:
    """Returns the id of a job: the same for the same work.

    Args:
        verb: what runs.
        job: all of it as plain values.
        files: hashes of the files that travel, by their place.
        place: where results go that the job does not name.
    """
    work = {key: value for key, value in job.items() if key not in ("cluster", "progress")}
    text = json.dumps([verb, work, dict(files), place], sort_keys=True, default=str)
    return f"{PREFIX}-{verb}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def ready_line(submission_id: str) -> str:
    """Returns the end of what a service on a cluster says once it answers."""
    return f"manta jobs stop {submission_id} (drains first)"


def attempt_id(base: str, number: int) -> str:
    """Returns the id of an attempt: ID, ID-2, ID-3."""
    return base if number == 1 else f"{base}-{number}"


def latest(base: str, submissions: Iterable[Submission]) -> tuple[int, Submission | None]:
    """Returns the last attempt of a job and its number; 0 where there is none."""
    numbered = [(int(match[1] or 1), each) for each in submissions if (match := _attempt(base, each.id))]
    return max(numbered, key=lambda pair: pair[0], default=(0, None))


def decide(base: str, submissions: Iterable[Submission], is_again: bool) -> Start | Follow | Done:
    """Decides what submitting a job means, given what the cluster knows of it.

    Args:
        base: the job's id.
        submissions: those of the cluster.
        is_again: whether it shall run though it has succeeded.
    """
    number, last = latest(base, submissions)
    if last is None:
        return Start(id=base)
    if not last.phase.is_over:
        return Follow(submission=last)
    # a service that has drained and ended is not there: nothing is done twice
    if last.is_done and not is_again and last.verb != "serve":
        return Done(submission=last)
    return Start(id=attempt_id(base, number + 1))


def next_after(base: str, died: Submission, max_restarts: int) -> str | None:
    """Returns the id under which a job goes on whose driver died; null where it does not."""
    if died.verb not in RESTARTED or not died.has_died or died.restarts >= max_restarts:
        return None
    match = _attempt(base, died.id)
    return attempt_id(base, int((match and match[1]) or 1) + 1)


def _attempt(base: str, submission_id: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", submission_id)
