"""Ray Serve's own gRPC server with the service added to it, in front of handlers that do what Ray Serve's do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from ray.serve._private import default_impl, grpc_util
from ray.serve.config import gRPCOptions
from ray.serve.grpc_util import RayServegRPCContext

from serve.middleware.proxy import BODY_VARIABLE, TIMEOUT_VARIABLE
from serve.rpc.call import CAUSE
from serve.rpc.method import ADDRESS_VARIABLE, APPLICATION_VARIABLE, CALLS_PATH, METHODS, SERVICE
from serve.rpc.proxy import layers, told

LEAK = "The actor SERVE_REPLICA::manta#replica at 10.0.0.1 died"
KEY = ("authorization", "Bearer key")


class Ray:
    """Its factory of handlers: `service_handler_factory` of gRPCProxy, with what a replica would have said."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.request = b""
        self.code: Any = grpc.StatusCode.OK
        self.said: list[tuple[str, str]] = []

    def __call__(self, service_method: str, streaming_type: Any) -> Any:
        def meet(request: bytes, context: Any) -> None:
            carried = RayServegRPCContext(context)  # what goes to the replica and back
            self.request, self.heard = request, list(carried.invocation_metadata())
            if self.said:
                carried.set_code(grpc.StatusCode.NOT_FOUND)
                carried.set_details("There is no such model.")
            carried.set_trailing_metadata([("request_id", "ray"), *self.said])
            carried._set_on_grpc_context(context)

        def end(context: Any) -> None:
            grpc_util.set_grpc_code_and_details(context, grpc_util.ResponseStatus(code=self.code, message=LEAK))

        async def once(request: bytes, context: Any) -> bytes:
            meet(request, context)
            end(context)
            return b"" if self.said else b"answer"

        async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
            meet(request, context)
            yield b"one"
            yield b"" if self.said else b"two"
            end(context)

        return many if streaming_type.name == "UNARY_STREAM" else once


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Ray, Any]]:
    with socket.socket() as knock:
        knock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{knock.getsockname()[1]}"
    for name, value in (
        (ADDRESS_VARIABLE, address),
        (APPLICATION_VARIABLE, "manta"),
        (BODY_VARIABLE, "1000"),
        (TIMEOUT_VARIABLE, "60"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    monkeypatch.setattr(grpc_util, "DEFAULT_GRPC_SERVER_OPTIONS", list(grpc_util.DEFAULT_GRPC_SERVER_OPTIONS))
    assert len(layers()) == 2
    options = gRPCOptions(port=1, grpc_servicer_functions=[CALLS_PATH], enable_reflection=False)
    ray = Ray()
    waiting, server = await grpc_util.start_grpc_server(ray, options, event_loop=asyncio.get_running_loop())
    async with grpc.aio.insecure_channel(address) as channel:
        yield ray, channel
    await server.stop(None)
    await asyncio.wait((waiting,))


async def ask(channel: Any, name: str, request: bytes = b"request", **options: Any) -> tuple[Any, str, list, dict]:
    method = channel.unary_stream if METHODS[name].is_stream else channel.unary_unary
    call = method(f"/{SERVICE}/{name}")(request, metadata=[KEY], **options)
    got: list[bytes] = []
    try:
        if METHODS[name].is_stream:
            async for message in call:
                got.append(message)
        else:
            got.append(await call)
    except grpc.aio.AioRpcError:
        pass
    return await call.code(), await call.details(), got, dict(await call.trailing_metadata())


@pytest.mark.parametrize("name, answers", [("Completions", [b"answer"]), ("CompletionsStream", [b"one", b"two"])])
async def test_a_call_goes_through_as_bytes(served: Any, name: str, answers: list[bytes]):
    ray, channel = served
    code, details, got, trailing = await ask(channel, name)
    assert (code, details, got) == (grpc.StatusCode.OK, "", answers)
    assert ray.request == b"request"
    assert "request_id" not in trailing


@pytest.mark.parametrize("name", ["Completions", "CompletionsStream"])
async def test_a_replica_s_refusal_is_told_and_its_empty_message_is_not(served: Any, name: str):
    ray, channel = served
    ray.said = [(CAUSE, "model_not_found"), ("x-request-id", "a")]
    code, details, got, trailing = await ask(channel, name)
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "There is no such model.")
    assert got == ([b"one"] if name.endswith("Stream") else [])
    assert trailing["x-request-id"] == "a"


@pytest.mark.parametrize("name", ["Completions", "CompletionsStream"])
async def test_what_ray_serve_says_by_itself_is_put_into_other_words(served: Any, name: str):
    ray, channel = served
    for said, code in (("INTERNAL", "INTERNAL"), ("RESOURCE_EXHAUSTED", "UNAVAILABLE"), ("NOT_FOUND", "NOT_FOUND")):
        ray.code = grpc.StatusCode[said]
        got, details, *_ = await ask(channel, name)
        assert got is grpc.StatusCode[code]
        assert details
        assert not any(word in details for word in ("actor", "SERVE", "10.0.0.1"))


async def test_a_client_does_not_choose_the_application_and_its_deadline_is_heard(served: Any):
    ray, channel = served
    mine = [("application", "other"), ("multiplexed_model_id", "x"), ("session_id", "x"), ("x-request-id", "mine")]
    await channel.unary_unary(f"/{SERVICE}/Completions")(b"", metadata=[*mine, KEY], timeout=30)
    heard = dict(ray.heard)
    assert 29 < float(heard.pop("x-request-timeout")) < 31  # gRPC rounds it up
    assert heard == {"x-request-id": "mine", "authorization": "Bearer key", "application": "manta"}
    await channel.unary_unary(f"/{SERVICE}/Completions")(b"", metadata=[("x-request-timeout", "5")], timeout=30)
    assert dict(ray.heard)["x-request-timeout"] == "5"
    await channel.unary_unary(f"/{SERVICE}/Completions")(b"")
    assert ray.heard == [("application", "manta")]


async def test_a_message_beyond_the_limit_reaches_nobody(served: Any):
    ray, channel = served
    code, *_ = await ask(channel, "Completions", b"a" * 1001)
    assert (code, ray.request) == (grpc.StatusCode.RESOURCE_EXHAUSTED, b"")


@pytest.mark.parametrize(
    "path", ["/ray.serve.RayServeAPIService/ListApplications", f"/{SERVICE}/Nothing", "/grpc.reflection.v1alpha.X/Y"]
)
async def test_nothing_else_can_be_called(served: Any, path: str):
    ray, channel = served
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not ray.request


def test_only_a_replica_s_own_words_are_passed_on():
    assert told(None, "", {}) == (grpc.StatusCode.OK, "")
    # a replica that died after it had begun an answer
    assert told(grpc.StatusCode.INTERNAL, LEAK, {"x-request-id": "a"})[1] == "The request failed."
