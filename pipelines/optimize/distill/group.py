"""Several workers that train together, by Ray Train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipelines.optimize.distill.course import Worker, learn
from pipelines.optimize.step.task import StepFailed, StepTask


def learn_together(task: StepTask, stored: Path | None) -> dict[str, Any]:
    """Trains the student on `distill.num_workers` processes; all of them see the task's folders.

    Returns:
        What the first worker found.

    Raises:
        StepFailed: when the cluster has no room for them.
        ray.train.TrainingFailedError: when a worker fails.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    spec = task.spec.distill
    have = ray.cluster_resources()
    gpus = spec.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= spec.num_workers else 0.0
    if have.get("CPU", 0) < spec.num_workers or have.get("GPU", 0) < gpus * spec.num_workers:
        raise StepFailed(
            f"distill.num_workers={spec.num_workers} needs {spec.num_workers} CPUs and"
            f" {gpus * spec.num_workers:g} GPUs, the cluster has {have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
        )
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    place = task.target.parent / f"{task.target.name}.ray_train"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": task, "stored": stored},
        scaling_config=ScalingConfig(num_workers=spec.num_workers, use_gpu=bool(gpus), resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(name="distill", storage_path=str(place.absolute())),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _read_result(task)


def _work(config: dict[str, Any]) -> None:
    import json

    import ray.train
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    task: StepTask = config["task"]
    worker = Worker(
        device=get_device(),  # type: ignore[arg-type]
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        wrap=lambda module: prepare_model(module, move_to_device=False),
    )
    found = learn(task, worker, config["stored"])
    if worker.rank == 0:
        (task.target / RESULT).write_text(json.dumps(found), encoding="utf-8")


RESULT = "distill.json"
"""How the first worker hands over what it found: the trainer's own reports want a checkpoint beside them."""


def _read_result(task: StepTask) -> dict[str, Any]:
    import json

    path = task.target / RESULT
    found = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return found
