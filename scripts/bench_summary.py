"""What a benchmark's runs come to: medians with their spread, ratios, and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FIGURES: dict[str, tuple[str, float, int]] = {
    "rows_per_s": ("rows/s", 1, 1),
    "tokens_per_s": ("tokens/s out", 1, 0),
    "prompt_tokens_per_s": ("tokens/s in", 1, 0),
    "first_row_s": ("first row, s", 1, 1),
    "process_wall_s": ("wall, s", 1, 1),
    "peak_bytes": ("peak, GiB", 1 << 30, 2),
    "prefix_hit_rate": ("prefix hits", 1, 3),
    "exact_match": ("exact match", 1, 4),
}
"""For each figure its column's head, what it is divided by there, and digits. A runner may lack the last two."""

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Measurements by runner."""


def with_rates(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a measurement with its rates a second of steady state."""
    seconds = result["inference_s"]
    rates = {
        "rows_per_s": result["rows"] / seconds,
        "tokens_per_s": result["completion_tokens"] / seconds,
        "prompt_tokens_per_s": result["prompt_tokens"] / seconds,
    }
    if result.get("cached_tokens") is not None and result["prompt_tokens"]:
        rates["prefix_hit_rate"] = result["cached_tokens"] / result["prompt_tokens"]
    return {**result, **rates}


def check_work(result: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Checks that all work was done.

    Args:
        result: a measurement.
        expected: `bench_workloads.describe`; it lacks tokens where only the model knows them.

    Raises:
        ValueError: when a count differs, which would be a benchmark of something else.
    """
    for count in ("rows", "prompt_tokens", "completion_tokens"):
        if count in expected and result[count] != expected[count]:
            raise ValueError(f"{count} must be {expected[count]:,}, the runner has {result[count]:,}")


def summarize(runs: Runs, figures: Iterable[str] = tuple(FIGURES)) -> dict[str, Any]:
    """Returns each figure's median, minimum and maximum for each runner that has measurements."""
    summary: dict[str, Any] = {}
    for name, results in runs.items():
        for figure in figures:
            values = [result[figure] for result in results if result.get(figure) is not None]
            if values:
                spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
                summary.setdefault(name, {})[figure] = spread
    return summary


def ratios(summary: Mapping[str, Any], to: str) -> dict[str, dict[str, float]]:
    """Returns how much better one runner is than each other, by medians.

    Args:
        summary: see `summarize`.
        to: the runner that is compared.

    Returns:
        For each other runner ``steady``, tokens a second over its tokens a second, and ``wall``, its time over ours.
    """
    if to not in summary:
        return {}
    own = summary[to]
    return {
        name: {
            "steady": round(own["tokens_per_s"]["median"] / figures["tokens_per_s"]["median"], 3),
            "wall": round(figures["process_wall_s"]["median"] / own["process_wall_s"]["median"], 3),
        }
        for name, figures in summary.items()
        if name != to
    }


def table(summary: Mapping[str, Any], shares: Mapping[str, Mapping[str, float]], to: str) -> str:
    """Returns the figures as a Markdown table: median (minimum to maximum)."""
    shown = [figure for figure in FIGURES if any(figure in figures for figures in summary.values())]
    heads = ["runner", *(FIGURES[figure][0] for figure in shown), f"{to}: steady", f"{to}: wall"]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join("---" for _ in heads) + " |"]
    for name, figures in summary.items():
        cells = [cell(figures.get(figure), *FIGURES[figure][1:]) for figure in shown]
        share = shares.get(name)
        cells += [f"{share['steady']:.2f} x", f"{share['wall']:.2f} x"] if share else ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(spread: Mapping[str, float] | None, scale: float, digits: int) -> str:
    """Returns a figure for a table: median (minimum to maximum); empty without one."""
    if spread is None:
        return ""
    low, mid, high = (spread[key] / scale for key in ("min", "median", "max"))
    if low == high:
        return f"{mid:,.{digits}f}"
    return f"{mid:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
