"""Ray's job API: the only user of its client. Tells apart what the user mistook and a cluster that is gone."""

from __future__ import annotations

import asyncio
import logging
import os
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import known
from cluster.connect import last_line
from cluster.known import JobsApi
from cluster.submit.attempt import Phase, Submission
from conf.errors import UserError, nearest
from conf.schema.cluster import ClusterSpec

ASK_S, SEND_S = 15.0, 300.0
"""Seconds that an answer may take, and that a package may take to arrive."""
TAIL_S = 0.25
_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray's client obeys more than its argument."""


class ClusterGone(Exception):
    """The cluster does not answer."""


class Exists(Exception):
    """A submission of this id is there already."""


class JobClient:
    """Submissions of one cluster."""

    def __init__(self, api: JobsApi, scratch: Path | None = None) -> None:
        """Connects.

        Args:
            api: where.
            scratch: where a cluster of this machine keeps its nodes' logs.

        Raises:
            UserError: when nothing answers there, or the token is refused.
        """
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                # Ray gives no timeout: a head that hangs would be waited for without end
                options.setdefault("timeout", SEND_S if method == "PUT" else ASK_S)
                return super()._do_request(method, endpoint, **options)

        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.api = api
        self._scratch = scratch
        before = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
        try:
            with self._told():
                headers = {"Authorization": f"Bearer {api.token}"}
                self._client = Client(api.url, headers=headers)
        except ClusterGone as error:
            raise UserError(f"{api.url}: no cluster answers: {error}") from error
        finally:
            os.environ.update(before)

    def submissions(self) -> list[Submission]:
        """Returns all, the oldest first.

        Raises:
            ClusterGone: when it does not answer.
        """
        with self._told():
            found = [_submission(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda each: (each.began_s or 0.0, each.id))

    def submission(self, submission_id: str) -> Submission:
        """Returns one.

        Raises:
            UserError: when there is none of this id.
            ClusterGone: when the cluster does not answer.
        """
        try:
            with self._told():
                return _submission(self._client.get_job_info(submission_id))
        except RuntimeError as error:
            if "404" not in str(error):
                raise
        names = [each.id for each in self.submissions()]
        hint = f"{nearest(submission_id, names)} (there are {', '.join(names[-8:])})" if names else " (there are none)"
        raise UserError(f"no job '{submission_id}'{hint}")

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str], cpus: float
    ) -> None:
        """Sends a job, with the files of its working directory where the cluster has not got them yet.

        Raises:
            Exists: when there is one of this id.
            ClusterGone: when the cluster does not answer.
        """
        try:
            with self._told():
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=metadata,
                    entrypoint_num_cpus=cpus or None,
                )
        except RuntimeError as error:
            if "already exists" in str(error):
                raise Exists(submission_id) from error
            raise

    def stop(self, submission_id: str) -> None:
        """Tells a job to end, and does not wait for it.

        Raises:
            ClusterGone: when the cluster does not answer.
        """
        with self._told():
            self._client.stop_job(submission_id)

    def log_file(self, submission_id: str) -> Path | None:
        """Returns the file with what a job has written, where it is on this machine.

        Where nodes share an address, Ray itself shows the log of a driver on the head only: it asks the right node,
        which looks in the folder of the first node of its address (seen with Ray 2.60).
        """
        if self._scratch is None:
            return None
        found = list(self._scratch.glob(f"*/session_2*/logs/job-driver-{submission_id}.log"))
        return max(found, key=lambda path: path.stat().st_size, default=None)

    def log(self, submission_id: str) -> str:
        """Returns all that a job has written.

        Raises:
            ClusterGone: when the cluster, or the node that the driver ran on, does not answer.
        """
        if (path := self.log_file(submission_id)) is not None:
            return path.read_text(errors="replace")
        try:
            with self._told():
                return self._client.get_job_logs(submission_id)
        except RuntimeError as error:  # the driver's node has its log, and is gone
            raise ClusterGone(last_line(error)[:200]) from error

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Yields what a job writes, from its beginning, until it is over; of a cluster of this machine without end.

        Raises:
            ClusterGone: when the connection breaks.
        """
        if self._scratch is not None:
            async for text in self._tail_file(submission_id):
                yield text
        with self._told():
            try:
                async for text in self._client.tail_job_logs(submission_id):
                    yield text
            except RuntimeError as error:
                raise ClusterGone(last_line(error)[:200]) from error

    async def _tail_file(self, submission_id: str) -> AsyncIterator[str]:
        decoder, position, path = getincrementaldecoder("utf-8")("replace"), 0, None
        while True:
            if (now := self.log_file(submission_id)) != path:  # the driver's node has begun one that is longer
                decoder.reset()
                path, position = now, 0
            if path is not None:
                with path.open("rb") as stream:
                    stream.seek(position)
                    data = stream.read()
                position += len(data)
                if data:
                    yield decoder.decode(data)
            await asyncio.sleep(TAIL_S)

    def has_gpu(self) -> bool:
        """Returns whether a node of the cluster has a GPU.

        Raises:
            ClusterGone: when it does not answer.
        """
        with self._told():
            answer = self._client._do_request("GET", "/api/cluster_status")
        usage = answer.json().get("data", {}).get("clusterStatus", {}).get("loadMetricsReport", {}).get("usage", {})
        return bool(usage.get("GPU"))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says what went wrong in one line."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"{self.api.url}: the cluster refuses the token (of a cluster elsewhere, set MANTA_CLUSTER_TOKEN)"
            ) from error
        except requests.exceptions.Timeout as error:
            raise ClusterGone(f"no answer in {ASK_S:g} s") from error
        except (ConnectionError, requests.exceptions.ConnectionError, aiohttp.ClientError) as error:
            raise ClusterGone("nothing listens there, or it hung up") from error
        except requests.exceptions.RequestException as error:
            raise ClusterGone(last_line(error)[:200]) from error


def connect_jobs(spec: ClusterSpec) -> JobClient:
    """Connects to the cluster that a job is submitted to.

    Raises:
        UserError: when there is none, nothing answers, or the token is refused.
    """
    if spec.jobs_url is not None:
        return JobClient(known.jobs_api(spec))
    cluster = known.find(spec.name)
    return JobClient(cluster.jobs, cluster.scratch)


def _submission(details: Any) -> Submission:
    return Submission(
        id=details.submission_id,
        phase=Phase(str(details.status.value).lower()),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        began_s=details.start_time and details.start_time / 1000,
        ended_s=details.end_time and details.end_time / 1000,
        node=details.driver_node_id or "",
        metadata=dict(details.metadata or {}),
    )
