"""How many new replicas an update starts beside the old ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

from conf.errors import UserError
from serve.plan import ServicePlan


def surges(old: ServicePlan, new: ServicePlan, free: Mapping[str, float]) -> dict[str, int]:
    """Decides for each model of a service how many of its new replicas start beside the old ones, of their number.

    Args:
        old: what runs.
        new: what shall run.
        free: resources that nobody has.

    Returns:
        Percents by the keys of models that are new or differ; see `surge_percent`.

    Raises:
        UserError: when there is no room.
    """
    left, before, found = dict(free), {part.key: part for part in old.parts}, {}
    for part in new.parts:
        was = before.get(part.key)
        if was is not None and was.version == part.version:
            continue
        if was is None:  # it has no replicas that could leave one after the other
            if _fitting(part, left) < part.num_replicas:
                raise _no_room(part, part.num_replicas, left)
            found[part.key] = 100
        else:
            found[part.key] = surge_percent(was, part, left)
        beside = math.ceil(part.num_replicas * found[part.key] / 100)
        left = {name: amount - beside * part.placement.total.get(name, 0.0) for name, amount in left.items()}
    return found


def surge_percent(old: ServicePlan, new: ServicePlan, free: Mapping[str, float]) -> int:
    """Decides how many new replicas of a model start beside the old ones, of their number.

    Args:
        old: what runs.
        new: what shall run.
        free: resources that nobody has.

    Returns:
        0 where an old one has to leave for each new one, which needs two old ones at least.

    Raises:
        UserError: when there is room for none.
    """
    needs, frees = new.placement.total, old.placement.total
    if fits := _fitting(new, free):
        return 100 * min(fits, new.num_replicas) // new.num_replicas
    if old.num_replicas > 1 and all(amount <= frees.get(name, 0.0) for name, amount in needs.items()):
        return 0
    raise _no_room(new, 1, free)


def _fitting(part: ServicePlan, free: Mapping[str, float]) -> int:
    """How many replicas find room."""
    needs = part.placement.total
    return max(0, min(int(free.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items() if amount))


def _no_room(part: ServicePlan, count: int, free: Mapping[str, float]) -> UserError:
    needs = {name: amount * count for name, amount in part.placement.total.items() if amount}
    lacking = ", ".join(f"{amount:g} {name} ({free.get(name, 0.0):g} free)" for name, amount in needs.items())
    which = "a replica" if count == 1 else f"{count} replicas"
    which += f" of deployment.models.{part.key}" if part.key else ""
    return UserError(
        f"deployment.update=rolling has no room for {which} beside those that run: it needs {lacking};"
        " deployment.update=replace drains the old ones first, and requests get 503 meanwhile"
    )
