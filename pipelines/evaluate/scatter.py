"""Quality against speed: a point for each card, as a page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.batch.report.page import FOLDER as REPORT
from pipelines.batch.report.page import environment
from pipelines.batch.report.plot import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Tick, compact, round_step
from pipelines.evaluate.words import figure, num_bytes, rate, title

HEIGHT = 420
"""Of the plot, in SVG's units; its width and margins are those of the report's plots."""
STEPS = 6
"""Marks on an axis."""
MARGIN = 0.08
"""Room beyond the outermost points, of the span between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A card; places are in SVG's units."""

    name: str
    words: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    colour: int
    """Of the style's eight."""
    is_left: bool
    """Whether its name stands to the left of it, where there is no room to the right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A scale from values to places."""

    low: float
    high: float
    begin: float
    end: float

    def place(self, value: float) -> float:
        """Returns where a value stands; what lies beyond the axis stands at its end."""
        part = (value - self.low) / (self.high - self.low)
        return self.begin + min(max(part, 0.0), 1.0) * (self.end - self.begin)

    def ticks(self, scale: float = 1.0) -> list[Tick]:
        """Returns round values and their places; labels are values times ``scale``."""
        step = round_step((self.high - self.low) * scale, STEPS) / scale
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            Tick(place=self.place(number * step), label=compact(round(number * step * scale, 9)))
            for number in range(first, last + 1)
        ]


def span(values: Sequence[float], begin: float, end: float, floor: float | None, ceiling: float | None) -> Axis:
    """Returns an axis on which all values have room.

    Args:
        values: at least one.
        begin: the place of the low end.
        end: that of the high end.
        floor: the axis goes no lower; null has no bound.
        ceiling: nor higher.
    """
    low, high = min(values), max(values)
    room = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
    low, high = low - room, high + room
    low = low if floor is None else max(low, floor)
    high = high if ceiling is None else min(high, ceiling)
    return Axis(low=low, high=high if high > low else low + 1.0, begin=begin, end=end)


def points(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Point], Axis, Axis]:
    """Returns the points of a table's rows that have a speed, and the axes.

    Args:
        rows: of `table.compared`; at least one has a speed.
    """
    known = [row for row in rows if row["full"] is not None]
    speeds = [row["full"]["tokens_per_s"] for row in known]
    figures = [row["quality"]["figure"] for row in known]
    ends = [value for each in figures for value in (each["low"], each["high"])]
    ceiling = 1.0 if known[0]["quality"]["is_share"] else None
    x = span([each[key] for each in speeds for key in ("least", "most")], LEFT, WIDTH - RIGHT, 0.0, None)
    y = span(ends, HEIGHT - BOTTOM, TOP, 0.0, ceiling)
    made = [
        Point(
            name=row["name"],
            words=_words(row),
            x=x.place(speed["median"]),
            x_low=x.place(speed["least"]),
            x_high=x.place(speed["most"]),
            y=y.place(shown["value"]),
            y_low=y.place(shown["low"]),
            y_high=y.place(shown["high"]),
            colour=number % 8,
            is_left=x.place(speed["median"]) > WIDTH - RIGHT - 7 * len(row["name"]) - 12,
        )
        for number, (row, speed, shown) in enumerate(zip(known, speeds, figures, strict=True))
    ]
    return made, x, y


def _words(row: Mapping[str, Any]) -> str:
    speed = f"{rate(row['full'])} tokens/s"
    return f"{row['name']}: {figure(row['quality'])}, {speed}, {num_bytes(row['disk_bytes'])}"


def scatter_page(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """Returns the page.

    Args:
        rows: of `table.compared`; at least one has a speed.
        notes: what a reader must know of them.
    """
    made, x, y = points(rows)
    style = (REPORT / "page.css").read_text(encoding="utf-8")
    quality = rows[0]["quality"]
    return (
        environment(Path(__file__).parent)
        .get_template("scatter.html.jinja")
        .render(
            style=Markup(style),
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            points=made,
            x_ticks=x.ticks(),
            y_ticks=y.ticks(100.0 if quality["is_share"] else 1.0),
            height=HEIGHT,
            metric=title(rows[0]["metric"]),
            unit="%" if quality["is_share"] else "",
            batch=next(row["full"]["batch"] for row in rows if row["full"] is not None),
            notes=notes,
        )
    )
