"""Where replicas report and the driver looks: counts while the job runs, and whether it should stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from serve.engine.protocol import EngineStats


@dataclass(kw_only=True, slots=True)
class ReplicaReport:
    """What one replica says of itself."""

    replica: str
    engine: EngineStats = field(default_factory=EngineStats)
    skipped: int = 0
    """Rows that were bad before they reached the engine."""
    first_request_at: float | None = None
    """Seconds since the epoch, as are the others."""
    first_answer_at: float | None = None
    last_answer_at: float | None = None
    ready_at: float | None = None

    @property
    def rows(self) -> int:
        """Rows that it is done with."""
        return self.engine.completions + self.engine.rejections + self.skipped


@dataclass(kw_only=True, slots=True)
class JobState:
    """What the driver sees."""

    replicas: dict[str, ReplicaReport] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)
    """Why each dead engine died."""
    start_failure: str | None = None
    """Why an engine did not start."""
    is_stopping: bool = False

    @property
    def ready(self) -> int:
        """Replicas whose model is loaded."""
        return sum(report.ready_at is not None for report in self.replicas.values())

    @property
    def rows(self) -> int:
        """Rows that replicas are done with."""
        return sum(report.rows for report in self.replicas.values())

    @property
    def failed(self) -> int:
        """Of them, those with no answer."""
        return sum(report.engine.rejections + report.skipped for report in self.replicas.values())

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of the answered rows."""
        return sum(report.engine.prompt_tokens for report in self.replicas.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answers."""
        return sum(report.engine.completion_tokens for report in self.replicas.values())

    @property
    def inference_s(self) -> float:
        """Seconds from the first request that an engine got to the last answer."""
        first = [r.first_request_at for r in self.replicas.values() if r.first_request_at is not None]
        last = [r.last_answer_at for r in self.replicas.values() if r.last_answer_at is not None]
        return max(last) - min(first) if first and last else 0.0

    @property
    def first_answer_at(self) -> float | None:
        """When the first answer came, in seconds since the epoch."""
        return min((r.first_answer_at for r in self.replicas.values() if r.first_answer_at is not None), default=None)


class Monitor:
    """A plain class; `ray.remote` makes it an actor."""

    def __init__(self, max_restarts: int) -> None:
        """``max_restarts`` is the number of dead engines that are replaced."""
        self._state = JobState()
        self._max_restarts = max_restarts

    def report(self, report: ReplicaReport) -> bool:
        """Takes a replica's counts; returns whether it should stop."""
        self._state.replicas[report.replica] = report
        return self._state.is_stopping

    def may_start(self) -> bool:
        """Whether one more engine may start: not when more have died than are replaced."""
        return len(self._state.deaths) <= self._max_restarts

    def died(self, replica: str, cause: str) -> None:
        """Notes a dead engine. What it had not handed on is computed again, so its counts go."""
        self._state.deaths.append(cause)
        self._state.replicas.pop(replica, None)

    def failed_to_start(self, cause: str) -> None:
        """Notes an engine that did not start."""
        self._state.start_failure = self._state.start_failure or cause

    def stop(self) -> None:
        """Asks everyone to finish early."""
        self._state.is_stopping = True

    def stopping(self) -> bool:
        """Whether everyone should finish early."""
        return self._state.is_stopping

    def state(self) -> JobState:
        """Returns all of it."""
        return self._state


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
