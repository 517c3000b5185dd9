"""Ends a local Ray with the process that started it, however that ends.

Ray ties most of its processes to their parent by the kernel, but not all: its agents, children of the raylet, were
there a minute after the driver was killed. So a process of our own waits for the driver's end, and kills what is left:
what has the cluster's folder in its environment, or a file there open to write (Ray's workers and agents write their
titles over their environment, and an agent's own output is a pipe).
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.child import manta_environment
from cluster.process import Process, kill_all, running

OWNER = "MANTA_LOCAL_SCRATCH"
"""The variable with the folder of the local Ray that a process belongs to."""
KILL_S = 10.0
"""Seconds that what was killed may take to be gone."""
DONE = b"done"
"""What a driver says that ends by itself, and has ended its Ray."""
_left: list[subprocess.Popen[bytes]] = []
"""Guards of Rays that are not ended here: they act when this process ends."""


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Sees to it that nothing of a local Ray outlives this process; to be entered before Ray starts.

    Args:
        folder: where Ray keeps its sockets and logs; it goes too where this process does not end its Ray.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "cluster.guard", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=manta_environment(),
        start_new_session=True,  # Ctrl-C is not for it
    )
    _left.append(child)
    os.environ[OWNER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(OWNER, None)
        if not isinstance(sys.exception(), KeyboardInterrupt):  # then this process ends with Ray as it is
            with suppress(OSError):
                child.communicate(DONE)
            _left.remove(child)


def belonging(folder: str) -> list[Process]:
    """Returns the processes of this user that belong to the local Ray of a folder."""
    return [
        process
        for process in running()
        if process.pid != os.getpid() and (process.has(OWNER, folder) or _writes_to(process.pid, folder))
    ]


def end(folder: str) -> None:
    """Kills what belongs to the local Ray of a folder, and removes the folder."""
    kill_all(lambda: belonging(folder), KILL_S)
    shutil.rmtree(folder, ignore_errors=True)


def _writes_to(pid: int, folder: str) -> bool:
    """Whether a process has a file open to write there: whoever only reads a log of Ray's stays."""
    with suppress(OSError):
        for opened in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if opened.lstat().st_mode & stat.S_IWUSR and os.readlink(opened).startswith(f"{folder}/"):
                    return True
    return False


def main(folder: str) -> None:
    """Waits for the end of the driver, whose pipe is stdin."""
    if sys.stdin.buffer.read() != DONE:
        end(folder)


if __name__ == "__main__":
    main(sys.argv[1])
