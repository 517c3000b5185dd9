"""Replicas without an engine behind the proxy of `manta serve`.

    echo_service.py PORT FORM REPLICAS ROUTERS DRAIN_S [ADDRESS]

With the address of a cluster that runs, its nodes have a replica each, and requests have 40 s.

A request's body says what it wants: {"wait_s": 1} waits, {"chunks": 3} streams, {"status": 500, "only": PID} fails in
one replica alone, {"dies": PID} ends it between an answer's headers and body. Each answer names the replica's process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from cluster.connect import connect
from cluster.terminal import scratch_folder
from conf.schema.access import AccessSpec
from conf.schema.cluster import ClusterSpec
from conf.schema.router import RouterSpec
from conf.schema.serve import DeploymentSpec, ProxyForm, ServeJob
from serve.deployment import CLOSE_S
from serve.middleware.deadline import Deadline
from serve.middleware.leaving import Leaving
from serve.middleware.progress import Progress
from serve.middleware.proxy import environment
from serve.router.ingress import behind_router
from serve.router.proxy import decide_form, set_flags, watch_own

VERSION = "one"
"""Ray Serve would draw another at each change, and replace all replicas where it is told of fewer."""


class Echo:
    def __init__(self, is_direct: bool, drain_s: float, timeout_s: float) -> None:
        self._is_direct, self._drain_s = is_direct, drain_s
        # in the direct form nobody else watches the time; in the plain one it is to be seen that Ray Serve does
        self._timeout_s = timeout_s if is_direct else 60.0

    async def __serve_build_asgi_app__(self) -> Any:
        app = Progress(answer, 4.0) if self._is_direct else answer
        leaving = Leaving(Deadline(app, self._timeout_s), self._drain_s)
        self._watch = watch_own(leaving.set_leaving)
        return leaving


async def answer(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, has_more = b"", True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    ask = json.loads(body) if body else {}
    here = {"pid": os.getpid(), "size": len(body), "path": scope["path"]}
    status = ask.get("status", 200) if ask.get("only", os.getpid()) == os.getpid() else 200
    await asyncio.sleep(ask.get("wait_s", 0))
    kind = b"text/event-stream" if ask.get("chunks") else b"application/json"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    if ask.get("dies") == os.getpid():
        await asyncio.sleep(0.3)
        os._exit(1)
    for number in range(ask.get("chunks", 0)):
        line = f"data: {json.dumps({**here, 'number': number})}\n\n".encode()
        await send({"type": "http.response.body", "body": line, "more_body": True})
        await asyncio.sleep(ask.get("pause_s", 0))
    last = b"data: [DONE]\n\n" if ask.get("chunks") else json.dumps(here).encode()
    await send({"type": "http.response.body", "body": last, "more_body": False})


def main() -> None:
    port, form, replicas, routers = int(sys.argv[1]), ProxyForm(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    drain_s, address = float(sys.argv[5]), sys.argv[6] if len(sys.argv) > 6 else None
    timeout_s = 40 if address else 8
    job = ServeJob(
        deployment=DeploymentSpec(port=port, proxy=form, request_timeout_s=timeout_s, drain_s=drain_s),
        access=AccessSpec(open=True, body_timeout_s=3),
        cluster=ClusterSpec(object_store_bytes=100 << 20, address=address),
        router=RouterSpec(num_replicas=routers),
    )
    with scratch_folder() as scratch:
        if (form := decide_form(job, Path(scratch))) is ProxyForm.direct:
            set_flags(job, 4096, Path(scratch), os.environ)
        with connect(job.cluster, 8, Path(scratch)):
            import ray
            import ray.serve as rayserve

            deployment: Any = rayserve.deployment(
                rayserve.ingress()(Echo),  # type: ignore[arg-type]
                name="replica",
                num_replicas=replicas,
                max_ongoing_requests=64,
                graceful_shutdown_timeout_s=drain_s + CLOSE_S,
                graceful_shutdown_wait_loop_s=0.2,
                health_check_period_s=2,
                health_check_timeout_s=5,
                ray_actor_options={"num_cpus": 0},
                max_replicas_per_node=1 if address else None,
            )
            deployment._version = VERSION
            application = deployment.bind(form is ProxyForm.direct, drain_s, timeout_s)
            if form is ProxyForm.direct:
                application = behind_router(application, "replica", job.router, 64)
            options = {"host": "127.0.0.1", "port": port, "request_timeout_s": timeout_s}
            options_of_controller = {"runtime_env": {"env_vars": environment("manta", timeout_s, form)}}
            rayserve.start(proxy_location="HeadOnly", http_options=options, controller_options=options_of_controller)
            rayserve.run(application, name="manta")
            print("ready", flush=True)
            for line in sys.stdin:
                word, _, rest = line.strip().partition(" ")
                if word == "pids":  # of a deployment
                    print(json.dumps(pids(rest)), flush=True)
                elif word == "scale":
                    deployment = deployment.options(num_replicas=int(rest))
                    deployment._version = VERSION
                    application = deployment.bind(form is ProxyForm.direct, drain_s, timeout_s)
                    if form is ProxyForm.direct:
                        application = behind_router(application, "replica", job.router, 64)
                    threading.Thread(target=lambda app=application: rayserve.run(app, name="manta")).start()
            rayserve.shutdown()
            ray.shutdown()


def pids(deployment: str) -> list[int]:
    from ray.serve._private.api import _get_global_client

    details = _get_global_client().get_serve_details()  # type: ignore[union-attr]
    found = details["applications"]["manta"]["deployments"][deployment]["replicas"]
    return [replica["pid"] for replica in found if replica["state"] == "RUNNING"]


if __name__ == "__main__":
    main()
