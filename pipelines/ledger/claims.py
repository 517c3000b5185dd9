"""Who answers a request that many rows make: the first to ask runs it, the others get its outcome.

One process holds the claims of a job. What is answered lies in a database on disk (LMDB), so that memory does not grow
with the number of requests; only claims that are not answered yet are in memory.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import lmdb

FORGET_S = 15.0
"""A holder not heard of for so long is dead, and its claims are free."""
MAP_BYTES = 1 << 38
"""Address space of the database; its file is as large as what it holds."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """What became of claims."""

    known: dict[bytes, bytes] = field(default_factory=dict)
    """Encoded outcomes."""
    mine: list[bytes] = field(default_factory=list)
    """To be run by who asked."""
    others: list[bytes] = field(default_factory=list)
    """Being run by another: ask again."""


class Claims:
    """A plain class; `ray.remote` makes it an actor. Keys are 16 bytes."""

    def __init__(self, folder: str | None = None) -> None:
        """``folder`` is where the database is made; null is the machine's temporary folder."""
        made = tempfile.mkdtemp(prefix="manta-claims-", dir=folder)
        # scratch: it need not survive a crash, so nothing is synced
        self._database = lmdb.open(made, map_size=MAP_BYTES, sync=False, metasync=False, lock=False, readahead=False)
        # open, it needs no name; so nothing is left, however its process ends: on a cluster that stays, it is killed
        shutil.rmtree(made)
        self._pending: dict[bytes, str] = {}
        self._heard: dict[str, float] = {}

    def claim(self, holder: str, keys: list[bytes]) -> Answer:
        """Claims requests for a holder; those that nobody answered or is about to answer become its own.

        Args:
            holder: ``REPLICA/UNIT``: two units of one replica are two holders, which live and die together.
            keys: of the requests.
        """
        now = time.monotonic()
        self._heard[_replica(holder)] = now
        answer = Answer()
        with self._database.begin() as transaction, transaction.cursor() as cursor:
            answer.known = dict(cursor.getmulti(keys))
        for key in keys:
            if key in answer.known:
                continue
            owner = self._pending.get(key, holder)
            if owner == holder or now - self._heard.get(_replica(owner), -FORGET_S) > FORGET_S:
                self._pending[key] = holder
                answer.mine.append(key)
            else:
                answer.others.append(key)
        return answer

    def settle(self, holder: str, outcomes: list[tuple[bytes, bytes]]) -> None:
        """Takes encoded outcomes; those who asked for them get them when they ask again."""
        self.alive(_replica(holder))
        with self._database.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(outcomes, overwrite=False)
        for key, _ in outcomes:
            self._pending.pop(key, None)

    def alive(self, replica: str) -> None:
        """Hears of a replica."""
        self._heard[replica] = time.monotonic()

    def release(self, replica: str) -> None:
        """Frees the claims of a replica that ends."""
        self._heard.pop(replica, None)
        self._pending = {key: owner for key, owner in self._pending.items() if _replica(owner) != replica}

    def load(self, outcomes: Iterable[tuple[bytes, bytes]]) -> int:
        """Takes outcomes of a former run; returns how many there were."""
        count = 0
        batch: list[tuple[bytes, bytes]] = []
        for item in outcomes:
            batch.append(item)
            count += 1
            if len(batch) == 10_000:
                self.settle("", batch)
                batch = []
        self.settle("", batch)
        return count

    def close(self) -> None:
        """Ends the database."""
        self._database.close()


def _replica(holder: str) -> str:
    return holder.partition("/")[0]
