"""Engines that compute in steps, as vLLM does, and what several of them need for a job in Manta's order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from conf.schema.sampling import SamplingSpec
from pipelines.batch.order import Ordering, Waiting, Window

STEP_S, TOKEN_S = 0.012, 30e-6
"""About an 8 B model's on one H200: a step takes the longer of the two, its tokens being counted."""


@dataclass
class Replica:
    """An engine with a window before it."""

    window: Window[int]
    time_s: float
    left: dict[int, int] = field(default_factory=dict)
    """Rows of its units that have not ended."""
    queue: deque[list[int]] = field(default_factory=deque)
    running: list[list[int]] = field(default_factory=list)
    """[unit, tokens in, tokens out that are left]."""

    def step(self, num_seqs: int, step_tokens: int) -> None:
        """Computes a step: a token of each answer, and prompts within the budget."""
        tokens = len(self.running)
        while self.queue and len(self.running) < num_seqs and tokens + self.queue[0][1] <= step_tokens:
            tokens += self.queue[0][1]
            self.running.append(self.queue.popleft())
        self.time_s += max(STEP_S, tokens * TOKEN_S)
        for row in self.running:
            row[2] -= 1
            if not row[2]:
                self.left[row[0]] -= 1
                if not self.left[row[0]]:
                    del self.left[row[0]]
        self.running = [row for row in self.running if row[2]]


def job_s(rows: list[tuple[int, int]], unit_rows: int, ordering: Ordering, late_s: list[float]) -> float:
    """Returns when the last of a job's rows ends.

    Args:
        rows: tokens in and out of each.
        unit_rows: rows of a unit; a replica takes the next as soon as it may hold one more.
        ordering: how each replica orders its rows.
        late_s: when each replica is ready.
    """
    units = deque(range(0, len(rows), unit_rows))
    replicas = [Replica(window=Window(ordering), time_s=late) for late in late_s]
    busy = list(replicas)
    while busy:
        replica = min(busy, key=lambda one: one.time_s)
        while units and len(replica.left) < ordering.units + ordering.next_units:
            start = units.popleft()
            own = range(start, min(start + unit_rows, len(rows)))
            replica.left[start] = len(own)
            replica.window.add(start, [_waiting(n, rows[n][1]) for n in own])
        while len(replica.queue) + len(replica.running) < 2 * ordering.num_seqs:
            if (turn := replica.window.take()) is None:
                break
            replica.queue.append([turn[0], *rows[int(turn[1].id)]])
        if replica.queue or replica.running:
            replica.step(ordering.num_seqs, 16 * ordering.num_seqs)
        else:
            busy.remove(replica)
    return max(replica.time_s for replica in replicas)


def _waiting(number: int, max_tokens: int) -> Waiting:
    tokens = (number * 2_654_435_761 % 2**32).to_bytes(4, "big")  # in no order
    return Waiting(id=str(number), tokens=tokens, sampling=SamplingSpec(max_tokens=max_tokens))
