"""llama.cpp's own server in this process: the only importer of xllamacpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The server will not answer this request."""


class LlamaServer:
    """A loaded model with slots that compute side by side. Its methods may be called from many threads."""

    def __init__(self, file: Path, context: int, slots: int, threads: int) -> None:
        """Loads a model.

        Args:
            file: a GGUF file.
            context: tokens of a sequence.
            slots: sequences at a time.
            threads: that compute.

        Raises:
            Exception: what llama.cpp raises when it cannot.
        """
        import xllamacpp  # pyright: ignore[reportMissingImports]

        llama: Any = xllamacpp  # compiled: nothing says what is in it
        wanted = llama.CommonParams()
        wanted.model.path = str(file)
        wanted.n_ctx, wanted.n_parallel = context * slots, slots
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
        wanted.n_gpu_layers = 0
        wanted.cache_ram_mib = 0  # it would keep up to 8 GiB of finished prompts
        wanted.warmup = False
        wanted.ui = False
        wanted.verbosity = -1
        self._server = llama.Server(wanted)

    def complete(self, body: dict[str, Any], hear: Callable[[dict[str, Any]], bool]) -> None:
        """Answers one request, in the calling thread.

        Args:
            body: of a request to /v1/completions, in llama.cpp's names.
            hear: takes each piece of the answer as it comes; what it returns says whether to stop there.

        Raises:
            Refused: when the request is wrong.
            RuntimeError: when the server fails.
        """
        failed: list[dict[str, Any]] = []

        def listen(piece: dict[str, Any]) -> bool:
            if "error" in piece:
                failed.append(piece["error"])
                return True
            return hear(piece)

        self._server.handle_completions({**body, "stream": True}, listen)
        if failed:
            kind = Refused if 400 <= int(failed[0].get("code") or 500) < 500 else RuntimeError
            raise kind(str(failed[0].get("message")))
