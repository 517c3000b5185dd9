"""In the process of Ray Serve's gRPC proxy: where it listens, what it hears of a client, and what a client hears of it.

By itself it listens on every address, takes messages of 2 GiB, lets metadata choose the application, and tells names of
actors and addresses in the details of errors. Ray Serve calls `layers` and then `add_calls`.

Source: ray 2.60, ray/serve/_private/proxy.py (gRPCProxy) and grpc_util.py.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from serve.middleware import proxy
from serve.rpc.call import CAUSE, HEARD
from serve.rpc.method import ADDRESS_VARIABLE, APPLICATION_VARIABLE, METHODS, SERVICE
from serve.rpc.status import text_of

_RAY = "ray.serve.RayServeAPIService"
_MAX_TIMEOUT_S = 1e8
"""What is longer is no deadline: gRPC's own for none is in 300 years."""


def layers() -> list[Any]:
    """Returns what Ray Serve puts around its HTTP proxy, and arranges where the gRPC proxy will listen."""
    from ray.serve._private import default_impl, grpc_util

    address, max_bytes = os.environ[ADDRESS_VARIABLE], int(os.environ[proxy.BODY_VARIABLE])

    def listen(server: Any, _: str) -> None:
        server.add_insecure_port(address)

    default_impl.add_grpc_address = listen
    # answers are as long as they are
    sizes = [("grpc.max_receive_message_length", max_bytes), ("grpc.max_send_message_length", -1)]
    grpc_util.DEFAULT_GRPC_SERVER_OPTIONS[:] = sizes  # type: ignore[list-item]
    return proxy.layers()


def add_calls(servicer: object, server: Any) -> None:
    """Adds the service Manta to Ray Serve's gRPC server, and closes what lists the applications.

    Args:
        servicer: nothing; Ray Serve sends the calls to replicas.
        server: Ray Serve's.
    """
    server.service_handler_factory = guarded(server.service_handler_factory, os.environ[APPLICATION_VARIABLE])
    # without a deserializer: the replica reads a request's bytes, once
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    handlers = {name: (stream if method.is_stream else unary)(_nobody) for name, method in METHODS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def closed(request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text_of("UNIMPLEMENTED"))

    listing = "ListApplications"
    for (known,) in server.generic_rpc_handlers:
        known._method_handlers.pop(f"/{_RAY}/{listing}", None)
    base: Any = grpc.aio.Server  # Ray Serve's own method would send it to a replica
    base.add_registered_method_handlers(server, _RAY, {listing: unary(closed)})


async def _nobody(request: bytes, context: Any) -> bytes:
    raise AssertionError("Ray Serve puts its own handler in this one's place")


def guarded(factory: Callable[..., Any], application: str) -> Callable[..., Any]:
    """Returns Ray Serve's factory of handlers with a `Guard` between each of them and its client."""

    def make(service_method: str, streaming_type: Any) -> Any:
        handler = factory(service_method=service_method, streaming_type=streaming_type)

        async def once(request: bytes, context: Any) -> bytes:
            guard = Guard(context, application)
            answer = await handler(request, guard)
            guard.finish()
            return answer

        async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
            guard = Guard(context, application)
            async for message in handler(request, guard):
                if message:  # one that is empty has brought a failure
                    yield message
            guard.finish()

        return {"UNARY_UNARY": once, "UNARY_STREAM": many}.get(streaming_type.name, handler)

    return make


class Guard:
    """A call's context as Ray Serve gets it; what Ray Serve says there by itself is put into other words."""

    def __init__(self, context: Any, application: str) -> None:
        """Args: gRPC's context, and where the call goes."""
        self._context, self._application = context, application
        self._code: Any = None
        self._details = ""
        self._trailing: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """What is heard of a client's metadata, its deadline, and the application: Ray Serve goes by that one."""
        given = self._context.invocation_metadata() or ()
        heard = [(str(name), value) for name, value in given if name in HEARD and isinstance(value, str)]
        left_s = self._context.time_remaining()
        if left_s is not None and 0 < left_s < _MAX_TIMEOUT_S and "x-request-timeout" not in dict(heard):
            heard.append(("x-request-timeout", f"{left_s:.3f}"))
        return [*heard, ("application", self._application)]

    def code(self) -> Any:
        """What was set."""
        return self._code

    def details(self) -> str:
        """What was set."""
        return self._details

    def trailing_metadata(self) -> list[tuple[str, str]]:
        """What was set."""
        return self._trailing

    def set_code(self, code: Any) -> None:
        """Kept until the end."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Kept until the end."""
        self._details = details

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Kept until the end, but Ray Serve's own id of the request."""
        self._trailing = [pair for pair in metadata if pair[0] != "request_id"]

    def finish(self) -> None:
        """Tells gRPC how the call has ended."""
        code, details = told(self._code, self._details, dict(self._trailing))
        self._context.set_trailing_metadata(tuple(self._trailing))
        self._context.set_code(code)
        self._context.set_details(details)


def told(code: Any, details: str, trailing: Mapping[str, str]) -> tuple[Any, str]:
    """Returns a call's code and details as its client gets them.

    Args:
        code: what was set, by the replica or by Ray Serve; null is a call that went well.
        details: the same.
        trailing: metadata; a replica that refuses says `CAUSE` there.
    """
    if not code or code is grpc.StatusCode.OK:
        return grpc.StatusCode.OK, ""
    if CAUSE in trailing:
        return code, details
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # its queue is full; over HTTP that is 503
        code = grpc.StatusCode.UNAVAILABLE
    return code, text_of(code.name)
