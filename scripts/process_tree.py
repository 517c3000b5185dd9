"""A process and all that it started, for benchmarks."""

from __future__ import annotations

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """Returns a process and all below it; none when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
