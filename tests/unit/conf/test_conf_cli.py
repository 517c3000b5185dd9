from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import conf
from conf import cli
from conf.errors import UserError
from conf.schema.batch import BatchJob

ROOT = Path(conf.__file__).parent.parent
Capture = pytest.CaptureFixture[str]
Verb = Callable[[str, Callable[[Any], int]], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Puts a function behind a verb."""

    def put(name: str, function: Callable[[Any], int]) -> None:
        module = ModuleType("verb_of_a_test")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "verb_of_a_test", module)
        monkeypatch.setitem(cli.VERBS, name, ("verb_of_a_test:run", "what it does"))

    return put


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["manta"])


def raising(error: BaseException) -> Callable[[Any], int]:
    def run(_: Any) -> int:
        raise error

    return run


def manta(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process and a folder of its own."""
    command = [sys.executable, "-m", "conf.cli", *words]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=30)


def assert_one_line_of_the_users_mistake(code: int, out: str, err: str) -> None:
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err


def test_no_words_print_the_usage_and_fail(capsys: Capture):
    assert cli.main([]) == 2
    assert "usage: manta VERB" in "".join(capsys.readouterr())


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_prints_every_verb(word: str, capsys: Capture):
    assert cli.main([word]) == 0
    out, err = capsys.readouterr()
    assert "usage: manta VERB" in out
    assert all(f"  {name} " in out and what in out for name, (_, what) in cli.VERBS.items())
    assert err == ""


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version_is_one_line(word: str, capsys: Capture):
    assert cli.main([word]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("manta ")
    assert (len(out.split()), err) == (2, "")


def test_words_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture):
    monkeypatch.setattr(sys, "argv", ["manta", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith("manta ")


def test_an_unknown_verb_is_named_with_the_nearest(capsys: Capture):
    code = cli.main(["batc", "model=demo"])
    out, err = capsys.readouterr()
    assert_one_line_of_the_users_mistake(code, out, err)
    assert "'batc'; did you mean 'batch'?" in err


@pytest.mark.parametrize("name", ["batch", "completion"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_has_help(name: str, flag: str, capsys: Capture):
    assert cli.main([name, flag]) == 0
    out, err = capsys.readouterr()
    assert f"manta {name}" in out
    assert err == ""


def test_help_wins_over_a_wrong_word(capsys: Capture):
    assert cli.main(["batch", "nope=1", "--help"]) == 0
    assert "sampling.max_tokens=256" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_verb_gets_its_typed_job_and_its_code_is_the_exit_code(code: int, verb: Verb):
    jobs: list[BatchJob] = []
    verb("batch", lambda job: jobs.append(job) or code)
    assert cli.main(["batch", "model=demo", "data=tickets", "data.prompt={{ a, b }}"]) == code
    assert [type(job) for job in jobs] == [BatchJob]
    assert jobs[0].data.prompt == "{{ a, b }}"


def test_a_verb_without_a_schema_gets_the_words(verb: Verb):
    got: list[list[str]] = []
    verb("plain", lambda words: got.append(words) or 0)
    assert cli.main(["plain", "a", "--b"]) == 0
    assert got == [["a", "--b"]]


def test_a_users_mistake_is_one_line_and_2(verb: Verb, capsys: Capture):
    verb("fake", raising(UserError("data.input: no such file")))
    code = cli.main(["fake"])
    out, err = capsys.readouterr()
    assert_one_line_of_the_users_mistake(code, out, err)
    assert err == "manta fake: data.input: no such file\n"


def test_an_interrupt_is_130_without_traceback(verb: Verb, capsys: Capture):
    verb("fake", raising(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_a_fault_of_ours_is_1_with_its_traceback(verb: Verb, capsys: Capture):
    verb("fake", raising(ValueError("surprise")))
    assert cli.main(["fake"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "ValueError: surprise" in err


def test_a_reader_that_hangs_up_is_141_without_traceback(verb: Verb, capsys: Capture):
    verb("fake", raising(BrokenPipeError()))
    assert cli.main(["fake"]) == 141
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,named",
    [
        (["nope=1"], "nope"),
        (["hlep"], "hlep"),
        (["model=demos"], "demos"),
        (["model=demo"], "data.input"),
        (["model=demo", "data=tickets", "data.limit=0"], "data.limit"),
        (["model=demo", "data=tickets", "engine=null"], "engine"),
        (["--nope"], "--nope"),
        (["-m"], "-m"),
        (["--multirun", "model=demo"], "--multirun"),
        (["--config-dir=/tmp"], "--config-dir"),
        (["--cfg"], "--cfg"),
        (["--cfg", "nope"], "nope"),
        (["--cfg", "job", "nope=1"], "nope"),
        (["--cfg", "job", "model=demos"], "demos"),
        (["--cfg", "job", "engine=null"], "engine"),
    ],
)
def test_wrong_words_after_a_verb_are_one_line_and_2(words: list[str], named: str, verb: Verb, capsys: Capture):
    verb("batch", raising(AssertionError("the verb ran")))
    code = cli.main(["batch", *words])
    out, err = capsys.readouterr()
    assert_one_line_of_the_users_mistake(code, out, err)
    assert err.startswith("manta batch: ")
    assert named in err


@pytest.mark.parametrize("flag", ["--nope", "--config-dir=/tmp", "--cfg=job"])
def test_an_unknown_flag_is_called_an_option(flag: str, capsys: Capture):
    assert cli.main(["batch", flag]) == 2
    assert f"unknown option '{flag}'" in capsys.readouterr().err


def test_cfg_job_prints_the_configuration_and_runs_nothing(verb: Verb, capsys: Capture):
    verb("batch", raising(AssertionError("the verb ran")))
    assert cli.main(["batch", "model=demo", "--cfg", "job", "data.prompt={{ a, 'b' }}", "engine.vllm.x=3"]) == 0
    out, err = capsys.readouterr()
    said = yaml.safe_load(out)
    assert list(said) == [item.name for item in fields(BatchJob)]
    assert (said["model"]["name"], said["data"]["prompt"], said["engine"]["vllm"]) == ("demo", "{{ a, 'b' }}", {"x": 3})
    assert err == ""


def test_cfg_job_of_a_package_prints_that_part(capsys: Capture):
    assert cli.main(["batch", "--cfg", "job", "-p", "sampling", "sampling.seed=4"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 4


def test_cfg_job_resolved_holds_no_interpolation(capsys: Capture):
    assert cli.main(["batch", "--cfg", "job", "--resolve", "model=demo"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["path"] == str(ROOT / "demo" / "model")


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "-p", "nope"],
        ["--cfg", "job", "--resolve", "data.prompt=${nope}"],
        ["--cfg", "job", "--resolve", "data.prompt=${oc.env:MANTA_ABSENT}"],
    ],
)
def test_cfg_of_what_cannot_be_shown_is_one_line_and_2(words: list[str], tmp_path: Path):
    done = manta("batch", *words, cwd=tmp_path)
    assert_one_line_of_the_users_mistake(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", [["--resolve"], ["-p", "sampling"]])
def test_flags_that_go_with_cfg_do_not_stand_alone(words: list[str], tmp_path: Path):
    done = manta("batch", "model=demo", "data=tickets", *words, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert_one_line_of_the_users_mistake(done.returncode, done.stdout, done.stderr)


def test_cfg_writes_no_files(tmp_path: Path):
    assert manta("batch", "--cfg", "job", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_reaches_the_shell(tmp_path: Path):
    done = manta("batch", "model.path=m", "data.input=d", "data.limit=0", cwd=tmp_path)
    assert_one_line_of_the_users_mistake(done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("manta batch: data.limit")
