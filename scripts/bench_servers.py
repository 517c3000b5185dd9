"""The servers that a benchmark compares, each with everything below it started and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from bench_load import PATH
from bench_ray_apps import NAME, AppTask
from bench_runners import ROOT, command_line, engine_environment, engine_words
from process_tree import tree

from cluster.ports import free_ports

SCRIPTS = Path(__file__).resolve().parent
KEY = "sk-bench-0123456789abcdef"
"""The API key of manta's services; others are open to all and do not look at it."""
MANY = 1_000_000_000
LIMITS = {"requests_per_min": MANY, "tokens_per_min": MANY, "max_concurrent": MANY, "max_tokens": 4096}
"""Of the key: every limit is counted, none is reached."""
DIRECT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
}
"""Ray Serve's direct streaming: HAProxy between the client and the replica."""
ASK_S = 0.25
"""Between two questions whether a server is ready."""
LEAVE_S = 30.0
"""For ending by itself; then it is ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A server with its settings: a row of the table."""

    name: str
    server: str
    """vllm, manta, ray_serve_llm or floor."""
    words: tuple[str, ...] = ()
    """Further words of manta's command line."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """For all of its processes."""


CONTENDERS = {
    found.name: found
    for found in (
        Contender(name="manta", server="manta", words=("cache=memory",)),
        Contender(name="manta_no_cache", server="manta", words=("cache=off",)),
        Contender(name="vllm", server="vllm"),
        Contender(name="ray_serve_llm", server="ray_serve_llm"),
        Contender(name="ray_serve_llm_direct", server="ray_serve_llm", environment=DIRECT),
        Contender(name="floor", server="floor"),
    )
}


@dataclass(kw_only=True, slots=True)
class Server:
    """One that answers."""

    process: subprocess.Popen[bytes]
    url: str
    start_s: float
    """From the start of its process to its first answer."""

    def cpu_s(self) -> dict[int, tuple[str, float]]:
        """Returns what each of its processes is and its CPU seconds so far, by process id."""
        found = {}
        for process in tree(self.process.pid):
            try:
                times, title = process.cpu_times(), title_of(process.cmdline(), process.name())
            except psutil.Error:
                continue
            found[process.pid] = (title, times.user + times.system)
        return found


def title_of(words: list[str], name: str) -> str:
    """Returns what a process is, in one word: Ray and vLLM give theirs titles, for others it is the program's name.

    Ray puts the method that runs at the moment behind a dot; it is left out.
    """
    first = words[0] if words else name
    return first.split()[0].partition(".")[0] if first.startswith(("ray::", "VLLM::")) else name


def command_of(
    contender: Contender, model: str, device: str, engine: Mapping[str, Any], port: int, folder: Path
) -> list[str]:
    """Returns the command that starts a server; writes its task where it reads one.

    Args:
        contender: which.
        model: a folder.
        device: cpu or cuda.
        engine: vLLM's engine arguments.
        port: where it listens.
        folder: its own, empty.
    """
    if contender.server == "vllm":
        where = ["--model", model, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
        # nor does Manta write a line for each request
        words = ["-m", "vllm.entrypoints.openai.api_server", *where, "--disable-uvicorn-access-log"]
        return [sys.executable, *words, *command_line(dict(engine))]
    if contender.server == "manta":
        where = [f"deployment.port={port}", f"deployment.logs={folder}/logs", f"engine.device={device}"]
        limits = [f"access.{name}={value}" for name, value in LIMITS.items()]
        words = [f"model.path={model}", f"model.name={NAME}", *where, *limits, *engine_words(dict(engine))]
        return [sys.executable, "-m", "conf.cli", "serve", *words, *contender.words]
    task = AppTask(
        app=contender.server,
        model=model,
        device=device,
        engine=dict(engine),
        environment=engine_environment(device, engine),
        port=port,
        scratch=str(folder / "r"),
    )
    path = folder / "task.json"
    path.write_text(json.dumps(asdict(task)))
    return [sys.executable, str(SCRIPTS / "bench_ray_apps.py"), str(path)]


def environment_of(
    contender: Contender, device: str, engine: Mapping[str, Any], folder: Path, profile: Path | None = None
) -> dict[str, str]:
    """Returns a server's whole environment: two on one machine share no file, port or key.

    Args:
        contender: which.
        device: cpu or cuda.
        engine: vLLM's engine arguments.
        folder: its own.
        profile: where its processes write what they do; see scripts/site/sitecustomize.py.
    """
    is_mended = contender.server == "ray_serve_llm"
    site = str(SCRIPTS / "site") if is_mended or profile else None
    paths = filter(None, (site, str(ROOT), str(SCRIPTS), os.environ.get("PYTHONPATH")))
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "MANTA_HOME": str(folder),
        "MANTA_API_KEYS": KEY,
    }
    if is_mended:
        own["BENCH_VLLM_NAMES"] = "1"
    if profile:
        own["BENCH_PROFILE"] = str(profile.absolute() / contender.name)
    proxy, name = str(folder / "h"), "RAY_SERVE_HAPROXY"
    own |= {
        f"{name}_CONFIG_FILE_LOC": f"{proxy}/haproxy.cfg",
        f"{name}_SOCKET_PATH": f"{proxy}/admin.sock",
        f"{name}_METRICS_SOCKET_PATH": f"{proxy}/metrics.sock",
        f"{name}_SERVER_STATE_BASE": proxy,
        f"{name}_SERVER_STATE_FILE": f"{proxy}/server-state",
        f"{name}_METRICS_PORT": str(free_ports(1)[0]),
        f"{name}_STATS_PORT": str(free_ports(1)[0]),
    }
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    return {**kept, **engine_environment(device, engine), **own, **contender.environment}


@contextmanager
def serving(
    contender: Contender,
    model: str,
    device: str,
    engine: Mapping[str, Any],
    folder: Path,
    timeout_s: float,
    profile: Path | None = None,
) -> Iterator[Server]:
    """Starts a server, waits for its first answer, and ends it with everything below it.

    Args are those of `command_of` and `environment_of`, and how long the start may take.

    Raises:
        RuntimeError: when it does not answer, with the end of what it said.
    """
    port = free_ports(1)[0]
    command = command_of(contender, model, device, engine, port, folder)
    said, began = folder / "said", time.monotonic()
    with said.open("wb") as output:
        environment = environment_of(contender, device, engine, folder, profile)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        last = "nothing"
        while (last := _answers(url)) is not None:
            cause = f"exit code {process.returncode}" if process.poll() is not None else None
            if time.monotonic() - began > timeout_s:
                cause = f"no answer after {timeout_s:g} s, but {last}"
            if cause:
                raise RuntimeError(f"{cause}: {said.read_text(errors='replace')[-3000:]}")
            time.sleep(ASK_S)
        yield Server(process=process, url=url, start_s=time.monotonic() - began)
    finally:
        stop(process)


def _answers(url: str) -> str | None:
    """Null once a request succeeds; before, why not."""
    ask = {"model": NAME, "messages": [{"role": "user", "content": "20 21"}], "max_tokens": 1, "temperature": 0}
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(url + PATH, json.dumps(ask).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
        return None
    except urllib.error.HTTPError as error:
        return f"status {error.code}: {error.read()[:200]!r}"
    except OSError as error:
        return str(error)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server; what is left of it after `LEAVE_S` is killed, also what has lost its parent meanwhile."""
    below = tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for left in psutil.wait_procs(below, timeout=3)[1]:
        try:
            left.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(below, timeout=10)
