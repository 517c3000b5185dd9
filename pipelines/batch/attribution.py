"""Where the engines' time went: from the moment the cluster is ready to the job's end, each second has one cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipelines.batch.timeline import Life, Timeline


class Cause(Enum):
    """What an engine's second went to. Together they are the number of engines times the job's length.

    An engine counts as full from half of its slots on, and below that in part (`timeline.fill_fraction`): with a
    quarter of its slots filled half of a second is `computing`, the other half `starved` or `tail`. What parts these
    two is the moment at which the last rows of the input were handed to an engine, any engine: before it an empty slot
    could have been filled, after it there was nothing to fill it with. An engine that hangs holds rows, so it counts
    as computing until it is ended.
    """

    start_up = "start_up"
    """From the cluster to the first model that was loaded in this place: process, imports, weights."""
    computing = "computing"
    """The engine held rows enough."""
    starved = "starved"
    """The engine was ready, input remained, and it held fewer rows than it could compute."""
    tail = "tail"
    """The same, when all input was handed out: stragglers, and waiting for the other engines to end."""
    retries = "retries"
    """From an engine's death until its successor was ready, and running suspects of a death one by one. Rows that were
    in the dead engine, and are computed again, count as computing both times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The seconds of one engine's place; or, added up, of all."""

    replicas: tuple[str, ...]
    """Who was in this place, one after another."""
    seconds: dict[Cause, float]
    """All causes."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.seconds.values())

    def fraction(self, cause: Cause) -> float:
        """Returns a cause's part of it; 0 of nothing."""
        return self.seconds[cause] / self.total_s if self.total_s else 0.0


def attribute(timeline: Timeline) -> list[Share]:
    """Parts the time of each engine's place, whoever was in it.

    Args:
        timeline: of a job that has ended; see `Timeline.close`.

    Returns:
        One for each engine that began; each adds up to `Timeline.wall_s`. A place in which no engine became ready
        was starting up all the time.
    """
    fed_s = max((life.fed_s for life in timeline.lives.values() if life.fed_s is not None), default=0.0)
    places = _places(timeline)
    places += [[] for _ in range(timeline.num_begun - len(places))]
    return [_share(lives, timeline.wall_s, fed_s) for lives in places]


def total(shares: Iterable[Share]) -> Share:
    """Adds shares up."""
    seconds = dict.fromkeys(Cause, 0.0)
    replicas: list[str] = []
    for share in shares:
        replicas += share.replicas
        for cause in Cause:
            seconds[cause] += share.seconds[cause]
    return Share(replicas=tuple(replicas), seconds=seconds)


def _places(timeline: Timeline) -> list[list[Life]]:
    """Puts each replica into the place of the one that it stands in for; the first ones have a place of their own."""
    places: list[list[Life]] = []
    for life in sorted(timeline.lives.values(), key=lambda life: life.ready_s):
        vacant = [lives for lives in places if (end := lives[-1].ended_s) is not None and end <= life.began_s]
        if not vacant and len(places) < timeline.num_replicas:
            places.append([life])
        else:  # where nobody is known to be dead, somebody is: who has been silent the longest
            min(vacant or places, key=lambda lives: lives[-1].last.at_s).append(life)
    return places


def _share(lives: list[Life], wall_s: float, fed_s: float) -> Share:
    seconds = dict.fromkeys(Cause, 0.0)
    now_s = 0.0
    for number, life in enumerate(lives):
        ready_s = min(max(life.ready_s, now_s), wall_s)
        seconds[Cause.retries if number else Cause.start_up] += ready_s - now_s
        ends = [wall_s, *([] if life.ended_s is None else [life.ended_s])]
        ends += [later.began_s for later in lives[number + 1 :]]  # where its death was not heard of
        end_s = max(min(ends), ready_s)
        cut_s = min(max(fed_s, ready_s), end_s)
        for cause, begin_s, until_s in ((Cause.starved, ready_s, cut_s), (Cause.tail, cut_s, end_s)):
            _, _, filled, alone = (b - a for a, b in zip(life.series.at(begin_s), life.series.at(until_s), strict=True))
            seconds[Cause.computing] += filled
            seconds[Cause.retries] += alone
            seconds[cause] += max(until_s - begin_s - filled - alone, 0.0)
        now_s = end_s
    seconds[Cause.retries if lives else Cause.start_up] += wall_s - now_s
    return Share(replicas=tuple(life.replica for life in lives), seconds=seconds)


def plain_shares(shares: list[Share]) -> dict[str, Any]:
    """Returns the shares, and what they add up to, as what JSON can hold."""
    return _plain(total(shares)) | {"replicas": [_plain(s) | {"replicas": list(s.replicas)} for s in shares]}


def _plain(share: Share) -> dict[str, Any]:
    return {
        "seconds": {cause.value: round(share.seconds[cause], 3) for cause in Cause},
        "fractions": {cause.value: round(share.fraction(cause), 4) for cause in Cause},
    }


def in_words(share: Share) -> str:
    """Returns a share's causes in a line, the largest first, those below a half per cent left out."""
    parts = sorted(Cause, key=lambda cause: -share.seconds[cause])
    shown = (f"{share.fraction(cause):.0%} {cause.value.replace('_', '-')}" for cause in parts)
    return ", ".join(words.replace("%", " %") for words in shown if not words.startswith("0%"))
