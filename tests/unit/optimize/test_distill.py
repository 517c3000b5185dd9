from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from small_decoders import distill_task, make_decoder, prune_task, write_examples

from conf.errors import UserError
from conf.schema.distill import Answers, DistillSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.decoder import load_decoder
from pipelines.optimize.distill import course, lesson
from pipelines.optimize.distill.meter import Meter
from pipelines.optimize.distill.resume import state_file
from pipelines.optimize.distill.writer import write_answers
from pipelines.optimize.padded import pad_rows
from pipelines.optimize.step import distill, prune
from pipelines.optimize.step.task import Example, StepFailed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def pair(folder: Path) -> tuple[Path, Path]:
    """A teacher, and a student with other weights."""
    return make_decoder(folder / "student", seed=1), make_decoder(folder / "teacher", seed=2)


def test_answers_end_with_their_end_token_and_equal_step_by_step_decoding(tmp_path: Path):
    model = load_decoder(make_decoder(tmp_path / "model"), torch.float32)
    rows = [Example(prompt=[1, 5, 9, 4], answer=None), Example(prompt=[1, 7], answer=None)]
    written = write_answers(model, rows, 6, sample=False)
    for row in written:
        ids = list(row.prompt)
        for _ in range(6):
            with torch.inference_mode():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        assert row.answer == ids[len(row.prompt) :]


def test_padding_asks_for_the_answers_tokens_alone():
    batch = pad_rows([Example(prompt=[1, 4, 5], answer=[6, 2]), Example(prompt=[1, 4], answer=None)])
    assert batch.asks.tolist() == [[False, False, True, True, False], [False] * 5]
    assert batch.next_ids.tolist() == [6, 2]
    assert batch.real.tolist() == [[True] * 5, [True, True, False, False, False]]


@pytest.mark.parametrize(
    "spec",
    [{}, {"top_k": 48}, {"kl_weight": 0.0, "answer_weight": 1.0}, {"on_policy": 0.5}, {"answers": Answers.teacher}],
    ids=str,
)
def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path, spec: dict[str, Any]):
    student, teacher = pair(tmp_path)
    task = distill_task(tmp_path, student, teacher, steps=40, max_answer_tokens=4, **spec)
    found = distill.run(task)
    assert found["loss_last"] < 0.8 * found["loss_first"]
    assert found["steps"] == 40
    saved = weights(task.target)
    assert saved.keys() == weights(student).keys()
    assert saved["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert (task.target / "tokenizer.json").exists()


def test_a_run_is_repeated_by_its_seed(tmp_path: Path):
    student, teacher = pair(tmp_path)
    tasks = [distill_task(tmp_path, student, teacher, name, on_policy=0.5, max_answer_tokens=4) for name in "ab"]
    other = dataclasses.replace(distill_task(tmp_path, student, teacher, "c", on_policy=0.5), seed=4)
    for task in [*tasks, other]:
        distill.run(task)
    first, again, third = (weights(task.target)["model.norm.weight"] for task in [*tasks, other])
    assert torch.equal(first, again)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("keep_mask", [True, False])
def test_zeros_stay_zero_where_they_are_to(tmp_path: Path, keep_mask: bool):
    teacher = make_decoder(tmp_path / "teacher")
    pruned = prune_task(tmp_path, teacher)
    prune.run(pruned)
    task = distill_task(tmp_path, pruned.target, teacher, keep_mask=keep_mask)
    found = distill.run(task)
    before, after = weights(pruned.target), weights(task.target)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name], after[name])
    if keep_mask:
        assert found["masked_matrices"] == 21
        assert found["sparsity"] >= 0.5
        assert (after[name][before[name] == 0] == 0).all()
    else:
        assert found["sparsity"] < 0.1


def test_zeros_that_were_filled_are_refused(tmp_path: Path):
    teacher = make_decoder(tmp_path / "teacher")
    pruned = prune_task(tmp_path, teacher)
    prune.run(pruned)
    task = distill_task(tmp_path, pruned.target, teacher)
    with (
        mock.patch("pipelines.optimize.distill.zeros.Zeros.restore"),
        pytest.raises(StepFailed, match=r"distill\.keep_mask: .* had 1024 zeros and has 0"),
    ):
        distill.run(task)


def test_the_teacher_runs_once_over_epochs_and_runs(tmp_path: Path):
    student, teacher = pair(tmp_path)
    with mock.patch.object(lesson, "answer_logits", wraps=lesson.answer_logits) as asked:
        distill.run(distill_task(tmp_path, student, teacher, "a", top_k=4, steps=9))
        assert asked.call_count == 1
        distill.run(distill_task(tmp_path, student, teacher, "b", top_k=4, steps=9, learning_rate=1e-3))
        assert asked.call_count == 1
        distill.run(distill_task(tmp_path, student, teacher, "c", top_k=5, steps=9))
        assert asked.call_count == 2
        distill.run(distill_task(tmp_path, student, make_decoder(tmp_path / "third", seed=7), "d", top_k=5, steps=9))
        assert asked.call_count == 3
    assert len(list(tmp_path.glob("teacher-*.safetensors"))) == 3


def test_what_is_stored_is_the_teachers(tmp_path: Path):
    student, teacher = pair(tmp_path)
    task = distill_task(tmp_path, student, teacher, top_k=5)
    rows = task.read_examples()
    stored = lesson.load_stored(lesson.store_once(task, rows, [3, 1, 4]))
    ids, logprobs = stored.of([4, 1])
    model = load_decoder(teacher)
    for at, row in enumerate((rows[4], rows[1])):
        with torch.inference_mode():
            whole = model(input_ids=torch.tensor([row.prompt + (row.answer or [])])).logits[0].float()
        expected = torch.log_softmax(whole[len(row.prompt) - 1 : -1], -1).topk(5)
        torch.testing.assert_close(logprobs[3 * at : 3 * at + 3], expected.values, rtol=0.05, atol=0.05)
        assert torch.equal(ids[3 * at : 3 * at + 3, 0], expected.indices[:, 0])
    assert stored.of([0])[0].shape == (0, 5)


def test_teachers_answers_replace_those_of_the_rows(tmp_path: Path):
    student, teacher = pair(tmp_path)
    task = distill_task(tmp_path, student, teacher, answers=Answers.teacher, max_answer_tokens=4)
    write_examples(tmp_path / "examples.parquet", answers=False)
    distill.run(task)
    (path,) = tmp_path.glob("teacher-*.parquet")
    model = load_decoder(teacher)
    saved = pq.read_table(path).to_pylist()
    expected = write_answers(model, [Example(prompt=saved[0]["prompt"], answer=None)], 4, sample=False)
    assert saved[0]["answer"] == expected[0].answer


def test_a_broken_run_goes_on_and_ends_where_a_whole_one_would(tmp_path: Path):
    student, teacher = pair(tmp_path)
    spec = {"steps": 9, "checkpoint_steps": 4, "on_policy": 0.5, "max_answer_tokens": 4}
    whole = distill_task(tmp_path, student, teacher, "whole", **{**spec, "checkpoint_steps": 0})
    distill.run(whole)
    broken = distill_task(tmp_path, student, teacher, "broken", **spec)

    class Broken(Meter):
        def add(self, loss: float, tokens: int) -> None:
            super().add(loss, tokens)
            if self.done == 6:
                raise KeyboardInterrupt

    with mock.patch.object(course, "Meter", Broken), pytest.raises(KeyboardInterrupt):
        distill.run(broken)
    assert state_file(broken).exists()
    assert distill.run(broken)["resumed_at"] == 4
    assert not state_file(broken).exists()
    for name, tensor in weights(whole.target).items():
        assert torch.equal(tensor, weights(broken.target)[name]), name


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path):
    student, teacher = pair(tmp_path)
    with pytest.raises(StepFailed, match=r"the loss is (nan|inf) at step \d+: lower distill\.learning_rate=1e\+30"):
        distill.run(distill_task(tmp_path, student, teacher, learning_rate=1e30))


def test_another_run_does_not_take_up_the_state(tmp_path: Path):
    student, teacher = pair(tmp_path)
    tasks = [distill_task(tmp_path, student, teacher, name, steps=steps) for name, steps in (("a", 6), ("b", 7))]
    other_rows = dataclasses.replace(tasks[0], examples=write_examples(tmp_path / "other.parquet", count=25))
    other_seed = dataclasses.replace(tasks[0], seed=9)
    assert len({state_file(task) for task in [*tasks, other_rows, other_seed]}) == 4


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"kl_weight": 0.0}, "distill.kl_weight or distill.answer_weight must be > 0"),
        ({"top_k": 4, "on_policy": 0.5}, "distill.top_k needs distill.on_policy=0"),
        ({"top_k": 0}, "distill.top_k must be >= 1 or null, got 0"),
        ({"kl_weight": 0.0, "answer_weight": 1.0, "on_policy": 0.1}, "distill.on_policy needs distill.kl_weight > 0"),
        ({"on_policy": 1.5}, r"distill.on_policy must be in 0..1, got 1.5"),
        ({"batch_size": 9, "num_workers": 2}, "distill.batch_size must be a multiple of distill.num_workers=2, got 9"),
        ({"temperature": 0.0}, "distill.temperature must be > 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(spec: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        DistillSpec(**spec)


def test_pairs_that_cannot_learn_from_each_other_are_refused(tmp_path: Path):
    student, teacher = pair(tmp_path)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "vocab_size": 47}))
    with pytest.raises(StepFailed, match="one vocabulary: the student's has 47 tokens, the teacher's 48"):
        distill.run(distill_task(tmp_path, student, teacher, "a"))
    with pytest.raises(StepFailed, match="the student is the teacher itself"):
        distill.run(distill_task(tmp_path, teacher, teacher, "b"))
    distill.run(distill_task(tmp_path, teacher, teacher, "c", kl_weight=0.0, answer_weight=1.0, steps=1))


def test_rows_without_answers_are_refused_unless_the_teacher_writes_them(tmp_path: Path):
    student, teacher = pair(tmp_path)
    task = distill_task(tmp_path, student, teacher)
    write_examples(tmp_path / "examples.parquet", answers=False)
    with pytest.raises(StepFailed, match=r"24 of 24 have none: set data\.answer, or distill\.answers=teacher"):
        distill.run(task)


def test_another_teacher_may_be_named(tmp_path: Path):
    student, teacher = pair(tmp_path)
    by_task = distill_task(tmp_path, student, teacher, "a")
    named = dataclasses.replace(by_task.spec.distill, teacher=str(teacher))
    by_name = distill_task(tmp_path, student, student, "b")
    by_name = dataclasses.replace(by_name, spec=StepSpec(kind=StepKind.distill, distill=named))
    assert distill.run(by_name)["loss_last"] == distill.run(by_task)["loss_last"]
