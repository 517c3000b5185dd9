"""The runner with scripts in the place of jobs."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.schema.batches import BatchesSpec
from serve.batches import runner as module
from serve.batches.records import Kind, Object
from serve.batches.runner import Runner
from serve.batches.shelf import Shelf, batch_object

# answers all lines, or waits to be told to end, as the input's first word says; counts its runs
JOB = """
import json, pathlib, signal, sys, time
source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
(out / "_manta" / "done").mkdir(parents=True, exist_ok=True)
runs = out / "runs"
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
lines = source.read_text().splitlines()
mode = json.loads(lines[0])["custom_id"]
def end(rows, code):
    (out / "output.jsonl").write_text("".join(line + "\\n" for line in lines[:rows]))
    (out / "_manta" / "done" / "u.json").write_text(json.dumps({"answers": rows, "failed": 0}))
    sys.exit(code)
if mode == "wait":
    signal.signal(signal.SIGINT, lambda *_: end(1, 130))
    (out / "ready").touch()
    time.sleep(60)
if mode == "twice" and len(runs.read_text()) < 3:
    sys.exit(1)
if mode == "never":
    sys.exit(1)
end(len(lines), 0)
"""


class Desk:
    def __init__(self, folder: Path, **spec: Any) -> None:
        self.now, self.folder = 1000.0, folder
        self.script = folder / "job.py"
        self.script.write_text(JOB)
        self.spec = BatchesSpec(path=str(folder / "kept"), **spec)
        self.shelf = Shelf(folder / "kept", now=lambda: self.now)
        self.runner = self.new_runner()

    def new_runner(self) -> Runner:
        def command(source: Path, target: Path) -> list[str]:
            return [sys.executable, str(self.script), str(source), str(target)]

        return Runner(self.shelf, self.spec, lambda: ["demo"], command, os.environ, now=lambda: self.now)

    def batch(self, *names: str, window_s: float = 60, **line: Any) -> str:
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"model": "demo"}, **line}
            for name in names
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        source = self.shelf.put("one", io.BytesIO(content), "in", "batch")
        asked = {
            "input_file_id": source["id"],
            "endpoint": "/v1/completions",
            "completion_window": "1h",
            "metadata": None,
        }
        value = batch_object(asked, int(self.now), window_s)
        self.shelf.records.add(Kind.batch, "one", value)
        return value["id"]

    def look(self, name: str) -> Object:
        found = self.shelf.records.get(Kind.batch, "one", name)
        assert found is not None
        return found

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not is_so():
            self.runner.tick()
            self.now += 1
            time.sleep(0.02)
            assert time.monotonic() < deadline

    def until_status(self, name: str, status: str) -> Object:
        self.until(lambda: self.look(name)["status"] == status)
        return self.look(name)

    def runs(self, name: str) -> int:
        return len((self.shelf.job(name) / "out" / "runs").read_text())


@pytest.fixture
def desk(tmp_path: Path):
    desk = Desk(tmp_path)
    yield desk
    desk.runner.stop()


def test_a_batch_is_run_and_its_output_is_a_file_of_its_owner(desk: Desk):
    name = desk.batch("a", "b")
    batch = desk.until_status(name, "completed")
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    output = desk.shelf.records.get(Kind.file, "one", batch["output_file_id"])
    assert output is not None
    assert (output["purpose"], output["filename"]) == ("batch_output", f"{name}_output.jsonl")
    assert len(desk.shelf.content(output["id"]).read_text().splitlines()) == 2
    assert batch["error_file_id"] is None


def test_a_file_of_no_requests_fails_with_its_lines(desk: Desk):
    batch = desk.until_status(desk.batch("a", "a"), "failed")
    assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == [("duplicate_custom_id", 2)]


def test_a_file_that_was_deleted_fails(desk: Desk):
    name = desk.batch("a")
    desk.shelf.drop("one", desk.look(name)["input_file_id"])
    assert desk.until_status(name, "failed")["errors"]["data"][0]["code"] == "file_not_found"


def test_one_runs_at_a_time_the_oldest_first(desk: Desk):
    first, second = desk.batch("wait", window_s=1e9), desk.batch("b", window_s=1e9)
    desk.until_status(first, "in_progress")
    for _ in range(3):
        desk.runner.tick()
    assert desk.look(second)["status"] == "validating"
    desk.shelf.records.change(first, lambda now: {**now, "status": "cancelling"})
    desk.until_status(second, "completed")


def test_a_batch_that_is_cancelled_keeps_what_was_answered(desk: Desk):
    name = desk.batch("wait", "b", window_s=1e9)
    desk.until_status(name, "in_progress")
    desk.until((desk.shelf.job(name) / "out" / "ready").exists)
    desk.shelf.records.change(name, lambda now: {**now, "status": "cancelling"})
    batch = desk.until_status(name, "cancelled")
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 0}
    assert batch["output_file_id"]


def test_a_batch_that_waits_is_cancelled_at_once(desk: Desk):
    name = desk.batch("a")
    desk.shelf.records.change(name, lambda now: {**now, "status": "cancelling"})
    desk.runner.tick()
    assert desk.look(name)["status"] == "cancelled"


def test_a_batch_past_its_window_expires_with_what_it_has(desk: Desk):
    name = desk.batch("wait", "b", window_s=1e9)
    desk.until((desk.shelf.job(name) / "out" / "ready").exists)
    desk.now += 1e9
    assert desk.until_status(name, "expired")["output_file_id"]


def test_a_job_that_ends_too_soon_runs_again(desk: Desk):
    name = desk.batch("twice", window_s=1e9)
    desk.until_status(name, "completed")
    assert desk.runs(name) == 3


def test_a_job_that_never_ends_well_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_FAILURES", 3)
    name = desk.batch("never", window_s=1e9)
    assert desk.until_status(name, "failed")["errors"]["data"][0]["code"] == "internal_error"
    assert desk.runs(name) == 3


def test_the_next_service_goes_on(desk: Desk):
    name = desk.batch("wait", "b", window_s=1e9)
    desk.until((desk.shelf.job(name) / "out" / "ready").exists)
    desk.runner.stop()
    assert desk.look(name)["status"] == "in_progress"
    source = desk.shelf.job(name) / "input.jsonl"
    source.write_text(source.read_text().replace("wait", "go"))
    desk.runner = desk.new_runner()
    assert desk.until_status(name, "completed")["request_counts"]["completed"] == 2
    assert desk.runs(name) == 2
