"""Server-sent events, as they come: in pieces."""

from __future__ import annotations

from collections.abc import Iterator

DONE = b"[DONE]"


class Events:
    """Fed a stream's chunks in order, it gives what the events say; comments and other fields are left out."""

    def __init__(self) -> None:
        """Begins before the first chunk."""
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Takes the next chunk, which may end anywhere, and gives the data of the lines that are whole by now."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
