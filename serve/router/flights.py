"""What a router knows of the requests that it sent, and of those that others sent to the same replicas. Pure."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from serve.router.blocks import prompt_of
from serve.router.router import Choice, Flight, Router

ANSWER_TOKENS = 128
"""Expected of an answer, where the request does not ask for fewer: its length is not known beforehand."""
CONFIRM_S = 2.0
"""A replica says within this that a request has come; else it never does: the client left, or another took it."""


class Moment(IntEnum):
    """What a replica tells of a request."""

    began = 0
    first_token = 1
    ended = 2


class Event(NamedTuple):
    """What happened to a request in a replica."""

    moment: Moment
    flight: str
    """The name that `Flights.send` gave it, or one that no router gave."""
    tokens: int = 0
    """Of the prompt, as far as the replica knows; only ``began`` needs it."""


class Sent(NamedTuple):
    """Where a request goes."""

    replica_id: str
    flight: str
    """Its name, which the replica repeats in its events."""


class Flights:
    """A router, its requests on their way under names, and what the replicas tell of them. Not for several threads."""

    def __init__(self, router: Router, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without requests.

        Args:
            router: decides and counts.
            name: of this router among those of the service.
            clock: seconds, never going back.
        """
        self._router = router
        self._name = name
        self._clock = clock
        self._flights: OrderedDict[str, Flight] = OrderedDict()
        self._unconfirmed: OrderedDict[str, tuple[float, str | None]] = OrderedDict()
        self._asking: dict[str, str] = {}  # requests' ids -> unconfirmed flights
        self._num_sent = 0

    def __len__(self) -> int:
        """Requests on their way, as far as is known."""
        return len(self._flights)

    def send(self, body: bytes, session: str | None = None, request_id: str | None = None) -> Sent | None:
        """Chooses a replica for a request and counts it there; null where no replica takes requests.

        A request that is asked for again before a replica has told of it was not sent: HAProxy did not know the replica
        and asks anew. It is not counted twice, or new replicas would seem busy with what old ones got.

        Args:
            body: of the request; one that is no JSON, or not all of it, counts as the prompt's text.
            session: names a conversation.
            request_id: of the request. Where a client gives it to several at once, they are counted as they come.
        """
        self._forget()
        if request_id is not None and (lost := self._asking.get(request_id)) is not None:
            self._end(lost)
        prompt, answer_tokens = asked(body)
        choice = self._router.choose(prompt, answer_tokens, session)
        if choice.replica_id is None:
            return None
        self._num_sent += 1
        sent = Sent(choice.replica_id, f"{self._name}.{self._num_sent}")
        self._flights[sent.flight] = self._router.began(sent.replica_id, choice)
        self._unconfirmed[sent.flight] = self._clock(), request_id
        if request_id is not None:
            self._asking[request_id] = sent.flight
        return sent

    def hear(self, replica_id: str, events: Iterable[tuple[int, str, int]]) -> None:
        """A replica tells what happened. What is not known any more, or twice, is no mistake."""
        for moment, name, tokens in events:
            flight = self._flights.get(name)
            if moment == Moment.began:
                self._confirm(name)
                if flight is None or flight.replica.id != replica_id:  # another router's, or another replica took it
                    self._end(name)
                    self._begin_foreign(replica_id, name, tokens)
            elif flight is None or flight.replica.id != replica_id:
                continue
            elif moment == Moment.first_token:
                self._router.first_token(flight)
            else:
                self._end(name)
        self._forget()

    def _begin_foreign(self, replica_id: str, name: str, tokens: int) -> None:
        unknown = Choice(None, max(1, tokens), ANSWER_TOKENS, {}, None, [], iter(()))
        try:
            self._flights[name] = self._router.began(replica_id, unknown)
        except KeyError:  # the replica has gone, or is so new that it is not known here
            return

    def _confirm(self, name: str) -> None:
        _, request_id = self._unconfirmed.pop(name, (0.0, None))
        if request_id is not None and self._asking.get(request_id) == name:
            del self._asking[request_id]

    def _end(self, name: str) -> None:
        self._confirm(name)
        flight = self._flights.pop(name, None)
        if flight is not None:
            self._router.ended(flight)

    def _forget(self) -> None:
        before = self._clock() - CONFIRM_S
        while self._unconfirmed:
            name, (sent_s, _) = next(iter(self._unconfirmed.items()))
            if sent_s > before:
                break
            self._end(name)
        # the router has given up those that no end was heard of
        while self._flights and (oldest := next(iter(self._flights.items())))[1].is_ended:
            del self._flights[oldest[0]]


def asked(body: bytes) -> tuple[bytes | Sequence[int], int]:
    """Returns a request's prompt, and how many tokens its answer may have, `ANSWER_TOKENS` at most."""
    try:
        request: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        request = None
    if not isinstance(request, dict):
        return body, ANSWER_TOKENS
    limits = (request.get("max_completion_tokens"), request.get("max_tokens"), request.get("max_output_tokens"))
    given = [limit for limit in limits if type(limit) is int and limit >= 0]
    return prompt_of(request), min([ANSWER_TOKENS, *given])
