"""Another configuration for a service that runs: handed over as a file, applied by the service's own process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from cluster.own_file import read_own, write_own
from conf.errors import UserError
from conf.schema.serve import ServeJob, Update
from serve.capacity import check_room
from serve.ensemble import Ensemble
from serve.plan import ServicePlan, make_plan
from serve.service import ServiceFailed, ServiceLost
from serve.state import Outcome, Phase, Post, ServiceState, UpdateReport, read_state
from serve.surge import surges

POLL_S = 0.25
HEAR_S = 30.0
"""Seconds that a service may take to hear of an update."""
FIXED = (
    *("deployment.host", "deployment.port", "deployment.grpc_port", "deployment.proxy", "deployment.request_timeout_s"),
    *("access.max_body_bytes", "cluster", "batches"),
)
"""Keys that hold for a service's whole life: its proxy, its cluster and its batches have them."""
IGNORED = ("deployment.detach", "deployment.update", "deployment.logs")
"""Keys that say nothing of what runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """An update as it is handed over."""

    id: str
    job: ServeJob


def changes(old: ServeJob, new: ServeJob) -> list[str]:
    """Returns what differs between two jobs: a line for each key.

    Raises:
        UserError: for a key that cannot change while a service runs.
    """
    lines = []
    models = [job.deployment.models for job in (old, new)]
    for key in sorted(models[0].keys() ^ models[1].keys()):
        is_new = key in models[1]
        name = models[is_new][key].model.name
        lines.append(f"deployment.models.{key}: {f'(none) -> {name}' if is_new else f'{name} -> (none)'}")
    both = models[0].keys() & models[1].keys()
    before, after = (_leaves(msgspec.to_builtins(_with_models(job, both))) for job in (old, new))
    for key in sorted(before.keys() | after.keys()):
        was, becomes = (_shown(values.get(key, "(unset)")) for values in (before, after))
        if was == becomes or key in IGNORED:
            continue
        if key in FIXED or key.split(".")[0] in FIXED:
            name = old.deployment.name
            raise UserError(
                f"{key} cannot change while {name} runs ({was} -> {becomes}): manta serve stop {name} first"
            )
        lines.append(f"{key}: {was} -> {becomes}")
    return lines


def keeping(old: ServicePlan, new: ServicePlan) -> ServicePlan:
    """Returns the new plan with the old replicas of those models that do not change."""
    before = {part.key: part for part in old.parts}

    def kept(plan: ServicePlan, part: ServicePlan) -> ServicePlan:
        was = before.get(part.key)
        if was is None or was.device is not part.device or changes(was.job, part.job):
            return plan
        return replace(plan, version=was.version, layers=was.layers)

    first, *others = new.parts
    return replace(kept(new, first), others=tuple(kept(other, other) for other in others))


def hand_over(folder: Path, state: ServiceState, plan: ServicePlan) -> int:
    """Gives a service that runs another configuration, and tells how it goes.

    Args:
        folder: where states are.
        state: of the service.
        plan: the other configuration.

    Returns:
        The exit code: 0 updated, or nothing to do; 1 the old configuration goes on, or the service has ended.

    Raises:
        UserError: for what cannot be changed, or a service that is busy.
    """
    name = state.name
    if state.phase is not Phase.ready:
        raise UserError(f"deployment.name={name}: the service is {state.phase.value}; wait, then update it")
    found = changes(state.job, plan.job)
    if not found:
        _say(f"{name} runs so already at {state.url}/v1")
        return 0
    _say("\n  ".join([f"updating {name}:", *found]))
    asked = Asked(id=uuid4().hex, job=plan.job)
    write_own(_file(folder, name), msgspec.json.encode(asked))
    deadline, said = time.monotonic() + HEAR_S, ""
    while True:
        now = read_state(folder, name)
        if now is None or not now.process.is_alive:
            _say(f"{name} has ended meanwhile; logs: {state.logs}")
            return 1
        report = now.update
        if report is not None and report.id == asked.id:
            if report.outcome is Outcome.refused:
                raise UserError(report.message)
            if report.message != said:
                said = report.message
                _say(said)
            if report.outcome is not Outcome.running:
                return 0 if report.outcome is Outcome.done else 1
        elif time.monotonic() > deadline:
            _say(f"{name} does not hear, or another update came first")
            return 1
        time.sleep(POLL_S)


def take_update(folder: Path, name: str) -> Asked | None:
    """Returns the update that a service is asked for, once; None where there is none, or none that can be read."""
    path = _file(folder, name)
    try:
        data = read_own(path)
        asked = msgspec.json.decode(data, type=Asked) if data is not None else None
    except (UserError, msgspec.DecodeError, ValueError, RecursionError):
        asked = None
    path.unlink(missing_ok=True)
    return asked


def apply_update(service: Ensemble, asked: Asked, post: Post, say: Callable[[str], None]) -> None:
    """Does an update and reports how it goes; where it fails the service goes on as it was.

    Args:
        service: what runs.
        asked: what shall run.
        post: where it is reported.
        say: where news go.

    Raises:
        ServiceLost: when neither configuration runs.
    """
    report = post.state.update = UpdateReport(id=asked.id, outcome=Outcome.running, message="")

    def tell(message: str, outcome: Outcome = Outcome.running) -> None:
        report.message, report.outcome = message, outcome
        post.tell(Phase.updating if outcome is Outcome.running else Phase.ready)
        say(message)

    import ray

    old, began = service.plan, time.monotonic()
    try:
        plan = make_plan(asked.job, is_update=True).joined(ray.cluster_resources())
        plan = keeping(old, plan.behind(old.form))
        changes(old.job, plan.job)
        is_ready = _do(service, plan, tell)
    except UserError as error:
        tell(str(error), Outcome.refused)
    except ServiceLost as error:
        tell(str(error), Outcome.failed)
        raise
    except ServiceFailed as error:
        tell(f"not updated, the former configuration goes on: {error}", Outcome.failed)
    else:
        if not is_ready:
            tell("not updated: the service was told to stop", Outcome.failed)
            return
        # how it was started stays as it was
        own = {"detach": old.job.deployment.detach, "logs": old.job.deployment.logs}
        post.state.job = replace(plan.job, deployment=replace(plan.job.deployment, **own))
        tell(f"updated after {time.monotonic() - began:.0f} s at {plan.url}/v1", Outcome.done)


def _do(service: Ensemble, plan: ServicePlan, tell: Callable[[str], None]) -> bool:
    import ray

    plan = service.at_size(plan)
    if (warning := check_room(plan, dict(ray.cluster_resources()))) is not None:
        tell(warning)
    versions = {part.version for part in service.plan.parts}
    changed = [part for part in plan.parts if part.version not in versions]
    count = sum(part.num_replicas for part in changed)
    which = f"{count} replica{'s' if count != 1 else ''}"
    if plan.job.deployment.update is Update.replace:
        tell(f"draining the old replicas, then starting {which}; requests get 503 meanwhile")
        return service.replace(plan, [part.key for part in changed])
    surge = surges(service.at_size(service.plan), plan, dict(ray.available_resources()))
    where = "beside the old ones" if all(surge.values()) else "in place of the old ones, one after the other"
    tell(f"starting {which} {where}")
    return service.roll(plan, surge)


def _with_models(job: ServeJob, keys: Container[str]) -> ServeJob:
    """A job with some of its further models only."""
    models = {key: spec for key, spec in job.deployment.models.items() if key in keys}
    return replace(job, deployment=replace(job.deployment, models=models))


def _leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys."""
    if not isinstance(values, dict) or not values:
        return {prefix: values} if prefix and values != {} else {}
    return {key: leaf for name, value in values.items() for key, leaf in _leaves(value, _join(prefix, name)).items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.update.json"


def _say(news: str) -> None:
    print(f"manta serve: {news}", file=sys.stderr, flush=True)
