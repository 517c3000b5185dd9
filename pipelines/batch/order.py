"""The order in which a replica's rows go into its engine: rows of one prefix together, long answers in good time.

An engine keeps the KV cache of prefixes that it has seen until others push them out. So the rows that a replica holds,
those of several units, are taken in the order of their token ids: that is a walk through their prefix tree, depth
first, and a cache that forgets what was used the longest ago computes each prefix once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import pyarrow as pa

from conf.schema.batch import BatchJob, Order
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.protocol import Request
from serve.engine.roofline import BATCHED_TOKENS

if TYPE_CHECKING:
    from pipelines.batch.resume import Work

TOKEN_BYTES = 4
MAX_UNITS = 32
"""Units that a replica works on at a time, each in a thread."""
SLACK = 2
"""How much earlier than needed long answers go: what is expected of them is a limit, and others end before theirs."""

FIRST_STEPS = 16
"""Full steps' worth of prompts in an engine while units are still coming: enough to keep it busy until answers end."""

Owner = TypeVar("Owner")


@dataclass(kw_only=True, slots=True)  # not frozen: that costs more to make, for each row
class Waiting:
    """A request that no engine has got yet. Its tokens are 4 bytes each: a list of ints takes 36."""

    id: str
    tokens: bytes
    """int32, big-endian: bytes compare as the token ids do."""
    sampling: SamplingSpec
    split: int | None = None
    adapter: str | None = None

    def request(self) -> Request:
        """Returns what the engine gets."""
        return Request(
            id=self.id,
            token_ids=np.frombuffer(self.tokens, ">i4").tolist(),
            sampling=self.sampling,
            split=self.split,
            adapter=self.adapter,
        )


class Feed(Iterator[Request]):
    """Requests on their way into an engine: one after another, or each when somebody says that it is its turn."""

    def __init__(self, waiting: list[Waiting], on_begin: Callable[[Waiting], None]) -> None:
        """Args: the requests, and what is told of each just before the engine gets it."""
        self.waiting = waiting
        self._on_begin = on_begin
        self._rest = iter(waiting)

    def __next__(self) -> Request:
        return self.begin(next(self._rest))

    def begin(self, waiting: Waiting) -> Request:
        """Returns one for the engine, and notes that it begins."""
        self._on_begin(waiting)
        return waiting.request()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordering:
    """How a replica orders its rows."""

    by_prefix: bool
    """Rows go by their token ids; else as they come."""
    longest_first: bool
    """Long answers do not wait for the end."""
    num_seqs: int
    """Sequences that the engine computes at a time."""
    units: int
    """Units in the replica at a time."""
    next_units: int
    """Units that wait at the replica for one of them to end. None where it holds its whole share, for the replica that
    is ready first would take them from the others; but an elastic pool grows where units wait."""
    rows: int
    """Waiting rows that are ordered at a time."""
    spare_rows: int
    """Rows held back beside them. They bridge the time when the rows before have all been taken: then their units end
    at about the same time, and others come."""
    first_tokens: int | None = None
    """Prompt tokens that the engine may hold while units are still coming; null for no bound, see `Gathering`."""
    first_units: int = 0
    """So many are expected to come before any ends."""


def plan_order(job: BatchJob, work: Work, num_replicas: int) -> Ordering:
    """Decides how the replicas of a job order their rows, and how many rows they hold for it.

    Args:
        job: what is asked.
        work: what of it is to be done.
        num_replicas: at most.
    """
    engine, pending = job.engine, work.pending
    pending_rows = max(work.pending_rows, 1)
    unit_rows = -(-pending_rows // max(len(pending), 1))  # units of small files are small
    slots = engine.in_flight_rows
    # enough to keep the slots filled while the last rows of some end
    units, spare_rows, next_units = -(-slots // unit_rows) + 1, 0, 1
    is_auto = job.batch.order is Order.auto
    is_ordered = job.task is Task.generate if is_auto else job.batch.order is Order.prefix
    if is_ordered:
        share = pending_rows // num_replicas
        spare_rows = slots if job.batch.window_rows < share else 0
        held = min(job.batch.window_rows + spare_rows, share)
        if held > units * unit_rows:
            units = -(-held // unit_rows)
            next_units = int(held < share or units > MAX_UNITS or engine.is_elastic)
        else:
            spare_rows = 0
    units = min(units, MAX_UNITS)
    step = engine.vllm.get("max_num_batched_tokens")
    first_tokens = FIRST_STEPS * (step if isinstance(step, int) else BATCHED_TOKENS)
    by_prefix = is_ordered and engine.vllm.get("enable_prefix_caching") is not False
    return Ordering(
        by_prefix=by_prefix,
        longest_first=is_ordered,
        num_seqs=engine.max_num_seqs,
        units=units,
        next_units=next_units,
        rows=max(units * unit_rows - spare_rows, 1),
        spare_rows=spare_rows,
        first_tokens=first_tokens if by_prefix else None,
        first_units=min(units, -(-len(pending) // num_replicas)),
    )


@dataclass(slots=True, eq=False)
class _Entry(Generic[Owner]):
    """A row of a window; null where it was taken."""

    turn: tuple[Owner, Waiting] | None
    expected: int


_Place = tuple[str, bytes, int, _Entry[Owner]]
"""Adapter, tokens, the number of coming: entries are never compared."""


class Window(Generic[Owner]):
    """Whose turn it is, among the requests that a replica holds and its engine has not got yet.

    A cursor sweeps over the requests in their order. What comes and lies ahead of it joins this sweep, the rest the
    next one. Out of turn go answers that may take longer than all that waits: with ``total`` tokens of answers
    expected, and ``num_seqs`` sequences at a time, an answer of more than ``total / num_seqs`` tokens would end after
    all others.
    """

    def __init__(self, ordering: Ordering) -> None:
        """Args: how to order."""
        self._ordering = ordering
        self.clear()

    def clear(self) -> None:
        """Forgets all that waits."""
        self._sweep: list[_Place[Owner]] = []  # the last is the next one
        self._later: list[_Place[Owner]] = []
        self._cursor: tuple[str, bytes, int] = ("", b"", 0)
        self._held: deque[list[tuple[Owner, Waiting]]] = deque()
        self._num_held = self._num_ordered = self._number = self._total = 0
        self._by_length: dict[int, deque[_Entry[Owner]]] = {}
        self._was_long = False

    def __len__(self) -> int:
        return self._num_ordered + self._num_held

    def add(self, owner: Owner, waiting: Iterable[Waiting]) -> None:
        """Takes in requests.

        Args:
            owner: whose they are; it comes back with each.
            waiting: the requests.
        """
        turns = [(owner, one) for one in waiting]
        self._total += sum(_expected(one) for _, one in turns)
        self._num_held += len(turns)
        self._held.append(turns)

    def take(self) -> tuple[Owner, Waiting] | None:
        """Returns the owner and the request whose turn it is, and forgets them; null where none waits."""
        self._admit()
        # every other turn is the sweep's, so that it comes to its end whatever the others are
        entry = None if self._was_long else self._long()
        self._was_long = entry is not None
        if entry is None and (entry := self._next(pop=True)) is None:
            return None
        turn = entry.turn
        assert turn is not None
        entry.turn = None
        self._num_ordered -= 1
        self._total -= entry.expected
        if self._ordering.longest_first:
            alike = self._by_length[entry.expected.bit_length()]
            while alike and alike[0].turn is None:
                alike.popleft()
            if not alike:
                del self._by_length[entry.expected.bit_length()]
        return turn

    def _admit(self) -> None:
        """Lets those in that came first, as long as there is room and enough others are held back."""
        o = self._ordering
        while self._held:
            is_low = self._num_ordered <= o.spare_rows
            if not is_low and (self._num_ordered >= o.rows or self._num_held - len(self._held[0]) < o.spare_rows):
                return
            turns = self._held.popleft()
            self._num_held -= len(turns)
            self._num_ordered += len(turns)
            ahead = len(self._sweep)
            for owner, waiting in turns:
                self._number += 1
                entry = _Entry((owner, waiting), _expected(waiting))
                adapter, tokens = (waiting.adapter or "", waiting.tokens) if o.by_prefix else ("", b"")
                place = (adapter, tokens, self._number, entry)
                (self._sweep if place > self._cursor else self._later).append(place)
                if o.longest_first:
                    self._by_length.setdefault(entry.expected.bit_length(), deque()).append(entry)
            if len(self._sweep) > ahead:
                self._sweep.sort(reverse=True)

    def _next(self, pop: bool) -> _Entry[Owner] | None:
        while self._sweep or self._later:
            if not self._sweep:
                self._sweep, self._later = self._later, []
                self._sweep.sort(reverse=True)
            adapter, tokens, number, entry = self._sweep[-1]
            if entry.turn is None or pop:
                self._sweep.pop()
            if entry.turn is not None:
                if pop:
                    self._cursor = (adapter, tokens, number)
                return entry
        return None

    def _long(self) -> _Entry[Owner] | None:
        """An answer that must not wait; null where the sweep's own next one is about as long."""
        if len(self._by_length) < 2:
            return None
        length = max(self._by_length)
        entry = self._by_length[length][0]
        if SLACK * entry.expected * self._ordering.num_seqs < self._total:
            return None
        following = self._next(pop=False)
        return None if following is None or following.expected.bit_length() == length else entry


def _expected(waiting: Waiting) -> int:
    return waiting.sampling.max_tokens


def tokens_as_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Returns the token ids of each row as `Waiting` holds them; of a null, no bytes."""
    found: list[bytes] = []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy().astype("i8")
        values = chunk.values.to_numpy()[offsets[0] : offsets[-1]].astype(">i4").tobytes() if len(chunk) else b""
        places = ((offsets - offsets[0]) * 4).tolist() if len(chunk) else []
        found += [values[start:end] for start, end in pairwise(places)]
    return found
