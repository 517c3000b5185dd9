"""A client of gRPC, as docs/formats.md shows one, and what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from serve.wire import api_pb2
from serve.wire.api_pb2_grpc import MantaStub


@dataclass(kw_only=True)
class Failed:
    code: str
    details: str
    cause: str | None


class Client:
    def __init__(self, address: str, key: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
        self._stub = MantaStub(self._channel)
        self._metadata = [("authorization", f"Bearer {key}"), ("x-request-id", "by-grpc")]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def models(self) -> Iterator[Any]:
        return self._stub.ListModels(api_pb2.Document(), metadata=self._metadata, timeout=60).data

    def complete(self, **ask: Any) -> tuple[Any, dict[str, str]]:
        request = api_pb2.CompletionRequest(**ask)
        answer, call = self._stub.Completions.with_call(request, metadata=self._metadata, timeout=60)
        return answer, dict(call.trailing_metadata())

    def chat(self, **ask: Any) -> Any:
        request = api_pb2.ChatCompletionRequest(**ask)
        return self._stub.ChatCompletions(request, metadata=self._metadata, timeout=60)

    def stream(self, timeout: float = 60, **ask: Any) -> Iterator[Any]:
        request = api_pb2.CompletionRequest(**ask)
        return self._stub.CompletionsStream(request, metadata=self._metadata, timeout=timeout)

    def refused(self, is_stream: bool, timeout: float = 60, **ask: Any) -> Failed:
        try:
            if is_stream:
                list(self.stream(timeout, **ask))
            else:
                self.complete(**ask)
        except grpc.RpcError as error:
            call: Any = error
            cause = dict(call.trailing_metadata() or ()).get("x-error-code")
            return Failed(code=call.code().name, details=call.details(), cause=cause)
        raise AssertionError("it was not refused")

    def leave(self, **ask: Any) -> None:
        """Goes away after the first message."""
        stream: Any = self.stream(**ask)
        next(stream)
        stream.cancel()
        with suppress(grpc.RpcError):
            list(stream)

    def lists_applications(self) -> str:
        ask = self._channel.unary_unary("/ray.serve.RayServeAPIService/ListApplications")
        try:
            ask(b"", timeout=20)
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined]
        return "OK"
