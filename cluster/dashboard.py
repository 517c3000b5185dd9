"""What Ray's dashboard knows of a cluster: its nodes, what is in use there, its jobs. Asked over HTTP, without Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cluster.known import JobsApi

ASK_S = 10.0
"""Seconds that an answer may take."""


class NoAnswer(Exception):
    """The dashboard does not answer, or refuses the token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeNow:
    """A node as it stands."""

    name: str
    address: str
    is_head: bool
    is_alive: bool
    num_cpus: float
    used_cpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class JobNow:
    """A job that is not at its end."""

    id: str
    status: str
    entrypoint: str


def ask(api: JobsApi, path: str) -> Any:
    """Asks for JSON.

    Args:
        api: where.
        path: with its slash.

    Raises:
        NoAnswer: when none comes.
    """
    request = Request(f"{api.url}{path}", headers={"Authorization": f"Bearer {api.token}"})
    try:
        with urlopen(request, timeout=ASK_S) as response:
            return json.load(response)
    except HTTPError as error:
        raise NoAnswer("the token is refused" if error.code in (401, 403) else f"HTTP {error.code}") from error
    except (URLError, OSError, ValueError) as error:
        raise NoAnswer(f"{getattr(error, 'reason', None) or error}") from error


def nodes(api: JobsApi) -> list[NodeNow]:
    """Returns the nodes that are or were, the head first.

    Raises:
        NoAnswer: when the dashboard does not answer.
    """
    return nodes_in(ask(api, "/api/v0/nodes?detail=1&limit=1000"), ask(api, "/api/cluster_status"))


def nodes_in(listed: Any, status: Any) -> list[NodeNow]:
    """Puts together what two answers of the dashboard say of nodes."""
    usage = ((status["data"]["clusterStatus"] or {}).get("loadMetricsReport") or {}).get("usageByNode") or {}
    found = []
    for node in listed["data"]["result"]["result"]:
        used = usage.get(node["node_id"], {}).get("CPU", (0.0, 0.0))[0]
        found.append(
            NodeNow(
                name=node["node_name"] if node["node_name"] != node["node_ip"] else f"node {node['node_id'][-5:]}",
                address=node["node_ip"],
                is_head=bool(node["is_head_node"]),
                is_alive=node["state"] == "ALIVE",
                num_cpus=float((node.get("resources_total") or {}).get("CPU", 0.0)),
                used_cpus=float(used),
            )
        )
    return sorted(found, key=lambda node: (not node.is_head, not node.is_alive, node.name))


def jobs(api: JobsApi) -> list[JobNow]:
    """Returns the submitted jobs that are not at their end.

    Raises:
        NoAnswer: when the dashboard does not answer.
    """
    return [
        JobNow(id=job["submission_id"], status=job["status"], entrypoint=job["entrypoint"])
        for job in ask(api, "/api/jobs/")
        if job.get("submission_id") and job["status"] in ("PENDING", "RUNNING")
    ]
