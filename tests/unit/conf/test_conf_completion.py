from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

import conf
from conf import cli, completion, entry
from conf.completion import candidates
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.engine import FaultSpec

ROOT = Path(conf.__file__).parent.parent


@pytest.mark.parametrize("line", ["", "manta", "manta "])
def test_every_verb_is_offered_first(line: str):
    assert candidates(line) == [f"{verb} " for verb in cli.VERBS]


@pytest.mark.parametrize(
    "line,expected",
    [
        ("manta b", ["batch "]),
        ("manta x", []),
        ("manta doctor ", []),
        ("manta nope m", []),
        ("manta batch m", ["model.", "model="]),
        ("manta jobs s", ["show ", "stop "]),
        ("manta submit b", ["batch "]),
        ("manta submit batch m", ["model.", "model="]),
        ("manta submit batch model=", ["model=demo", "model=hf"]),
        ("manta submit batch s", ["sampling.", "sampling=", "submit."]),
        ("manta submit batch submit.environment=", ["submit.environment=lock", "submit.environment=none"]),
        ("manta submit batch --", ["--no-wait", "--again"]),
        ("manta submit nope m", []),
        ("manta  batch   m", ["model.", "model="]),
        ("manta batch model=", ["model=demo", "model=hf"]),
        ("manta batch model=d", ["model=demo"]),
        ("manta batch model=zzz", []),
        ("manta batch model=demo data=", ["data=openai_batch", "data=table", "data=tickets"]),
        ("manta batch engine=tp", ["engine=tp2_cpu", "engine=tp2_h200"]),
        ("manta batch data.pr", ["data.prompt=", "data.prompt_file="]),
        ("manta batch engine=cpu engine.pi", ["engine.pipeline_parallel_size="]),
        ("manta batch --c", ["--cfg"]),
        ("manta batch model=demo --re", ["--resolve"]),
    ],
)
def test_what_is_typed_is_completed(line: str, expected: list[str]):
    assert candidates(line) == expected


def test_every_group_and_every_field_is_offered_and_nothing_else():
    offered = candidates("manta batch ")
    values = {name for name, of in get_type_hints(BatchJob).items() if not is_dataclass(of)}
    assert values == {"task", "dry_run"}
    assert {word for word in offered if word.endswith("=")} == {
        f"{name}=" for name in {*entry.groups("batch"), *values}
    }
    nodes = {item.name for item in fields(BatchJob)} - values
    assert {word for word in offered if not word.endswith("=")} == {f"{name}." for name in nodes}


@pytest.mark.parametrize("verb,group", [(verb, group) for verb in ("batch", "serve") for group in entry.groups(verb)])
def test_every_option_of_a_group_is_offered(verb: str, group: str):
    assert candidates(f"manta {verb} {group}=") == [f"{group}={option}" for option in entry.options(group)]


def test_keys_are_those_of_the_job():
    expected = {f"engine.fault.{item.name}=" for item in fields(FaultSpec)}
    assert len(expected) > 5
    assert set(candidates("manta batch engine.fault.")) == expected


def test_the_values_of_an_enum_are_offered_as_they_are_typed():
    assert candidates("manta batch engine.device=c") == ["engine.device=cpu", "engine.device=cuda"]


@pytest.mark.parametrize(
    "line", ["manta batch engine.device=", "manta batch output.format=", "manta batch data.format="]
)
def test_an_offered_value_is_spelled_as_the_help_spells_it(line: str):
    for word in candidates(line):
        assert "." not in word.split("=")[1]


@pytest.mark.parametrize(
    "before",
    [
        "data.prompt='{{ a }}'",
        "data.prompt='{{ a, b }}'",
        'data.prompt="it\'s"',
        r"data.prompt=it\'s",
        "sampling.stop='[a, b]'",
        "engine.vllm.x=3",
        "data.limit=x",
        "nope=1",
        "data=nope",
        "--cfg job",
        "--resolve",
    ],
)
def test_any_earlier_word_leaves_the_next_one_complete(before: str):
    assert "model=" in candidates(f"manta batch {before} mo")


@pytest.mark.parametrize(
    "line", ["manta batch data.prompt='{{ a", "manta batch '", "manta batch sampling.stop=[a, m", "manta batch model='"]
)
def test_a_word_in_the_making_raises_nothing(line: str):
    assert isinstance(candidates(line), list)


def test_paths_are_offered(tmp_path: Path):
    (tmp_path / "table.jsonl").touch()
    assert candidates(f"manta batch data.input={tmp_path}/ta") == [f"data.input={tmp_path}/table.jsonl"]


def test_complete_prints_a_word_a_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--complete", "manta batch model="]) == 0
    assert capsys.readouterr() == ("model=demo\nmodel=hf\n", "")


def test_complete_without_a_line_offers_the_verbs(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--complete"]) == 0
    assert capsys.readouterr().out.split() == list(cli.VERBS)


def test_zsh_gets_bash_completion_loaded_first(capsys: pytest.CaptureFixture[str]):
    assert completion.run(["zsh"]) == 0
    zsh = capsys.readouterr().out
    assert completion.run([]) == 0
    bash = capsys.readouterr().out
    assert zsh.endswith(bash)
    assert "bashcompinit" in zsh.removesuffix(bash)


def test_an_unknown_shell_is_refused():
    with pytest.raises(UserError, match=r"'fish'.*bash, zsh"):
        completion.run(["fish"])


@pytest.fixture
def bash_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The printed script, next to a `manta` that runs this checkout."""
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out)
    manta = tmp_path / "manta"
    manta.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m conf.cli "$@"\n')
    manta.chmod(0o755)
    return tmp_path / "complete.sh"


def bash_reply(script: Path, line: str, breaks: str = " \t\n\"'><=;|&(:", point: int | None = None) -> list[str]:
    code = """
    PATH="$1:$PATH"; source "$1/complete.sh"
    COMP_LINE="$2"; COMP_POINT="$3"; COMP_WORDBREAKS="$4"
    _manta_complete
    for word in "${COMPREPLY[@]}"; do echo "$word|"; done
    """
    words = [str(script.parent), line, str(len(line) if point is None else point), breaks]
    done = subprocess.run(["bash", "-c", code, "bash", *words], capture_output=True, text=True, timeout=30, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    return [word.removesuffix("|") for word in done.stdout.splitlines()]


def test_the_bash_script_parses(bash_script: Path):
    assert subprocess.run(["bash", "-n", str(bash_script)], capture_output=True).stderr == b""


def test_the_bash_script_registers_for_manta(bash_script: Path):
    code = f"source '{bash_script}'; complete -p manta"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=30)
    assert "-F _manta_complete manta" in done.stdout


@pytest.mark.parametrize(
    "line,expected",
    [
        ("manta ba", ["batch "]),
        ("manta batch mod", ["model.", "model="]),
        ("manta batch model=", ["demo", "hf"]),
        ("manta batch model=demo data=ti", ["tickets"]),
        ("manta batch model=demo mod", ["model.", "model="]),
        ("manta batch data.pr", ["data.prompt=", "data.prompt_file="]),
        ("manta batch data.prompt='{{ a }}' model=", ["demo", "hf"]),
        ("manta nope x", []),
    ],
)
def test_bash_completes(bash_script: Path, line: str, expected: list[str]):
    assert bash_reply(bash_script, line) == expected


def test_bash_keeps_the_key_where_the_equals_sign_breaks_no_word(bash_script: Path):
    assert bash_reply(bash_script, "manta batch model=", breaks=" \t\n") == ["model=demo", "model=hf"]


def test_bash_completes_at_the_cursor_not_at_the_end(bash_script: Path):
    assert bash_reply(bash_script, "manta ba model=demo", point=len("manta ba")) == ["batch "]
