"""A `manta` command as a process of its own, which finds this code wherever it was started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def manta_command(*words: str) -> list[str]:
    """Returns the command line of a verb and its words."""
    return [sys.executable, "-m", "conf.cli", *words]


def manta_environment() -> dict[str, str]:
    """Returns this process's environment, with this code in the path of Python."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
