"""A replica's seat in its placement group, which is given back as soon as the replica has no more to do."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.batch.infer import Infer


class SeatedInfer:
    """An `Infer` in a placement group.

    Ray Data lets go of a replica when no units are left for it, but its group would stay reserved. Nobody but Ray Data
    holds this object, so it goes with the replica; of one that dies nothing is given back: its successor sits there.
    """

    def __init__(self, **arguments: Any) -> None:
        """Starts the engine; see `Infer`."""
        import ray

        self._infer = Infer(**arguments)
        self._remove = ray.util.remove_placement_group
        self._group = ray.util.get_current_placement_group()

    def __call__(self, wrapped: pa.Table) -> pa.Table:
        """Answers units; see `Infer`."""
        return self._infer(wrapped)

    def __del__(self) -> None:
        if (group := getattr(self, "_group", None)) is not None:
            self._remove(group)
