"""Figures of a card as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "exact": "exact match",
    "json_fields": "all JSON fields",
    "number": "number",
    "perplexity": "perplexity",
    "agreement": "agreement with the parent",
    "divergence": "KL from the parent, nats a token",
}


def title(name: str) -> str:
    """Returns what a figure is called."""
    return TITLES.get(name) or name.replace("field.", "field ")


def figure(measured: Mapping[str, Any], interval: Mapping[str, Any] | None = None, is_signed: bool = False) -> str:
    """Writes a figure with its interval: ``97.5 % (96.4 to 98.2)``.

    Args:
        measured: of a card's ``quality``.
        interval: one of it, such as ``parent`` or ``difference``; null is the figure itself.
        is_signed: whether it is a difference.
    """
    shown = interval or measured["figure"]
    scale, form, unit = (100, ".2f", " %") if measured["is_share"] else (1, ".4g", "")
    if is_signed and measured["is_share"]:
        unit = " points"
    sign = "+" if is_signed else ""
    value, low, high = (f"{scale * shown[key]:{sign}{form}}" for key in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})"


def num_bytes(value: float | None) -> str:
    """Writes bytes: ``6.96 MB``, ``1.31 GB``."""
    if value is None:
        return "-"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} B"


def count(value: float | None) -> str:
    """Writes a count of parameters: ``3.48 M``."""
    if value is None:
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def rate(pace: Mapping[str, Any] | None) -> str:
    """Writes tokens a second with their spread: ``4,012 (3,870 to 4,101)``."""
    if pace is None:
        return "-"
    runs = pace["tokens_per_s"]
    return f"{runs['median']:,.0f} ({runs['least']:,.0f} to {runs['most']:,.0f})"


def milliseconds(seconds: float | None) -> str:
    """Writes a short time: ``8.3 ms``."""
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def share(value: float | None) -> str:
    """Writes a share: ``14.2 %``."""
    return "-" if value is None else f"{100 * value:.1f} %"


def table(head: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    """Writes a Markdown table whose columns stand in line in a terminal too.

    Args:
        head: the columns' names.
        rows: cells.
        numbers_from: the first column whose cells end in line.
    """
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]

    def line(row: list[str]) -> str:
        shown = [
            cell.ljust(width) if at < numbers_from else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(shown)} |"

    rule = ["-" * width if at < numbers_from else "-" * (max(width, 2) - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])
