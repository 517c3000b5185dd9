"""A service in the background: starts its process, and waits until it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import msgspec

from cluster.child import manta_command, manta_environment
from cluster.own_file import read_own, write_own
from cluster.terminal import interruptible
from conf.errors import UserError
from conf.schema.serve import ServeJob
from serve.plan import ServicePlan
from serve.state import Phase, claimed, read_state, remove_state

LOG = "serve.log"
"""What the service would say on a terminal, in its folder of logs."""
POLL_S = 0.1


def start_detached(plan: ServicePlan, folder: Path) -> int:
    """Starts a service that goes on when this process ends, and shows what it says until it is ready.

    Args:
        plan: the service.
        folder: where states are.

    Returns:
        The exit code: 0 ready, else that of the service.

    Raises:
        UserError: when a service of this name runs.
    """
    name = plan.job.deployment.name
    with claimed(folder, name):
        remove_state(folder, name)
        saved = folder / f"{name}.job.json"
        write_own(saved, msgspec.json.encode(plan.job))
    plan.logs.mkdir(parents=True, exist_ok=True)
    with interruptible() as interrupted, (plan.logs / LOG).open("ab+") as log:
        log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            manta_command("serve", "--job", str(saved)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=manta_environment(),
            start_new_session=True,  # the terminal's Ctrl-C, and its end, are not the service's
        )
        with open(log.name, errors="replace") as said:
            said.seek(log.tell())
            try:
                while (code := process.poll()) is None:
                    _relay(said)
                    state = read_state(folder, name)
                    if state is not None and state.process.pid == process.pid and state.phase is Phase.ready:
                        break
                    if interrupted.wait(POLL_S):
                        interrupted.clear()  # once more is passed on once more
                        process.terminate()
            finally:
                _relay(said)
    return 0 if code is None else code


def read_job(path: Path) -> ServeJob:
    """Reads the job that another process has planned.

    Raises:
        UserError: when it is none.
    """
    data = read_own(path)
    try:
        return msgspec.json.decode(data or b"", type=ServeJob)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a job of manta serve: {error}") from error


def _relay(said: TextIO) -> None:
    sys.stderr.write(said.read())
    sys.stderr.flush()
