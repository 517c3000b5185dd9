"""Whether a cluster holds a service."""

from __future__ import annotations

from conf.errors import UserError
from serve.plan import ServicePlan


def check_room(plan: ServicePlan, resources: dict[str, float]) -> str | None:
    """Checks that the cluster can hold the replicas that the service begins with.

    Args:
        plan: the service.
        resources: all that the cluster has.

    Returns:
        What to tell the user where it cannot hold as many as the load may come to need; null where it can.

    Raises:
        UserError: when it cannot hold the first ones.
    """
    asked, warning = plan.job.engine.num_replicas, None
    parts = plan.parts
    for name in dict.fromkeys(name for part in parts for name in part.placement.total):
        each = [part.placement.total.get(name, 0.0) for part in parts]
        needed = sum(amount * part.num_replicas for amount, part in zip(each, parts, strict=True))
        most = sum(amount * part.job.engine.max_replicas for amount, part in zip(each, parts, strict=True))
        have = resources.get(name, 0)
        which = f"engine.num_replicas={asked} of {each[0]:g} {name} each"
        which = which if len(parts) == 1 else f"engine.num_replicas of all {len(parts)} models together"
        if have < needed:
            raise UserError(f"{which} need {needed:g} {name}, the cluster has {have:g}")
        if have < most:
            room = f"room for {int(have / each[0])}" if len(parts) == 1 else f"{have:g} {name}"
            warning = f"{which}: the cluster has {room}, more must wait for nodes that join it"
    return warning
