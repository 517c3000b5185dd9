from __future__ import annotations

from typing import Any

import pytest

from cluster.submit.attempt import Done, Follow, Phase, Start, Submission, decide, derive_id, latest, next_after
from cluster.submit.verb import exit_code

JOB: dict[str, Any] = {
    "model": {"path": "/m"},
    "output": {"path": "/out"},
    "cluster": {"name": None},
    "progress": {"quiet": False},
}


def made(
    submission_id: str, phase: Phase, code: int | None = None, verb: str = "batch", restarts: int = 0
) -> Submission:
    metadata = {"verb": verb, "restarts": str(restarts)}
    return Submission(id=submission_id, phase=phase, exit_code=code, metadata=metadata)


def test_the_same_work_has_the_same_id_wherever_and_however_it_is_followed():
    base = derive_id("batch", JOB, {"_files/a": "1"}, "")
    elsewhere = {**JOB, "cluster": {"name": "other"}, "progress": {"quiet": True}}
    assert derive_id("batch", elsewhere, {"_files/a": "1"}, "") == base
    assert base.startswith("manta-batch-")
    others = [
        derive_id("evaluate", JOB, {"_files/a": "1"}, ""),
        derive_id("batch", {**JOB, "model": {"path": "/n"}}, {"_files/a": "1"}, ""),
        derive_id("batch", JOB, {"_files/a": "2"}, ""),
        derive_id("batch", JOB, {}, ""),
        derive_id("batch", JOB, {"_files/a": "1"}, "/elsewhere"),
    ]
    assert len({base, *others}) == 6


def test_nothing_known_starts_it_under_its_own_id():
    assert decide("j", [made("other", Phase.running), made("j-x", Phase.running)], False) == Start(id="j")


@pytest.mark.parametrize("phase", [Phase.pending, Phase.running])
@pytest.mark.parametrize("is_again", [False, True])
def test_one_that_runs_is_followed_and_never_run_twice(phase: Phase, is_again: bool):
    running = made("j-2", phase)
    assert decide("j", [made("j", Phase.failed, 1), running], is_again) == Follow(submission=running)


@pytest.mark.parametrize("phase,code", [(Phase.succeeded, 0), (Phase.failed, 3)])
def test_one_that_is_done_is_told_of_unless_it_shall_run_again(phase: Phase, code: int):
    done = made("j", phase, code)
    assert decide("j", [done], False) == Done(submission=done)
    assert decide("j", [done], True) == Start(id="j-2")


@pytest.mark.parametrize(
    "last",
    [
        made("j-9", Phase.failed, 1),
        made("j-9", Phase.failed, 2),
        made("j-9", Phase.failed),
        made("j-9", Phase.stopped),
        made("j-9", Phase.succeeded, 0, verb="serve"),
    ],
)
def test_one_that_did_not_do_its_work_is_started_under_the_next_id(last: Submission):
    assert decide("j", [made("j-10", Phase.failed, 1), made("j", Phase.succeeded, 0), last], False) == Start(id="j-11")
    assert decide("j", [last], False) == Start(id="j-10")


def test_attempts_are_ordered_as_numbers():
    known = [made("j-10", Phase.failed), made("j", Phase.failed), made("j-9", Phase.failed)]
    assert latest("j", known) == (10, known[0])
    assert latest("k", known) == (0, None)


@pytest.mark.parametrize("code", [None, -9, 137, 139])
@pytest.mark.parametrize("verb", ["batch", "serve"])
def test_a_driver_that_died_goes_on_under_the_next_id(code: int | None, verb: str):
    assert next_after("j", made("j", Phase.failed, code, verb), 3) == "j-2"
    assert next_after("j", made("j-4", Phase.failed, code, verb, restarts=2), 3) == "j-5"
    assert next_after("j", made("j-5", Phase.failed, code, verb, restarts=3), 3) is None
    assert next_after("j", made("j", Phase.failed, code, verb), 0) is None


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_what_a_driver_said_itself_is_final(code: int):
    phase = Phase.failed if code else Phase.succeeded
    assert next_after("j", made("j", phase, code), 3) is None


def test_other_verbs_and_stopped_jobs_are_not_started_again():
    assert next_after("j", made("j", Phase.failed, None, "optimize"), 3) is None
    assert next_after("j", made("j", Phase.stopped), 3) is None


@pytest.mark.parametrize(
    "submission,code",
    [
        (made("j", Phase.succeeded, 0), 0),
        (made("j", Phase.failed, 1), 1),
        (made("j", Phase.failed, 2), 2),
        (made("j", Phase.failed, 3), 3),
        (made("j", Phase.failed, 130), 130),
        (made("j", Phase.failed), 1),
        (made("j", Phase.failed, -9), 1),
        (made("j", Phase.failed, 137), 1),
        (made("j", Phase.stopped), 130),
        (made("j", Phase.running), 0),
    ],
)
def test_the_driver_s_exit_code_is_the_command_s(submission: Submission, code: int):
    assert exit_code(submission) == code
