"""What vLLM's processes say of a start that fails, and of their end: its exceptions only point at its log."""

from __future__ import annotations

import os
import re
from pathlib import Path

POINTER = "root cause"
"""What is in the exceptions that only point at the log. Source: vllm/v1/engine/utils.py, wait_for_engine_startup,
vllm/v1/executor/multiproc_executor.py, wait_for_ready, and vllm/v1/engine/exceptions.py (0.26-0.32)."""
MAX_CHARS = 500
_LAST_BYTES = 1 << 18
"""Of a file that are looked through: tracebacks of a machine's workers have some KB each."""
_LINE = re.compile(r"\((EngineCore|Worker)\S* .*?\bERROR\b.*?\]\s+(.*\S)")
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Exit)(: .+)?")
_LOST = re.compile(r"(Worker proc \S+ died unexpectedly)")
"""Source: vllm/v1/executor/multiproc_executor.py, monitor_workers (0.26-0.32)."""
_FRAME = re.compile(r'File ".*?([^/"]+)", line (\d+), in (\w+)')


class EngineLog:
    """The files that this process and its children write to, from now on: those of one of Ray's workers."""

    def __init__(self) -> None:
        self._ends = {path: path.stat().st_size for path in _own_files()}
        self._found: str | None = None

    def cause(self, error: Exception) -> str:
        """Returns why vLLM did not start, or ended, in one line.

        Args:
            error: what it raised; where that says nothing, what its processes wrote counts.
        """
        said = f"{type(error).__name__}: {error}"
        if POINTER in said:
            self._found = self._found or _root_cause(self._text())  # a dead engine fails all of its requests
            said = self._found or "a process of vLLM ended and logged no error: was it killed, or short of memory?"
        return " ".join(said.split())[:MAX_CHARS]

    def _text(self) -> str:
        parts = []
        for path, end in self._ends.items():
            try:
                with path.open("rb") as file:
                    file.seek(max(end, path.stat().st_size - _LAST_BYTES))
                    parts.append(file.read(_LAST_BYTES).decode(errors="replace"))
            except OSError:
                continue
        return "\n".join(parts)


def _root_cause(text: str) -> str | None:
    """Returns the first error of a worker, for those of the others follow from it; else the last of the core's, which
    ends its start. One without a message is told by its place.
    """
    found: dict[str, list[str]] = {"Worker": [], "EngineCore": []}
    place = ""
    for process, said in (match.groups() for line in text.splitlines() if (match := _LINE.search(line))):
        if frame := _FRAME.match(said):
            place = f" in {frame[3]} ({frame[1]}:{frame[2]})"
        elif lost := _LOST.match(said):
            found["Worker"].append(lost[1])
        elif (error := _ERROR.fullmatch(said)) and POINTER not in said:
            found[process].append(said if error[1] else said + place)
    return next(iter((*found["Worker"][:1], *found["EngineCore"][-1:])), None)


def _own_files() -> list[Path]:
    """Returns the files behind standard output and error: none where those are terminals, or pipes, or not Linux."""
    paths = []
    for number in (1, 2):
        try:
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
        if path.is_file() and path not in paths:
            paths.append(path)
    return paths
