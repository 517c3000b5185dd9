"""An engine's process ends with its replica, however that ends, and does not import vLLM a second time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serve.engine.placement import has_few_cores

START = """
import asyncio, json, sys
import psutil
from conf.schema.engine import Device, EngineProcess, EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.start import start_engine

async def start():
    sizes = dict(max_num_seqs=4, max_model_len=256, tensor_parallel_size=int(sys.argv[2]))
    spec = EngineSpec(process=EngineProcess.separate, **sizes)
    engine = await start_engine(ModelSpec(path=sys.argv[1]), spec, Device.cpu, 256)
    children = psutil.Process().children(recursive=True)
    below = [(child.pid, child.ppid(), child.cmdline(), child.cpu_affinity()) for child in children]
    print("STARTED", json.dumps(below), flush=True)
    await asyncio.sleep(600)

asyncio.run(start())
"""


Started = list[tuple[int, int, list[str], list[int]]]
"""Of each process below a replica: its id, its parent's, its command line, its cores."""


@pytest.mark.timeout(300)
def test_an_engine_ends_with_the_process_that_was_killed(tmp_path: Path, demo_model: Path) -> None:
    started, alive = _kill_replica(tmp_path, demo_model)
    assert not alive
    server = next(pid for pid, _, words, _ in started if "forkserver" in " ".join(words))
    core = next(parent for _, parent, words, _ in started if "EngineCore" in " ".join(words))
    assert core == server  # forked from where vLLM is imported
    allowed = os.sched_getaffinity(0)
    workers = [cores for _, _, words, cores in started if "Worker" in " ".join(words)]
    if has_few_cores():
        assert not workers  # the core computes itself, on all
        assert next(set(cores) for _, _, words, cores in started if "EngineCore" in " ".join(words)) == allowed
    else:
        # vLLM leaves one to its scheduler; OpenMP does not see that by itself where it was loaded before
        (bound,) = workers
        assert set(bound) < allowed


@pytest.mark.timeout(300)
def test_workers_that_hang_end_with_the_process_that_was_killed(tmp_path: Path, demo_model: Path) -> None:
    # as on GPUs, where workers whose engine is gone wait for each other in NCCL and keep their weights
    started, alive = _kill_replica(tmp_path, demo_model, tensor_parallel_size=2, hangs="Worker")
    assert len([pid for pid, _, words, _ in started if "Worker" in " ".join(words)]) == 2
    assert not alive


def _kill_replica(
    tmp_path: Path, model: Path, tensor_parallel_size: int = 1, hangs: str | None = None
) -> tuple[Started, list[list[str]]]:
    """Starts an engine in a process and kills that, after those of its processes that `hangs` names were stopped.

    Returns:
        What ran below it, and the command lines of those that still did 20 s later. They are killed.
    """
    root = Path(__file__).parent.parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    errors = tmp_path / "errors"
    with errors.open("w") as stderr:
        command = [sys.executable, "-c", START, str(model), str(tensor_parallel_size)]
        replica = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env)
    try:
        assert replica.stdout is not None
        line = next((line for line in replica.stdout if line.startswith("STARTED ")), None)
        assert line is not None, errors.read_text()[-3000:]
        started: Started = json.loads(line.removeprefix("STARTED "))
        for pid, _, words, _ in started:
            if hangs is not None and hangs in " ".join(words):
                os.kill(pid, signal.SIGSTOP)
    finally:
        replica.kill()
    below: list[psutil.Process] = []
    for pid, *_ in started:
        try:
            below.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(below, timeout=20)
    names = [process.cmdline() for process in alive]
    for process in alive:
        process.kill()
    return started, names
