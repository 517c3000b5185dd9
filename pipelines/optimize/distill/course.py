"""The training loop of one worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.schema.distill import DistillSpec
from pipelines.optimize.decoder import load_decoder, save_decoder
from pipelines.optimize.distill.lesson import load_stored, needs_teacher
from pipelines.optimize.distill.meter import Meter
from pipelines.optimize.distill.order import is_on_policy, plan_steps, share_of
from pipelines.optimize.distill.rate import peak_rate, rate_at
from pipelines.optimize.distill.resume import load_state, save_state, state_file
from pipelines.optimize.distill.writer import write_answers
from pipelines.optimize.distill.zeros import find_zeros
from pipelines.optimize.step.task import Example, StepFailed, StepTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One of the processes that train."""

    device: torch.device
    rank: int = 0
    workers: int = 1
    wrap: Callable[[Any], Any] | None = None
    """Of several workers: makes a module's backward average the gradients of all."""


def plan_rows(spec: DistillSpec, rows: list[Example], seed: int) -> list[list[int]]:
    """Returns the rows of each step, over all workers."""
    # By the prompt alone: the same plan before and after the teacher has written its answers.
    return plan_steps([len(row.prompt) for row in rows], spec.steps, spec.batch_size, seed)


def learn(task: StepTask, worker: Worker, stored: Path | None) -> dict[str, Any]:
    """Trains the student; the first worker writes the checkpoint into the task's target. See `train`."""
    import torch

    # Weights and moments are float32: a small step of a bfloat16 weight is lost in rounding.
    student = load_decoder(task.source, torch.float32).to(worker.device)
    found = train(student, task.spec.distill, task, worker, stored)
    if worker.rank == 0:
        save_decoder(student, task.source, task.target)
        state_file(task).unlink(missing_ok=True)
    return found


def train(student: Any, spec: DistillSpec, task: StepTask, worker: Worker, stored: Path | None) -> dict[str, Any]:
    """Trains a student in place.

    Args:
        student: A decoder in float32, on the worker's device.
        spec: How it learns.
        task: The step; its examples are what is learnt from.
        worker: Which part of each step's rows is this process's.
        stored: A file of the teacher's likeliest tokens, in place of the teacher.

    Returns:
        What the meter found, of this worker.

    Raises:
        StepFailed: when the loss is no longer a number.
    """
    import torch

    from pipelines.optimize.distill.objective import Objective

    rows = task.read_examples()
    planned = plan_rows(spec, rows, task.seed)
    teacher = load_decoder(task.teacher).to(worker.device).requires_grad_(False) if needs_teacher(spec) else None
    zeros = find_zeros(student, spec.keep_mask)
    objective = Objective(spec, student, teacher, None if stored is None else load_stored(stored))
    module = objective if worker.wrap is None else worker.wrap(objective)
    peak = peak_rate(spec.learning_rate, student.config.hidden_size)
    optimizer = _make_optimizer(student, spec.weight_decay)
    state = state_file(task)
    begun = load_state(state, student, optimizer)
    meter = Meter(steps=spec.steps, every_s=spec.log_s, begun=begun, quiet=worker.rank > 0, say=task.say)
    student.train()
    for step in range(begun, spec.steps):
        numbers = share_of(planned[step], worker.rank, worker.workers)
        taken, written = [rows[row] for row in numbers], is_on_policy(step, spec.on_policy, task.seed)
        # Anew at each step, so that a run that goes on draws what it would have drawn.
        torch.manual_seed((task.seed * spec.steps + step) * worker.workers + worker.rank)
        if written:
            taken = write_answers(student, taken, spec.max_answer_tokens, sample=True)
        for group in optimizer.param_groups:
            group["lr"] = peak * rate_at(step, spec.steps, spec.warmup)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(worker.device.type, dtype=torch.bfloat16, enabled=worker.device.type == "cuda"):
            loss = module(taken, numbers, written)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), spec.max_grad_norm)
        optimizer.step()
        zeros.restore()
        if not loss.isfinite():
            raise StepFailed(f"the loss is {loss.item()} at step {step + 1}: lower distill.learning_rate={peak:g}")
        meter.add(loss.item(), sum(len(row.prompt) + len(row.answer or ()) for row in taken))
        if worker.rank == 0 and _is_kept(step + 1, spec):
            save_state(state, student, optimizer, step + 1)
    student.eval()
    return {**meter.result(), "learning_rate": peak, "masked_matrices": len(zeros.masks)}


def _is_kept(done: int, spec: DistillSpec) -> bool:
    """Whether the state after some steps is saved; that of the last one is the result."""
    return spec.checkpoint_steps > 0 and done % spec.checkpoint_steps == 0 and done < spec.steps


def _make_optimizer(student: Any, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; norms and biases do not decay."""
    import torch

    matrices = [weight for weight in student.parameters() if weight.ndim > 1]
    vectors = [weight for weight in student.parameters() if weight.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))
