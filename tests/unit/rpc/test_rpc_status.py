from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.middleware.answer import error_body
from serve.rpc.status import MAX_DETAILS_CHARS, event_failure, failure


@pytest.mark.parametrize(
    "status, code",
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (406, "INVALID_ARGUMENT"),
        (408, "DEADLINE_EXCEEDED"),
        (413, "RESOURCE_EXHAUSTED"),
        (415, "INVALID_ARGUMENT"),
        (422, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (501, "UNIMPLEMENTED"),
        (502, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_a_status_of_http_is_one_of_grpc(status: int, code: str):
    failed = failure(status, error_body("said", "kind", "cause"))
    assert failed.code == code
    assert (failed.details == "said") is (status < 500)  # what the service says of itself stays inside
    assert failed.cause == "cause"


@given(status=st.integers(300, 599), body=st.binary(max_size=200))
def test_any_body_becomes_a_failure_of_grpc_s(status: int, body: bytes):
    for failed in (failure(status, body), event_failure(body)):
        assert grpc.StatusCode[failed.code] is not grpc.StatusCode.OK
        assert 0 < len(failed.details) <= MAX_DETAILS_CHARS
        failed.cause.encode("ascii")


def test_details_are_bounded():
    assert len(failure(400, error_body("a" * 100_000, "kind")).details) == MAX_DETAILS_CHARS
