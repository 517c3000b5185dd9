"""Continuous batching: prompts are read as slots become free, and each step gives all that are read a token."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.onnx.answer import Answer
from serve.engine.onnx.cache import KvCache
from serve.engine.onnx.given import Given, split
from serve.engine.onnx.layout import read_edge_model
from serve.engine.onnx.limits import check_request
from serve.engine.onnx.session import Session, threads_of
from serve.engine.onnx.slots import Sequence, Slots
from serve.engine.protocol import Completion, EngineStats, Outcome, Request
from serve.engine.step_loop import Stepper
from serve.engine.tokenizer import PlainTokenizer

DEFAULT_KV_CACHE_BYTES = 1 << 30
PREFILL_TOKENS = 512
"""Of prompts in one step: an answer's next token waits no longer for others' prompts."""
FULL_FRACTION = 0.75
"""Of the places of a step over several prompts that are tokens, at least; the rest fills rows up."""
Hear = Callable[[Answer], None]
"""Told of each token of an answer, from the engine's thread."""


class OnnxStepper(Stepper):
    """A graph with its cache, and the requests that it holds."""

    def __init__(self, model: ModelSpec, spec: EngineSpec, stats: EngineStats, share: int) -> None:
        """Loads the model.

        Args:
            model: the folder.
            spec: sizes.
            stats: counters to keep; its context is decided.
            share: engines on this machine.

        Raises:
            EngineDead: when the cache is too small for one sequence.
            Exception: what onnxruntime or the tokenizer raises.
        """
        began = time.monotonic()
        edge = read_edge_model(model.path)
        context = min(stats.max_model_len, edge.context)
        budget = (spec.kv_cache_bytes or DEFAULT_KV_CACHE_BYTES) // edge.token_bytes
        if budget < context:
            need = context * edge.token_bytes
            raise EngineDead(f"engine.kv_cache_bytes must be >= {need} for a context of {context} tokens")
        self._tokenizer: Any = PlainTokenizer(Path(model.tokenizer or model.path).expanduser()).backend_tokenizer
        cache = KvCache(edge, spec.max_num_seqs, context, budget)
        self._slots = Slots(cache=cache, count=spec.max_num_seqs, budget=budget)
        self._session = Session(Path(model.path).expanduser(), edge, cache, threads_of(share))
        self._edge, self._context = edge, context
        self._cache = cache
        self._waiting: deque[list[Sequence]] = deque()
        self._forks: dict[str, list[Sequence]] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._hearers: dict[str, Hear] = {}
        self._stats = stats
        stats.max_model_len = context
        stats.start_s["load"] = time.monotonic() - began

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache has room for."""
        return self._slots.budget

    def waiting(self) -> tuple[int, int]:
        """Requests that have no token yet, and the tokens of their prompts."""
        lengths = [len(group[0].request.token_ids) for group in list(self._waiting)]
        lengths += [len(sequence.request.token_ids) for sequence in list(self._slots.held) if not sequence.is_read]
        return len(lengths), sum(lengths)

    def hear(self, request_id: str, hear: Hear) -> None:
        """Has someone told of each token of a request that is about to be added."""
        self._hearers[request_id] = hear

    def add(self, request: Request) -> None:
        """See `Stepper.add`."""
        try:
            check_request(request, self._edge, self._context, self._slots)
        except RequestRejected:
            self._hearers.pop(request.id, None)
            raise
        given = None
        if request.forced_from is not None:
            request, given = split(request)
        room = min(request.sampling.max_tokens, self._context - len(request.token_ids))
        reserved = len(request.token_ids) + room
        answers = [
            Answer(request, index, room, self._tokenizer, self._edge.end_ids) for index in range(request.sampling.n)
        ]
        if given is not None:
            answers[0].sampler = given
        self._answers[request.id] = answers
        self._waiting.append([Sequence(request=request, answer=answer, reserved=reserved) for answer in answers])

    def abort(self, request: Request) -> None:
        """See `Stepper.abort`."""
        self._forks.pop(request.id, None)
        self._hearers.pop(request.id, None)
        if self._answers.pop(request.id, None) is None:
            return
        self._waiting = deque(group for group in self._waiting if group[0].request.id != request.id)
        self._slots.leave(lambda sequence: sequence.request.id == request.id)

    def step(self) -> list[Outcome]:
        """See `Stepper.step`."""
        slots = self._slots
        if slots.num_read == len(slots.held):
            self._admit()
        if slots.num_read < len(slots.held):
            self._read()
            self._stats.steps += 1
        self._slots.leave(lambda sequence: sequence.answer.finish_reason is not None)
        if slots.num_read:
            self._write()
            self._stats.steps += 1
        self._slots.leave(lambda sequence: sequence.answer.finish_reason is not None)
        return self._outcomes()

    def has_work(self) -> bool:
        """See `Stepper.has_work`."""
        return bool(self._answers)

    def close(self) -> None:
        """See `Stepper.close`."""

    def _admit(self) -> None:
        """Seats the next prompts that fit: of about one length, or one alone that takes several steps."""
        tokens, longest, taken = 0, 0, 0
        while self._waiting:
            group = self._waiting[0]
            length = len(group[0].request.token_ids)
            forks = sum(len(others) for others in self._forks.values())
            reserved = sum(sequence.reserved for others in self._forks.values() for sequence in others)
            if not self._slots.has_room(len(group) + forks, sum(s.reserved for s in group) + reserved):
                break
            tokens, longest, taken = tokens + length, max(longest, length), taken + 1
            places = longest * taken
            if taken > 1 and (places > PREFILL_TOKENS or tokens < FULL_FRACTION * places):
                break
            self._waiting.popleft()
            self._slots.held.append(group[0])
            if len(group) > 1:
                self._forks[group[0].request.id] = group[1:]

    def _read(self) -> None:
        """Reads prompts: whole ones side by side, or the next part of one alone."""
        first = self._slots.num_read
        rows = self._slots.held[first:]
        begin = rows[0].length
        parts = [row.request.token_ids[begin : begin + PREFILL_TOKENS] for row in rows]
        sizes = np.array([len(part) for part in parts])
        tokens = np.zeros((len(rows), sizes.max()), np.int64)
        for place, part in zip(tokens, parts, strict=True):
            place[: len(part)] = part
        for slot in range(first, first + len(rows)):
            self._cache.note(slot, begin + int(sizes.max()))
        self._cache.trim([row.length for row in self._slots.held[:first]] + [begin + int(sizes.max())] * len(rows))
        logits = self._session.step(tokens, begin + sizes, sizes - 1, first)
        for row, size in zip(rows, sizes, strict=True):
            row.length += int(size)
        for row, scores in zip(rows, logits, strict=True):
            if not row.is_read:
                continue
            others = self._forks.pop(row.request.id, [])
            self._slots.fork(row, others)
            for sequence in (row, *others):
                self._take(sequence, scores, None)

    def _write(self) -> None:
        """Gives every sequence that is read its next token."""
        rows = self._slots.held[: self._slots.num_read]
        tokens = np.array([[row.answer.token_ids[-1]] for row in rows], np.int64)
        lengths = np.array([row.length + 1 for row in rows])
        for slot, length in enumerate(lengths):
            self._cache.note(slot, int(length))
        logits = self._session.step(tokens, lengths, np.zeros(len(rows), np.int64), 0)
        likeliest = logits.argmax(-1)
        for row, scores, token in zip(rows, logits, likeliest, strict=True):
            row.length += 1
            self._take(row, scores, int(token))

    def _take(self, sequence: Sequence, scores: np.ndarray, likeliest: int | None) -> None:
        answer = sequence.answer
        if likeliest is not None and answer.sampler.is_plain:
            answer.take(likeliest, None, [])
        else:
            answer.take(*answer.sampler.draw(scores))
        if hear := self._hearers.get(sequence.request.id):
            hear(answer)

    def _outcomes(self) -> list[Outcome]:
        """The requests all of whose answers have ended."""
        ended = [name for name, answers in self._answers.items() if all(answer.finish_reason for answer in answers)]
        outcomes: list[Outcome] = []
        for name in ended:
            answers = self._answers.pop(name)
            self._hearers.pop(name, None)
            prompt, given = answers[0].prompt_tokens, answers[0].sampler
            if isinstance(given, Given):
                tokens = prompt + len(given.places)
                outcomes.append(
                    Completion(request_id=name, samples=(), forced=tuple(given.places), prompt_tokens=tokens)
                )
                continue
            samples = tuple(answer.sample() for answer in answers)
            outcomes.append(Completion(request_id=name, samples=samples, prompt_tokens=prompt))
        return outcomes
