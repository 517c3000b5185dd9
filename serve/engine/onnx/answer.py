"""One answer as it grows: its tokens, its text, and what ends it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from serve.engine.onnx.given import Given
from serve.engine.onnx.sampler import Likely, Sampler
from serve.engine.protocol import Request, Sample, TokenLogprob

CONTEXT_TOKENS = 5
"""Of a prompt's end, which an answer's first token is decoded after: some tokenizers drop a space at a text's start."""


class Answer:
    """Takes tokens until it ends."""

    def __init__(self, request: Request, index: int, room: int, tokenizer: Any, end_ids: Collection[int]) -> None:
        """Args.

        request: what was asked.
        index: of this answer, among `SamplingSpec.n`.
        room: tokens that it may have.
        tokenizer: of the ``tokenizers`` package.
        end_ids: tokens that end an answer.
        """
        sampling = request.sampling
        self.index = index
        self.prompt_tokens = len(request.token_ids)
        self.sampler: Sampler | Given = Sampler(sampling, request.token_ids, index)
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.places: list[TokenLogprob] = []
        self._room = room
        self._tokenizer = tokenizer
        self._ends = () if sampling.ignore_eos else end_ids
        self._stops = [stop for stop in sampling.stop if stop]
        self._held = max((len(stop) for stop in self._stops), default=1) - 1
        self._has_logprobs = sampling.logprobs is not None
        self._stream = _stream(request.token_ids[-CONTEXT_TOKENS:])

    @property
    def settled(self) -> int:
        """Characters of the text that no later token takes back: the beginning of a stop text may stand after them."""
        return len(self.text) if self.finish_reason else max(0, len(self.text) - self._held)

    def take(self, token: int, logprob: float | None, likely: Likely) -> None:
        """Adds a token, with its log-probability and the likeliest ones where they were asked for."""
        self.token_ids.append(token)
        if self._has_logprobs:
            assert logprob is not None
            top = tuple((self._shown(other), value) for other, value in likely)
            self.places.append(TokenLogprob(token=self._shown(token), logprob=logprob, top=top))
        if token in self._ends:
            self.finish_reason = "stop"
            return
        if len(self.token_ids) >= self._room:
            self.finish_reason = "length"
        added = self._decoded(token)
        self.text += added
        if added and self._stops:
            self._stop(len(added))

    def sample(self) -> Sample:
        """Returns it, ended."""
        return Sample(
            text=self.text,
            finish_reason=self.finish_reason or "abort",
            completion_tokens=len(self.token_ids),
            logprobs=tuple(self.places) if self._has_logprobs else None,
        )

    def _stop(self, added: int) -> None:
        """Ends at the first stop text that the last characters completed."""
        starts = [self.text.find(stop, max(0, len(self.text) - added - len(stop) + 1)) for stop in self._stops]
        if found := [start for start in starts if start >= 0]:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"

    def _shown(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def _decoded(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:
            # bytes that are no text: what comes after them begins anew (source: vllm/v1/engine/detokenizer.py)
            self._stream = _stream([])
            return self._stream.step(self._tokenizer, token) or ""


def _stream(context: list[int]) -> Any:
    from tokenizers.decoders import DecodeStream

    return DecodeStream(ids=list(context), skip_special_tokens=True)
