"""Examples of dead letters: a few of each class of error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipelines.batch.former import read_letters
from pipelines.ledger.folder import Folder
from pipelines.ledger.mark import Mark

_SHOWN = ("source", "position", "error", "message", "attempts", "row")


def examples(folder: Folder, marks: Iterable[Mark], each: int) -> list[dict[str, Any]]:
    """Returns dead letters, by class, file and position. Reads only files that have one that is still wanted.

    Args:
        folder: the job's.
        marks: of its units.
        each: how many of each class.
    """
    shown: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for mark in marks:
        if all(seen[error] >= each for error in mark.errors):
            continue
        for letter in read_letters(folder, mark.unit):
            row: dict[str, Any] = {name: letter.get(name) for name in _SHOWN}
            if seen[row["error"]] < each:
                shown.append(row)
            seen[row["error"]] += 1
    return sorted(shown, key=lambda row: (row["error"], row["source"], row["position"]))
