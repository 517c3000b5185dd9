"""`manta jobs list|show|logs|stop`: what was submitted to a cluster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cluster.submit.attempt import FAILED_ROWS, Phase, Submission
from cluster.submit.client import ClusterGone, JobClient, connect_jobs
from cluster.submit.follow import follow
from cluster.submit.verb import exit_code
from conf import entry
from conf.errors import UserError, nearest
from conf.schema.submit import SubmitJob

USAGE = """manta jobs: what was submitted to a cluster with manta submit

usage:
  manta jobs list [--json]
  manta jobs show ID [--json]
  manta jobs logs ID [--follow]      all that it wrote; --follow stays until it is over, with its exit code
  manta jobs stop ID                 batch keeps what is done, serve drains; returns when it has ended

cluster.name=NAME says which cluster of manta cluster up, where several run; cluster.jobs_url=http://HEAD:8265 is one
elsewhere, whose token is in MANTA_CLUSTER_TOKEN."""
_FLAGS = {"list": ("--json",), "show": ("--json",), "logs": ("--follow",), "stop": ()}
_POLL_S = 0.25
_BEGIN_S = 10.0
"""Seconds that a job may wait to begin before it is said that Ray stops none that waits."""
_LATE_S = 30.0
"""Seconds that Ray may take to tell of a job's end beyond those that the job may take."""


def run(words: list[str]) -> int:
    """Runs `manta jobs`.

    Returns:
        The exit code: 0, that of the job for logs --follow, 1 where one does not stop or the cluster went away.

    Raises:
        UserError: for words that it does not know, an unknown id, no cluster or a wrong token.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    action, rest = words[0], words[1:]
    if action not in _FLAGS:
        raise UserError(f"jobs takes {', '.join(_FLAGS)}, got '{action}'{nearest(action, _FLAGS)}")
    keys = [word for word in rest if word.startswith("cluster.")]
    flags = [word for word in rest if word.startswith("-")]
    ids = [word for word in rest if word not in keys and word not in flags]
    for flag in flags:
        if flag not in _FLAGS[action]:
            there = f" (there is {', '.join(_FLAGS[action])})" if _FLAGS[action] else ""
            raise UserError(f"jobs {action}: unknown option '{flag}'{there}")
    if len(ids) != (0 if action == "list" else 1):
        raise UserError(f"jobs {action} takes {'no id' if action == 'list' else 'one id'}, got '{' '.join(ids)}'")
    job: SubmitJob = entry.compose("submit", *keys)
    client = connect_jobs(job.cluster)
    try:
        if action == "list":
            return _list(client, "--json" in flags)
        return _ONE[action](client, client.submission(ids[0]), bool(flags))
    except ClusterGone as error:
        print(f"manta jobs: {client.api.url} does not answer any more: {error}", file=sys.stderr)
        return 1


def _list(client: JobClient, is_json: bool) -> int:
    found = client.submissions()
    if is_json:
        print(json.dumps([_plain(each) for each in found], indent=2))
        return 0
    width = max((len(each.id) for each in found), default=0)
    for each in found:
        print(f"  {each.id:<{width}}  {state_of(each):<18}{_took(each):>8}  {each.metadata.get('output', '')}".rstrip())
    if not found:
        print("no jobs")
    return 0


def _show(client: JobClient, submission: Submission, is_json: bool) -> int:
    plain = _plain(submission)
    if is_json:
        print(json.dumps(plain, indent=2))
    else:
        print(f"{submission.id}: {state_of(submission)}")
        print(
            "\n".join(f"  {key:<10}{value}" for key, value in plain.items() if value not in (None, "", submission.id))
        )
    return 0


def _logs(client: JobClient, submission: Submission, is_followed: bool) -> int:
    if not is_followed:
        sys.stdout.write(client.log(submission.id))
        return 0
    try:
        return exit_code(follow(client, submission.id, lambda line: print(line, flush=True)))
    except KeyboardInterrupt:
        print(f"manta jobs: {submission.id} goes on", file=sys.stderr)
        return 130


def _stop(client: JobClient, submission: Submission, _: bool) -> int:
    if submission.phase.is_over:
        print(f"manta jobs: {submission.id} has ended already: {state_of(submission)}", file=sys.stderr)
        return 0
    client.stop(submission.id)
    stop_s = float(submission.metadata.get("stop_s", "3"))
    print(f"manta jobs: {submission.id} ends, in {stop_s:g} s at most", file=sys.stderr, flush=True)
    began = time.monotonic()
    deadline = began + stop_s + _LATE_S
    while time.monotonic() < deadline:
        submission = client.submission(submission.id)
        if submission.phase.is_over:
            print(f"manta jobs: {submission.id} has ended", file=sys.stderr)
            return 0
        if submission.phase is Phase.pending and time.monotonic() - began > _BEGIN_S:
            print(
                f"manta jobs: {submission.id} has not begun, and ends when it does: no node has the CPUs that its"
                " driver asks for, or its environment is being made",
                file=sys.stderr,
            )
            return 1
        time.sleep(_POLL_S)
    print(f"manta jobs: {submission.id} goes on", file=sys.stderr)
    return 1


_ONE: dict[str, Callable[[JobClient, Submission, bool], int]] = {"show": _show, "logs": _logs, "stop": _stop}


def state_of(submission: Submission) -> str:
    """Says in a word or two how a submission stands."""
    if submission.phase is Phase.succeeded:
        return "done"
    if submission.exit_code == FAILED_ROWS:
        return "done, rows failed"
    if submission.has_died:
        return "died"
    return submission.phase.value


def _plain(submission: Submission) -> dict[str, Any]:
    """What is told of a submission; never its environment."""
    return {
        "id": submission.id,
        "state": state_of(submission),
        "verb": submission.verb,
        "exit_code": submission.exit_code,
        "began": _time(submission.began_s),
        "ended": _time(submission.ended_s),
        "output": submission.metadata.get("output", ""),
        "user": submission.metadata.get("user", ""),
        "restarts": submission.restarts,
        "node": submission.node,
        "message": submission.message.strip().partition("\n")[0] if submission.has_died else "",
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _took(submission: Submission) -> str:
    if submission.began_s is None:
        return ""
    return f"{(submission.ended_s or time.time()) - submission.began_s:,.0f} s"
