"""Finds the nearest of the vectors that are kept. Nothing here waits, or knows what the vectors stand for."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""Of shape (dims,), length 1: a product of two is their cosine."""


class Index:
    """Vectors with names, in groups that never meet. The least recently used vector goes first, in whatever group."""

    def __init__(self, max_entries: int) -> None:
        """Takes how many vectors are kept in all."""
        self._max_entries = max_entries
        self._groups: dict[str, _Group] = {}
        self._used: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._num_dims = 0

    def __len__(self) -> int:
        """Vectors that are kept."""
        return len(self._used)

    @property
    def num_bytes(self) -> int:
        """Memory of the vectors, with the room that groups hold to grow."""
        return sum(group.rows.nbytes for group in self._groups.values())

    def add(self, group: str, name: str, vector: Vector) -> None:
        """Keeps a vector in place of the group's former one of this name.

        One with other dimensions than those before is another embedding model's: the old ones go.
        """
        if len(vector) != self._num_dims:
            self._groups.clear()
            self._used.clear()
            self._num_dims = len(vector)
        self._groups.setdefault(group, _Group(self._num_dims)).put(name, vector)
        self.use(group, name)
        while len(self._used) > self._max_entries:
            self.remove(*next(iter(self._used)))

    def near(self, group: str, vector: Vector, threshold: float, limit: int = 1) -> list[tuple[str, float]]:
        """Returns names and cosines of the group's nearest vectors, the nearest first.

        Args:
            group: where to look.
            vector: what they shall be near to.
            threshold: the cosine that each has at least.
            limit: how many are wanted at most.
        """
        found = self._groups.get(group)
        if found is None or len(vector) != self._num_dims:
            return []
        cosines = (found.rows[: len(found.names)] @ vector).astype(np.float64)  # else the threshold is rounded, too
        close = np.flatnonzero(cosines >= threshold)
        order = close[np.argsort(-cosines[close], kind="stable")][:limit]
        return [(found.names[at], float(cosines[at])) for at in order]

    def use(self, group: str, name: str) -> None:
        """Makes a vector the last to go."""
        self._used[group, name] = None
        self._used.move_to_end((group, name))

    def remove(self, group: str, name: str) -> None:
        """Forgets a vector, if it is there."""
        if (group, name) in self._used:
            del self._used[group, name]
            self._groups[group].take(name)
            if not self._groups[group].names:
                del self._groups[group]


class _Group:
    """The first rows of a matrix that doubles, or halves when three quarters are free."""

    def __init__(self, num_dims: int) -> None:
        self.rows = np.empty((1, num_dims), np.float32)
        self.names: list[str] = []
        self._at: dict[str, int] = {}

    def put(self, name: str, vector: Vector) -> None:
        at = self._at.get(name)
        if at is None:
            at = self._at[name] = len(self.names)
            self.names.append(name)
            if at == len(self.rows):
                self._resize(2 * at)
        self.rows[at] = vector

    def take(self, name: str) -> None:
        """The last row moves to where the one that goes was."""
        at, last = self._at.pop(name), self.names.pop()
        if last != name:
            self.names[at], self._at[last] = last, at
            self.rows[at] = self.rows[len(self.names)]
        if 4 * len(self.names) <= len(self.rows) > 1:
            self._resize(len(self.rows) // 2)

    def _resize(self, num_rows: int) -> None:
        rows = np.empty((num_rows, self.rows.shape[1]), np.float32)
        num_kept = min(len(self.names), len(self.rows))
        rows[:num_kept] = self.rows[:num_kept]
        self.rows = rows
