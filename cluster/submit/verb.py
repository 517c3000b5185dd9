"""`manta submit VERB ...`: checks a job here, sends it once, follows it, starts it again when its driver dies."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from cluster import known
from cluster.submit.attempt import Done, Follow, Phase, Start, Submission, decide, next_after
from cluster.submit.client import ClusterGone, Exists, JobClient, connect_jobs
from cluster.submit.follow import follow
from cluster.submit.parcel import Parcel, Where, make_parcel
from conf import entry
from conf.errors import UserError, nearest
from conf.help import help_text
from conf.schema.submit import SubmitJob

VERBS = ("batch", "serve", "optimize", "evaluate")
"""What runs on a cluster; the other verbs take seconds and run here."""
FLAGS = ("--no-wait", "--again")
LEASE_S = 35.0
"""Seconds before a driver that died is started again where nobody can see that its process has ended: the output's
lease stays another 30 s (`pipelines.ledger.lease`)."""


def run(words: list[str]) -> int:
    """Runs `manta submit VERB [key=value ...] [--no-wait] [--again]`.

    Returns:
        The exit code: the job's own; 0 for a service that is ready, for what is not waited for, and for a job that was
        done before; 1 when its driver or the cluster died, 130 when it was stopped, or nobody follows it any more.

    Raises:
        UserError: for the user's mistake, before anything is sent.
    """
    if not words or "-h" in words or "--help" in words:
        print(help_text("submit", "run a verb on a cluster; manta VERB --help lists the verb's own keys"))
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise UserError(f"'{verb}' cannot be submitted{nearest(verb, VERBS)} (there are {', '.join(VERBS)})")
    flags = [word for word in rest if word.startswith("-")]
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(f"unknown option '{flag}'{nearest(flag, FLAGS)} (there are {', '.join(FLAGS)})")
    own = [word for word in rest if word.lstrip("+").startswith("submit.")]
    others = [word for word in rest if word not in own and word not in flags]
    for word in others:
        if word.startswith("cluster.address="):
            raise UserError(f"{word}: a job that is submitted runs on cluster.name or cluster.jobs_url")
    submit: SubmitJob = entry.compose("submit", *own)
    job = entry.compose(verb, *others)
    cluster = job.cluster
    where = Where.elsewhere(cluster) if cluster.jobs_url is not None else Where.here(known.find(cluster.name), cluster)
    with tempfile.TemporaryDirectory(prefix="manta-submit-") as folder:
        parcel = make_parcel(verb, job, submit.submit, where, Path.cwd(), Path(folder))
        client = connect_jobs(job.cluster)
        try:
            return _Dispatch(parcel, client).run(is_again="--again" in flags, waits="--no-wait" not in flags)
        except ClusterGone as error:
            print(f"manta submit: {client.api.url} does not answer any more: {error}", file=sys.stderr)
            return 1


class _Dispatch:
    """One job on its way."""

    def __init__(self, parcel: Parcel, client: JobClient) -> None:
        self._parcel = parcel
        self._client = client

    def run(self, is_again: bool, waits: bool) -> int:
        parcel = self._parcel
        decision = decide(parcel.base, self._client.submissions(), is_again)
        if isinstance(decision, Done):
            done = decision.submission
            took = f" in {done.ended_s - done.began_s:.0f} s" if done.began_s and done.ended_s else ""
            self._say(f"{done.id} has run already{took}; --again runs it once more{parcel.where_results}")
            return exit_code(done)
        if isinstance(decision, Follow):
            submission_id = decision.submission.id
            if is_again:
                raise UserError(f"--again: {submission_id} runs: manta jobs stop {submission_id}{parcel.where} ends it")
            self._say(f"{submission_id} runs already")
        else:
            submission_id = self._send(decision, 0)
        if not waits:
            self._say(f"follow it with manta jobs logs {submission_id} --follow{parcel.where}")
            self._say(f"end it with manta jobs stop {submission_id}{parcel.where}")
            return 0
        try:
            return self._follow(submission_id)
        except KeyboardInterrupt:
            self._say(
                f"{submission_id} goes on: manta jobs logs {submission_id} --follow{parcel.where} follows it,"
                f" manta jobs stop {submission_id}{parcel.where} ends it"
            )
            return 130

    def _follow(self, submission_id: str) -> int:
        while True:
            marker = self._parcel.marker(submission_id)
            submission = follow(self._client, submission_id, _show, marker, partial(self._waits, submission_id))
            again = next_after(self._parcel.base, submission, self._parcel.spec.max_restarts)
            if again is None:
                return self._ended(submission)
            number = submission.restarts + 1
            self._say(
                f"{submission.id}: its driver died ({_cause(submission)}); it goes on as {again}, restart {number} of"
                f" {self._parcel.spec.max_restarts}"
            )
            time.sleep(0.0 if self._parcel.is_local else LEASE_S)
            submission_id = self._send(Start(id=again), number)

    def _waits(self, submission_id: str) -> None:
        cpus = self._parcel.spec.driver_cpus
        why = f"no node has {cpus:g} CPUs free for its driver" if cpus else "its environment is being made"
        self._say(f"{submission_id} has not begun yet: {why}, or the cluster is busy")

    def _send(self, start: Start, restarts: int) -> str:
        parcel = self._parcel
        try:
            self._client.submit(
                start.id,
                parcel.entrypoint(start.id),
                parcel.runtime_env(self._client),
                {**parcel.metadata, "restarts": str(restarts)},
                parcel.spec.driver_cpus,
            )
            self._say(
                f"{start.id} sent to {self._client.api.url} ({parcel.num_files} files, {parcel.size_bytes:,} bytes)"
            )
        except Exists:  # somebody else was faster
            self._say(f"{start.id} runs already")
        return start.id

    def _ended(self, submission: Submission) -> int:
        if submission.phase is Phase.stopped:
            self._say(f"{submission.id} was stopped")
        elif submission.has_died:
            self._say(f"{submission.id}: its driver died ({_cause(submission)})")
        return exit_code(submission)

    def _say(self, text: str) -> None:
        print(f"manta submit: {text}", file=sys.stderr, flush=True)


def exit_code(submission: Submission) -> int:
    """Returns the exit code that stands for a submission: its driver's own, where it came to have one.

    One that was stopped has 130, one that died 1, and one that runs 0.
    """
    if submission.phase is Phase.stopped:
        return 130
    if submission.has_died:
        return 1
    return submission.exit_code or 0


def _cause(submission: Submission) -> str:
    if submission.exit_code is not None:
        return f"exit code {submission.exit_code}"
    first = submission.message.strip().splitlines()
    return first[0][:160] if first else "with its node"


def _show(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os._exit(141)
