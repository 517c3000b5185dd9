"""How much a key may still use. Pure: time is an argument.

The `limits` package was looked at and not taken: its exact strategy stores an entry for each token, its compact one is
approximate, none can give back what was reserved and not used, and its clock cannot be set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from serve.keys import Limits

WINDOW_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Why a request is refused for now."""

    reason: str
    """For a person, as in ``rate limit of 60 requests/min reached``."""
    seconds: int | None
    """After which it can succeed; null is never, as what it asks exceeds the limit alone."""


@dataclass(kw_only=True, slots=True)
class Window:
    """What was spent in the last minute, summed by the second: 61 numbers at most, whatever the load.

    A second counts until a minute after its end, so that no 60 s ever hold more than the limit.
    """

    seconds: dict[int, int] = field(default_factory=dict)
    """Amount by second, oldest first."""
    total: int = 0
    elsewhere: int = 0
    """What other replicas have told of their last minute."""
    elsewhere_s: int = 1
    """Seconds until some of that counts no more."""

    def spent(self, now: float) -> int:
        """Returns what was spent here and counts at ``now``, in seconds of a clock that never goes back."""
        oldest = math.floor(now) - WINDOW_S
        while self.seconds and (first := next(iter(self.seconds))) < oldest:
            self.total -= self.seconds.pop(first)
        return self.total

    def spend(self, amount: int, now: float) -> int:
        """Adds an amount; returns the second to which it was added."""
        self.spent(now)
        second = math.floor(now)
        self.seconds[second] = self.seconds.get(second, 0) + amount
        self.total += amount
        return second

    def give_back(self, amount: int, second: int) -> None:
        """Takes an amount out of the second to which it was added, where that still counts."""
        if second in self.seconds:
            self.seconds[second] -= amount
            self.total -= amount

    def wait_s(self, amount: int, limit: int, now: float) -> int | None:
        """Returns in how many whole seconds ``amount`` more fits, as far as is known: 0 is now, null never."""
        if amount > limit:
            return None
        excess = self.spent(now) + self.elsewhere + amount - limit
        if excess <= 0:
            return 0
        soonest = self.elsewhere_s if self.elsewhere else WINDOW_S + 1
        for second, spent in self.seconds.items():
            excess -= spent
            if excess <= 0:
                return max(1, min(soonest, math.ceil(second + WINDOW_S + 1 - now)))
        return max(1, soonest)

    def next_s(self, now: float) -> int:
        """Returns in how many seconds some of what was spent here counts no more; a minute where nothing was."""
        self.spent(now)
        return max(1, math.ceil(next(iter(self.seconds), now) + WINDOW_S + 1 - now))


@dataclass(kw_only=True, slots=True)
class Account:
    """What one key uses: counted here, and what other replicas have told."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    num_open: int = 0
    open_elsewhere: int = 0

    def enter(self, limits: Limits, now: float) -> Ticket | Wait:
        """Begins a request, or says why not; one that is refused costs nothing."""
        if limits.max_concurrent is not None and self.num_open + self.open_elsewhere >= limits.max_concurrent:
            return Wait(reason=f"limit of {limits.max_concurrent} requests at once reached", seconds=1)
        if limits.requests_per_min is not None and (wait := self.requests.wait_s(1, limits.requests_per_min, now)):
            return Wait(reason=f"rate limit of {limits.requests_per_min} requests/min reached", seconds=wait)
        self.num_open += 1
        return Ticket(account=self, limits=limits, second=self.requests.spend(1, now))

    def headers(self, limits: Limits, now: float) -> list[tuple[str, str]]:
        """Returns OpenAI's ``x-ratelimit-*`` headers, of the limits that there are."""
        windows = (("requests", limits.requests_per_min, self.requests), ("tokens", limits.tokens_per_min, self.tokens))
        return [header for name, limit, window in windows for header in _headers(name, limit, window, now)]


@dataclass(kw_only=True, slots=True)
class Ticket:
    """One request that is under way."""

    account: Account
    limits: Limits
    second: int
    """In which it began."""
    tokens: int | None = None
    """That are reserved for it; null before."""
    tokens_second: int = 0

    def reserve(self, tokens: int, now: float) -> Wait | None:
        """Sets tokens aside, or says why not; then the request counts as never sent."""
        limit = self.limits.tokens_per_min
        if limit is not None and (wait := self.account.tokens.wait_s(tokens, limit, now)) != 0:
            self.account.requests.give_back(1, self.second)
            asked = f"; this request may use {tokens}" if wait is None else ""
            return Wait(reason=f"rate limit of {limit} tokens/min reached{asked}", seconds=wait)
        self.tokens, self.tokens_second = tokens, self.account.tokens.spend(tokens, now)
        return None

    def close(self, used: int | None, now: float) -> None:
        """Ends the request: what it used replaces what was reserved.

        Args:
            used: tokens; null is unknown, and leaves the reservation.
            now: seconds.
        """
        self.account.num_open -= 1
        if self.tokens is None or used is None:
            return
        if used < self.tokens:
            self.account.tokens.give_back(self.tokens - used, self.tokens_second)
        else:
            self.account.tokens.spend(used - self.tokens, now)


def _headers(name: str, limit: int | None, window: Window, now: float) -> list[tuple[str, str]]:
    if limit is None:
        return []
    left = max(0, limit - window.spent(now) - window.elsewhere)
    last = next(reversed(window.seconds), None)
    reset = 0 if last is None else math.ceil(last + WINDOW_S + 1 - now)
    reset = max(reset, window.elsewhere_s if window.elsewhere else 0)
    return [
        (f"x-ratelimit-limit-{name}", str(limit)),
        (f"x-ratelimit-remaining-{name}", str(left)),
        (f"x-ratelimit-reset-{name}", f"{reset}s"),
    ]
