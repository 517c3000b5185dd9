"""Why vLLM did not start: its exception points at its log, and there the cause is looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serve.engine.vllm import engine_log
from serve.engine.vllm.engine_log import EngineLog

POINTS = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
CORE = "(EngineCore pid=7) ERROR 11-27 23:19:58 [core.py:1510] {}"
WORKER = "(Worker_TP{} pid=8) ERROR 11-27 23:10:16 [multiproc_executor.py:1063] {}"


def cause(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception = POINTS) -> str:
    """Returns the cause where a start wrote the text, after an earlier one that failed for another."""
    own = tmp_path / "worker.out"
    own.write_text(CORE.format("ValueError: of another start") + "\n")
    monkeypatch.setattr(engine_log, "_own_files", lambda: [own])
    log = EngineLog()
    with own.open("a") as file:
        file.write(text)
    return log.cause(error)


@pytest.mark.parametrize(
    "lines, expected",
    [
        (
            [CORE.format("    raise ValueError("), CORE.format("ValueError: no memory for the cache")],
            "ValueError: no mem",
        ),
        # the first of the workers: the second lost its peer, and the core says that a worker failed
        (
            [
                WORKER.format(0, "torch.OutOfMemoryError: CUDA out of memory"),
                WORKER.format(1, "RuntimeError: connection reset by peer"),
                CORE.format("RuntimeError: Worker failed with error 'CUDA out of memory'"),
            ],
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        # of the core the last: what came before was handled
        (
            [CORE.format("ImportError: no flash"), CORE.format("KeyError: 'rope'"), CORE.format(str(POINTS))],
            "KeyError: 'r",
        ),
        (
            [WORKER.format(0, 'File "/x/vllm/layers/linear.py", line 52, in load'), WORKER.format(0, "AssertionError")],
            "AssertionError in load (linear.py:52)",
        ),
        # one that is killed says nothing, the core says that it is gone
        (
            [
                CORE.format("Worker proc VllmWorker-1 died unexpectedly, shutting down."),
                CORE.format("RuntimeError: cancelled"),
            ],
            "Worker proc VllmWorker-1 died unexpectedly",
        ),
        (["INFO all is well", "ValueError: of nobody's process"], "a process of vLLM ended and logged no error"),
    ],
)
def test_the_error_that_the_others_follow_from(
    lines: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cause("\n".join(lines), tmp_path, monkeypatch).startswith(expected)


def test_an_error_that_says_something_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cause(CORE.format("ValueError: old"), tmp_path, monkeypatch, OSError("no file\n config.json"))
    assert said == "OSError: no file config.json"


def test_a_cause_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(cause(CORE.format("ValueError: " + "x" * 9000), tmp_path, monkeypatch)) == engine_log.MAX_CHARS


def test_a_file_that_is_gone_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "worker.out"
    own.write_text("")
    monkeypatch.setattr(engine_log, "_own_files", lambda: [own])
    log = EngineLog()
    own.unlink()
    assert log.cause(POINTS).startswith("a process of vLLM ended")


@pytest.mark.parametrize("is_file", [True, False])
def test_what_a_child_writes_is_found_where_a_file_takes_it(is_file: bool, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from serve.engine.vllm.engine_log import EngineLog; log = EngineLog();"
        f"subprocess.run(['echo', {CORE.format('ValueError: no memory')!r}]);"
        "open(sys.argv[1], 'w').write(log.cause(RuntimeError('See root cause above')))"
    )
    said = tmp_path / "said"
    with (tmp_path / "out").open("w") as out:
        words = [sys.executable, "-c", code, str(said)]
        subprocess.run(words, stdout=out if is_file else subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    assert said.read_text().startswith("ValueError: no memory" if is_file else "a process of vLLM ended")
