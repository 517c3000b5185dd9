"""When a job that was asked to stop has nothing more to wait for."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.batch.monitor import JobState

QUIET_S = 5.0
"""Longer than replicas are silent between reports, and than most take to write a unit: what is cut is done again."""


@dataclass(slots=True)
class Quiet:
    """How long no engine has had a row.

    A pipeline that waits for what its cluster has no room for, a replica or a reader, never ends by itself.
    """

    _rows: int = -1
    _since_s: float = 0.0

    def holds(self, state: JobState | None, now_s: float) -> bool:
        """Returns whether nothing has been at work for `QUIET_S`.

        Args:
            state: as it is now; null where nobody can tell, which is no work either.
            now_s: by a clock that does not jump.
        """
        rows = 0 if state is None else state.rows
        if rows != self._rows or (state is not None and any(each.engine.running for each in state.replicas.values())):
            self._rows, self._since_s = rows, now_s
        return now_s - self._since_s >= QUIET_S
