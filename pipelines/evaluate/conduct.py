"""Runs a trial: an engine for the parent, then one for the model, each in an actor of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.connect import Connection
from conf.errors import UserError
from conf.schema.engine import Device
from conf.schema.evaluate import Metric
from pipelines.batch.plan import on_device
from pipelines.evaluate.examiner import Answer, Examiner
from pipelines.evaluate.rows import spread
from pipelines.evaluate.trial import Subject, Trial
from serve.engine.errors import EngineDead
from serve.engine.placement import ReplicaActors
from serve.engine.prompt import load_renderer
from serve.engine.protocol import ForcedToken

POLL_S, LINE_S = 0.5, 10.0
"""Seconds between looks at the engine, and between lines that say how far it is."""
SPEED_ROWS = 512
"""Rows whose prompts speed is measured with."""

PROGRESS_S, CLOSE_S = 30.0, 60.0
"""Seconds that an actor may take to say how far it is, and to free its device."""

Likelihoods = list[tuple[ForcedToken, ...] | None]


class CannotStart(UserError):
    """No engine starts with the model."""


class TrialFailed(Exception):
    """The engine died, or hangs."""


@dataclass(kw_only=True, slots=True)
class Findings:
    """What an engine said; lists have an item for each row."""

    start: dict[str, Any]
    """See `Examiner.start`."""
    answers: list[Answer]
    expected: Likelihoods | None = None
    """Of the expected answers' tokens."""
    along: Likelihoods | None = None
    """Of the tokens of the parent's answers."""
    speed: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)


def conduct(
    trial: Trial, connection: Connection, note: Callable[[str], None]
) -> tuple[Findings, Findings | None, dict[str, float]]:
    """Runs a trial.

    Args:
        trial: what is measured.
        connection: the cluster.
        note: says how far it is.

    Returns:
        What the model's engine said, what the parent's said, and seconds by question.

    Raises:
        CannotStart: when an engine cannot run its model.
        UserError: when the cluster has no room for it.
        TrialFailed: when one dies later.
    """
    seconds: dict[str, float] = {}
    parent = None
    along: list[list[int]] | None = None
    if trial.parent is not None:
        with _examine(trial.parent, connection, "parent", note, seconds) as ask:
            parent = _findings(trial, trial.parent, ask)
            if Metric.divergence in trial.metrics:
                along = answer_tokens(trial.parent, parent.answers)
                parent.along = ask("parent's answers again", "force", trial.parent.rows, along, trial.job.quality.top_k)
    with _examine(trial.model, connection, "model", note, seconds) as ask:
        model = _findings(trial, trial.model, ask)
        if along is not None:
            model.along = ask("parent's answers", "force", trial.model.rows, along, trial.job.quality.top_k)
        if trial.job.speed.runs:
            model.speed = ask("speed", "speed", spread(trial.model.rows, SPEED_ROWS), trial.job.speed)
        model.memory = ask("", "memory")
    return model, parent, seconds


def answer_tokens(subject: Subject, answers: list[Answer]) -> list[list[int]]:
    """Returns answers as tokens, with the one that ends them where they were not cut off."""
    renderer = load_renderer(subject.model, subject.plan.identity.max_model_len, False)
    whole = renderer.answers([answer.text or "" for answer in answers])
    return [tokens[:-1] or tokens if answer.is_cut else tokens for tokens, answer in zip(whole, answers, strict=True)]


def _findings(trial: Trial, subject: Subject, ask: Callable[..., Any]) -> Findings:
    start = ask("", "start")
    found = Findings(start=start, answers=ask("answers", "answer", subject.rows))
    if Metric.perplexity in trial.metrics:
        expected = [row.expected_tokens for row in subject.rows]
        found.expected = ask("expected answers", "force", subject.rows, expected, 0)
    return found


@contextmanager
def _examine(
    subject: Subject, connection: Connection, who: str, note: Callable[[str], None], seconds: dict[str, float]
) -> Iterator[Callable[..., Any]]:
    """Yields what asks an engine: a word for the person, a method of `Examiner`, its arguments."""
    import ray
    from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

    plan = subject.plan
    engine = plan.job.engine
    if engine.device is Device.auto and plan.job.cluster.address is not None:
        plan = on_device(plan, Device.cuda if connection.resources.get("GPU") else Device.cpu)
    for name, amount in plan.placement.total.items():
        if connection.resources.get(name, 0) < amount:
            have = connection.resources.get(name, 0)
            raise UserError(f"the {who}'s engine needs {amount:g} {name}, the cluster has {have:g}")
    actors = ReplicaActors(plan.placement, 1, engine.world_size > 1)
    actor: Any = (
        ray.remote(Examiner)
        .options(num_cpus=actors.num_cpus, num_gpus=actors.num_gpus or 0, **actors())
        .remote(subject.model, engine, plan.device, plan.identity.max_model_len)
    )

    def ask(what: str, method: str, *arguments: Any) -> Any:
        if method == "start":
            note(f"{who} {subject.model.path}: the engine starts")
        reference, began = getattr(actor, method).remote(*arguments), time.monotonic()
        try:
            found = _wait(
                reference,
                actor if method not in ("start", "memory") else None,
                engine.hang_timeout_s if method != "start" else engine.start_timeout_s + engine.hang_timeout_s,
                lambda done: note(
                    f"{who}: {what}" + ("" if method == "speed" else f", {done:,} of {len(arguments[0]):,}")
                ),
            )
            seconds[f"{who}: {what or method}"] = time.monotonic() - began
            return found
        except (RayTaskError, ActorDiedError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            text = " ".join(str(cause).split())[:1000]
            if method == "start" and isinstance(cause, EngineDead):
                raise CannotStart(f"model.path={subject.model.path}: no engine starts with it: {text}") from None
            if isinstance(cause, (EngineDead, ActorDiedError)):
                raise TrialFailed(f"the {who}'s engine died: {text}") from None
            raise

    try:
        yield ask
        with suppress(ActorDiedError, GetTimeoutError, RayTaskError):  # all has been said: it is ended now anyway
            ray.get(actor.close.remote(), timeout=CLOSE_S)
    finally:
        ray.kill(actor)
        actors.release()


def _wait(reference: Any, actor: Any, limit_s: float, note: Callable[[int], None]) -> Any:
    """Waits for an answer of the actor's.

    Raises:
        TrialFailed: when the engine has moved nothing for ``limit_s``.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    moved_at = told_at = time.monotonic()
    done = before = 0
    while True:
        ready, _ = ray.wait([reference], timeout=POLL_S)
        if ready:
            return ray.get(reference)
        now = time.monotonic()
        if actor is not None:
            # an engine that keeps Python itself from running says nothing either
            with suppress(GetTimeoutError):
                done, moves = ray.get(actor.progress.remote(), timeout=PROGRESS_S)
                if moves != before:
                    before, moved_at = moves, now
            if now - told_at > LINE_S:
                told_at = now
                note(done)
        if now - moved_at > limit_s:
            raise TrialFailed(f"the engine gave no answer for {limit_s:g} s (engine.hang_timeout_s)")
