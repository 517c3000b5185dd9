from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import LLAMA_1B, LLAMA_8B, LLAMA_70B, MEASURED, gpus, llama

from serve.engine.model_size import ModelSize
from serve.engine.roofline import Workload, job_seconds, predict_rate

H200 = gpus("h200")


@pytest.mark.parametrize(
    "size,num_seqs,engines,low,high",
    [
        (LLAMA_1B, 512, 1, 25_500, 25_600),
        (LLAMA_1B, 512, 2, 46_000, 47_900),
        (LLAMA_1B, 512, 4, 46_000, 47_000),
        (LLAMA_8B, 512, 1, 11_300, 11_900),
    ],
)
def test_measured_points_are_met_within_five_percent(size: ModelSize, num_seqs: int, engines: int, low: int, high: int):
    rate = predict_rate(size, H200, MEASURED, num_seqs, engines_per_device=engines)
    assert low * 0.95 <= rate.rows_per_s * MEASURED.answer_tokens <= high * 1.05


@pytest.mark.parametrize(
    "size,seconds",
    [
        (llama(896, 4864, 24, 14, 2, 151936), 17.7),
        (llama(2560, 8960, 26, 20, 4, 32000), 16.4),
        (llama(4096, 14336, 14, 32, 8), 19.4),
        (llama(3072, 14336, 28, 24, 8), 28.3),
        (llama(5120, 13824, 40, 40, 8), 60.5),
    ],
)
def test_models_that_are_not_in_the_fit_are_met_within_fifteen_percent(size: ModelSize, seconds: float):
    """Seconds for 3,000 rows on an H200, docs/benchmarks/offline.md; the first two had 6,000 and 4,000."""
    job = replace(MEASURED, rows=3000, longest_answer_tokens=254)
    assert job_seconds(predict_rate(size, H200, job, 512), job, 1) == pytest.approx(seconds, rel=0.15)


def test_few_sequences_of_a_large_model_wait_for_memory():
    rate = predict_rate(LLAMA_8B, H200, MEASURED, 4)
    assert rate.bound == "memory"
    assert rate.step_s > LLAMA_8B.weight_bytes / H200.bytes_per_s


def test_a_tiny_model_waits_for_the_cpu():
    assert predict_rate(LLAMA_1B, H200, MEASURED, 8).bound == "cpu"


def test_embeddings_have_no_decode_steps():
    vectors = replace(MEASURED, answer_tokens=0)
    assert (
        predict_rate(LLAMA_8B, H200, vectors, 256).rows_per_s
        > 1.5 * predict_rate(LLAMA_8B, H200, MEASURED, 256).rows_per_s
    )


def test_saved_prefixes_save_time():
    long = replace(MEASURED, prompt_tokens=4000)
    saved = replace(long, saved_fraction=0.9)
    assert predict_rate(LLAMA_8B, H200, saved, 256).rows_per_s > 2 * predict_rate(LLAMA_8B, H200, long, 256).rows_per_s


def test_tensor_parallelism_gains_less_than_its_devices():
    one, two = (predict_rate(LLAMA_70B, H200, MEASURED, 256, tp).rows_per_s for tp in (1, 2))
    assert 1.3 < two / one < 2


@settings(deadline=None)
@given(st.floats(1, 8000), st.floats(0, 4000), st.integers(1, 2048), st.integers(1, 4), st.floats(0, 1))
def test_a_rate_is_never_beyond_what_the_chip_computes(
    prompt: float, answer: float, seqs: int, engines: int, saved: float
):
    work = Workload(
        prompt_tokens=prompt, answer_tokens=answer, longest_answer_tokens=answer, rows=10, saved_fraction=saved
    )
    rate = predict_rate(LLAMA_8B, H200, work, seqs, engines_per_device=engines)
    assert rate.rows_per_s > 0
    assert rate.step_s > 0
    flop = 2 * LLAMA_8B.multiplied_parameters * (work.computed_tokens + answer)
    assert rate.rows_per_s * flop <= H200.flops_of("bf16")


@settings(deadline=None)
@given(st.integers(1, 100_000), st.integers(1, 8))
def test_more_rows_take_longer_and_more_devices_shorter(rows: int, groups: int):
    rate = predict_rate(LLAMA_8B, H200, MEASURED, 256)
    work = replace(MEASURED, rows=rows)
    seconds = job_seconds(rate, work, groups)
    assert seconds >= rows / rate.rows_per_s / groups
    assert job_seconds(rate, replace(work, rows=rows * 2), groups) > seconds
    assert job_seconds(rate, work, groups + 1) < seconds


def test_a_whole_job_takes_what_it_was_measured_to_take():
    work = replace(MEASURED, rows=3000, longest_answer_tokens=1024)
    assert job_seconds(predict_rate(LLAMA_8B, H200, work, 512), work, 1) == pytest.approx(40, rel=0.15)
