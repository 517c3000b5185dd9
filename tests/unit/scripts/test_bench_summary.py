from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_batch  # noqa: E402
import bench_summary as s  # noqa: E402
from bench_runners import Task, command_line, manta_words  # noqa: E402


def _run(seconds: float, wall_s: float, **more: object) -> dict:
    work = {"rows": 100, "prompt_tokens": 24_000, "completion_tokens": 15_000, "inference_s": seconds}
    return s.with_rates({**work, "first_row_s": 1.0, "process_wall_s": wall_s, "peak_bytes": 1 << 30, **more})


RUNS = {
    "manta": [_run(10, 30), _run(5, 31), _run(20, 90)],
    "peer": [_run(20, 60, cached_tokens=6_000), _run(40, 62, cached_tokens=6_000)],
    "broken": [],
}


def test_rates_are_work_over_steady_state():
    run = _run(10, 30, cached_tokens=6_000)
    assert (run["rows_per_s"], run["tokens_per_s"], run["prompt_tokens_per_s"]) == (10, 1500, 2400)
    assert run["prefix_hit_rate"] == 0.25
    assert "prefix_hit_rate" not in _run(10, 30)


def test_summary_has_median_and_spread_of_those_that_ran():
    summary = s.summarize(RUNS)
    assert list(summary) == ["manta", "peer"]
    assert summary["manta"]["tokens_per_s"] == {"median": 1500, "min": 750, "max": 3000}
    assert summary["manta"]["process_wall_s"] == {"median": 31, "min": 30, "max": 90}
    assert "prefix_hit_rate" not in summary["manta"]


def test_ratios_are_of_medians_and_greater_is_better():
    assert s.ratios(s.summarize(RUNS), "manta") == {"peer": {"steady": 2.667, "wall": 1.968}}
    assert s.ratios(s.summarize(RUNS), "broken") == {}


def test_table_leaves_out_what_nobody_has():
    summary = s.summarize(RUNS)
    lines = s.table(summary, s.ratios(summary, "manta"), "manta").splitlines()
    assert "exact match" not in lines[0]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| manta | 10.0 (5.0 to 20.0) | 1,500 (750 to 3,000) |")
    assert lines[3].endswith("| 2.67 x | 1.97 x |")


@pytest.mark.parametrize("count", ["rows", "prompt_tokens", "completion_tokens"])
def test_less_work_is_a_failure(count):
    expected = {"rows": 100, "prompt_tokens": 24_000, "completion_tokens": 15_000}
    s.check_work(_run(1, 1), expected)
    with pytest.raises(ValueError, match=count):
        s.check_work(_run(1, 1), {**expected, count: expected[count] + 1})


def test_contenders_share_their_engine_but_for_what_they_are_about():
    words = ["--device", "cuda", "--runners", "manta", "ray_data_llm", "--llm-seqs", "1024", "--shipped"]
    words += ["--variant", "input=batch.order=input engine.max_in_flight=9", "--engine", "gpu_memory_utilization=0.5"]
    args = bench_batch.parse(words)
    found = {contender.name: contender for contender in bench_batch.contenders(args)}
    assert list(found) == [
        "manta",
        "ray_data_llm",
        "llm_generate_1024",
        "manta_input",
        "manta (as it ships)",
        "ray_data_llm (as it ships)",
    ]
    engines = {name: bench_batch.engine_of(contender, args, 2048, True) for name, contender in found.items()}
    assert engines["manta"] == engines["ray_data_llm"] == engines["manta_input"]
    assert engines["manta"]["gpu_memory_utilization"] == 0.5
    assert engines["llm_generate_1024"] == {**engines["manta"], "max_num_seqs": 1024}
    assert engines["ray_data_llm (as it ships)"] == {"max_model_len": 2048, "load_format": "dummy"}
    assert found["manta_input"].words == ("batch.order=input", "engine.max_in_flight=9")


def test_mistaken_cases_are_refused():
    for text in ("demo:tickets", "demo:none:5", "gpt:longtail:5", "tiny:longtail:many"):
        with pytest.raises(ValueError, match=r"no MODEL:WORKLOAD:ROWS|no model"):
            bench_batch.Case.parse(text)
    case = bench_batch.Case.parse("llama_1b,num_hidden_layers=4:prefix:30")
    assert (case.model, case.workload, case.num_rows) == ("llama_1b,num_hidden_layers=4", "prefix", 30)


def test_engine_arguments_become_each_tools_words():
    engine = {"max_num_seqs": 9, "enforce_eager": True, "enable_prefix_caching": False, "load_format": "dummy"}
    assert command_line(engine) == [
        *("--max-num-seqs", "9", "--enforce-eager", "--no-enable-prefix-caching", "--load-format", "dummy")
    ]
    task = Task(
        runner="manta", input="in", model="m", device="cpu", out="out", engine=engine, words=["batch.order=input"]
    )
    words = manta_words(task)
    assert {"engine.max_num_seqs=9", "engine.vllm.enforce_eager=true", 'engine.vllm.load_format="dummy"'} <= set(words)
    assert words[-1] == "batch.order=input"
    assert "data=openai_batch" in words
