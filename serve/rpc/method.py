"""The calls of the service Manta, and the endpoint that each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from serve.wire import api_pb2

SERVICE = "manta.wire.Manta"
LAYERS_PATH, CALLS_PATH = "serve.rpc.proxy:layers", "serve.rpc.proxy.add_calls"
"""What Ray Serve calls in its proxy's process, and what it calls there when that has gRPC."""
ADDRESS_VARIABLE, APPLICATION_VARIABLE = "MANTA_GRPC_ADDRESS", "MANTA_GRPC_APPLICATION"


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A call."""

    path: str
    answer: str
    """The message of api.proto that it answers with, once or many times."""
    tail: bytes = b""
    """Follows a request's bytes and sets its ``stream``: of a field that is there twice the last one holds."""
    is_stream: bool = False

    @property
    def verb(self) -> str:
        """HTTP's."""
        return "GET" if self.path == "/v1/models" else "POST"


def _both(name: str, path: str, request: type, answer: str, part: str) -> dict[str, Method]:
    once, many = (request(stream=is_stream).SerializeToString() for is_stream in (False, True))
    return {
        name: Method(path=path, answer=answer, tail=once),
        f"{name}Stream": Method(path=path, answer=part, tail=many, is_stream=True),
    }


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ListModels": Method(path="/v1/models", answer="ModelList"),
        **_both(
            "ChatCompletions",
            "/v1/chat/completions",
            api_pb2.ChatCompletionRequest,
            "ChatCompletion",
            "ChatCompletionChunk",
        ),
        **_both("Completions", "/v1/completions", api_pb2.CompletionRequest, "Completion", "Completion"),
        "Embeddings": Method(path="/v1/embeddings", answer="EmbeddingList"),
    }
)
"""By name."""
