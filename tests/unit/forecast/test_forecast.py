from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from conf.errors import UserError
from conf.schema.batch import BatchJob, BatchSpec, Dedupe
from conf.schema.cluster import ClusterSpec
from conf.schema.data import DataSpec
from conf.schema.engine import Device, EngineSpec
from conf.schema.hardware import HardwareSpec
from conf.schema.plan import PlanSpec
from pipelines.batch.source import open_source
from pipelines.forecast.efficiency import Efficiency
from pipelines.forecast.forecast import Forecast, make_forecast, spread_of, wish_of
from pipelines.forecast.lengths import Answers, of_column, read_job
from pipelines.forecast.page import page, words_for
from pipelines.forecast.sample import Sample, pieces
from pipelines.forecast.warning import warnings_of
from serve.engine.hardware import find_hardware
from serve.engine.model_size import measure_model

SIZE = measure_model(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)
ASSUMED = Answers(mean=100, longest=200, source="assumed", error_fraction=0.5)


def sample(rows: int = 100, total_rows: int = 100, copies: int = 1, shares: bool = True, **more: Any) -> Sample:
    prompts = [[index // copies] * 40 for index in range(rows)]
    return Sample(
        total_rows=total_rows,
        rows=rows,
        prompts=prompts,
        keys=[str(prompt[0]) for prompt in prompts],
        shares=rows if shares else 0,
        max_tokens=[200] * rows,
        **more,
    )


def forecast(seen: Sample, job: BatchJob | None = None, answers: Answers = ASSUMED, **more: Any) -> Forecast:
    hardware = find_hardware(more.get("hardware", HardwareSpec(name="h200", num_devices=1)), Device.cuda, 0)
    return make_forecast(
        job or BatchJob(),
        seen,
        answers,
        SIZE,
        hardware,
        more.get("efficiency", Efficiency()),
        more.get("context", 8192),
    )


def test_rows_are_tokens_and_seconds():
    f = forecast(sample(total_rows=10_000))
    assert (f.requests, f.prompt_tokens, f.completion_tokens) == (10_000, 400_000, 1_000_000)
    assert f.low_s < f.seconds < f.high_s
    assert f.seconds == f.start_s + f.inference_s


def test_equal_requests_are_computed_once_where_they_share():
    assert forecast(sample(copies=4)).requests == 25
    alone = forecast(sample(copies=4, shares=False))
    assert (alone.requests, alone.duplicate_fraction) == (100, 0.75)
    job = BatchJob(batch=BatchSpec(dedupe=Dedupe.off))
    assert any("75% of the requests equal another" in line for line in warnings_of(job, sample(copies=4), alone))


def test_bad_rows_are_not_computed():
    f = forecast(sample(rows=100, total_rows=1000, bad=Counter(empty_prompt=20)))
    assert (f.bad_rows, f.requests) == (200, 800)


def test_what_jobs_have_taught_moves_the_time_and_narrows_the_band():
    plain, known = (
        forecast(sample()),
        forecast(sample(), efficiency=Efficiency(ratio=0.5, spread=0.05, jobs=9, start_s=7)),
    )
    assert known.inference_s == pytest.approx(2 * plain.inference_s)
    assert known.start_s == 7
    sure = Answers(mean=100, longest=200, source="", error_fraction=0)
    wide, narrow = (
        forecast(sample(), answers=sure),
        forecast(sample(), answers=sure, efficiency=Efficiency(spread=0.05, jobs=9, start_s=plain.start_s)),
    )
    assert narrow.high_s - narrow.low_s < wide.high_s - wide.low_s


def test_cost_is_devices_times_hours():
    f = forecast(sample(), BatchJob(cluster=ClusterSpec(price_per_hour=3.6)))
    assert f.cost(f.seconds) == pytest.approx(f.seconds / 1000)
    assert forecast(sample()).cost(10) is None
    with pytest.raises(UserError, match=r"^cluster.price_per_hour must be >= 0"):
        ClusterSpec(price_per_hour=-1)


def test_a_device_s_own_price_counts_where_the_cluster_s_is_not_said():
    priced = HardwareSpec(name="h200", num_devices=1, price_per_hour=3.6)
    assert forecast(sample(), hardware=priced).price_per_hour == 3.6
    job = BatchJob(cluster=ClusterSpec(price_per_hour=0.0))
    assert forecast(sample(), job, hardware=priced).price_per_hour == 0.0


def test_a_device_that_manta_has_not_run_on_is_planned_for_with_a_word_about_it():
    f = forecast(sample(), hardware=HardwareSpec(name="tpu_v6e", num_devices=4))
    assert any("Manta has not run on a TPU" in line for line in warnings_of(BatchJob(), sample(), f))


def test_what_is_likely_not_meant_is_said():
    cut = Answers(mean=100, longest=200, source="", error_fraction=0, cut_fraction=0.3)
    seen = sample(rows=99, bad=Counter(prompt_too_long=1))
    told = "\n".join(warnings_of(BatchJob(), seen, forecast(seen, answers=cut, context=230)))
    assert "1 of 99 rows do not fit in the context of 230 tokens" in told
    assert "leave less than sampling.max_tokens" in told
    assert "30% of the answers are longer" in told


def test_a_column_of_lengths_ends_at_max_tokens():
    found = of_column([5, 10, 300], [200, 200, 200], "n")
    assert found.mean == pytest.approx((5 + 10 + 200) / 3)
    assert found.cut_fraction == pytest.approx(1 / 3)
    assert found.source == "n"


def test_a_job_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"^plan.answer_job=.*no record of a finished job"):
        read_job(str(tmp_path))


def test_what_is_not_the_default_was_set():
    wish = wish_of(EngineSpec(tensor_parallel_size=2, vllm={"gpu_memory_utilization": 0.5}))
    assert (wish.tensor_parallel_size, wish.max_num_seqs, wish.memory_fraction) == (2, None, 0.5)


def test_the_page_says_how_to_run_it_so():
    f = forecast(sample(rows=64, total_rows=9_000))
    own = EngineSpec(max_num_seqs=16)
    words = words_for(f.shape, own)
    assert f"engine.max_num_seqs={f.shape.max_num_seqs}" in words
    text = page(f, own, 0.5)
    assert " ".join(words) in text
    assert "64 looked at" in text
    json.dumps(f.plain(), allow_nan=False)


def test_a_histogram_doubles():
    assert spread_of([1, 2, 3, 4, 5]).histogram == {1: 1, 2: 1, 4: 2, 8: 1}
    assert spread_of([]).mean == 0


@pytest.mark.parametrize("rows", [1, 64, 1_000, 5_000])
def test_pieces_are_spread_over_the_input(tmp_path: Path, rows: int):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"q": "{index}"}}\n' for index in range(rows)))
    source = open_source(DataSpec(input=str(path), prompt="{{ q }}"))
    found = pieces(source, 256)
    assert sum(split.rows for split in found) >= min(rows, 200)
    if rows == 5_000:
        starts = sorted(split.first for split in found)
        assert starts[0] < 1_500
        assert starts[-1] > 3_500
        assert abs(found[0].first - found[1].first) > 500  # the first ones are far from each other


@pytest.mark.parametrize("key,value", [("sample_rows", 0), ("sample_s", 0), ("assumed_fraction", 1.5)])
def test_plan_keys_have_rules(key: str, value: float):
    with pytest.raises(UserError, match=rf"^plan\.{key} must be"):
        PlanSpec(**{key: value})
