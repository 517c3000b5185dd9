"""`manta serve`: runs a service until somebody stops it, says where it answers, and updates it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from cluster.connect import SUBMITTED, connect, keep_logs
from cluster.process import this_process
from cluster.submit.attempt import ready_line
from cluster.terminal import divert_output, interruptible, scratch_folder
from conf.errors import UserError
from conf.schema.serve import ProxyForm, ServeJob
from conf.schema.task import Task
from serve.batch_jobs import running_batches, set_own_key
from serve.cache.reach import unreached
from serve.capacity import check_room
from serve.deployment import build_replicas
from serve.detached import read_job, start_detached
from serve.ensemble import Ensemble
from serve.plan import ServicePlan, make_plan
from serve.router.proxy import decide_form, set_flags
from serve.service import Build, ServiceFailed
from serve.state import Phase, Post, ServiceState, claimed, read_state, services_folder
from serve.update import apply_update, hand_over, take_update

WATCH_S = 1.0


def run(job: ServeJob, build: Build = build_replicas) -> int:
    """Serves until Ctrl-C or SIGTERM, or starts what does in the background; says on stderr how it stands.

    Args:
        job: the service.
        build: what makes its replicas, where it runs in this process.

    Returns:
        The exit code: 0 drained and stopped, or ready in the background, or updated there; 1 failed, 130 stopped before
        it was ready, or at once.

    Raises:
        UserError: for the user's mistake, before an engine starts.
    """
    if not job.deployment.detach:
        return _run(job, build)
    folder = services_folder(os.environ)
    state = read_state(folder, job.deployment.name)
    if state is not None and state.process.is_alive:
        return hand_over(folder, state, make_plan(job, is_update=True))
    return start_detached(make_plan(job), folder)


def run_saved(words: list[str]) -> int:
    """Serves what another process has planned and saved; see `run`."""
    if len(words) != 1:
        raise UserError("--job FILE is for manta serve's own use")
    return _run(read_job(Path(words[0])))


def _run(job: ServeJob, build: Build = build_replicas) -> int:
    folder = services_folder(os.environ)
    set_own_key(job.batches, os.environ)
    with claimed(folder, job.deployment.name):
        plan = make_plan(job)
        post = Post(folder=folder, state=_first_state(plan))
        post.tell(Phase.starting)
        try:
            with scratch_folder() as scratch, divert_output(plan.logs / "driver.log") as terminal:
                has_served = _serve(plan, Path(scratch), terminal, post, build)
        except ServiceFailed as error:
            post.tell(Phase.failed, str(error))
            print(f"manta serve: {error}\nlogs: {plan.logs}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            post.close()
            print("manta serve: stopped at once", file=sys.stderr, flush=True)
            # threads may still speak to Ray; its processes on this machine end with this one
            os._exit(130)
        except BaseException:
            post.close()
            raise
        post.close()
        return 0 if has_served else 130


def _first_state(plan: ServicePlan) -> ServiceState:
    return ServiceState(
        process=this_process(),
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        url=plan.url,
        logs=str(plan.logs),
        phase=Phase.starting,
        job=plan.job,
    )


def _serve(plan: ServicePlan, scratch: Path, terminal: TextIO, post: Post, build: Build) -> bool:
    """Returns whether it was ready before it was interrupted."""
    job, began = plan.job, time.monotonic()
    if (form := decide_form(job, scratch)) is ProxyForm.direct:
        set_flags(job, plan.max_model_len, scratch, os.environ)
        plan = plan.behind(form)

    def say(news: str) -> None:
        print(f"manta serve: {news}", file=terminal)

    # counted for one replica more, so that an update has room beside the old ones
    num_cpus = 1 + sum(
        int((part.job.engine.max_replicas + 1) * part.placement.total.get("CPU", 1)) for part in plan.parts
    )
    with connect(job.cluster, num_cpus, scratch) as connection, interruptible() as interrupted:
        try:
            plan = plan.joined(connection.resources)
            if (warning := check_room(plan, connection.resources)) is not None:
                say(warning)
            say(f"starting {'; '.join(map(_shape, plan.parts))}")
            service = Ensemble(plan, interrupted, say, build)
            try:
                if is_ready := service.start():
                    say(_greeting(plan, time.monotonic() - began))
                    post.tell(Phase.ready)
                    # in a thread: what does not answer may take its time
                    threading.Thread(target=_say_unreached, args=(plan, say), daemon=True).start()
                    with running_batches(lambda: service.plan, connection.address):
                        _watch(service, interrupted, post, say)
                    post.tell(Phase.draining)
                    say("draining (again to stop at once)")
            finally:
                if not isinstance(sys.exception(), KeyboardInterrupt):
                    service.stop()
            say("stopped")
            return is_ready
        finally:
            keep_logs(connection.logs, plan.logs)


def _say_unreached(plan: ServicePlan, say: Callable[[str], None]) -> None:
    for warning in dict.fromkeys(each for part in plan.parts for each in unreached(part.job.cache)):
        say(warning)


def _watch(service: Ensemble, interrupted: threading.Event, post: Post, say: Callable[[str], None]) -> None:
    """Returns when somebody interrupts; does the updates that are asked for meanwhile."""
    while not interrupted.wait(WATCH_S):
        if (replicas := service.look()) != post.state.replicas:
            post.state.replicas = replicas
            post.tell(post.state.phase)
        if (asked := take_update(post.folder, post.state.name)) is not None:
            apply_update(service, asked, post, say)


def _shape(part: ServicePlan) -> str:
    engine, count = part.job.engine, f"{part.num_replicas} replica{'s' if part.num_replicas > 1 else ''}"
    shape = f"TP {engine.tensor_parallel_size} x PP {engine.pipeline_parallel_size}, {part.device.value}"
    return f"{count} of {part.job.model.name} ({shape})"


def _greeting(plan: ServicePlan, seconds: float) -> str:
    name = plan.job.deployment.name
    models = "\n          ".join(
        f"{', '.join(part.names)}; {part.max_model_len:,} tokens of context" for part in plan.parts
    )
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    path, ask = {
        Task.generate: ("v1/chat/completions", chat),
        Task.embed: ("v1/embeddings", {"input": "Hello"}),
        Task.classify: ("classify", {"input": "Hello"}),
        Task.score: ("v1/score", {"text_1": "Hello", "text_2": "Hi"}),
    }[plan.job.task]
    body = json.dumps({"model": plan.job.model.name, **ask})
    key = "" if plan.job.access.open else '-H "Authorization: Bearer $KEY" '
    lines = [
        f"ready after {seconds:.0f} s at {plan.url}/v1",
        f"  models  {models}",
        *([f"  grpc    {plan.grpc_address}"] if plan.grpc_address else []),
        f"  logs    {plan.logs}",
        f"  try     curl {plan.url}/{path} {key}-H 'Content-Type: application/json' -d '{body}'",
    ]
    if (submission := os.environ.get(SUBMITTED)) is not None:
        lines += [f"  look    manta jobs logs {submission}", f"  stop    {ready_line(submission)}"]
    elif plan.job.deployment.detach:
        lines += [f"  look    manta serve status {name}", f"  stop    manta serve stop {name} (drains first)"]
    else:
        lines.append("Ctrl-C drains and stops.")
    return "\n".join(lines)
