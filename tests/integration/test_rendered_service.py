"""What KubeRay has Ray Serve deploy, deployed here on a Ray with a token; what Ray Serve LLM makes of a slice."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import yaml

from cluster.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
RENDERED = ROOT / "cluster" / "rendered"
BIN = Path(sys.executable).parent
KEY = "a-key-of-this-test"


def ask(url: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, str]:
    """Status and body; 0 where nobody listens."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except (URLError, OSError):
        return 0, ""


def wait_for(url: str, seconds: float) -> int:
    """The last status, which is 200 where it came in time."""
    deadline = time.monotonic() + seconds
    while (status := ask(url)[0]) != 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    return status


def service() -> dict[str, Any]:
    return yaml.safe_load((RENDERED / "kuberay" / "rayservice.yaml").read_text())["spec"]


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], int, int]]:
    """A head as the manifest's pod has it: its environment, the dashboard's port, the agent's."""
    gcs, dashboard, agent, *others = free_ports(6)
    pod = service()["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {item["name"]: item["value"] for item in pod["env"] if "value" in item and item["name"] != "HOME"}
    env = os.environ | env | {"PYTHONPATH": str(ROOT), "MANTA_API_KEYS": KEY, "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    names = ("dashboard-agent-grpc-port", "metrics-export-port", "ray-client-server-port")
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    command += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}", "--num-cpus=4"]
    command += [f"--{name}={port}" for name, port in zip(names, others, strict=True)]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={tmp_path_factory.mktemp('r')}"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield env, dashboard, agent
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rendered_service_answers_behind_a_token_and_a_key(
    head: tuple[dict[str, str], int, int], demo_model: Path, tmp_path: Path
):
    env, dashboard, agent = head
    # the paths that the pods' probes ask, which nobody has a token for
    assert wait_for(f"http://127.0.0.1:{dashboard}/api/gcs_healthz", 60) == 200
    assert wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz", 60) == 200
    assert ask(f"http://127.0.0.1:{dashboard}/api/jobs/")[0] == 401
    config, (port,) = yaml.safe_load(service()["serveConfigV2"]), free_ports(1)
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    words = [f"model.path={demo_model}", "model.name=demo", "engine=cpu", f"deployment.port={port}"]
    args = config["applications"][0]["args"]
    kept = [word for word in args["words"] if word.partition("=")[0] in ("cluster", "deployment.name")]
    assert kept == ["cluster=existing", "deployment.name=manta"]
    args["words"] = [*kept, *words]
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [str(BIN / "serve"), "deploy", str(tmp_path / "serve.yaml"), "-a", f"http://127.0.0.1:{dashboard}"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    url = f"http://127.0.0.1:{port}"
    assert wait_for(f"{url}/ready", 120) == 200
    assert ask(f"{url}/-/healthz") == (200, "success")
    question = {"model": "demo", "messages": [{"role": "user", "content": "My invoice is wrong."}], "max_tokens": 8}
    status, body = ask(f"{url}/v1/chat/completions", question, KEY)
    assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 8)
    assert [model["id"] for model in json.loads(ask(f"{url}/v1/models", key=KEY)[1])["data"]] == ["demo"]
    status, body = ask(f"{url}/v1/chat/completions", question)
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name, kind", [("kuberay_tpu_v5e", "TPU-V5LITEPOD"), ("kuberay_tpu_v6e", "TPU-V6E")])
def test_ray_serve_llm_places_an_engine_on_the_four_hosts_of_a_slice(name: str, kind: str):
    """In a process of its own: what it imports warns, and stays."""
    spec = yaml.safe_load((RENDERED / name / "rayservice.yaml").read_text())["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"]["llm_configs"][0]
    code = (
        "import json, sys; from ray.serve.llm import LLMConfig;"
        "print(json.dumps(LLMConfig.model_validate(json.loads(sys.argv[1])).get_engine_config().placement_bundles))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(config)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    bundles = json.loads(done.stdout.splitlines()[-1])
    assert bundles == [{"TPU": 4, f"accelerator_type:{kind}": 0.001}] * 4
