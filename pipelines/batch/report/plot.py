"""Figures of a plot: lines over time on one grid, and round numbers for the axes. `plot.svg.jinja` draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from pipelines.batch.progress import duration
from pipelines.batch.timeline import Life

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 240, 64, 40, 14, 40
"""Of a plot and its margins, in SVG's units."""
MAX_BINS = 120
"""Spans of time into which a job is cut; none is shorter than a second."""
NOTHING = 1e-9
"""A plot of no more is one of nothing: the smallest numbers there are cannot be parted in steps."""
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A mark on an axis."""

    place: float
    """In SVG's units."""
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """Lines over the job's time."""

    name: str
    """Unique in the page."""
    title: str
    unit: str
    wall_s: float
    lines: dict[str, list[float]]
    """Values of equal spans of time, by name."""
    ready_s: float = 0.0
    """When the first engine was ready: nothing could be made before."""

    @property
    def ready_width(self) -> float:
        """How wide the time before `ready_s` is, in SVG's units."""
        return self._x(min(self.ready_s / self.wall_s, 1.0)) - LEFT

    @property
    def top(self) -> float:
        """The largest value that there is room for: a mark."""
        most = max((value for line in self.lines.values() for value in line), default=0.0)
        most = most if most > NOTHING else 1.0
        step = round_step(most, 5)
        return step * math.ceil(most / step - 1e-9)

    @property
    def x_ticks(self) -> list[Tick]:
        """Marks of time."""
        step_s = next((step for step in _TIME_STEPS_S if self.wall_s / step <= 7), None)
        step_s = step_s or 86400 * math.ceil(self.wall_s / 86400 / 7)
        times = [step_s * number for number in range(int(self.wall_s / step_s) + 1)]
        return [Tick(place=self._x(at_s / self.wall_s), label=_time(at_s)) for at_s in times]

    @property
    def y_ticks(self) -> list[Tick]:
        """Marks of value."""
        step = round_step(self.top, 5)
        values = [step * number for number in range(round(self.top / step) + 1)]
        return [Tick(place=self._y(value), label=compact(value)) for value in values]

    def points(self, line: str) -> str:
        """Returns a line as SVG's polyline wants it: a point in the middle of each span."""
        values = self.lines[line]
        places = ((self._x((number + 0.5) / len(values)), self._y(value)) for number, value in enumerate(values))
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    def under(self, line: str) -> str:
        """Returns what lies under a line, as SVG's polygon wants it."""
        values, base = self.lines[line], self._y(0.0)
        ends = (self._x((number + 0.5) / len(values)) for number in (0, len(values) - 1))
        first, last = (f"{x:.1f},{base:.1f}" for x in ends)
        return f"{first} {self.points(line)} {last}"

    def words(self, line: str) -> str:
        """Says what a line shows."""
        values = self.lines[line]
        mean = sum(values) / len(values) if values else 0.0
        return f"{line}: {compact(mean)} {self.unit} on average, {compact(max(values, default=0.0))} at most"

    def _x(self, fraction: float) -> float:
        return LEFT + fraction * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)


def num_bins(wall_s: float) -> int:
    """Returns into how many spans a job is cut."""
    return max(1, min(MAX_BINS, int(wall_s)))


def rates(lives: list[Life], counter: int, wall_s: float) -> list[float]:
    """Returns what replicas made in a second together, in each span of a job's time.

    Args:
        lives: the replicas.
        counter: 0 prompt tokens, 1 completion tokens; see `Series.at`.
        wall_s: the job's length.
    """
    bins = num_bins(wall_s)
    edges = [wall_s * number / bins for number in range(bins + 1)]
    made = [sum(life.series.at(at_s)[counter] for life in lives) for at_s in edges]
    span_s = wall_s / bins
    return [(after - before) / span_s for before, after in pairwise(made)]


def round_step(top: float, steps: int) -> float:
    """Returns the least of 1, 2, 5, 10, 20, ... (or a tenth, ...) of which no more than ``steps`` make ``top``."""
    size = 10.0 ** math.floor(math.log10(top / steps))
    return next(size * factor for factor in (1, 2, 5, 10, 20) if size * factor * steps >= top * (1 - 1e-9))


def compact(value: float) -> str:
    """Writes a number in few signs: ``0.5``, ``12``, ``3.4k``, ``12M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _time(at_s: float) -> str:
    if at_s < 60:
        return f"{at_s:g}s"
    return duration(at_s).replace("m00s", "m").replace("h00m", "h")
