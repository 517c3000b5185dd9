"""Jobs with the real engine, as people run them: a process of its own, a real Ray, real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "conf.cli", "batch", "engine=cpu", *words]


def manta(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=280, env=ENVIRONMENT, check=False)


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "_manta" / "job.json").read_text())


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
