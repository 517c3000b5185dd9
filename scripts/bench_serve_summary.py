"""What the runs of a serving benchmark come to: medians with their spread by load, and a Markdown table for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench_summary import cell, summarize

FIGURES: dict[str, tuple[str, float, int]] = {
    "requests_per_s": ("requests/s", 1, 1),
    "tokens_per_s": ("tokens/s out", 1, 0),
    "ttft_p50_ms": ("TTFT p50, ms", 1, 1),
    "ttft_p99_ms": ("TTFT p99, ms", 1, 1),
    "tpot_p50_ms": ("TPOT p50, ms", 1, 2),
    "e2e_p50_ms": ("end to end p50, ms", 1, 1),
    "e2e_p99_ms": ("end to end p99, ms", 1, 1),
    "start_s": ("start, s", 1, 1),
    "server_cpu_ms": ("CPU of the server, ms a request", 1, 2),
    "generator_share": ("load generator, cores", 1, 2),
}
"""For each figure its column's head, what it is divided by there, and digits. Only a stream has TTFT and TPOT."""
BUSY_GENERATOR_SHARE = 0.8
"""One process cannot take more than one core: above this the load generator may be what is measured."""


def with_shares(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a measurement with the CPU that a request takes in the server, and how busy the load generator was."""
    return {
        **result,
        "server_cpu_ms": 1000 * sum(result["server_cpu_s"].values()) / result["requests"],
        "generator_share": result["generator_cpu_s"] / result["seconds"],
    }


Times = Mapping[int, tuple[str, float]]
"""By process id what it is and its CPU seconds."""


def spent(before: Times, after: Times) -> dict[str, float]:
    """Returns the CPU seconds between two looks at a server's processes, by what they are, without those that idled."""
    found: dict[str, float] = {}
    for pid, (title, seconds) in after.items():
        found[title] = found.get(title, 0.0) + seconds - before.get(pid, ("", 0.0))[1]
    return {title: round(seconds, 3) for title, seconds in sorted(found.items()) if seconds >= 0.01}


def by_load(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the summary of each load under each generator: ``LOAD, GENERATOR`` -> contender -> figure -> spread.

    Args:
        runs: measurements with ``load``, ``generator`` and ``contender``.
    """
    parts: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        part = parts.setdefault(f"{run['load']}, {run['generator']}", {})
        part.setdefault(run["contender"], []).append(run)
    return {name: summarize(part, FIGURES) for name, part in parts.items()}


def ratios(summary: Mapping[str, Any], to: str) -> dict[str, dict[str, float]]:
    """Returns what one contender has beside each other, by medians.

    Args:
        summary: of one load.
        to: the contender that is compared.

    Returns:
        For each other one ``requests``, requests a second over its requests a second, and for streams ``ttft_ms``, how
        much longer the median first token takes than its.
    """
    if to not in summary:
        return {}
    own, found = summary[to], {}
    for name, figures in summary.items():
        if name == to:
            continue
        found[name] = {"requests": round(_median(own, "requests_per_s") / _median(figures, "requests_per_s"), 3)}
        if "ttft_p50_ms" in own and "ttft_p50_ms" in figures:
            found[name]["ttft_ms"] = round(_median(own, "ttft_p50_ms") - _median(figures, "ttft_p50_ms"), 2)
    return found


def _median(figures: Mapping[str, Any], name: str) -> float:
    return figures[name]["median"]


def table(summary: Mapping[str, Any], to: str) -> str:
    """Returns one load's figures as a Markdown table: median (minimum to maximum)."""
    shares = ratios(summary, to)
    shown = [figure for figure in FIGURES if any(figure in figures for figures in summary.values())]
    heads = ["server", *(FIGURES[figure][0] for figure in shown), f"{to}: requests/s", f"{to}: TTFT p50"]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join("---" for _ in heads) + " |"]
    for name, figures in summary.items():
        cells = [cell(figures.get(figure), *FIGURES[figure][1:]) for figure in shown]
        share = shares.get(name, {})
        cells.append(f"{share['requests']:.2f} x" if share else "")
        cells.append(f"{share['ttft_ms']:+.1f} ms" if "ttft_ms" in share else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """Returns a line for each contender whose load generator may have been what was measured."""
    return [
        f"{name}: the load generator took {_median(figures, 'generator_share'):.2f} of a core"
        for name, figures in summary.items()
        if _median(figures, "generator_share") > BUSY_GENERATOR_SHARE
    ]
