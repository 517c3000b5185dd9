"""What each replica did over time: samples of what it reported, as few of them as can be kept however long the job is.

All times are seconds since the cluster was ready.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Protocol

from serve.engine.protocol import EngineStats

MAX_POINTS = 2000
"""Samples that are kept of a replica."""
DEAD_POINTS = 200
"""Of one that has ended: there may be many of those."""
FIRST_GAP_S = 0.1
"""Samples closer than this replace each other: a replica reports at the end of every unit too."""
SILENT_S = 3.0
"""A replica that has not reported for so long is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A replica at a moment. All but `running` are totals since it began, so leaving samples out loses none of them."""

    at_s: float
    running: int = 0
    """Rows that its engine holds."""
    rows: int = 0
    """Rows that it is done with; tokens are those of rows that its engine has answered."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    filled_s: float = 0.0
    """Seconds, each weighted with how full the engine was; see `fill_fraction`."""
    alone_s: float = 0.0
    """Seconds in which it ran suspects of a former death with nothing beside them; these are in no `filled_s`."""


class Series:
    """Samples in the order of time. At the limit every second one goes, and later ones are kept half as densely."""

    def __init__(self, limit: int = MAX_POINTS) -> None:
        """``limit`` is at least 4."""
        self._limit = limit
        self._gap_s = FIRST_GAP_S
        self.points: list[Sample] = []
        """The first and the last are those that were added first and last."""

    def add(self, sample: Sample) -> None:
        """Adds a sample that is not older than the last."""
        points = self.points
        if len(points) > 1 and points[-1].at_s - points[-2].at_s < self._gap_s:
            points[-1] = sample
            return
        points.append(sample)
        self.thin(self._limit)

    def copy(self) -> Series:
        """Returns one that may be added to without this one knowing; samples themselves never change."""
        made = Series(self._limit)
        made._gap_s, made.points = self._gap_s, list(self.points)
        return made

    def thin(self, limit: int) -> None:
        """Leaves samples out until no more than ``limit`` are left."""
        while len(self.points) > limit:
            self._gap_s *= 2
            self.points = [*self.points[:-1:2], self.points[-1]]

    def at(self, at_s: float) -> tuple[float, float, float, float]:
        """Returns prompt tokens, completion tokens, `filled_s` and `alone_s` at a time, linear between samples."""
        place = bisect_right(self.points, at_s, key=lambda point: point.at_s)
        before = _totals(self.points[max(place - 1, 0)])
        if not 0 < place < len(self.points):
            return before
        first, after = self.points[place - 1], self.points[place]
        share = (at_s - first.at_s) / (after.at_s - first.at_s)
        p, c, f, a = (x + share * (y - x) for x, y in zip(before, _totals(after), strict=True))
        return p, c, f, a


def _totals(point: Sample) -> tuple[float, float, float, float]:
    return point.prompt_tokens, point.completion_tokens, point.filled_s, point.alone_s


def fill_fraction(running: int, slots: int) -> float:
    """Returns how full an engine is, 0 to 1.

    Half of its slots count as full: what an engine makes grows ever more slowly with its rows (at 512 sequences a GPU
    made 77 to 91 % of the tokens that it made at 1,024). Below that it is the share of that half.
    """
    return min(1.0, running / max(1.0, slots / 2))


class Report(Protocol):
    """What is read of a `monitor.ReplicaReport`."""

    replica: str
    engine: EngineStats
    slots: int
    alone: int
    began_at: float
    ready_at: float | None
    last_request_at: float | None

    @property
    def rows(self) -> int:
        """Rows that it is done with."""
        ...


@dataclass(kw_only=True, slots=True)
class Life:
    """A replica from its process's beginning to its end."""

    replica: str
    began_s: float
    """When its process began."""
    ready_s: float
    """When its model was loaded."""
    slots: int
    """Rows that its engine computes at a time."""
    series: Series = field(default_factory=Series)
    """From `ready_s` on."""
    fed_s: float | None = None
    """When it was last handed rows."""
    ended_s: float | None = None
    """When it died; null of one that lived to the job's end."""
    is_alone: bool = False

    @property
    def last(self) -> Sample:
        """The newest sample."""
        return self.series.points[-1]

    def add(self, at_s: float, running: int, is_alone: bool, rows: int, tokens: tuple[int, int]) -> None:
        """Adds what it is at a time; between two samples it counts as halfway between both."""
        last = self.last
        at_s = max(at_s, last.at_s)
        fills = [
            0.0 if alone else fill_fraction(held, self.slots)
            for held, alone in ((last.running, self.is_alone), (running, is_alone))
        ]
        passed_s = at_s - last.at_s
        self.series.add(
            Sample(
                at_s=at_s,
                running=running,
                rows=rows,
                prompt_tokens=tokens[0],
                completion_tokens=tokens[1],
                filled_s=last.filled_s + passed_s * sum(fills) / 2,
                alone_s=last.alone_s + passed_s * (self.is_alone + is_alone) / 2,
            )
        )
        self.is_alone = is_alone

    def hold(self, until_s: float) -> None:
        """Goes on as it last was."""
        last = self.last
        tokens = last.prompt_tokens, last.completion_tokens
        self.add(until_s, last.running, self.is_alone, last.rows, tokens)

    def end(self, at_s: float) -> None:
        """Notes its death."""
        if self.ended_s is None:
            self.hold(at_s)
            self.ended_s = self.last.at_s
            self.series.thin(DEAD_POINTS)


@dataclass(kw_only=True, slots=True)
class Timeline:
    """All replicas of a job, dead ones too."""

    num_replicas: int
    """Engines that the job may have at a time."""
    began_at: float
    """When the cluster was ready, in seconds since the epoch, as are the times of all that is heard."""
    num_begun: int = 0
    """Of them, those that began to start: an elastic pool may stay smaller."""
    wall_s: float = 0.0
    """From there to the job's end."""
    lives: dict[str, Life] = field(default_factory=dict)
    """By replica, in the order in which they became ready."""

    def begin(self) -> None:
        """Notes that an engine begins to start."""
        self.num_begun = min(self.num_begun + 1, self.num_replicas)

    def hear(self, report: Report, at: float) -> None:
        """Takes a report."""
        if report.ready_at is None:
            return
        at_s = at - self.began_at
        life = self.lives.get(report.replica)
        if life is None:
            ready_s = min(max(report.ready_at - self.began_at, 0.0), max(at_s, 0.0))
            began_s = min(report.began_at - self.began_at, ready_s)
            life = Life(replica=report.replica, began_s=began_s, ready_s=ready_s, slots=report.slots)
            life.series.add(Sample(at_s=ready_s))
            self.lives[report.replica] = life
        if life.ended_s is not None:
            return
        if report.last_request_at is not None:
            life.fed_s = report.last_request_at - self.began_at
        engine = report.engine
        life.add(at_s, engine.running, report.alone > 0, report.rows, (engine.prompt_tokens, engine.completion_tokens))

    def died(self, replica: str, at: float) -> None:
        """Notes that a replica has died at a time."""
        if replica in self.lives:
            self.lives[replica].end(at - self.began_at)

    def until(self, at: float) -> Timeline:
        """Returns a timeline as if the job ended at a time; this one goes on."""
        lives = {name: replace(life, series=life.series.copy()) for name, life in self.lives.items()}
        return replace(self, lives=lives).close(at)

    def close(self, at: float) -> Timeline:
        """Ends the job; returns itself."""
        self.wall_s = max(at - self.began_at, 0.0)
        for life in self.lives.values():
            if life.ended_s is None and life.last.running and self.wall_s - life.last.at_s > SILENT_S:
                life.end(life.last.at_s)  # it held rows and said no more
            elif life.ended_s is None:
                life.hold(self.wall_s)
        return self
