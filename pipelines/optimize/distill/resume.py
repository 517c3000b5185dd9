"""The state from which a broken run goes on: one file beside the step's folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.schema.model import ModelSpec
from pipelines.optimize.step.task import StepTask
from serve.engine.fingerprint import fingerprint_model

if TYPE_CHECKING:
    import torch


def state_file(task: StepTask) -> Path:
    """Returns where the state lies: its name changes with all that decides the run, so another run's is never taken."""
    spec = asdict(task.spec.distill)
    for key in ("log_s", "checkpoint_steps", "gpus_per_worker"):
        del spec[key]
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([spec, task.seed], default=lambda value: value.value).encode())
    for folder in (task.source, task.teacher):
        digest.update(fingerprint_model(ModelSpec(path=str(folder))).encode())
    assert task.examples is not None
    digest.update(task.examples.read_bytes())
    return task.target.parent / f"training-{digest.hexdigest()}.pt"


def save_state(path: Path, student: Any, optimizer: torch.optim.Optimizer, done: int) -> None:
    """Writes the state after a number of steps, whole or not at all."""
    import torch

    state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
    torch.save(state, f"{path}.tmp")
    Path(f"{path}.tmp").replace(path)


def load_state(path: Path, student: Any, optimizer: torch.optim.Optimizer) -> int:
    """Takes the state up; returns the number of steps done, 0 where there is none."""
    import torch

    if not path.exists():
        return 0
    state = torch.load(path, map_location=student.device, weights_only=True)
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return state["done"]
