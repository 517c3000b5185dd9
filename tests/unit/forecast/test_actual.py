from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.entry import compose
from conf.schema.engine import Device
from pipelines.batch.plan import make_plan
from pipelines.forecast.actual import with_prediction
from pipelines.forecast.efficiency import ROOFLINE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path))
    return tmp_path / "efficiency.json"


def record(inference_s: float = 40.0, ready: int = 1, **changes: Any) -> dict[str, Any]:
    places = [{"replicas": [f"engine {number}"]} for number in range(ready)]
    return {
        "replica_seconds": {"replicas": [*places, {"replicas": []}]},
        "requests": 4000,
        "prompt_tokens_per_s": 4000 * 105 / inference_s,
        "completion_tokens_per_s": 4000 * 43 / inference_s,
        "seconds": {"inference": inference_s, "plan": 1.0, "cluster": 2.0, "engines": 3.0},
        "prefix_hit_rate": 0.0,
        "interrupted": False,
        "engine_restarts": 0,
        **changes,
    }


def test_a_job_is_compared_and_taught(cache: Path):
    plan = make_plan(compose("batch", "model=demo", "data=tickets", "engine=cpu", "model.dtype=bfloat16"))
    first = with_prediction(plan, record())["predicted"]
    assert first["inference_s"] == first["roofline_s"] > 0
    assert first["actual_over_predicted"] == pytest.approx(40 / first["roofline_s"])
    assert json.loads(cache.read_text())[f"cpu/4m/bf16/{ROOFLINE}"]["start_s"] == [6.0]
    again = with_prediction(plan, record())["predicted"]
    assert again["actual_over_predicted"] == pytest.approx(1, rel=0.01)


def test_the_engines_that_there_were_are_predicted(cache: Path):
    words = ("model=demo", "data=tickets", "engine=cpu", "hardware=h200", "engine.num_replicas=1..4")
    plan = replace(make_plan(compose("batch", *words)), device=Device.cuda)
    seconds = [with_prediction(plan, record(20.0, ready))["predicted"]["roofline_s"] for ready in (1, 2, 4)]
    assert seconds[0] > 1.5 * seconds[1] > 1.5 * 1.5 * seconds[2]


def test_prompts_that_the_cache_held_teach_nothing_of_the_engines_speed(cache: Path):
    plan = make_plan(compose("batch", "model=demo", "data=tickets", "engine=cpu"))
    whole, half = (with_prediction(plan, record(prefix_hit_rate=rate))["predicted"] for rate in (0.0, 0.5))
    assert half["roofline_s"] < 0.95 * whole["roofline_s"]


@pytest.mark.parametrize("words,changes", [([], {"requests": 0}), (["engine=fake"], {}), ([], {"requests": "broken"})])
def test_what_cannot_be_compared_has_no_prediction(cache: Path, words: list[str], changes: dict[str, Any]):
    plan = make_plan(compose("batch", "model=demo", "data=tickets", "engine=cpu", *words))
    assert with_prediction(plan, record(**changes))["predicted"] is None
    assert not cache.exists()
