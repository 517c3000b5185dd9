"""Plan against actual, and what it cost: the figures of two sections of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.batch.attribution import Cause, Share
from pipelines.batch.progress import duration


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A figure that was planned, and what it came to."""

    name: str
    planned: str
    actual: str
    ratio: float
    """Actual over planned; 0 where nothing was planned."""
    planned_part: float
    """Of the larger of the two, 0 to 1: the length of a bar."""
    actual_part: float


def compared(record: dict[str, Any]) -> list[Compared]:
    """Returns what the planner said of this work beside what it came to; none where it said nothing."""
    predicted = record.get("predicted")
    if not predicted:
        return []
    seconds, speed = record["seconds"]["inference"], record["completion_tokens_per_s"] or 0.0
    return [
        _pair("inference", predicted["inference_s"], seconds, _seconds),
        _pair("output tokens a second", predicted["completion_tokens_per_s"], speed, lambda value: f"{value:,.0f}"),
    ]


def why(record: dict[str, Any]) -> str:
    """Says what the plan is made of."""
    predicted = record["predicted"]
    return (
        f"The roofline of these devices, bound by {predicted['bound']}, allows {_seconds(predicted['roofline_s'])};"
        f" engines like these reach {predicted['efficiency']:.0%} of it".replace("%", " %")
        + ". The plan is for the requests, tokens and engines that there were, so what it misses is the engines' speed."
    )


def cost_by_cause(record: dict[str, Any], share: Share) -> list[tuple[str, float, float]]:
    """Returns what was paid for each cause: its name, the cost, and its part of all. None where no price is known."""
    cost = record.get("cost")
    if cost is None:
        return []
    return [(cause.value, cost * share.fraction(cause), share.fraction(cause)) for cause in Cause]


def cost_of_each(record: dict[str, Any], rows: int, tokens: int) -> list[tuple[str, float]]:
    """Returns what a thousand rows and a million output tokens have cost.

    Args:
        record: with a cost.
        rows: that this run's engines are done with.
        tokens: of their answers.
    """
    found = [("a thousand rows", 1e3, rows), ("a million output tokens", 1e6, tokens)]
    return [(name, record["cost"] * size / count) for name, size, count in found if count]


def _pair(name: str, planned: float, actual: float, write: Any) -> Compared:
    most = max(planned, actual) or 1.0
    return Compared(
        name=name,
        planned=write(planned),
        actual=write(actual),
        ratio=actual / planned if planned else 0.0,
        planned_part=planned / most,
        actual_part=actual / most,
    )


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value < 600 else duration(value)
