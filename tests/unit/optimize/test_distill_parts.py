from __future__ import annotations

import pytest
import torch

from pipelines.optimize.distill.loss import divergence, stored_divergence
from pipelines.optimize.distill.meter import Meter
from pipelines.optimize.distill.order import is_on_policy, plan_steps, share_of
from pipelines.optimize.distill.rate import peak_rate, rate_at


def test_divergence_is_the_kl_of_softened_probabilities():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 5, 7).unbind()
    p, q = torch.softmax(theirs / 2, -1), torch.softmax(ours / 2, -1)
    assert divergence(ours, theirs, 2.0).item() == pytest.approx(4 * (p * (p / q).log()).sum().item(), rel=1e-5)
    assert divergence(theirs, theirs, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_stored_divergence_treats_all_others_as_one_event():
    torch.manual_seed(0)
    ours, theirs = (3 * torch.randn(2, 5, 9)).unbind()
    known = torch.log_softmax(theirs, -1).topk(3)
    p, q = known.values.exp(), torch.softmax(ours, -1).gather(-1, known.indices)
    rest_p, rest_q = 1 - p.sum(-1), 1 - q.sum(-1)
    expected = (p * (p / q).log()).sum() + (rest_p * (rest_p / rest_q).log()).sum()
    found = stored_divergence(ours, known.indices, known.values, 1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found < divergence(ours, theirs, 1.0)
    everything = torch.log_softmax(theirs, -1).topk(9)
    whole = stored_divergence(ours, everything.indices, everything.values, 1.0)
    assert whole.item() == pytest.approx(divergence(ours, theirs, 1.0).item(), rel=1e-4)


def test_stored_divergence_of_a_certain_teacher_has_a_finite_gradient():
    ours = torch.zeros(1, 5, requires_grad=True)
    stored_divergence(ours, torch.tensor([[2, 0]]), torch.tensor([[0.0, -1e4]]), 1.0).backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    assert ours.grad[0, 2] < 0


def test_a_plan_uses_every_row_before_any_again_and_depends_on_the_seed_alone():
    lengths = [3 + row * 7 % 20 for row in range(64)]
    plan = plan_steps(lengths, 20, 8, seed=5)
    assert len(plan) == 20
    assert sorted(row for step in plan[:8] for row in step) == list(range(64))
    assert plan == plan_steps(lengths, 20, 8, seed=5)
    assert plan != plan_steps(lengths, 20, 8, seed=6)
    assert [sorted(step) for step in plan_steps([4, 4, 4], 2, 8, seed=0)] == [[0, 1, 2], [0, 1, 2]]
    assert sorted(share_of([5, 6, 7, 8], 0, 2) + share_of([5, 6, 7, 8], 1, 2)) == [5, 6, 7, 8]


def test_the_student_writes_in_about_the_share_of_steps_that_was_asked_for():
    assert 400 < sum(is_on_policy(step, 0.5, seed=1) for step in range(1000)) < 600
    assert not any(is_on_policy(step, 0.0, seed=1) for step in range(1000))
    assert all(is_on_policy(step, 1.0, seed=1) for step in range(1000))


def test_the_rate_rises_straight_and_falls_to_its_floor():
    rates = [rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=0.01)


def test_the_peak_falls_with_the_width_unless_it_is_given():
    assert peak_rate(None, 200) == pytest.approx(2e-3)
    assert peak_rate(None, 4096) == pytest.approx(1e-4, rel=0.05)
    assert peak_rate(3e-5, 200) == 3e-5


def test_lines_say_loss_speed_and_what_is_left():
    clock, said = iter([0.0, 1.0, 4.0, 4.0, 8.0, 8.0, 8.0]), []
    meter = Meter(steps=10, every_s=3.0, begun=2, say=said.append, now=lambda: next(clock))
    meter.add(4.0, 50)
    meter.add(2.0, 50)
    assert said == ["step 4/10, loss 3.9000, 12 tokens/s, 24 s left"]
