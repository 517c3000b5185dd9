"""Runs what is not done of a chain: each step a Ray task with its own resources and environment."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.connect import last_line
from conf.schema.step import StepKind, StepSpec
from pipelines.artifact import Artifact, read_artifact
from pipelines.optimize.chain import Link, fingerprint_folder
from pipelines.optimize.environment import runtime_env, versions
from pipelines.optimize.step.task import StepFailed, StepTask

POLL_S = 0.5
MOST_CPUS = 8
"""Of a step in one process: small models gain nothing from more threads."""


class StepDied(Exception):
    """A step ended in a way that nobody foresaw: its process was killed, or a library failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a step may take of the cluster while it runs: it runs alone."""

    num_cpus: float
    """Its threads, too."""
    num_gpus: float


def share_of(spec: StepSpec, resources: Mapping[str, float]) -> Share:
    """Returns a step's share; of one that starts workers of its own nothing, so that they have room.

    Args:
        spec: the step.
        resources: all that the cluster has.
    """
    if spec.lesson is not None and spec.lesson.num_workers > 1:
        return Share(num_cpus=0.0, num_gpus=0.0)
    cpus = max(1.0, min(float(MOST_CPUS), resources.get("CPU", 1.0)))
    return Share(num_cpus=cpus, num_gpus=1.0 if resources.get("GPU") else 0.0)


def run_step(link: Link, task: StepTask, model: str, share: Share, say: Callable[[str], None]) -> Artifact:
    """Runs a step and keeps its result.

    Args:
        link: the step.
        task: what it is given; its target and progress file are set here.
        model: the first model's name, for the record.
        share: what the task asks for.
        say: takes lines of progress.

    Raises:
        StepFailed: when the step cannot do it.
        StepDied: when its process does, or a library in it fails.
    """
    import ray
    import ray.exceptions

    link.folder.parent.mkdir(parents=True, exist_ok=True)
    target = link.folder.with_name(f".{link.folder.name}.{uuid.uuid4().hex[:8]}")
    target.mkdir()
    progress = target.with_suffix(".progress")
    progress.touch()
    began = time.monotonic()
    try:
        remote = ray.remote(num_cpus=share.num_cpus, num_gpus=share.num_gpus, max_retries=0)(_run)
        reference = remote.options(runtime_env=runtime_env()).remote(
            link.spec.kind, replace(task, target=target, progress=progress)
        )
        with progress.open(encoding="utf-8") as lines:
            while not ray.wait([reference], timeout=POLL_S)[0]:
                _pass_on(lines, say)
            _pass_on(lines, say)
        try:
            measured, failure = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise StepDied(last_line(error)) from error
        if failure is not None:
            raise StepFailed(failure)
        artifact = Artifact(
            key=link.key,
            form=link.form,
            step=link.name,
            spec=link.spec.settings,
            parent=link.parent,
            model=model,
            fingerprint=fingerprint_folder(target),
            seconds=round(time.monotonic() - began, 3),
            versions=versions(),
            measured=measured,
        )
        artifact.write(target)
        shutil.rmtree(link.folder, ignore_errors=True)
        target.rename(link.folder)
        return artifact
    finally:
        shutil.rmtree(target, ignore_errors=True)
        progress.unlink(missing_ok=True)


def _run(kind: StepKind, task: StepTask) -> tuple[dict[str, Any], str | None]:
    """What the task does, in its own process: the step's measures, or why it cannot be done."""
    try:
        return import_module(f"pipelines.optimize.step.{kind.value}").run(task), None
    except StepFailed as failure:
        return {}, str(failure)


def _pass_on(lines: Any, say: Callable[[str], None]) -> None:
    for line in lines:
        say(line.rstrip("\n"))


def is_published(link: Link, target: Path) -> bool:
    """Returns whether a step's result lies in a folder as it was made."""
    artifact = read_artifact(target)
    return artifact is not None and artifact.key == link.key and artifact.fingerprint == fingerprint_folder(target)


def publish(source: Path, target: Path) -> None:
    """Puts a step's result into the folder that the user named: file by file, the record last."""
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.iterdir():
        if stale.is_file():
            stale.unlink()
    files = sorted(path for path in source.iterdir() if path.is_file())
    for path in sorted(files, key=lambda path: path.name == "artifact.json"):
        shutil.copyfile(path, target / path.name)
