"""A service as an application of Ray Serve that somebody else deploys: KubeRay, or `serve deploy`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from conf import entry
from conf.errors import UserError
from serve.catalogue import publish
from serve.deployment import build_replicas
from serve.plan import ServicePlan, catalogue_of, make_plan


def build(args: dict[str, Any]) -> Any:
    """Returns the replicas of a service; Ray Serve calls it on the cluster, and starts them.

    Args:
        args: ``{"words": [...]}``, the words of `manta serve`; cluster=existing is one of them.

    Raises:
        UserError: when they are no service, or one that a single application cannot be.
    """
    plan = plan_of(args)
    publish(catalogue_of(plan))
    return build_replicas(plan, 0)


def plan_of(args: dict[str, Any]) -> ServicePlan:
    """Returns the service that words say.

    Raises:
        UserError: as `build` does.
    """
    words = args.get("words")
    if set(args) != {"words"} or not isinstance(words, list):
        raise UserError(f'args must be {{"words": [...]}}, the words of manta serve, got {json.dumps(args)}')
    job = entry.compose("serve", *words)
    if job.cluster.address is None:
        raise UserError("words must have cluster=existing: Ray Serve runs there already")
    plan = make_plan(job)
    if plan.others:
        raise UserError("deployment.models has no use here: each is an application of its own, and this is one")
    # the same words are the same service: replicas that run are left alone
    return replace(plan, version=hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32])
