"""What a job's engines cost: the time for which their devices were held, whatever they did meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.batch.attribution import Share
from pipelines.batch.plan import Plan
from serve.engine.placement import devices_per_engine


def engine_price_per_s(plan: Plan, num_engines: int) -> float | None:
    """Returns the price of an engine's devices for a second; null where it is not known.

    Args:
        plan: the job, its device decided.
        num_engines: that it may have at a time; on CPU they share the machine and its price.
    """
    price = plan.job.cluster.price_per_hour
    devices = devices_per_engine(plan.job.engine, plan.device, num_engines)
    return None if price is None or not devices else price * devices / 3600


def cost_of(plan: Plan, num_engines: int, shares: Iterable[Share]) -> float | None:
    """Returns what the engines cost from the moment the cluster was ready; null where the price is not known."""
    price = engine_price_per_s(plan, num_engines)
    return None if price is None else price * sum(share.total_s for share in shares)
