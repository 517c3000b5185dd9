from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import replay_trace as r  # noqa: E402
from bench_answers import Seen  # noqa: E402

from conf.errors import UserError  # noqa: E402

ALL = {"steps": None, "copies": 1, "from_s": 0.0, "for_s": 1e9, "speed_up": 1.0, "seed": 0}
LENGTHS = {"prompt_scale": 1.0, "answer_scale": 1.0, "max_prompt": 1000, "max_answer": 1000}


def arguments(trace: Path | None, **changes: object) -> Namespace:
    return Namespace(**{"trace": trace and str(trace), **ALL, **LENGTHS, **changes})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,answer_tokens\n0,10,4\n10,2000,40\n20,30,400\n30,1,1\n")
    return path


def test_a_slice_of_a_trace_begins_at_once_and_comes_faster(trace: Path):
    got = r.load(arguments(trace, from_s=10.0, for_s=20.0, speed_up=2.0, prompt_scale=0.1, max_answer=100))
    assert got.arrival_s.tolist() == [0.0, 5.0]
    assert got.prompt.tolist() == [200, 3]
    assert got.answer.tolist() == [40, 100]


def test_a_slice_without_requests_is_the_user_s_mistake(trace: Path):
    with pytest.raises(UserError, match="no request arrives"):
        r.load(arguments(trace, from_s=11.0, for_s=5.0))


def test_steps_have_their_rates():
    got = r.load(arguments(None, steps=["2:100", "20:100"]))
    assert got.arrival_s.tolist() == sorted(got.arrival_s.tolist())
    early = int((got.arrival_s < 100).sum())
    assert 150 < early < 250
    assert 1850 < len(got) - early < 2150


def test_prompts_have_their_lengths_and_no_two_begin_alike(trace: Path):
    prompts = [
        json.loads(body)["messages"][0]["content"].split() for body in r.bodies(r.load(arguments(trace)), "m", 0)
    ]
    assert [len(words) for words in prompts] == [10, 1000, 30, 1]
    assert len({words[0] for words in prompts}) == 4


def test_what_failed_is_lost_and_kept_no_target_and_replicas_cost_from_the_decision_on():
    seen = [
        Seen(start_s=0.0, first_s=1.0, last_s=2.0, end_s=2.0, prompt_tokens=5, tokens=11),
        Seen(start_s=1.0, first_s=5.0, last_s=5.5, end_s=6.0, prompt_tokens=5, tokens=11),
        Seen(start_s=2.0, end_s=10.0, error="status 503"),
        Seen(start_s=3.0, first_s=3.5, last_s=8.0, end_s=8.0, prompt_tokens=5, tokens=6),
    ]
    got = r.figures(seen, [(0.2, 1, 1), (4.0, 1, 3), (8.0, 3, 3), (12.0, 1, 1)], ttft_s=2.0, tpot_s=0.2)
    assert (got["requests"], got["lost"], got["errors"]) == (4, 1, {"status 503": 1})
    assert (got["ttft_attained"], got["goodput_per_s"]) == (0.5, 0.1)
    assert got["tpot_attained"] == pytest.approx(2 / 3)
    assert got["replica_s"] == pytest.approx(3.8 + 12 + 6)
    assert got["most_running"] == 3
