"""What a key uses in the other replicas of a service, so that its limits are the service's and not each replica's.

Every replica writes what it has counted to a board that all of them read, a few times a second. A decision waits for
nobody: it is taken from what the board said last. So a key may get, beyond its limit, what other replicas have let in
since; and where the board cannot be read for a minute each replica counts alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from serve.middleware.limiter import WINDOW_S, Account

PERIOD_S = 0.25
"""Between two looks at the board."""
SHARE_S = 0.01
"""With many replicas each looks less often: the board is one process, and a look costs it a fraction of 1 ms."""
SILENT_S = 5.0
"""A replica that has said nothing new for so long has no requests open. What it spent counts for its minute."""
_log = logging.getLogger(__name__)


class Use(msgspec.Struct, array_like=True, frozen=True):
    """What one replica has counted of a key."""

    requests: int
    tokens: int
    num_open: int
    requests_s: int
    """Seconds until some of the requests count no more."""
    tokens_s: int


class Post(msgspec.Struct, array_like=True, frozen=True):
    """What one replica writes."""

    number: int
    """Of its posts, so that readers see that it lives; clocks of two hosts differ."""
    uses: dict[str, Use]
    """By the keys' ids."""


class Board(Protocol):
    """What all replicas of a service can read. Its methods may block, and raise anything."""

    def swap(self, name: str, post: bytes) -> Mapping[str, bytes]:
        """Writes this replica's post; returns the others'."""
        ...

    def drop(self, name: str) -> None:
        """Takes away the post of a replica that is gone."""
        ...


_decoder = msgspec.msgpack.Decoder(Post)


class Others:
    """Puts into a replica's accounts what the other replicas have told. For one event loop."""

    def __init__(self, name: str, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: this replica's name; where all write; seconds that never go back."""
        self._name, self._board, self._clock = name, board, clock
        self._number = 0
        self._seen: dict[str, tuple[Post, float]] = {}
        """By replica: its last post, and when it came."""
        self._heard_s = clock()
        self._task: asyncio.Task[None] | None = None

    def follow(self, accounts: dict[str, Account]) -> None:
        """Begins to look at the board, once; what is found is in the accounts from then on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(accounts))

    async def _follow(self, accounts: dict[str, Account]) -> None:
        while True:
            await self.look(accounts)
            await asyncio.sleep(max(PERIOD_S, SHARE_S * (1 + len(self._seen))))

    async def look(self, accounts: dict[str, Account]) -> None:
        """Writes what these accounts have counted, and reads what others have."""
        self._number += 1
        mine = msgspec.msgpack.encode(Post(self._number, uses_of(accounts, self._clock())))
        try:
            found = await asyncio.to_thread(self._board.swap, self._name, mine)
            posts = {name: _decoder.decode(raw) for name, raw in found.items() if name != self._name}
        except Exception as error:  # whatever is wrong with it, requests go on
            if self._clock() - self._heard_s > WINDOW_S and self._seen:
                _log.warning("other replicas' counts cannot be read: %s; limits hold here alone", type(error).__name__)
                self._seen.clear()
                tell(accounts, {})
            return
        now = self._heard_s = self._clock()
        for name, post in posts.items():
            if name not in self._seen or self._seen[name][0].number != post.number:
                self._seen[name] = post, now
        for name in [name for name, (_, at) in self._seen.items() if name not in posts or now - at > WINDOW_S + 1]:
            del self._seen[name]
            if name in posts:
                await asyncio.to_thread(self._board.drop, name)
        tell(accounts, merged((post, now - at) for post, at in self._seen.values()))


def uses_of(accounts: Mapping[str, Account], now: float) -> dict[str, Use]:
    """Returns what accounts have counted, without those that have nothing."""
    found = {}
    for key, account in accounts.items():
        requests, tokens = account.requests, account.tokens
        use = Use(requests.spent(now), tokens.spent(now), account.num_open, requests.next_s(now), tokens.next_s(now))
        if use.requests or use.tokens or use.num_open:
            found[key] = use
    return found


def merged(posts: Iterable[tuple[Post, float]]) -> dict[str, Use]:
    """Returns what other replicas use together, by key.

    Args:
        posts: what each has written, and how many seconds ago it came.
    """
    found: dict[str, Use] = {}
    for post, age_s in posts:
        for key, use in post.uses.items():
            so_far = found.get(key, Use(0, 0, 0, WINDOW_S + 1, WINDOW_S + 1))
            found[key] = Use(
                so_far.requests + use.requests,
                so_far.tokens + use.tokens,
                so_far.num_open + (use.num_open if age_s < SILENT_S else 0),
                min(so_far.requests_s, max(1, use.requests_s - int(age_s))),
                min(so_far.tokens_s, max(1, use.tokens_s - int(age_s))),
            )
    return found


def tell(accounts: dict[str, Account], uses: Mapping[str, Use]) -> None:
    """Puts into accounts what other replicas use; keys that only they know get an account."""
    for key in accounts.keys() - uses.keys():
        accounts[key].requests.elsewhere = accounts[key].tokens.elsewhere = accounts[key].open_elsewhere = 0
    for key, use in uses.items():
        account = accounts.setdefault(key, Account())
        account.requests.elsewhere, account.requests.elsewhere_s = use.requests, use.requests_s
        account.tokens.elsewhere, account.tokens.elsewhere_s = use.tokens, use.tokens_s
        account.open_elsewhere = use.num_open
