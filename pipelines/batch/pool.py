"""How many replicas a job gets: what its rows are worth, within what the user allows and the cluster holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from conf.schema.engine import EngineSpec
from serve.engine.placement import Placement, fitting

ROUNDS = 4
"""How often a replica should fill its slots with rows to be worth the start of an engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSize:
    """Sizes of a pool of replicas. Ray Data grows and shrinks it, and gives idle ones back when no units are left."""

    fewest: int
    """Below this it does not shrink while there are units."""
    first: int
    """All these start at once."""
    most: int

    @property
    def is_elastic(self) -> bool:
        """Whether the size may change."""
        return self.fewest < self.most


def pool_size(engine: EngineSpec, placement: Placement, units: int, rows: int, resources: dict[str, float]) -> PoolSize:
    """Decides the size of a job's pool.

    Args:
        engine: the pool's node; a fixed `num_replicas` stays as it is.
        placement: what one replica asks for.
        units: to be done.
        rows: in them.
        resources: all that the cluster has.
    """
    if not engine.is_elastic:
        return PoolSize(fewest=engine.min_replicas, first=engine.min_replicas, most=engine.min_replicas)
    worth = min(math.ceil(rows / (ROUNDS * engine.max_num_seqs)), units)
    most = min(max(worth, engine.min_replicas), engine.max_replicas)
    first = min(max(fitting(placement, resources), engine.min_replicas), most)
    return PoolSize(fewest=engine.min_replicas, first=first, most=most)
