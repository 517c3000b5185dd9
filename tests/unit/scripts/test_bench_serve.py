from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_serve as b  # noqa: E402
import bench_serve_summary as s  # noqa: E402
import bench_servers as servers  # noqa: E402
from bench_runners import engine_environment, engine_words  # noqa: E402

ENGINE = {"max_num_seqs": 8, "load_format": "dummy", "enforce_eager": True}


def _run(contender: str, requests_per_s: float, ttft_ms: float | None = None, load: str = "closed:8") -> dict:
    result = {
        **{"contender": contender, "load": load, "generator": "ours", "requests": 100, "seconds": 100 / requests_per_s},
        **{"requests_per_s": requests_per_s, "tokens_per_s": 16 * requests_per_s, "start_s": 40.0},
        **{"e2e_p50_ms": 200.0, "e2e_p99_ms": 300.0, "server_cpu_s": {"a": 1.0, "b": 0.5}, "generator_cpu_s": 0.5},
    }
    return s.with_shares(result | ({} if ttft_ms is None else {"ttft_p50_ms": ttft_ms}))


RUNS = [
    _run("manta", 90, 55),
    _run("manta", 100, 50),
    _run("manta", 30, 90),
    _run("peer", 50, 60),
    _run("manta", 5, load="x"),
]


def test_summary_is_by_load_and_contender():
    summary = s.by_load(RUNS)
    assert list(summary) == ["closed:8, ours", "x, ours"]
    assert summary["closed:8, ours"]["manta"]["requests_per_s"] == {"median": 90, "min": 30, "max": 100}
    assert summary["closed:8, ours"]["peer"]["server_cpu_ms"]["median"] == 15
    assert "ttft_p50_ms" not in summary["x, ours"]["manta"]


def test_ratios_compare_medians():
    part = s.by_load(RUNS)["closed:8, ours"]
    assert s.ratios(part, "manta") == {"peer": {"requests": 1.8, "ttft_ms": -5}}
    assert s.ratios(part, "absent") == {}


def test_table_has_a_line_for_each_contender_and_no_empty_column():
    summary = s.by_load(RUNS)
    lines = s.table(summary["closed:8, ours"], "manta").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| manta | 90.0 (30.0 to 100.0) |")
    assert lines[3].endswith("| 1.80 x | -5.0 ms |")
    assert "TTFT p99" not in lines[0]
    assert "TTFT p50, ms" not in s.table(summary["x, ours"], "manta")


def test_a_busy_load_generator_is_told():
    busy = [{**run, "generator_share": 0.9} for run in RUNS]
    assert s.warnings(s.by_load(RUNS)["closed:8, ours"]) == []
    assert len(s.warnings(s.by_load(busy)["closed:8, ours"])) == 2


def test_cpu_of_a_load_is_what_was_spent_in_it():
    before = {1: ("a", 5.0), 2: ("a", 1.0), 3: ("idle", 1.0), 4: ("IDLE", 2.0), 5: ("gone", 9.0)}
    after = {1: ("a", 7.5), 2: ("a", 1.5), 3: ("idle", 1.001), 4: ("renamed", 2.5), 6: ("new", 0.25)}
    assert s.spent(before, after) == {"a": 3.0, "renamed": 0.5, "new": 0.25}


def test_processes_are_called_what_they_do():
    assert servers.title_of(["ray::ServeReplica:bench:x.handle_request"], "python") == "ray::ServeReplica:bench:x"
    assert servers.title_of(["VLLM::EngineCore"], "python") == "VLLM::EngineCore"
    assert servers.title_of(["/usr/bin/python3", "-m", "x"], "python3") == "python3"
    assert servers.title_of([], "kworker") == "kworker"


def _command(name: str, folder: Path) -> list[str]:
    return servers.command_of(servers.CONTENDERS[name], "MODEL", "cpu", ENGINE, 1234, folder)


def test_all_contenders_get_the_same_engine(tmp_path: Path):
    assert set(engine_words(ENGINE)) <= set(_command("manta", tmp_path))
    assert {"--max-num-seqs", "8", "--load-format", "dummy", "--enforce-eager"} <= set(_command("vllm", tmp_path))
    task = json.loads(Path(_command("ray_serve_llm", tmp_path)[-1]).read_text())
    assert (task["engine"], task["app"], task["port"]) == (ENGINE, "ray_serve_llm", 1234)
    assert task["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_a_cache_of_a_named_size_is_that_of_all_contenders():
    engine = ENGINE | {"kv_cache_memory_bytes": 1 << 25}
    assert "engine.kv_cache_bytes=33554432" in engine_words(engine)
    assert "VLLM_CPU_KVCACHE_SPACE" not in engine_environment("cpu", engine)


def test_manta_runs_with_a_key_limits_and_a_cache(tmp_path: Path):
    words = _command("manta", tmp_path)
    assert "cache=memory" in words
    assert "cache=off" in _command("manta_no_cache", tmp_path)
    assert "access.open=true" not in words
    assert any(word.startswith("access.tokens_per_min=") for word in words)
    own = servers.environment_of(servers.CONTENDERS["manta"], "cpu", ENGINE, tmp_path)
    assert own["MANTA_API_KEYS"] == servers.KEY
    assert own["MANTA_HOME"] == str(tmp_path)


def test_direct_streaming_is_a_matter_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    direct = servers.environment_of(servers.CONTENDERS["ray_serve_llm_direct"], "cpu", ENGINE, tmp_path)
    shipped = servers.environment_of(servers.CONTENDERS["ray_serve_llm"], "cpu", ENGINE, tmp_path)
    assert set(servers.DIRECT) <= set(direct)
    assert not set(servers.DIRECT) & set(shipped)
    assert "RAY_ADDRESS" not in direct
    assert direct["RAY_SERVE_HAPROXY_STATS_PORT"] != direct["RAY_SERVE_HAPROXY_METRICS_PORT"]


def test_each_load_runs_under_each_generator_that_can_do_it():
    args = b.parse(["--loads", "closed:4:stream", "closed:4", "--generators", "ours", "vllm"])
    assert [(generator, load.name) for generator, load in b.plan_of(args)] == [
        ("ours", "closed:4:stream"),
        ("vllm", "closed:4:stream"),
        ("ours", "closed:4"),
    ]
    with pytest.raises(SystemExit):
        b.parse(["--loads", "closed:4", "--generators", "vllm"])


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_no_prompt_is_sent_twice(model: str):
    prompts = b.make_prompts(b.parse(["--model", model, "--input-tokens", "20"]), 300)
    assert len(set(prompts)) == len(prompts) == 300
    assert model == "demo" or {len(prompt.split()) for prompt in prompts} == {20}


def test_the_context_holds_prompt_and_answer():
    args = b.parse(["--model", "llama_1b", "--input-tokens", "3000", "--output-tokens", "100", "--engine", "seed=3"])
    assert b.engine_of(args)["max_model_len"] == 3328
    assert (b.engine_of(args)["load_format"], b.engine_of(args)["seed"]) == ("dummy", 3)
    assert "load_format" not in b.engine_of(b.parse([]))


def test_variants_of_manta_are_contenders():
    found = b.contenders(b.parse(["--contenders", "manta", "vllm", "--variant", "tp2=engine=tp2_cpu cache=off"]))
    assert [contender.name for contender in found] == ["manta", "vllm", "manta_tp2"]
    assert found[-1].words == ("cache=memory", "engine=tp2_cpu", "cache=off")


def test_what_is_appended_to_must_be_about_the_same(tmp_path: Path):
    out = tmp_path / "out.json"
    first = b.new_report(b.parse(["--out", str(out)]))
    out.write_text(json.dumps(first))
    again = b.new_report(b.parse(["--out", str(out), "--append"]))
    assert len(again["commands"]) == 2
    with pytest.raises(ValueError, match="another settings"):
        b.new_report(b.parse(["--out", str(out), "--append", "--output-tokens", "99"]))
    assert len(b.new_report(b.parse(["--out", str(out)]))["commands"]) == 1


@pytest.mark.parametrize(
    ("words", "events"),
    [
        (["--runs", "2"], "+vllm vllm1 -vllm +manta manta1 -manta +vllm vllm2 -vllm +manta manta2 -manta"),
        (["--runs", "2", "--together"], "+vllm +manta vllm1 manta1 vllm2 manta2 -manta -vllm"),
    ],
)
def test_servers_are_up_in_turn_or_together(words, events, tmp_path, monkeypatch):
    said = []

    @contextmanager
    def asking(contender, model, prompts, args, folder):
        said.append(f"+{contender.name}")
        yield SimpleNamespace(measure=lambda: iter([{"load": "x"}]))
        said.append(f"-{contender.name}")

    monkeypatch.setattr(b, "asking", asking)
    monkeypatch.setattr(b, "note", lambda report, args, name, run, result: said.append(f"{name}{run}"))
    args = b.parse(["--contenders", "vllm", "manta", "--loads", "closed:2", *words])
    b.run_all(args, {"runs": []}, tmp_path)
    assert " ".join(said) == events


def test_servers_that_are_up_together_share_a_gpu():
    words = ["--device", "cuda", "--model", "tiny", "--contenders", "vllm", "manta"]
    assert "gpu_memory_utilization" not in b.engine_of(b.parse(words))
    assert b.engine_of(b.parse([*words, "--together"]))["gpu_memory_utilization"] == 0.45
