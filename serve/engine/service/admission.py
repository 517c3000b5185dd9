"""How many rows of a job may be at a service, so that they fill what its interactive requests leave free.

Like TCP's window: it doubles until the service was found full, grows by one a look above half of that, and shrinks at
once. What is found full is remembered and kept away from for a while, so that an interactive request finds a free place
and need not wait until one is taken back.

Where a token may take so long and no longer, the window follows what tokens take: a step has a fixed time and some for
each row, so ``window * limit / time`` comes near to the limit from either side and does not cross it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from conf.schema.service import AdmissionSpec
from serve.engine.speed import Unbegun

CUT = 0.5
"""What is left of the rows after a look that found the KV cache above its limit; the least after one of slow tokens."""
STUCK_LOOKS = 2
"""After so many looks at which rows wait and no more run than before, the service is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One look at the service."""

    at_s: float
    """When it was made, on a clock that never goes back."""
    replicas: int
    running: int
    """Requests that engines compute, this job's included."""
    waiting: int
    """Requests that wait in engines, this job's included."""
    kv_fraction: float
    """Of the fullest KV cache."""
    interactive: int
    """Requests that somebody waits for."""
    own: int
    """Requests of this job."""
    deferrable: int = 0
    """Requests that nobody waits for, of whichever job."""
    unbegun: Unbegun | None = None
    """Requests in engines whose first token has not come, by whose turn it is; null where that is not known."""
    first_wait_s: float = 0.0
    """How long the interactive stream has waited that has waited longest for its first token."""
    step_s: float | None = None
    """Seconds from one token to the next; null where none came."""

    @property
    def others_waiting(self) -> int:
        """Requests that wait in engines and that somebody waits for: those that can be no others.

        What waits in an engine has no first token, and neither has what the engine reads at the moment. So where that
        is told by whose turn it is, at most as many are missed as rows are being read.
        """
        if self.unbegun is None:
            return max(0, self.waiting - max(self.own, self.deferrable))
        return min(self.unbegun.interactive, max(0, self.waiting - self.unbegun.batch))

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token of an interactive request, as far as they can be foretold: what one has waited
        already, a step for each request that waits before it in its replica, and its own.
        """
        return self.first_wait_s + (self.step_s or 0.0) * (1 + self.others_waiting / max(self.replicas, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """What is remembered between two looks."""

    window: float = 0.0
    """Rows that may be at the service."""
    ceiling: float = math.inf
    """Requests of all kinds that it computed when it was found full."""
    found_s: float = -math.inf
    """When that was."""
    turn: float = math.inf
    """Up to here the window doubles."""
    cut_s: float = -math.inf
    """When an interactive request last had to wait."""
    stuck: int = 0
    """Looks in a row at which rows waited and no more ran than before."""
    running: int = 0
    """Of the last look."""
    interactive: int = 0
    """Of the last look."""
    seen_s: float = -math.inf
    """When that was."""
    is_blind: bool = False
    """Nothing new is known: no row may go, not even for one that has ended."""
    is_urgent: bool = False
    """An interactive request waits: rows that are at the service should be taken back."""

    @property
    def size(self) -> int:
        """Rows that may be at the service."""
        return 0 if self.is_blind else int(self.window)


def admit(admission: Admission, seen: Observation | None, spec: AdmissionSpec, now: float) -> tuple[int, Admission]:
    """Decides how many more rows may go to the service.

    Args:
        admission: what `admit` returned before.
        seen: the latest look; null where there was none. A look that was judged already changes nothing.
        spec: the limits.
        now: seconds, on the looks' clock.

    Returns:
        How many more, and what is to be remembered: its `Admission.size` holds until the next look.
    """
    if seen is None or now - seen.at_s > spec.stale_s:
        return 0, replace(admission, is_blind=True, is_urgent=False)
    admission = replace(admission, is_blind=False)
    if seen.at_s > admission.seen_s:
        admission = replace(
            _judged(admission, seen, spec),
            running=seen.running,
            interactive=seen.interactive,
            seen_s=seen.at_s,
        )
    return max(0, admission.size - seen.own), admission


def turned_away(admission: Admission, own: int, now: float) -> Admission:
    """Returns what is to be remembered when the service has turned a row away, which it may do to others as well.

    Args:
        admission: what `admit` returned before.
        own: rows that were at the service, with this one.
        now: seconds, on the looks' clock.
    """
    window = min(admission.window, own * CUT)
    ceiling = min(admission.ceiling, float(own + admission.interactive))
    return replace(admission, window=window, turn=max(1.0, window), ceiling=ceiling, found_s=now)


def _judged(admission: Admission, seen: Observation, spec: AdmissionSpec) -> Admission:
    a, at = replace(admission, is_urgent=False), seen.at_s
    if at - a.found_s >= spec.probe_s:
        a = replace(a, ceiling=math.inf)
    is_late = spec.max_ttft_ms is not None and seen.ttft_s * 1000 > spec.max_ttft_ms
    if seen.interactive and (seen.others_waiting or is_late):
        return replace(a, window=0.0, turn=max(1.0, seen.own * CUT), cut_s=at, stuck=0, is_urgent=True)
    if at - a.cut_s < spec.cooldown_s:
        return replace(a, window=0.0, stuck=0)
    pace = _pace(seen, spec)
    left = CUT if seen.kv_fraction > spec.max_kv_fraction else max(CUT, pace or 1.0)
    if left < 1:
        window = min(a.window, seen.own * left)  # rows outlive a look: what was taken away may still be there
        return replace(a, window=window, turn=max(1.0, window), stuck=0)
    # who is asked for by a person takes the place of a row
    window = max(0.0, a.window - max(0, seen.interactive - a.interactive))
    if seen.waiting:
        # prompts that are read one after another wait as well, but then more and more run
        a = replace(a, stuck=a.stuck + 1 if seen.running <= a.running else 0)
        if a.stuck >= STUCK_LOOKS:
            window = min(window, max(1.0, float(seen.own - seen.waiting)))
            ceiling = min(a.ceiling, float(max(seen.running, 1)))
            a = replace(a, ceiling=ceiling, found_s=at, turn=max(1.0, window * CUT))
        return replace(a, window=min(window, max(1.0, float(seen.own))))
    if seen.own >= int(window) - 1:  # what is not used says nothing about room
        window = max(window + 1, min(window * 2, a.turn)) if pace is None else max(1.0, window * min(pace, 2.0))
    room = a.ceiling * (1 - spec.headroom_fraction) - seen.interactive
    return replace(a, window=min(window, max(1.0, room)), stuck=0)  # one row does no harm, and finds out


def _pace(seen: Observation, spec: AdmissionSpec) -> float | None:
    """How many times as long a token might take as it does; null where nobody waits for it, or it may take any time."""
    if spec.max_tpot_ms is None or not seen.step_s or not seen.interactive:
        return None
    return spec.max_tpot_ms / (seen.step_s * 1000)
