"""Where replicas report and the driver looks: counts while the job runs, and whether it should stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pipelines.batch.attribution import Share, attribute
from pipelines.batch.timeline import SILENT_S, Timeline
from serve.engine.protocol import EngineStats

MAX_WAIT_S = 60.0
"""The longest wait before an engine is started in the place of a dead one."""


@dataclass(kw_only=True, slots=True)
class ReplicaReport:
    """What one replica says of itself."""

    replica: str
    engine: EngineStats = field(default_factory=EngineStats)
    found: int = 0
    """Rows that did not reach the engine: bad ones, and those whose answers were there."""
    bad: int = 0
    """The bad ones of them."""
    first_request_at: float | None = None
    """Seconds since the epoch, as are the others."""
    first_answer_at: float | None = None
    last_answer_at: float | None = None
    last_request_at: float | None = None
    """When it was last handed rows, suspects of a death apart."""
    began_at: float = 0.0
    """When its process began."""
    ready_at: float | None = None
    heard_at: float = 0.0
    slots: int = 1
    """Rows that its engine computes at a time."""
    alone: int = 0
    """Groups of suspects that it runs, or that wait for the engine to be empty."""

    @property
    def rows(self) -> int:
        """Rows that it is done with."""
        return self.engine.completions + self.engine.rejections + self.found


@dataclass(kw_only=True, slots=True)
class JobState:
    """What the driver sees."""

    replicas: dict[str, ReplicaReport] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)
    """Why each dead engine died, of those that could say."""
    restarts: int = 0
    """Engines that were started in the place of dead ones."""
    fruitless: int = 0
    """The last of them between which no row was answered."""
    is_given_up: bool = False
    """Whether too many died."""
    start_failure: str | None = None
    """Why an engine did not start."""
    failure: str | None = None
    """Why a replica could not go on, where that was not its engine's fault."""
    failure_errno: int | None = None
    """The system's number of it, where reading or writing failed."""
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
        return sum(report.engine.rejections + report.bad for report in self.replicas.values())

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of the answered rows."""
        return sum(report.engine.prompt_tokens for report in self.replicas.values())

    @property
    def prefix_hit_rate(self) -> float | None:
        """Of the prompt tokens, the share that engines' prefix caches held; null where there are none."""
        cached = sum(report.engine.cached_tokens for report in self.replicas.values())
        return cached / self.prompt_tokens if self.prompt_tokens else None

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

    def __init__(self, num_replicas: int, max_restarts: int) -> None:
        """Args: engines of the job, and how many may die one after another without a row answered in between."""
        self._state = JobState()
        self._timeline = Timeline(num_replicas=num_replicas, began_at=now())
        self._num_replicas = num_replicas
        self._max_restarts = max_restarts
        self._starts = 0
        self._answered = 0
        self._lost = 0
        self._dead: set[str] = set()
        self._is_leaving = False

    def report(self, report: ReplicaReport) -> bool:
        """Takes a replica's counts; returns whether it should stop."""
        if report.replica in self._dead:  # it was on its way when its process ended
            return True
        report.heard_at = now()
        self._state.replicas[report.replica] = report
        self._timeline.hear(report, report.heard_at)
        return self._state.is_stopping

    def may_start(self) -> float | None:
        """Hears of an engine that is about to start.

        Returns:
            Seconds to wait before, more with each death that followed on another; null where too many did.
        """
        self._starts += 1
        self._timeline.begin()
        if self._starts <= self._num_replicas:
            return 0.0
        for name, report in list(self._state.replicas.items()):
            if now() - report.heard_at > SILENT_S:  # it ended without a word
                self._lost += report.engine.completions
                self._timeline.died(name, report.heard_at)
                del self._state.replicas[name]
        answered = self._lost + sum(report.engine.completions for report in self._state.replicas.values())
        state = self._state
        state.fruitless = state.fruitless + 1 if answered <= self._answered else 1
        self._answered = max(answered, self._answered)
        state.restarts = self._starts - self._num_replicas
        if state.fruitless > self._max_restarts:
            state.is_given_up = True
            return None
        return min(2.0 ** (state.fruitless - 2), MAX_WAIT_S) if state.fruitless > 1 else 0.0

    def died(self, replica: str, cause: str, completions: int) -> None:
        """Notes a dead engine. What it had not handed on is done again, so its counts go."""
        self._dead.add(replica)
        self._state.deaths.append(cause)
        self._state.replicas.pop(replica, None)
        self._timeline.died(replica, now())
        self._lost += completions

    def failed_to_start(self, cause: str) -> None:
        """Notes an engine that did not start."""
        self._state.start_failure = self._state.start_failure or cause

    def failed(self, cause: str, errno: int | None) -> None:
        """Notes what ends the job; the first cause counts."""
        if self._state.failure is None:
            self._state.failure, self._state.failure_errno = cause, errno

    def stop(self) -> None:
        """Asks everyone to finish early."""
        self._state.is_stopping = True

    def leave(self) -> None:
        """Asks everyone to finish now; engines that are starting give up."""
        self._state.is_stopping = self._is_leaving = True

    def leaving(self) -> bool:
        """Whether engines that are starting should give up."""
        return self._is_leaving

    def stopping(self) -> bool:
        """Whether everyone should finish early."""
        return self._state.is_stopping

    def state(self) -> JobState:
        """Returns how things are now."""
        return self._state

    def shares(self) -> list[Share]:
        """Returns where the time of each engine went until now: seconds of the tail may yet turn out to be others."""
        return attribute(self._timeline.until(now()))

    def timeline(self) -> Timeline:
        """Returns how they came to be: for the job's end, since it is large."""
        return self._timeline.close(now())


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
