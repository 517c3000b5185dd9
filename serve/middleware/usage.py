"""Reads the tokens that a response says it used, while it passes; nothing is held back."""

from __future__ import annotations

import msgspec

from serve.middleware.answer import Scope

_MAX_KEPT_BYTES = 16 << 20
"""Of a response that is no stream; one that is longer keeps the estimate."""
_MAX_EVENT_BYTES = 1 << 20


class Usage(msgspec.Struct, kw_only=True):
    """OpenAI's ``usage``, or Anthropic's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.prompt_tokens or self.input_tokens or 0

    @property
    def completion(self) -> int:
        """Tokens of the answers."""
        return self.completion_tokens or self.output_tokens or 0

    @property
    def total(self) -> int:
        """Both together."""
        return max(self.total_tokens or 0, self.prompt + self.completion)


class _Inner(msgspec.Struct):
    usage: Usage | None = None


class _Answer(msgspec.Struct):
    """What is looked at in a body or an event; msgspec skips the rest unread."""

    usage: Usage | None = None
    response: _Inner | None = None
    """Where the Responses API streams it."""


_decoder = msgspec.json.Decoder(_Answer)


def reported_usage(scope: Scope) -> Usage | None:
    """Returns what vLLM leaves beside an answer that it has finished, for streams whose client asks for no usage.

    Source: vllm/entrypoints/openai/ (0.26-0.32), ``raw_request.state.request_metadata.final_usage_info``.
    """
    info = getattr((scope.get("state") or {}).get("request_metadata"), "final_usage_info", None)
    prompt, completion = (getattr(info, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(prompt, int):
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion if isinstance(completion, int) else 0)


class UsageReader:
    """Fed a response's chunks in order, it knows the usage at the end: null where the response says none."""

    def __init__(self, content_type: str) -> None:
        """Takes the response's type, which says whether it is one body or a stream of events."""
        self._is_stream = content_type.startswith("text/event-stream")
        self._is_read = self._is_stream or content_type.startswith("application/json")
        self._kept = bytearray()
        self._usage: Usage | None = None

    def feed(self, chunk: bytes) -> None:
        """Takes the next chunk; it may end within an event."""
        if not self._is_read:
            return
        if not self._is_stream:
            if len(self._kept) + len(chunk) > _MAX_KEPT_BYTES:
                self._is_read = False
                self._kept.clear()
            self._kept += chunk
            return
        if not self._kept and chunk.endswith(b"\n") and b'"usage"' not in chunk:
            return  # nearly every chunk of a stream
        if self._kept:
            chunk = bytes(self._kept) + chunk
            self._kept.clear()
        *lines, rest = chunk.split(b"\n")
        if len(rest) <= _MAX_EVENT_BYTES:
            self._kept += rest
        for line in lines:
            self._event(line)

    def close(self) -> Usage | None:
        """Returns the last usage that the response named."""
        if self._is_read and not self._is_stream:
            self._look(bytes(self._kept))
        elif self._kept:
            self._event(bytes(self._kept))
        self._kept.clear()
        return self._usage

    def _event(self, line: bytes) -> None:
        # text of an answer cannot hold this: its quotes are escaped
        if b'"usage"' in line and line.startswith(b"data:"):
            self._look(line[5:].strip())

    def _look(self, data: bytes) -> None:
        try:
            answer = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        usage = answer.usage or (answer.response and answer.response.usage)
        if usage and (self._usage is None or usage.total >= self._usage.total):
            self._usage = usage
