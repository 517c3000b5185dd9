from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cluster.submit.order import Order, run, typed
from conf import entry
from conf.entry import ROOT
from conf.errors import UserError


def test_a_python_without_the_requirements_is_one_line_and_the_user_s_mistake(tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    # -S leaves out all that was installed
    command = [sys.executable, "-S", "-m", "cluster.submit.begin", "_manta/order.json", "j"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (2, "", 1), ran.stderr
    assert "set submit.python to one that has Manta's requirements" in ran.stderr


def written(folder: Path, order: Order) -> list[str]:
    (folder / "order.json").write_bytes(msgspec.json.encode(order))
    return [str(folder / "order.json"), "manta-batch-1"]


def test_what_the_driver_s_node_does_not_see_is_one_line_of_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MANTA_SUBMITTED", "")  # the order sets it
    order = Order(verb="batch", job={}, seen={"data.input": "/no/such/in.jsonl"})
    assert run(written(tmp_path, order)) == 2
    said = capsys.readouterr().err
    assert said.startswith("manta batch: data.input=/no/such/in.jsonl is not there on ")
    assert len(said.splitlines()) == 1


def test_files_that_travelled_are_as_old_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANTA_SUBMITTED", "")
    (tmp_path / "in.jsonl").write_text("")
    order = Order(verb="batch", job={}, seen={"x": "/no/such"}, modified_ns={"in.jsonl": 1_000_000_000})
    run(written(tmp_path, order))
    assert (tmp_path / "in.jsonl").stat().st_mtime_ns == 1_000_000_000


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "c"]])
def test_other_words_are_a_mistake(words: list[str]):
    with pytest.raises(UserError):
        run(words)


@pytest.mark.parametrize(
    "verb,words",
    [
        ("batch", ["model=demo", "data=tickets", "engine.vllm.seed=1", "sampling.stop=[a,b]"]),
        ("serve", ["model=demo", "engine.num_replicas=1..3", "deployment.models.v.model=demo", "autoscale=slo"]),
        ("optimize", ["model=demo", "recipe=w4a16", "data=tickets"]),
        ("evaluate", ["model=demo", "data=tickets", "parent=demo"]),
    ],
)
def test_a_job_arrives_as_it_was_composed(verb: str, words: list[str]):
    job = entry.compose(verb, *words)
    assert typed(verb, msgspec.json.decode(msgspec.json.encode(job))) == job


def test_a_value_that_breaks_a_rule_is_refused_as_on_the_command_line():
    job = msgspec.to_builtins(entry.compose("batch", "model=demo", "data=tickets"))
    job["sampling"]["max_tokens"] = 0
    with pytest.raises(UserError, match=r"sampling\.max_tokens must be >= 1"):
        typed("batch", job)
