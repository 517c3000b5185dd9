"""What finished jobs have taught: how fast engines really were beside what the roofline said.

A small JSON file of this user's: $MANTA_CACHE/efficiency.json, else in manta/ of XDG's cache folder.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

KEPT = 20
"""Last jobs that are remembered of each kind."""
MIN_INFERENCE_S = 30.0
"""A shorter job says more about its beginning and end than about the engine."""
UNKNOWN_SPREAD = 0.25
"""What the roofline may be wrong by before a job of the kind has been seen."""
LEAST_SPREAD = 0.05
ROOFLINE = "r3"
"""Which one predicted: what was learned beside another says nothing of this one. It changes with form and constants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Actual speed over predicted speed."""

    ratio: float = 1.0
    spread: float = UNKNOWN_SPREAD
    """What it may be wrong by, as a share of it."""
    jobs: int = 0
    start_s: float | None = None
    """Seconds from the command to the first answer; null where no job has been seen."""


def table_path() -> Path:
    """Returns where the table lies."""
    own = os.environ.get("MANTA_CACHE")
    if own:
        return Path(own) / "efficiency.json"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "manta" / "efficiency.json"


def key_of(hardware: str, size_class: str, weight_kind: str) -> str:
    """Returns what jobs are told apart by."""
    return f"{hardware}/{size_class}/{weight_kind}/{ROOFLINE}"


def look_up(key: str, path: Path | None = None) -> Efficiency:
    """Returns what is known of a kind of job; a table that is missing or broken knows nothing."""
    entry = _read(path or table_path()).get(key, {})
    ratios, starts = _numbers(entry, "ratios"), _numbers(entry, "start_s")
    if not ratios:
        return Efficiency()
    middle = median(ratios)
    ordered = sorted(ratios)
    cut = len(ordered) // 10
    seen = (ordered[-1 - cut] - ordered[cut]) / 2 / middle
    spread = max(seen, UNKNOWN_SPREAD / (len(ratios) + 1) ** 0.5, LEAST_SPREAD)
    return Efficiency(ratio=middle, spread=spread, jobs=len(ratios), start_s=median(starts) if starts else None)


def learn(record: dict[str, Any], path: Path | None = None) -> bool:
    """Learns from a finished job's record; returns whether there was something to learn. Never raises.

    Two drivers that end at the same moment may lose one lesson, never the table.
    """
    try:
        predicted, seconds = record["predicted"], record["seconds"]
        if record["interrupted"] or record["engine_restarts"] or not predicted:
            return False
        if not seconds["inference"] >= MIN_INFERENCE_S or not predicted["roofline_s"] > 0:
            return False
        place = path or table_path()
        table = _read(place)
        entry = table.get(predicted["key"], {})
        lesson = {
            "ratios": predicted["roofline_s"] / seconds["inference"],
            "start_s": seconds["plan"] + seconds["cluster"] + seconds["engines"],
        }
        table[predicted["key"]] = {
            name: [*_numbers(entry, name), round(value, 4)][-KEPT:] for name, value in lesson.items()
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            fresh.write_text(json.dumps(table, indent=1))
            fresh.replace(place)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
    except Exception:  # a job is done whatever becomes of its lesson
        return False
    return True


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(table, dict):
        return {}
    return {key: entry for key, entry in table.items() if isinstance(entry, dict)}


def _numbers(entry: dict[str, Any], name: str) -> list[float]:
    values = entry.get(name)
    if not isinstance(values, list):
        return []
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < 1e6]
