"""`manta serve status` and `manta serve stop`: services of this user, wherever they were started on this machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from conf.errors import UserError, nearest
from conf.schema.serve import ServeJob
from serve.detached import LOG
from serve.service import LEAVE_S
from serve.state import Phase, ServiceState, claimed, read_state, remove_state, services_folder, state_names

ASK_S = 5.0
"""Seconds that /ready may take."""
END_S = 30.0
"""Seconds that a process may take to end once its service has drained."""


def status(words: list[str]) -> int:
    """Runs `manta serve status [NAME]`.

    Returns:
        The exit code: 0 when the service answers (without a name: when one runs), 1 when it does not.

    Raises:
        UserError: for words that it does not know.
    """
    if words in (["-h"], ["--help"]):
        print("manta serve status [NAME]: shows a service, or all of this user's on this machine")
        return 0
    folder = services_folder(os.environ)
    name = _only_word("status", words)
    if name is None:
        states = [_state(folder, each) for each in state_names(folder)]
        lines = [_line(state) if isinstance(state, ServiceState) else f"  {state}" for state in states]
        print("\n".join(lines) if lines else "no service runs")
        return 0 if any(isinstance(state, ServiceState) and state.process.is_alive for state in states) else 1
    state = read_state(folder, name)
    if state is None:
        print(f"{name}: not running{_others(folder, name)}")
        return 1
    print(_detail(state))
    return 0 if state.process.is_alive and _is_ready(state) else 1


def stop(words: list[str]) -> int:
    """Runs `manta serve stop [NAME] [--now]`.

    Returns:
        The exit code: 0 when the service has ended, 1 when none ran or it goes on.

    Raises:
        UserError: for words that it does not know, no name where several run, or a service on another machine.
    """
    if words in (["-h"], ["--help"]):
        print("manta serve stop [NAME] [--now]: drains a service and ends it; --now cuts its requests")
        return 0
    folder = services_folder(os.environ)
    is_now = "--now" in words
    name = _only_word("stop", [word for word in words if word != "--now"]) or _the_one(folder)
    state = read_state(folder, name) if name else None
    if state is None:
        print(f"manta serve: {name or 'no service'} {'is not running' if name else 'runs'}", file=sys.stderr)
        return 1
    if not state.process.is_here:
        raise UserError(f"{name} was started on {state.process.host}: stop it there")
    process, drain_s = state.process, state.job.deployment.drain_s
    if not process.send(signal.SIGTERM):
        with claimed(folder, state.name):  # a new one may have begun meanwhile
            remove_state(folder, state.name)
        print(f"manta serve: {name} was not running any more (process {process.pid})", file=sys.stderr)
        return 1
    if is_now:
        process.wait(0.5)  # two signals at once would count as one
        process.send(signal.SIGTERM)
    else:
        print(f"manta serve: {name} drains, {drain_s:g} s at most", file=sys.stderr, flush=True)
    if process.wait(drain_s + LEAVE_S + END_S):
        print(f"manta serve: {name} has stopped", file=sys.stderr)
        return 0
    print(f"manta serve: {name} goes on (process {process.pid}): manta serve stop {name} --now", file=sys.stderr)
    return 1


def _only_word(verb: str, words: list[str]) -> str | None:
    wrong = [word for word in words if word.startswith("-") or "=" in word]
    if wrong or len(words) > 1:
        raise UserError(f"{verb} takes the name of one service, got '{' '.join(wrong or words)}'")
    return words[0] if words else None


def _the_one(folder: Path) -> str | None:
    """The only service, dead ones left out where one runs."""
    names = state_names(folder)
    states = {name: _state(folder, name) for name in names}
    alive = [name for name, state in states.items() if isinstance(state, ServiceState) and state.process.is_alive]
    names = alive or names
    if len(names) > 1:
        raise UserError(f"stop takes the name of a service: there are {', '.join(names)}")
    return names[0] if names else None


def _state(folder: Path, name: str) -> ServiceState | str:
    """The state of a service, or what is wrong with it."""
    try:
        return read_state(folder, name) or f"{name}: gone"
    except UserError as error:
        return str(error)


def _others(folder: Path, name: str) -> str:
    names = state_names(folder)
    return f"{nearest(name, names)} (there are {', '.join(names)})" if names else ""


def _phase(state: ServiceState) -> str:
    if state.phase is Phase.failed:
        return "failed"
    if not state.process.is_here:
        return f"on {state.process.host}"
    return state.phase.value if state.process.is_alive else "gone"


def _line(state: ServiceState) -> str:
    names = [state.job.model.name, *(spec.model.name for spec in state.job.deployment.models.values())]
    return f"  {state.name:<16}{_phase(state):<10}{state.url:<28}{', '.join(names)}"


def _detail(state: ServiceState) -> str:
    job, process = state.job, state.process
    models = [job, *(job.of(key) for key in job.deployment.models)]
    running = []
    if state.replicas is not None and process.is_alive:
        running = [f"  running   {state.replicas.running}, {state.replicas.wanted} wanted"]
    lines = [
        f"{state.name}: {_phase(state)}{f': {state.message}' if state.message else ''}",
        f"  url       {state.url}/v1{'' if not process.is_alive or _is_ready(state) else '  (/ready: not now)'}",
        f"  models    {', '.join(name for each in models for name in [each.model.name, *each.model.adapters])}",
        *(f"  replicas  {_replicas(each)}{f' of {each.model.name}' if len(models) > 1 else ''}" for each in models),
        *running,
        f"  since     {state.since}, process {process.pid} on {process.host}",
        f"  logs      {state.logs}{f'/{LOG}' if job.deployment.detach else ''}",
    ]
    if process.is_here and not process.is_alive and state.phase is not Phase.failed:
        lines.append("  it ended without being stopped: killed, or the machine was started anew")
    return "\n".join(lines)


def _replicas(job: ServeJob) -> str:
    engine = job.engine
    return f"{engine.num_replicas} x TP {engine.tensor_parallel_size} PP {engine.pipeline_parallel_size}"


def _is_ready(state: ServiceState) -> bool:
    """Whether a request would succeed."""
    try:
        with urlopen(f"{state.url}/ready", timeout=ASK_S) as response:
            return response.status == 200
    except (HTTPError, URLError, OSError, ValueError):
        return False
