"""The first code of a submitted job on its node: python -m cluster.submit.begin FILE ID. Needs nothing but Python."""

from __future__ import annotations

import os
import socket
import sys


def main(words: list[str]) -> int:
    """Does what an order says; returns the exit code."""
    try:
        from cluster.submit.order import run
        from conf.cli import guarded
    except ModuleNotFoundError as error:
        print(
            f"manta submit: {sys.executable} on {socket.gethostname()}, the cluster's node, lacks {error.name}: set"
            " submit.python to one that has Manta's requirements, or submit.environment=lock",
            file=sys.stderr,
        )
        return 2
    return guarded("submit", lambda: run(words))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as conf.cli does: libraries' threads may end a process with a code of their own
