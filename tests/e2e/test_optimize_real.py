"""Each recipe, as people run it, and its result in the engine that serves it. A case is four lines of YAML."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from real import ENVIRONMENT, manta, record

from conf import entry

CASES = {path.stem: path for path in sorted((ROOT / "tests" / "e2e" / "recipes").glob("*.yaml"))}
QUICK = ("w8a8",)
"""Those of the default run."""
GGUF = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="GGUF is an extra: make gguf")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def marks(name: str) -> list[pytest.MarkDecorator]:
    """Of a case."""
    return [*([] if name in QUICK else [pytest.mark.slow]), *([GGUF] if name.startswith("gguf") else [])]


@pytest.fixture(autouse=True)
def own_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, no other one finds."""
    monkeypatch.setitem(ENVIRONMENT, "MANTA_CONF", str(tmp_path / "choices"))


def optimize(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "conf.cli", "optimize", "model=demo", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)


def test_every_recipe_has_a_case():
    # custom has no steps; the student of distill alone is another model than its teacher
    assert sorted(CASES) == sorted(set(entry.options("recipe")) - {"custom", "distill"})


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CASES])
def test_a_recipe_s_result_answers_in_the_engine(name: str, tickets: Path, tmp_path: Path):
    case: dict[str, Any] = yaml.safe_load(CASES[name].read_text())
    more = case.get("words", [])
    engine = [word for word in more if word.startswith("engine=")]
    out = tmp_path / "out"
    words = (f"recipe={case['recipe']}", f"output.path={out}", f"name=e2e-{name}", *(set(more) - set(engine)))
    words += ("data=tickets", f"examples.rows={case['rows']}") if case["rows"] else ()
    done = optimize(*words)
    assert done.returncode == 0, done.stderr
    saved = json.loads((out / "artifact.json").read_text())
    for key, value in case["measured"].items():
        assert saved["measured"][key] == pytest.approx(value, rel=0.02)
    again = optimize(*words)
    assert again.returncode == 0, again.stderr
    assert "step 1" not in again.stderr, "nothing is done twice"
    answers = tmp_path / "answers"
    limit = [f"data.limit={case['asked']}"] if "asked" in case else []
    rows = ("data=tickets", f"data.input={tickets}", *limit)
    asked = manta(f"model=e2e-{name}", *rows, f"output.path={answers}", *engine)
    assert asked.returncode == 0, asked.stderr
    assert record(answers)["exact_match"] >= case["exact_match"]


@pytest.mark.slow
def test_a_library_that_fails_in_a_step_is_told_of_with_its_logs(demo_model: Path, tmp_path: Path):
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in demo_model.iterdir():
        content = path.read_bytes()
        (torn / path.name).write_bytes(content[:200_000] if path.suffix == ".safetensors" else content)
    done = optimize(f"model.path={torn}", "recipe=w8a8", f"output.path={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "manta optimize: recipe.steps.quantize (quantize) failed: safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out" / "_manta" / "steps" / "logs").iterdir())
