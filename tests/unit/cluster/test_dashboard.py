from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cluster import dashboard
from cluster.dashboard import JobNow, NoAnswer, NodeNow
from cluster.known import JobsApi

NODES = [
    {
        "node_id": "f00001",
        "node_ip": "127.0.0.1",
        "node_name": "127.0.0.1",
        "is_head_node": False,
        "state": "ALIVE",
        "resources_total": {"CPU": 4.0},
    },
    {
        "node_id": "dead02",
        "node_ip": "127.0.0.1",
        "node_name": "node-2",
        "is_head_node": False,
        "state": "DEAD",
        "resources_total": {},
    },
    {
        "node_id": "f00000",
        "node_ip": "127.0.0.1",
        "node_name": "head",
        "is_head_node": True,
        "state": "ALIVE",
        "resources_total": {"CPU": 2.0},
    },
]
JOBS = [
    {"submission_id": "a", "status": "RUNNING", "entrypoint": "x"},
    {"submission_id": "b", "status": "SUCCEEDED", "entrypoint": "x"},
    {"submission_id": None, "status": "RUNNING", "entrypoint": "a driver"},
]
USAGE = {"usageByNode": {"f00001": {"CPU": [3.0, 4.0]}}}
ANSWERS = {
    "/api/v0/nodes": {"data": {"result": {"result": NODES}}},
    "/api/cluster_status": {"data": {"clusterStatus": {"loadMetricsReport": USAGE}}},
    "/api/jobs/": JOBS,
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == "Bearer secret"
        self.send_response(200 if is_known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(ANSWERS[self.path.partition("?")[0]]).encode() if is_known else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[JobsApi]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield JobsApi(url=f"http://127.0.0.1:{server.server_port}", token="secret")
        server.shutdown()
        thread.join()


def test_nodes_are_the_head_the_living_and_the_dead_with_what_they_use(api: JobsApi):
    shared = {"address": "127.0.0.1"}
    assert dashboard.nodes(api) == [
        NodeNow(name="head", is_head=True, is_alive=True, num_cpus=2.0, used_cpus=0.0, **shared),
        NodeNow(name="node 00001", is_head=False, is_alive=True, num_cpus=4.0, used_cpus=3.0, **shared),
        NodeNow(name="node-2", is_head=False, is_alive=False, num_cpus=0.0, used_cpus=0.0, **shared),
    ]


def test_jobs_are_those_that_were_submitted_and_have_not_ended(api: JobsApi):
    assert dashboard.jobs(api) == [JobNow(id="a", status="RUNNING", entrypoint="x")]


def test_what_a_young_cluster_does_not_know_yet_is_nothing():
    assert dashboard.nodes_in({"data": {"result": {"result": NODES[:1]}}}, {"data": {"clusterStatus": None}})[
        0
    ].used_cpus == pytest.approx(0.0)


def test_no_answer_says_why(api: JobsApi):
    with pytest.raises(NoAnswer, match="the token is refused"):
        dashboard.jobs(JobsApi(url=api.url, token="another"))
    with pytest.raises(NoAnswer, match="refused"):
        dashboard.jobs(JobsApi(url="http://127.0.0.1:1", token="secret"))
