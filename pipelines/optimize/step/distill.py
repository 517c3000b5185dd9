"""Trains a checkpoint on what the teacher would answer, and measures what was saved."""

from __future__ import annotations

import dataclasses
from typing import Any

from conf.schema.distill import DistillSpec
from conf.schema.model import ModelSpec
from pipelines.matrices import describe_sparsity, read_matrices
from pipelines.optimize.decoder import check_plain, check_shape, pick_device, read_config
from pipelines.optimize.distill.course import Worker, learn, plan_rows
from pipelines.optimize.distill.group import learn_together
from pipelines.optimize.distill.lesson import answer_once, store_once, writes_answers
from pipelines.optimize.step.task import Example, StepFailed, StepTask
from pipelines.tensors import count_parameters
from serve.engine.fingerprint import fingerprint_model


def run(task: StepTask) -> dict[str, Any]:
    """Distills.

    Returns:
        Steps, losses, tokens, seconds, and the parameters and sparsity of the saved file.

    Raises:
        StepFailed: when the models or rows do not allow it, or zeros that were to stay were filled.
    """
    spec, task = task.spec.distill, task.taught()
    rows = task.read_examples()
    check_pair(read_config(task.source), read_config(task.teacher))
    check_rows(spec, rows)
    check_lesson(task, spec)
    used = [row for step in plan_rows(spec, rows, task.seed) for row in step]
    if writes_answers(spec):
        task = dataclasses.replace(task, examples=answer_once(task, rows, used))
        rows = task.read_examples()
    stored = None if spec.top_k is None else store_once(task, rows, used)
    if spec.num_workers > 1:
        measured = learn_together(task, stored)
    else:
        measured = learn(task, Worker(device=pick_device()), stored)
    check_kept(task, spec)
    return {
        **measured,
        "rows": len(set(used)),
        "epochs": round(len(used) / len(rows), 2),
        "parameters": count_parameters(task.target),
        **describe_sparsity(read_matrices(task.target)),
    }


def check_pair(student: dict[str, Any], teacher: dict[str, Any]) -> None:
    """Checks that a student can learn a teacher's probabilities.

    Raises:
        StepFailed: when not.
    """
    for config, name in ((student, "the student"), (teacher, "the teacher")):
        check_plain(config, f"distill, of {name},")
        check_shape(config, f"distill, of {name},")
    if student["vocab_size"] != teacher["vocab_size"]:
        raise StepFailed(
            f"distill needs one vocabulary: the student's has {student['vocab_size']} tokens,"
            f" the teacher's {teacher['vocab_size']}"
        )


def check_rows(spec: DistillSpec, rows: list[Example]) -> None:
    """Checks that there is enough to learn from.

    Raises:
        StepFailed: when not.
    """
    if len(rows) < spec.num_workers:
        raise StepFailed(f"distill.num_workers={spec.num_workers} needs as many rows, got {len(rows)}")
    missing = sum(not row.answer for row in rows)
    if spec.needs_answers and missing:
        raise StepFailed(
            f"distill.answers=rows needs an answer in each row, {missing} of {len(rows)} have none:"
            " set data.answer, or distill.answers=teacher"
        )


def check_lesson(task: StepTask, spec: DistillSpec) -> None:
    """Checks that the teacher is not the student itself.

    Raises:
        StepFailed: when it is, and is to be learnt from.
    """
    student, teacher = (fingerprint_model(ModelSpec(path=str(path))) for path in (task.source, task.teacher))
    if student == teacher and (spec.kl_weight > 0 or writes_answers(spec)):
        raise StepFailed(
            "distill has nothing to learn: the student is the teacher itself; put a prune step before it,"
            " or set distill.teacher"
        )


def check_kept(task: StepTask, spec: DistillSpec) -> None:
    """Checks that the zeros of a pruned source are still zero in what was saved.

    Raises:
        StepFailed: when one is not.
    """
    if not spec.keep_mask:
        return
    after = {matrix.name: matrix for matrix in read_matrices(task.target)}
    for matrix in read_matrices(task.source):
        # A handful of zeros is chance, and not kept: see `zeros.find_zeros`.
        if matrix.sparsity > 0.01 and after[matrix.name].zeros < matrix.zeros:
            raise StepFailed(
                f"distill.keep_mask: {matrix.name} had {matrix.zeros} zeros and has {after[matrix.name].zeros}"
            )
