"""The servers of a benchmark that are an application of Ray Serve: python scripts/bench_ray_apps.py TASK.json

It serves until SIGTERM. What makes a mode of Ray Serve is in the environment, so that Ray's processes have it too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "bench"
"""What every server calls the model."""
LOGICAL_CPUS = 8
"""At least: what Ray counts, not what there is; ray.serve.llm's ingress and engine hold some."""


@dataclass(kw_only=True, slots=True)
class AppTask:
    """What is served, and where."""

    app: str
    """floor or ray_serve_llm."""
    model: str
    """A folder."""
    device: str
    """cpu or cuda."""
    engine: dict[str, Any]
    """vLLM's engine arguments."""
    environment: dict[str, str]
    """For the engine."""
    port: int
    scratch: str
    """A folder with a short path for Ray's sockets and logs."""


async def floor(scope: Any, receive: Any, send: Any) -> None:
    """The least that a server can do: reads the request and gives the tokens that it asks for at once. ASGI."""
    if scope["type"] != "http":
        return
    body = b""
    is_whole = False
    while not is_whole:
        message = await receive()
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
    ask = json.loads(body)
    count = ask.get("max_completion_tokens") or ask["max_tokens"]
    usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
    kind = b"text/event-stream" if ask.get("stream") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if not ask.get("stream"):
        choices = [{"index": 0, "message": {"role": "assistant", "content": "x" * count}, "finish_reason": "length"}]
        await send({"type": "http.response.body", "body": json.dumps({"choices": choices, "usage": usage}).encode()})
        return
    event = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
    for one in [event] * count + [{"choices": [], "usage": usage}]:
        data = b"data: " + json.dumps(one).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def floor_app() -> Any:
    """Returns a Ray Serve application of `floor`, one replica."""
    import ray.serve as rayserve

    @rayserve.deployment(num_replicas=1, max_ongoing_requests=4096)
    @rayserve.ingress(lambda: floor)  # a function is asked for the app
    class Floor:
        """Answers at once."""

    return Floor.bind()  # type: ignore[attr-defined]


def llm_app(task: AppTask) -> Any:
    """Returns `ray.serve.llm`'s application, one replica of the model; on a CPU what makes it run there is set."""
    from ray.serve.llm import LLMConfig, build_openai_app

    on_cpu: dict[str, Any] = {"placement_group_config": {"bundles": [{"CPU": 1}]}, "accelerator_type": None}
    config = LLMConfig(
        model_loading_config={"model_id": NAME, "model_source": task.model},
        deployment_config={"num_replicas": 1},
        engine_kwargs=dict(task.engine),
        # it ships with metrics of the engine and refuses to start where the engine keeps no statistics
        log_engine_metrics=not task.engine.get("disable_log_stats", False),
        runtime_env={"env_vars": task.environment},
        **(on_cpu if task.device == "cpu" else {}),
    )
    return build_openai_app({"llm_configs": [config]})


def serve(task: AppTask) -> None:
    """Serves until SIGTERM or SIGINT, then ends Ray at once: nobody is there to be drained for."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    import ray
    import ray.serve as rayserve

    ray.init(
        address="local",
        num_cpus=max(LOGICAL_CPUS, len(os.sched_getaffinity(0))),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=task.scratch,
    )
    rayserve.start(http_options={"host": "127.0.0.1", "port": task.port})
    app = floor_app() if task.app == "floor" else llm_app(task)
    rayserve.run(app, name=NAME, route_prefix="/")
    ended.wait()
    ray.shutdown()


if __name__ == "__main__":
    serve(AppTask(**json.loads(Path(sys.argv[1]).read_text())))
